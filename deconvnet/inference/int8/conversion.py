"""Conversion of trained networks to 8-bit integers."""

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from deconvnet.inference.int8.layers import Int8Conv2d, Int8PixelDeconv2d
from deconvnet.inference.int8.ranges import Ranges
from deconvnet.models.fused.available import use_fused
from deconvnet.models.fused.layers import use_fused_layers
from deconvnet.models.fusion import fold_batch_norm
from deconvnet.models.layers import MatrixDeconv2d, as_convolution_kernel, units
from deconvnet.models.network import Network
from deconvnet.models.preprocessing import prepare
from infra.device import fast_int8

N = TypeVar("N", bound=Network)

_SCORES = {"score": "", "score_pool4": "conv4", "score_pool3": "conv3"}
"""Layers that compute scores, and the block before each; "" is the last layer of the network."""


def computes_int8(device: torch.device | str) -> bool:
    """Return whether networks in 8-bit integers can be computed on a device, and faster than others.

    Args:
        device: the device, such as "cpu".
    """
    return fast_int8(device) and use_fused(torch.device(device))


def to_int8(network: N, ranges: Ranges) -> N:
    """Return a copy of a network that computes about the same scores with 8-bit integers.

    Weights have a scale for each output channel. Activations have one for each layer: its largest activation divided by 255. The
    first layer rounds the pixels. Score layers return float32.

    Args:
        network: a trained network on the CPU. It is not changed.
        ranges: its largest activations.

    Returns:
        The copy, in evaluation mode. It can be neither trained nor saved.

    Raises:
        ValueError: if the ranges are those of another network.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    layers = units(network)
    if layers.keys() != ranges.keys():
        raise ValueError(f"the ranges of {', '.join(ranges)} are not those of this network")
    scales = {name: (ranges[name] or 1.0) / 255 for name in layers}
    before = 1.0
    for number, (name, unit) in enumerate(layers.items()):
        limits = None if number else _limits(network.convention)
        network.set_submodule(name, _converted(fold_batch_norm(unit), before, scales[name], limits))
        before = scales[name]
    for name, block in _SCORES.items():
        if hasattr(network, name):
            layer = cast(nn.Conv2d, network.get_submodule(name))
            scale = scales[[each for each in layers if each.startswith(block)][-1]]
            network.set_submodule(name, Int8Conv2d(layer.weight, cast(Tensor, layer.bias), 0, scale, None))
    use_fused_layers(network)  # pooling and unpooling of uint8 activations
    return network


def _limits(convention: str) -> tuple[float, float]:
    """Return the smallest and the largest value of a network's input."""
    black, white = (prepare(torch.full((1, 3, 1, 1), value, dtype=torch.uint8), convention) for value in (0, 255))
    return float(black.min()), float(white.max())


def _converted(layer: nn.Module, before: float, scale: float, limits: tuple[float, float] | None) -> nn.Module:
    """Convert a layer and the ReLU after it.

    Args:
        layer: a convolution or deconvolution of `models.layers`.
        before: the scale of its input.
        scale: the scale of its result.
        limits: smallest and largest value of the input, if it is not in 8-bit integers.
    """
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    if isinstance(layer, MatrixDeconv2d):
        return Int8PixelDeconv2d(weight, bias, before, scale)
    if isinstance(layer, nn.ConvTranspose2d):  # the only other one is Deconv3x3
        return Int8Conv2d(as_convolution_kernel(weight), bias, 1, before, scale)
    padding = cast(tuple[int, int], cast(nn.Conv2d, layer).padding)
    return Int8Conv2d(weight, bias, padding[0], before, scale, limits)
