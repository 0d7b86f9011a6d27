"""2×2 max-pooling and unpooling, forward and backward, with positions of one byte each."""

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from deconvnet.models.fused.gpu.blocks import block_sizes, channels_last


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Take the maximum of each 2×2 square, as `nn.MaxPool2d(2, 2)` does.

    Args:
        x: activations of shape (N, C, H, W) on a GPU, of bfloat16 or float32. H and W are even.

    Returns:
        The maxima, of shape (N, C, H/2, W/2), and their positions: uint8 tensor of the same shape with values from 0 to 3, for
        `max_unpool`. Both are in memory format channels_last.
    """
    return cast(tuple[Tensor, Tensor], _MaxPool.apply(channels_last(x)))


def max_unpool(x: Tensor, positions: Tensor) -> Tensor:
    """Put each activation at its position in a 2×2 square, and 0 elsewhere.

    Args:
        x: activations of shape (N, C, H, W) on a GPU, of bfloat16 or float32.
        positions: uint8 tensor of the same shape, as returned by `max_pool`, or some of its channels.

    Returns:
        Tensor of shape (N, C, 2H, 2W) in memory format channels_last.
    """
    return cast(Tensor, _MaxUnpool.apply(channels_last(x), channels_last(positions)))


class _MaxPool(torch.autograd.Function):
    """The autograd function of `max_pool`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find the maxima of `x` (N, C, H, W) and their positions."""
        n, channels, height, width = x.shape
        maxima = _empty_like(x, (n, channels, height // 2, width // 2))
        positions = torch.empty_like(maxima, dtype=torch.uint8)
        _run(_pool, maxima, x, maxima, positions)
        ctx.save_for_backward(positions)
        ctx.mark_non_differentiable(positions)
        return maxima, positions

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Compute the gradient of `x` (argument of `forward`)."""
        (positions,) = ctx.saved_tensors
        return _enlarged(channels_last(grads[0]), positions)


class _MaxUnpool(torch.autograd.Function):
    """The autograd function of `max_unpool`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor) -> Tensor:
        """Put the activations `x` (N, C, H, W) at their positions."""
        ctx.save_for_backward(positions)
        return _enlarged(x, positions)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient of `x` (argument of `forward`)."""
        (positions,) = ctx.saved_tensors
        out = torch.empty_like(positions, dtype=grads[0].dtype)
        _run(_take, out, channels_last(grads[0]), positions, out)
        return out, None


def _enlarged(x: Tensor, positions: Tensor) -> Tensor:
    """Put activations (N, C, H, W) at their positions in a map (N, C, 2H, 2W). All are in memory format channels_last."""
    n, channels, height, width = x.shape
    out = _empty_like(x, (n, channels, 2 * height, 2 * width))
    _run(_put, x, x, positions, out)
    return out


def _empty_like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialised tensor of a shape, in memory format channels_last, with dtype and device of another."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _run(kernel: Any, small: Tensor, *tensors: Tensor) -> None:
    """Run a kernel.

    Args:
        kernel: the kernel.
        small: a tensor of the shape of the smaller map.
        tensors: the kernel's tensors, all in memory format channels_last.
    """
    channels, width = small.shape[1], small.shape[3]
    pixels, constants = small.numel() // channels, block_sizes(channels)
    grid = triton.cdiv(pixels, constants["ROWS"]), triton.cdiv(channels, constants["COLUMNS"])
    kernel[grid](*tensors, pixels, channels, width, **constants)


@triton.jit
def _offsets(pixels, channels, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return a block's offsets in the smaller map, the offsets of its 2×2 squares in the larger map, and its mask."""
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = (pixel // width).to(tl.int64) * 4 * width + 2 * (pixel % width)  # rows of the larger map have 2·width pixels
    mask = (pixel < pixels)[:, None] & (column < channels)[None, :]
    return (
        pixel.to(tl.int64)[:, None] * channels + column[None, :],
        first[:, None] * channels + column[None, :],
        mask,
    )


@triton.jit
def _pool(large, maxima, positions, pixels, channels, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Find the maximum of each square and its position. The first of equal values counts, and NaN above all, as in torch."""
    at, first, mask = _offsets(pixels, channels, width, ROWS, COLUMNS)
    best = tl.load(large + first, mask=mask, other=0).to(tl.float32)
    position = tl.zeros([ROWS, COLUMNS], tl.int32)
    for k in tl.static_range(1, 4):
        value = tl.load(large + first + (k // 2 * 2 * width + k % 2) * channels, mask=mask, other=0).to(tl.float32)
        better = (value > best) | (value != value)
        best = tl.where(better, value, best)
        position = tl.where(better, k, position)
    tl.store(maxima + at, best.to(maxima.dtype.element_ty), mask=mask)
    tl.store(positions + at, position.to(tl.uint8), mask=mask)


@triton.jit
def _put(small, positions, large, pixels, channels, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write each value to its position in its square, and 0 to the others."""
    at, first, mask = _offsets(pixels, channels, width, ROWS, COLUMNS)
    value = tl.load(small + at, mask=mask, other=0).to(tl.float32)
    position = tl.load(positions + at, mask=mask, other=0)
    for k in tl.static_range(4):
        here = tl.where(position == k, value, 0.0).to(large.dtype.element_ty)
        tl.store(large + first + (k // 2 * 2 * width + k % 2) * channels, here, mask=mask)


@triton.jit
def _take(large, positions, small, pixels, channels, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Read the value at the position in each square."""
    at, first, mask = _offsets(pixels, channels, width, ROWS, COLUMNS)
    position = tl.load(positions + at, mask=mask, other=0)
    out = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.static_range(4):
        value = tl.load(large + first + (k // 2 * 2 * width + k % 2) * channels, mask=mask, other=0).to(tl.float32)
        out = tl.where(position == k, value, out)
    tl.store(small + at, out.to(small.dtype.element_ty), mask=mask)
