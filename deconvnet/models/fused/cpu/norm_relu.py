"""Batch norm and ReLU as one operation, forward and backward, plain or synchronised over training workers."""

from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from deconvnet.models.fused.checks import check_count
from deconvnet.models.fused.cpu.norm_kernels import DTYPES, NormKernels, norm_kernels
from deconvnet.models.fused.cpu.parallel import run
from deconvnet.models.sync_batchnorm import SyncBatchNorm2d, update_running_stats, world_size

WIDTH = 256
"""Smallest length of the loops."""
CHUNK, CHUNKS = 2**15, 64
"""About the smallest number of activations in a chunk, and the largest number of chunks.

Each chunk has sums of its own, which cost time too.
"""


def norm_relu(x: Tensor, norm: nn.BatchNorm2d, bias: Tensor | None = None) -> Tensor:
    """Compute ReLU(norm(x + bias)) for a batch norm in training mode, and update its running statistics.

    The bias only changes the running mean. Its gradient is 0.

    Args:
        x: activations of shape (N, C, H, W) on the CPU, of bfloat16, float32 or float64.
        norm: the batch norm, of float32 or float64. If it is a `SyncBatchNorm2d`, all training processes must call this.
        bias: the bias of the layer before, of shape (C,), if it is not yet added to `x`.

    Returns:
        Tensor of the same shape and dtype, in memory format channels_last.

    Raises:
        ValueError: if there are fewer than 2 values per channel, over all workers if batch norm is synchronised.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    sync = isinstance(norm, SyncBatchNorm2d) and world_size() > 1
    layout = _Layout(x)
    mean, var, count = layout.moments(x.detach(), sync)
    check_count(count)
    shifted = mean if bias is None else mean + bias.detach().numpy()
    update_running_stats(norm, torch.from_numpy(shifted), torch.from_numpy(var * (count / (count - 1))))
    inverse = (var + norm.eps) ** -0.5
    return cast(Tensor, _NormRelu.apply(x, norm.weight, norm.bias, bias, layout, mean, inverse, count, sync))


class _Layout:
    """How the kernels see activations of a certain shape and dtype."""

    def __init__(self, x: Tensor) -> None:
        """Choose the width of rows and the size of chunks.

        Args:
            x: activations in memory format channels_last.
        """
        dtype, sums = DTYPES[str(x.dtype).removeprefix("torch.")]
        self.kernels: NormKernels = norm_kernels(dtype, sums)
        self.sums = np.float64 if x.dtype == torch.float64 else np.float32
        self.channels = x.shape[1]
        self.repeats = max(1, WIDTH // self.channels)
        width = self.repeats * self.channels
        rows = -(-max(CHUNK, x.numel() // CHUNKS) // width)
        self.sizes = (x.numel(), width, rows)
        self.chunks = -(-x.numel() // (rows * width))

    def repeated(self, *values: np.ndarray) -> np.ndarray:
        """Return numbers for each channel as the kernels need them.

        Args:
            values: arrays of shape (C,).

        Returns:
            Array with a row for each of them, repeated to the width of the kernels' rows, in the dtype of sums.
        """
        out = np.empty((len(values), self.repeats, self.channels), self.sums)
        for row, value in zip(out, values, strict=True):
            row[:] = value
        return out.reshape(len(values), -1)

    def sum_up(self, kernel: Any, *arguments: Any) -> np.ndarray:
        """Run a kernel that computes two sums for each channel, and return them: float64 array (2, C)."""
        out = np.zeros((self.chunks, 2, self.repeats, self.channels), self.sums)
        run(kernel, self.chunks, *self.sizes, *arguments, out)
        return cast(np.ndarray, out.sum(axis=0, dtype=np.float64).sum(axis=1))

    def moments(self, x: Tensor, sync: bool) -> tuple[np.ndarray, np.ndarray, int]:
        """Compute each channel's mean and variance.

        Args:
            x: the activations.
            sync: whether over the activations of all workers together.

        Returns:
            The mean and the biased variance (two float64 arrays (C,)), and the number of values in a channel.
        """
        count = x.numel() // self.channels
        sums = np.zeros((2, self.channels))
        if count:
            # Sums of squares lose precision if the mean is large, so a value of each channel is subtracted before.
            shift = x[0, :, 0, 0].to(torch.float64).numpy()
            first, square = self.sum_up(self.kernels.moments, x, self.repeated(shift)) / count
            with np.errstate(invalid="ignore"):  # activations may be infinite if training diverges
                sums[:] = first + shift, square - first**2
        if not sync:
            return sums[0], sums[1].clip(0), count
        mean, var = sums
        totals = torch.from_numpy(np.concatenate([mean * count, (var + mean**2) * count, [count]]))
        dist.all_reduce(totals)
        total = int(totals[-1])
        mean, square = (totals[:-1].numpy() / max(total, 1)).reshape(2, -1)
        return mean, (square - mean**2).clip(0), total


class _NormRelu(torch.autograd.Function):
    """The autograd function of `norm_relu`. Mean and variance depend on the activations, so gradients pass through them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        conv_bias: Tensor | None,
        layout: _Layout,
        mean: np.ndarray,
        inverse: np.ndarray,
        count: int,
        sync: bool,
    ) -> Tensor:
        """Normalise activations, apply ReLU, and store what the backward pass needs.

        Args:
            ctx: autograd's context object.
            x: activations (N, C, H, W) in memory format channels_last.
            weight: scale of each channel, of shape (C,).
            bias: offset of each channel, of shape (C,).
            conv_bias: bias of the layer before, or None.
            layout: how the kernels see `x`.
            mean: mean of each channel, float64 (C,).
            inverse: inverse of each channel's standard deviation, float64 (C,).
            count: number of values in a channel.
            sync: whether the mean is over all workers.
        """
        scale = weight.detach().numpy() * inverse
        vectors = layout.repeated(scale, bias.detach().numpy() - mean * scale, mean)
        out = torch.empty_like(x)
        run(layout.kernels.apply, layout.chunks, *layout.sizes, x, *vectors[:2], out)
        ctx.save_for_backward(x)
        ctx.conv_bias_like = None if conv_bias is None else conv_bias.new_zeros(len(conv_bias))
        ctx.rest = layout, scale, mean, inverse, vectors, count, sync
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of `x`, `weight`, `bias` and `conv_bias` (arguments of `forward`).

        Args:
            ctx: autograd's context object, filled by `forward`.
            grads: a single tensor, the gradient of the loss with respect to the output.
        """
        (x,) = ctx.saved_tensors
        layout, scale, mean, inverse, vectors, count, sync = ctx.rest
        after = grads[0].contiguous(memory_format=torch.channels_last)
        grad_bias, product = layout.sum_up(layout.kernels.gradient_sums, x, *vectors, after)
        grad_weight = product * inverse
        sums = torch.from_numpy(np.stack([grad_bias, grad_weight]))
        # The gradients of weight and bias are this worker's own. DDP averages them over the workers, like all others.
        own = sums.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True)
        if sync:
            dist.all_reduce(sums)
        mean_grad, mean_product = sums.numpy() / count
        # γ/σ · (g − mean(g) − x̂ · mean(g·x̂)), written as scale·g + b·x + c
        b = -scale * mean_product * inverse
        c = -scale * mean_grad - b * mean
        grad_x = torch.empty_like(x)
        run(layout.kernels.gradient, layout.chunks, *layout.sizes, x, *vectors[:2], after, *layout.repeated(b, c), grad_x)
        return grad_x, own[1], own[0], ctx.conv_bias_like, None, None, None, None, None
