"""Layers that compute training steps faster, and the conversion of networks to them.

In evaluation mode they compute what torch's layers do, with two exceptions: the batch norm of a frozen convolution is folded into
its weights, and pooling and unpooling accept uint8 activations (`inference.int8`). They have no attributes of their own, so a
layer is converted by changing its class.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deconvnet.models.fused.operations import (
    convolve,
    max_pool,
    max_unpool,
    norm_relu,
    supports_convolution,
    supports_dtype,
    supports_norm,
)
from deconvnet.models.layers import Unpool


class FusedUnit(nn.Sequential):
    """A convolution, batch norm and ReLU, of which the last two are computed as one operation in training."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layers.

        Args:
            input: tensor of shape (N, C, H, W).

        Returns:
            Tensor of shape (N, C', H', W').
        """
        conv = self.get_submodule("conv")
        if not self.training:
            norm = getattr(self, "norm", None)
            if type(conv) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d) and not conv.weight.requires_grad:
                return _frozen_unit(conv, norm, input)
            return cast(Tensor, super().forward(input))
        norm, relu = (self.get_submodule(name) for name in ("norm", "relu"))
        if supports_convolution(conv) and supports_norm(norm) and supports_dtype(input):
            return norm_relu(convolve(conv, input), cast(nn.BatchNorm2d, norm), cast(Tensor | None, conv.bias))
        x = conv(input)
        if supports_norm(norm) and supports_dtype(x):
            return norm_relu(x, cast(nn.BatchNorm2d, norm))
        return cast(Tensor, relu(norm(x)))


def _frozen_unit(conv: nn.Conv2d, norm: nn.BatchNorm2d, input: Tensor) -> Tensor:
    """Compute a convolution, batch norm and ReLU that are not trained. The batch norm becomes a part of the weights.

    Args:
        conv: the convolution.
        norm: the batch norm, whose running statistics are used.
        input: tensor of shape (N, C, H, W).

    Returns:
        Tensor of shape (N, C', H', W').
    """
    with torch.no_grad():
        mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias)
    recorded = torch.is_grad_enabled() and input.requires_grad  # true if a layer before is trained
    if input.device.type == "cpu" and supports_convolution(conv) and not recorded:
        from deconvnet.models.fused.cpu.convolution import convolve_relu

        return convolve_relu(input, weight, bias, cast(tuple[int, int], conv.padding))
    return F.relu(F.conv2d(input, weight, bias, padding=conv.padding), inplace=True)


class FusedMaxPool2d(nn.MaxPool2d):
    """A 2×2 max-pooling layer whose positions of maxima are uint8, for `FusedUnpool`, in training or for uint8 activations."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Take the maximum of each 2×2 square.

        Args:
            input: tensor of shape (N, C, H, W).

        Returns:
            The maxima, of shape (N, C, H/2, W/2). If `return_indices` is set, also the positions, of the same shape.
        """
        height, width = input.shape[-2:]
        fused = input.dtype == torch.uint8 or (self.training and supports_dtype(input))
        if not fused or height % 2 or width % 2:
            return cast(Tensor | tuple[Tensor, Tensor], super().forward(input))
        maxima, positions = max_pool(input)
        return (maxima, positions) if self.return_indices else maxima


class FusedUnpool(Unpool):
    """The inverse of `FusedMaxPool2d`."""

    def forward(self, x: Tensor, switches: Tensor) -> Tensor:
        """Enlarge activations to twice their height and width.

        Args:
            x: activations of shape (N, C, H, W).
            switches: the positions of the maxima, as returned by the matching pooling layer.

        Returns:
            Tensor of shape (N, C, 2H, 2W).
        """
        return max_unpool(x, switches) if switches.dtype == torch.uint8 else super().forward(x, switches)


def use_fused_layers(network: nn.Module) -> None:
    """Make a network's training steps faster. Its results are the same up to rounding.

    Args:
        network: the network, changed in place. Its parameters and buffers stay the same objects.
    """
    for module in network.modules():
        if type(module) is nn.Sequential and hasattr(module, "conv") and hasattr(module, "norm"):  # made by `layers.unit`
            module.__class__ = FusedUnit
        elif type(module) is nn.MaxPool2d and (module.kernel_size, module.stride, module.padding) == (2, 2, 0):
            module.__class__ = FusedMaxPool2d
        elif type(module) is Unpool:
            module.__class__ = FusedUnpool
