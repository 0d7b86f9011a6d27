"""Conversion of trained networks to a form that computes the same scores much faster, for inference only."""

import copy
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deconvnet.models.fused.available import use_fused
from deconvnet.models.fused.products import NeighbourhoodConv2d, WinogradConv2d
from deconvnet.models.layers import as_convolution_kernel, units
from deconvnet.models.network import Network
from infra.device import fast_bf16

N = TypeVar("N", bound=Network)


def for_inference(network: N, *, bf16: bool = True) -> N:
    """Return a copy of a network that computes the same scores faster.

    Batch norms are folded into the layers before them. Deconvolutions with stride 1 become convolutions or matrix products. The
    memory format is channels_last. In float32 on CPUs, two kinds of convolutions are replaced by faster ones of `fused.products`:
    3×3 convolutions, together with their ReLU, if numba can compile; and convolutions with huge kernels.

    Args:
        network: a network in training or evaluation mode. It is not changed.
        bf16: whether to compute in bfloat16, if the device is fast at it. Then scores differ by a few thousandths of their
            size, because bfloat16 is less precise.

    Returns:
        The copy, on the same device and in evaluation mode. It can be neither trained nor saved.
    """
    device = next(network.parameters()).device
    dtype = torch.bfloat16 if bf16 and fast_bf16(device) else torch.float32
    as_products = device.type == "cpu" and dtype == torch.float32
    fused = copy.deepcopy(network).eval().requires_grad_(False)
    for unit in units(fused).values():
        layer = _deconv_as_conv(fold_batch_norm(unit))
        if hasattr(unit, "norm"):
            del unit.norm
        unit.conv = _fast_convolution(layer) if as_products else layer
        if isinstance(unit.conv, WinogradConv2d) and unit.conv is not layer:
            del unit.relu
    fused.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fused


def fold_batch_norm(unit: nn.Sequential) -> nn.Module:
    """Return the layer of a unit, with its batch norm, if there is one, folded into the weights.

    Args:
        unit: a module made by `layers.unit`, in evaluation mode. It is not changed.
    """
    layer = unit.get_submodule("conv")
    if not hasattr(unit, "norm"):
        return layer
    norm = cast(nn.BatchNorm2d, unit.get_submodule("norm"))
    return fuse_conv_bn_eval(cast(nn.Conv2d, layer), norm, transpose=isinstance(layer, nn.ConvTranspose2d))


def _deconv_as_conv(layer: nn.Module) -> nn.Module:
    """Convert a deconvolution with stride 1 to a faster layer that computes the same.

    Args:
        layer: any layer.

    Returns:
        A convolution or a matrix product if the layer is such a deconvolution, otherwise the layer itself.
    """
    if not isinstance(layer, nn.ConvTranspose2d):
        return layer
    if layer.padding == (0, 0):
        return layer  # already a matrix product
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, device="meta")
    conv.weight = nn.Parameter(as_convolution_kernel(layer.weight).contiguous(), requires_grad=False)
    conv.bias = layer.bias
    return conv


def _fast_convolution(layer: nn.Module) -> nn.Module:
    """Convert a convolution that can be computed faster, in float32 on a CPU.

    Args:
        layer: any layer that ReLU follows.

    Returns:
        A `WinogradConv2d`, which includes the ReLU; or a `NeighbourhoodConv2d`; or the given layer, if neither fits.
    """
    if WinogradConv2d.supports(layer) and use_fused(torch.device("cpu")):
        return WinogradConv2d(cast(nn.Conv2d, layer), relu=True)
    return NeighbourhoodConv2d.of(cast(nn.Conv2d, layer)) if NeighbourhoodConv2d.supports(layer) else layer
