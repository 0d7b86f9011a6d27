"""The operations of training steps, on the device of their tensors: compiled by numba on CPUs, by Triton on GPUs."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet.models.layers import Deconv3x3


def _on_gpu(x: Tensor) -> bool:
    """Return whether a tensor is on a GPU."""
    return x.is_cuda


def supports_dtype(x: Tensor) -> bool:
    """Return whether the operations can compute activations of the dtype of a tensor."""
    return x.dtype in (torch.bfloat16, torch.float32) or (x.dtype == torch.float64 and not _on_gpu(x))


def supports_convolution(layer: nn.Module) -> bool:
    """Return whether `convolve` can compute a layer: a convolution with stride 1, or a `Deconv3x3`.

    Args:
        layer: any layer.
    """
    if type(layer) is Deconv3x3:
        return True
    if type(layer) is not nn.Conv2d:
        return False
    plain = (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)
    return plain and isinstance(layer.padding, tuple) and layer.padding_mode == "zeros"


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """Compute a layer without its bias, in bfloat16 within autocast.

    Args:
        layer: a layer that `supports_convolution` accepts.
        x: tensor of shape (N, C, H, W).

    Returns:
        Tensor of shape (N, C', H', W'), on CPUs in memory format channels_last.
    """
    if not _on_gpu(x):
        from deconvnet.models.fused.cpu.convolution import convolve as on_cpu

        return on_cpu(layer, x)
    weight = cast(Tensor, layer.weight)
    if isinstance(layer, Deconv3x3):
        return F.conv_transpose2d(x, weight, padding=1)
    return F.conv2d(x, weight, padding=cast(nn.Conv2d, layer).padding)


def norm_relu(x: Tensor, norm: nn.BatchNorm2d, bias: Tensor | None = None) -> Tensor:
    """Compute ReLU(norm(x + bias)) for a batch norm in training mode, and update its running statistics.

    The bias only changes the running mean. Its gradient is 0.

    Args:
        x: activations of shape (N, C, H, W), of a dtype that `supports_dtype` accepts.
        norm: the batch norm, which `supports_norm` accepts.
        bias: the bias of the layer before, of shape (C,), if it is not yet added to `x`.

    Returns:
        Tensor of the same shape and dtype, in memory format channels_last.

    Raises:
        ValueError: if there are fewer than 2 values per channel.
    """
    if _on_gpu(x):
        from deconvnet.models.fused.gpu.norm_relu import norm_relu as compute
    else:
        from deconvnet.models.fused.cpu.norm_relu import norm_relu as compute
    return compute(x, norm, bias)


def supports_norm(norm: nn.Module) -> bool:
    """Return whether `norm_relu` can compute a layer: a `BatchNorm2d`, or one that is synchronised over workers on CPUs.

    On GPUs, torch's `SyncBatchNorm` is used for that (`convert_sync`), which is not a `BatchNorm2d`.

    Args:
        norm: any layer.
    """
    return isinstance(norm, nn.BatchNorm2d) and norm.momentum is not None


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Take the maximum of each 2×2 square, as `nn.MaxPool2d(2, 2)` does.

    Args:
        x: activations of shape (N, C, H, W), of a dtype that `supports_dtype` accepts. H and W are even.

    Returns:
        The maxima, of shape (N, C, H/2, W/2), and their positions: uint8 tensor of the same shape with values from 0 to 3, for
        `max_unpool`. Both are in memory format channels_last.
    """
    if _on_gpu(x):
        from deconvnet.models.fused.gpu.pooling import max_pool as compute
    else:
        from deconvnet.models.fused.cpu.pooling import max_pool as compute
    return compute(x)


def max_unpool(x: Tensor, positions: Tensor) -> Tensor:
    """Put each activation at its position in a 2×2 square, and 0 elsewhere.

    Args:
        x: activations of shape (N, C, H, W), of a dtype that `supports_dtype` accepts.
        positions: uint8 tensor of the same shape, as returned by `max_pool`, or some of its channels.

    Returns:
        Tensor of shape (N, C, 2H, 2W) in memory format channels_last.
    """
    if _on_gpu(x):
        from deconvnet.models.fused.gpu.pooling import max_unpool as compute
    else:
        from deconvnet.models.fused.cpu.pooling import max_unpool as compute
    return compute(x, positions)


def cross_entropy(scores: Tensor, targets: Tensor, ignored: int, factor: float) -> Tensor:
    """Compute the sum of the cross-entropies of all pixels, times a factor.

    Args:
        scores: scores before softmax, of shape (N, C, H, W), of bfloat16 or float32.
        targets: class ids below C, or `ignored`: int64 tensor of shape (N, H, W).
        ignored: class id of pixels that don't count.
        factor: the factor.

    Returns:
        float32 tensor of shape ().

    Raises:
        ValueError: if shape or dtype of the class ids is wrong.
        IndexError: on CPUs, if there is another class id. On GPUs the result is NaN then.
    """
    if _on_gpu(scores):
        from deconvnet.models.fused.gpu.cross_entropy import cross_entropy as compute
    else:
        from deconvnet.models.fused.cpu.cross_entropy import cross_entropy as compute
    return compute(scores, targets, ignored, factor)
