"""The sum of cross-entropies over pixels, computed together with its gradient."""

import math
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, float32, int32, njit, types
from numba.extending import intrinsic
from torch import Tensor

from deconvnet.models.fused.checks import check_class_ids
from deconvnet.models.fused.cpu.parallel import compiled, load, pointer, run, store, take_chunk

DTYPES = {torch.bfloat16: types.uint16, torch.float32: types.float32}
"""For each dtype of scores, its numba type."""
CHUNK = 2048
"""Number of pixels in a chunk."""


def cross_entropy(scores: Tensor, targets: Tensor, ignored: int, factor: float) -> Tensor:
    """Compute the sum of the cross-entropies of all pixels, times a factor.

    Args:
        scores: scores before softmax, of shape (N, C, H, W) on the CPU, of a dtype in `DTYPES`.
        targets: class ids below C, or `ignored`: int64 tensor of shape (N, H, W).
        ignored: class id of pixels that don't count.
        factor: the factor.

    Returns:
        float32 tensor of shape ().

    Raises:
        ValueError: if shape or dtype of the class ids is wrong.
        IndexError: if there is another class id.
    """
    check_class_ids(targets, scores)
    return cast(Tensor, _CrossEntropy.apply(scores, targets, ignored, factor))


class _CrossEntropy(torch.autograd.Function):
    """The autograd function of `cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, ignored: int, factor: float) -> Tensor:
        """Compute the sum, and the gradient for the backward pass (see `cross_entropy`)."""
        scores = scores.contiguous(memory_format=torch.channels_last)
        gradient = torch.empty_like(scores)
        pixels, classes = targets.numel(), scores.shape[1]
        chunks = -(-pixels // CHUNK)
        sums, scratch = np.zeros(chunks), np.empty((chunks, classes), np.float32)
        settings = np.array([factor, 0], np.float32)
        kernel = _kernel(DTYPES[scores.dtype])
        run(kernel, chunks, pixels, classes, ignored, scores, targets.contiguous(), gradient, sums, scratch, settings)
        if settings[1]:
            raise IndexError(f"there are class ids that are neither below {classes} nor {ignored}")
        ctx.save_for_backward(gradient)
        return torch.tensor(sums.sum() * factor, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of `scores` (argument of `forward`), times that of the result."""
        (gradient,) = ctx.saved_tensors
        return gradient if grads[0] == 1 else gradient * grads[0].to(gradient.dtype), None, None, None


@cache
def _kernel(dtype: Any) -> Any:
    """Compile the kernel.

    Args:
        dtype: numba type of the scores; uint16 stands for bfloat16.
    """

    @compiled(dtype, fastmath={"contract", "nsz"})
    def kernel(block: Any) -> None:
        """Compute a sum for each chunk of pixels, and the gradient.

        Arguments: numbers of pixels and classes, the class id that doesn't count, scores (pixels, classes), class ids, the
        gradient, the sums, a float32 array (chunks, classes) to work in, and an array (2,): the factor of the gradient, and a
        number that becomes 1 if a class id is wrong.
        """
        a = carray(block, 11)
        pixels, classes, ignored = a[2], a[3], a[4]
        scores, gradient = carray(pointer(a[5], dtype), pixels * classes), carray(pointer(a[7], dtype), pixels * classes)
        targets, sums = carray(pointer(a[6], types.int64), pixels), carray(pointer(a[8], types.float64), a[1])
        scratch, settings = carray(pointer(a[9], types.float32), a[1] * classes), carray(pointer(a[10], types.float32), 2)
        factor = settings[0]
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            powers, loss = scratch[chunk * classes :][:classes], 0.0
            for pixel in range(chunk * CHUNK, min(pixels, (chunk + 1) * CHUNK)):
                row, target, out = scores[pixel * classes :][:classes], targets[pixel], gradient[pixel * classes :][:classes]
                if target == ignored:
                    for i in range(classes):
                        store(out, i, float32(0))
                    continue
                if target < 0 or target >= classes:
                    settings[1] = 1
                    continue
                best = load(row, 0)
                for i in range(1, classes):
                    value = load(row, i)
                    best = value if value > best else best
                for i in range(classes):
                    powers[i] = _exp(load(row, i) - best)
                total = float32(0)
                for i in range(classes):
                    total += powers[i]
                loss += math.log(total) + best - load(row, target)
                share = factor / total
                for i in range(classes):
                    store(out, i, powers[i] * share)
                store(out, target, powers[target] * share - factor)
            sums[chunk] = loss

    return kernel


@intrinsic
def _bits(typing: Any, value: Any) -> Any:
    """Return the bits of a float32 as an int32. Call it as `_bits(value)` in `@njit` functions."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), code


@intrinsic
def _from_bits(typing: Any, value: Any) -> Any:
    """Return the float32 of the bits of an int32. Call it as `_from_bits(value)` in `@njit` functions."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), code


@njit(inline="always", fastmath={"contract", "nsz"})
def _exp(x: Any) -> Any:
    """Compute the exponential of a float32 that is not above 0, in a way that LLVM can vectorise; the method of Cephes' `expf`.

    The relative error is below 2·10⁻⁷ down to -87; below, the result is that of -87.
    """
    x = float32(-87.0) if x < float32(-87.0) else x
    magic = float32(12582912.0)  # 1.5 · 2^23: its sum with a small number is rounded to an integer, which is in its last bits
    shifted = x * float32(1.44269504088896341) + magic
    n = shifted - magic
    r = x - n * float32(0.693359375) - n * float32(-2.12194440e-4)
    y = float32(1.9875691500e-4)
    y = y * r + float32(1.3981999507e-3)
    y = y * r + float32(8.3334519073e-3)
    y = y * r + float32(4.1665795894e-2)
    y = y * r + float32(1.6666665459e-1)
    y = y * r + float32(5.0000001201e-1)
    y = y * (r * r) + r + float32(1.0)
    exponent = int32(int32(_bits(shifted) - int32(0x4B400000)) + int32(127))
    return y * _from_bits(int32(exponent << int32(23)))
