"""The sum of cross-entropies over pixels, computed together with its gradient."""

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from deconvnet.models.fused.checks import check_class_ids
from deconvnet.models.fused.gpu.blocks import ELEMENTS, channels_last, power_of_2


def cross_entropy(scores: Tensor, targets: Tensor, ignored: int, factor: float) -> Tensor:
    """Compute the sum of the cross-entropies of all pixels, times a factor.

    Args:
        scores: scores before softmax, of shape (N, C, H, W) on a GPU, of bfloat16 or float32.
        targets: class ids below C, or `ignored`: int64 tensor of shape (N, H, W).
        ignored: class id of pixels that don't count.
        factor: the factor.

    Returns:
        float32 tensor of shape (). It is NaN if there is another class id: an error would have to wait for the GPU.

    Raises:
        ValueError: if shape or dtype of the class ids is wrong.
    """
    check_class_ids(targets, scores)
    return cast(Tensor, _CrossEntropy.apply(channels_last(scores), targets.contiguous(), ignored, factor))


class _CrossEntropy(torch.autograd.Function):
    """The autograd function of `cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, ignored: int, factor: float) -> Tensor:
        """Compute the sum, and the gradient for the backward pass (see `cross_entropy`)."""
        gradient = torch.empty_like(scores)
        pixels, classes = targets.numel(), scores.shape[1]
        columns = power_of_2(classes)
        rows = max(1, ELEMENTS // columns)
        programs = triton.cdiv(pixels, rows)
        sums = torch.zeros(programs, device=scores.device)
        if programs:
            sizes = {"ROWS": rows, "COLUMNS": columns}
            _kernel[programs,](scores, targets, gradient, sums, pixels, classes, ignored, factor, **sizes)
        ctx.save_for_backward(gradient)
        return (sums.sum(dtype=torch.float64) * factor).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of `scores` (argument of `forward`), times that of the result."""
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None


@triton.jit
def _kernel(scores, targets, gradient, sums, pixels, classes, ignored, factor, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute a sum for each block of pixels, and the gradient."""
    first = tl.program_id(0) * ROWS
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = row < pixels - first
    mask = inside[:, None] & (column < classes)[None, :]
    # Offsets in the block are 32-bit numbers, because computing 64-bit ones takes longer than all the rest.
    start, at = first.to(tl.int64) * classes, row[:, None] * classes + column[None, :]
    target = tl.load(targets + first + row, mask=inside, other=ignored)
    wrong = (target != ignored) & ((target < 0) | (target >= classes))
    target = target.to(tl.int32)
    counts = target != ignored
    score = tl.load(scores + start + at, mask=mask, other=float("-inf")).to(tl.float32)
    best = tl.where(inside, tl.max(score, 1), 0.0)
    powers = tl.exp(score - best[:, None])
    total = tl.where(inside, tl.sum(powers, 1), 1.0)
    chosen = column[None, :] == target[:, None]
    loss = tl.log(total) + best - tl.sum(tl.where(chosen, score, 0.0), 1)
    loss = tl.where(wrong, float("nan"), tl.where(counts, loss, 0.0))
    tl.store(sums + tl.program_id(0), tl.sum(loss, 0))
    share = tl.where(counts, factor / total, 0.0)
    grad = powers * share[:, None] - tl.where(chosen & counts[:, None], factor, 0.0)
    tl.store(gradient + start + at, grad.to(gradient.dtype.element_ty), mask=mask)
