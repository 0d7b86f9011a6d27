"""Copies of networks prepared for inference: the same scores in a fraction of the time."""

import copy
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deconvnet.models.layers import as_convolution_kernel
from deconvnet.models.network import Network
from infra.device import fast_bf16

N = TypeVar("N", bound=Network)


class _DeconvolutionFromOnePixel(nn.Module):
    """A deconvolution of a 1×1 map, computed as the matrix product that it is."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        """Take over the weights of a deconvolution without padding."""
        super().__init__()
        self.shape = layer.weight.shape[1:]
        self.weight = nn.Parameter(layer.weight.flatten(1).t().contiguous(), requires_grad=False)
        bias = cast(Tensor, layer.bias)
        self.bias = nn.Parameter(bias.repeat_interleave(self.shape[1:].numel()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, in, 1, 1) -> (N, out, k, k)."""
        return F.linear(x.flatten(1), self.weight, self.bias).view(-1, *self.shape)


def for_inference(network: N, *, bf16: bool = True) -> N:
    """Copy a network into a form that computes the same scores faster.

    Batch norms are folded into the layers before them, deconvolutions of stride 1 become convolutions or a matrix product, and
    memory is channels_last.

    Args:
        network: any network, in any mode; left as it is.
        bf16: compute in bfloat16 where the device is fast at it (`fast_bf16`). It has 8 bits of mantissa, so scores differ by some
            thousandths of their size.

    Returns:
        The copy, on the same device, in evaluation mode. It can be neither trained nor saved.
    """
    device = next(network.parameters()).device
    fused = copy.deepcopy(network).eval().requires_grad_(False)
    for unit in fused.modules():
        if isinstance(unit, nn.Sequential) and hasattr(unit, "conv"):  # a layer, its batch norm, ReLU
            layer = unit.get_submodule("conv")
            if hasattr(unit, "norm"):
                norm = cast(nn.BatchNorm2d, unit.get_submodule("norm"))
                layer = fuse_conv_bn_eval(cast(nn.Conv2d, layer), norm, transpose=isinstance(layer, nn.ConvTranspose2d))
                del unit.norm
            unit.conv = _without_deconvolution(layer)
    dtype = torch.bfloat16 if bf16 and fast_bf16(device) else torch.float32
    fused.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fused


def _without_deconvolution(layer: nn.Module) -> nn.Module:
    """Turn a deconvolution of stride 1 into a convolution or a matrix product; return any other layer as it is."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return layer
    if layer.padding == (0, 0):
        return _DeconvolutionFromOnePixel(layer)
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, device="meta")
    conv.weight = nn.Parameter(as_convolution_kernel(layer.weight).contiguous(), requires_grad=False)
    conv.bias = layer.bias
    return conv
