"""Batch norm in training mode and ReLU as one operation: activations are read twice and written once, and as often backward."""

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from deconvnet.models.fused.checks import check_count
from deconvnet.models.fused.gpu.blocks import PROGRAMS, block_sizes, channels_last

SUMMED_COLUMNS, SUMMED_ROWS = 16, 64
"""Size of the blocks, in columns and rows, in which `_add_up` reads the partial sums."""


def norm_relu(x: Tensor, norm: nn.BatchNorm2d, bias: Tensor | None = None) -> Tensor:
    """Compute ReLU(norm(x + bias)) for a batch norm in training mode, and update its running statistics.

    The bias only changes the running mean. Its gradient is 0.

    Args:
        x: activations of shape (N, C, H, W) on a GPU, of bfloat16 or float32.
        norm: the batch norm, of float32, with a momentum. It is not synchronised.
        bias: the bias of the layer before, of shape (C,), if it is not yet added to `x`.

    Returns:
        Tensor of the same shape and dtype, in memory format channels_last.

    Raises:
        ValueError: if there are fewer than 2 values per channel.
    """
    count = x.numel() // x.shape[1]
    check_count(count)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return cast(Tensor, _NormRelu.apply(channels_last(x), norm.weight, norm.bias, bias, norm))


class _NormRelu(torch.autograd.Function):
    """The autograd function of `norm_relu`. Mean and variance depend on the activations, so gradients pass through them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, conv_bias: Tensor | None, norm: nn.BatchNorm2d) -> Tensor:
        """Normalise activations, apply ReLU, and store what the backward pass needs.

        Args:
            ctx: autograd's context object.
            x: activations (N, C, H, W) in memory format channels_last.
            weight: scale of each channel, of shape (C,).
            bias: offset of each channel, of shape (C,).
            conv_bias: bias of the layer before, or None.
            norm: the batch norm, whose running statistics are updated.
        """
        grid = _Grid(x)
        sums = grid.sum_up(_moments, x)
        vectors = weight.new_empty(4, grid.channels)
        # Without running statistics, or a bias of the layer before, the kernel gets tensors that it does not use.
        running = (norm.running_mean, norm.running_var) if norm.running_mean is not None else (weight, weight)
        grid.for_each_channel(
            _statistics,
            *(sums, x, weight, bias, weight if conv_bias is None else conv_bias, *running, vectors),
            *(norm.eps, norm.momentum),
            HAS_BIAS=conv_bias is not None,
            TRACKED=norm.running_mean is not None,
        )
        out = torch.empty_like(x)
        grid.for_each_block(_apply, x, vectors, out)
        ctx.save_for_backward(x, vectors)
        ctx.conv_bias_like = None if conv_bias is None else torch.zeros_like(conv_bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of `x`, `weight`, `bias` and `conv_bias` (arguments of `forward`).

        Args:
            ctx: autograd's context object, filled by `forward`.
            grads: a single tensor, the gradient of the loss with respect to the output.
        """
        x, vectors = ctx.saved_tensors
        grid, after = _Grid(x), channels_last(grads[0])
        sums = grid.sum_up(_gradient_sums, x, after, vectors)
        more = torch.empty_like(vectors)
        grid.for_each_channel(_gradient_statistics, sums, vectors, more)
        grad_x = torch.empty_like(x)
        grid.for_each_block(_gradient, x, after, vectors, more, grad_x)
        return grad_x, more[1], more[0], ctx.conv_bias_like, None


class _Grid:
    """How the kernels are started for activations of a certain shape."""

    def __init__(self, x: Tensor) -> None:
        """Divide activations into blocks.

        Args:
            x: activations in memory format channels_last.
        """
        self.device, self.channels, self.rows = x.device, x.shape[1], x.numel() // x.shape[1]
        self.constants = block_sizes(self.channels)
        self.across = triton.cdiv(self.channels, self.constants["COLUMNS"])
        self.down = triton.cdiv(self.rows, self.constants["ROWS"])

    def sum_up(self, kernel: Any, *tensors: Tensor) -> Tensor:
        """Run a kernel that computes two sums for each channel.

        Args:
            kernel: the kernel.
            tensors: its tensors.

        Returns:
            float32 tensor (programs, 2, C) with the sums of each program.
        """
        programs = min(self.down, max(1, PROGRAMS // self.across))
        out = torch.empty(programs, 2, self.channels, device=self.device)
        kernel[self.across, programs](*tensors, out, self.rows, self.channels, self.down, **self.constants)
        return out

    def for_each_channel(self, kernel: Any, sums: Tensor, *arguments: Any, **constants: Any) -> None:
        """Run a kernel that adds up the sums of all programs and computes vectors (C,) with them.

        Args:
            kernel: the kernel.
            sums: what `sum_up` returned.
            arguments: its other arguments.
            constants: its constants.
        """
        programs = triton.cdiv(self.channels, SUMMED_COLUMNS)
        sizes = {"ROWS": SUMMED_ROWS, "COLUMNS": SUMMED_COLUMNS}
        kernel[programs,](sums, *arguments, len(sums), self.channels, self.rows, **sizes, **constants)

    def for_each_block(self, kernel: Any, *tensors: Tensor) -> None:
        """Run a kernel that writes each block of a result.

        Args:
            kernel: the kernel.
            tensors: its tensors.
        """
        kernel[self.down, self.across](*tensors, self.rows, self.channels, **self.constants)


@triton.jit
def _moments(x, out, rows, channels, blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum up each channel's values and their squares. The channel's first value is subtracted first, for precision."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    shift = tl.load(x + columns, mask=inside, other=0).to(tl.float32)
    first = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    for block in range(tl.program_id(1), blocks, tl.num_programs(1)):
        row = block * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        value = tl.load(x + row.to(tl.int64)[:, None] * channels + columns[None, :], mask=mask, other=0).to(tl.float32)
        value = tl.where(mask, value - shift[None, :], 0)
        first += value
        second += value * value
    at = out + tl.program_id(1).to(tl.int64) * 2 * channels + columns
    tl.store(at, tl.sum(first, 0), mask=inside)
    tl.store(at + channels, tl.sum(second, 0), mask=inside)


@triton.jit
def _add_up(sums, columns, inside, programs, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the two sums of some channels over all programs, in float64."""
    first = tl.zeros([ROWS, COLUMNS], tl.float64)
    second = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < programs)[:, None] & inside[None, :]
        at = sums + row[:, None] * 2 * channels + columns[None, :]
        first += tl.load(at, mask=mask, other=0)
        second += tl.load(at + channels, mask=mask, other=0)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def _statistics(
    sums,
    x,
    weight,
    bias,
    conv_bias,
    running_mean,
    running_var,
    vectors,
    eps,
    momentum,
    programs,
    channels,
    count,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TRACKED: tl.constexpr,
):
    """Compute scale, offset, mean and inverse standard deviation of each channel, and update its running statistics."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    first, second = _add_up(sums, columns, inside, programs, channels, ROWS, COLUMNS)
    first /= count
    var = second / count - first * first
    var = tl.where(var < 0, 0.0, var)  # of rounding; NaN stays
    mean = first + tl.load(x + columns, mask=inside, other=0).to(tl.float32)
    inverse = 1 / tl.sqrt(var + eps)
    scale = tl.load(weight + columns, mask=inside, other=0) * inverse
    offset = tl.load(bias + columns, mask=inside, other=0) - mean * scale
    tl.store(vectors + columns, scale.to(tl.float32), mask=inside)
    tl.store(vectors + channels + columns, offset.to(tl.float32), mask=inside)
    tl.store(vectors + 2 * channels + columns, mean.to(tl.float32), mask=inside)
    tl.store(vectors + 3 * channels + columns, inverse.to(tl.float32), mask=inside)
    if TRACKED:
        if HAS_BIAS:
            mean += tl.load(conv_bias + columns, mask=inside, other=0)
        old = tl.load(running_mean + columns, mask=inside, other=0)
        tl.store(running_mean + columns, (old + momentum * (mean - old)).to(tl.float32), mask=inside)
        old = tl.load(running_var + columns, mask=inside, other=0)
        unbiased = var * count / (count - 1)
        tl.store(running_var + columns, (old + momentum * (unbiased - old)).to(tl.float32), mask=inside)


@triton.jit
def _apply(x, vectors, out, rows, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute ReLU(scale · x + offset)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    mask = (row < rows)[:, None] & inside[None, :]
    at = row.to(tl.int64)[:, None] * channels + columns[None, :]
    scale = tl.load(vectors + columns, mask=inside, other=0)[None, :]
    offset = tl.load(vectors + channels + columns, mask=inside, other=0)[None, :]
    value = tl.load(x + at, mask=mask, other=0).to(tl.float32) * scale + offset
    value = tl.where(value < 0, 0.0, value)  # NaN stays
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_sums(x, after, vectors, out, rows, channels, blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum up, for each channel, the gradient before ReLU, and its product with x − mean."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    scale = tl.load(vectors + columns, mask=inside, other=0)[None, :]
    offset = tl.load(vectors + channels + columns, mask=inside, other=0)[None, :]
    mean = tl.load(vectors + 2 * channels + columns, mask=inside, other=0)[None, :]
    first = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    for block in range(tl.program_id(1), blocks, tl.num_programs(1)):
        row = block * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * channels + columns[None, :]
        value = tl.load(x + at, mask=mask, other=0).to(tl.float32)
        grad = tl.load(after + at, mask=mask, other=0).to(tl.float32)
        grad = tl.where(value * scale + offset <= 0, 0.0, grad)
        first += grad
        second += grad * (value - mean)
    at = out + tl.program_id(1).to(tl.int64) * 2 * channels + columns
    tl.store(at, tl.sum(first, 0), mask=inside)
    tl.store(at + channels, tl.sum(second, 0), mask=inside)


@triton.jit
def _gradient_statistics(sums, vectors, out, programs, channels, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute the gradients of bias and weight, and the b and c of `_gradient`."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    grad_bias, product = _add_up(sums, columns, inside, programs, channels, ROWS, COLUMNS)
    scale = tl.load(vectors + columns, mask=inside, other=0)
    mean = tl.load(vectors + 2 * channels + columns, mask=inside, other=0)
    inverse = tl.load(vectors + 3 * channels + columns, mask=inside, other=0)
    grad_weight = product * inverse
    # γ/σ · (g − mean(g) − x̂ · mean(g·x̂)), written as scale·g + b·x + c
    b = -scale * (grad_weight / count) * inverse
    c = -scale * (grad_bias / count) - b * mean
    tl.store(out + columns, grad_bias.to(tl.float32), mask=inside)
    tl.store(out + channels + columns, grad_weight.to(tl.float32), mask=inside)
    tl.store(out + 2 * channels + columns, b.to(tl.float32), mask=inside)
    tl.store(out + 3 * channels + columns, c.to(tl.float32), mask=inside)


@triton.jit
def _gradient(x, after, vectors, more, out, rows, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute the gradient of x."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    mask = (row < rows)[:, None] & inside[None, :]
    at = row.to(tl.int64)[:, None] * channels + columns[None, :]
    scale = tl.load(vectors + columns, mask=inside, other=0)[None, :]
    offset = tl.load(vectors + channels + columns, mask=inside, other=0)[None, :]
    b = tl.load(more + 2 * channels + columns, mask=inside, other=0)[None, :]
    c = tl.load(more + 3 * channels + columns, mask=inside, other=0)[None, :]
    value = tl.load(x + at, mask=mask, other=0).to(tl.float32)
    grad = tl.load(after + at, mask=mask, other=0).to(tl.float32)
    grad = tl.where(value * scale + offset <= 0, 0.0, grad)
    tl.store(out + at, (scale * grad + b * value + c).to(out.dtype.element_ty), mask=mask)
