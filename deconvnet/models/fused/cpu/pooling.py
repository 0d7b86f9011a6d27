"""2×2 max-pooling and unpooling, forward and backward, with positions of one byte each."""

from typing import Any, cast

import torch
from numba import types
from torch import Tensor

from deconvnet.models.fused.cpu.parallel import run
from deconvnet.models.fused.cpu.pool_kernels import PoolKernels, pool_kernels

DTYPES = {
    torch.bfloat16: (types.uint16, types.uint16),
    torch.float32: (types.float32, types.uint32),
    torch.float64: (types.float64, types.uint64),
    torch.uint8: (types.uint8, types.uint8),  # of `inference.int8`
}
"""For each dtype of activations, its numba type and that of an unsigned integer of the same size."""
CHUNK = 2**15
"""About the smallest number of activations in a chunk of the smaller map."""


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Take the maximum of each 2×2 square, as `nn.MaxPool2d(2, 2)` does.

    Args:
        x: activations of shape (N, C, H, W) on the CPU, of a dtype in `DTYPES`. H and W are even.

    Returns:
        The maxima, of shape (N, C, H/2, W/2), and their positions: uint8 tensor of the same shape with values from 0 to 3, for
        `max_unpool`. Both are in memory format channels_last.
    """
    return cast(tuple[Tensor, Tensor], _MaxPool.apply(x))


def max_unpool(x: Tensor, positions: Tensor) -> Tensor:
    """Put each activation at its position in a 2×2 square, and 0 elsewhere.

    Args:
        x: activations of shape (N, C, H, W) on the CPU, of a dtype in `DTYPES`.
        positions: uint8 tensor of the same shape, as returned by `max_pool`, or some of its channels.

    Returns:
        Tensor of shape (N, C, 2H, 2W) in memory format channels_last.
    """
    return cast(Tensor, _MaxUnpool.apply(x, _channels_last(positions)))


def _kernels(dtype: torch.dtype) -> PoolKernels:
    """Return the kernels for a dtype of activations."""
    return pool_kernels(*DTYPES[dtype])


def _run(kernel: Any, small: Tensor, *tensors: Tensor) -> None:
    """Run a kernel.

    Args:
        kernel: the kernel.
        small: a tensor of the shape of the smaller map.
        tensors: the kernel's tensors, all in memory format channels_last.
    """
    n, channels, height, width = small.shape
    rows = n * height
    per_chunk = max(1, CHUNK // max(1, width * channels))
    run(kernel, -(-rows // per_chunk), rows, width, channels, per_chunk, *tensors)


def _empty(like: Tensor, factor: float) -> Tensor:
    """Return a new tensor in memory format channels_last, of `factor` times the height and width of `like`."""
    n, channels, height, width = like.shape
    shape = n, channels, int(height * factor), int(width * factor)
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    """Return a tensor in memory format channels_last."""
    return x.contiguous(memory_format=torch.channels_last)


class _MaxPool(torch.autograd.Function):
    """The autograd function of `max_pool`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute maxima and positions (see `max_pool`)."""
        x = _channels_last(x)
        out = _empty(x, 0.5)
        positions = torch.empty_like(out, dtype=torch.uint8)
        _run(_kernels(x.dtype).pool, out, x, out, positions)
        ctx.save_for_backward(positions)
        ctx.mark_non_differentiable(positions)
        return out, positions

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Compute the gradient of `x` (argument of `forward`) from that of the maxima."""
        return _MaxUnpool.compute(grads[0], *ctx.saved_tensors)


class _MaxUnpool(torch.autograd.Function):
    """The autograd function of `max_unpool`."""

    @staticmethod
    def compute(x: Tensor, positions: Tensor) -> Tensor:
        """Compute `max_unpool` without recording it for autograd."""
        x, out = _channels_last(x), _empty(x, 2)
        _run(_kernels(x.dtype).unpool, x, x, positions, out)
        return out

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor) -> Tensor:
        """Compute the larger map (see `max_unpool`)."""
        ctx.save_for_backward(positions)
        return _MaxUnpool.compute(x, positions)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient of `x` (argument of `forward`) from that of the result."""
        (positions,) = ctx.saved_tensors
        grad, out = _channels_last(grads[0]), _empty(grads[0], 0.5)
        _run(_kernels(grad.dtype).gather, out, grad, positions, out)
        return out, None
