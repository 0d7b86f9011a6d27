"""The layers that both networks are built of: VGG-16's convolutions, unpooling and deconvolution.

VGG-16's layers have the same names in both networks: `conv3.2.conv` is VGG's conv3_2 and `conv3.2.norm` the batch norm after it.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG-16's 13 convolutions, by block; each block is followed by 2×2 max-pooling."""
VGG16_CONVOLUTIONS = tuple(f"conv{b}_{i}" for b, block in enumerate(VGG16_CHANNELS, 1) for i in range(1, len(block) + 1))
"""Their names in VGG-16, in order: conv1_1, conv1_2, conv2_1, …, conv5_3."""
FC_CHANNELS = 4096
"""Output channels of VGG-16's fc6 and fc7."""


def channels(paper: int, width: float) -> int:
    """Return the channels of a layer at a width.

    Args:
        paper: channels of the layer in the paper.
        width: channels relative to the paper's.

    Returns:
        paper × width rounded to a multiple of 8, at least 8.
    """
    return max(8, round(paper * width / 8) * 8)


class Unpool(nn.Module):
    """Undoes 2×2 max-pooling (§3.2.1 of DeconvNet): puts each activation back where its maximum was, and zeros elsewhere."""

    def forward(self, x: Tensor, switches: Tensor) -> Tensor:
        """Unpool a map.

        Args:
            x: activations (N, C, H, W).
            switches: int64 indices (N, C, H, W) that `nn.MaxPool2d(2, 2, return_indices=True)` returned.

        Returns:
            (N, C, 2H, 2W), in the memory format of `switches`. fc6-deconv begins at 1×1, where channels_last is lost; without it
            the decoder would be a third slower on CPUs.
        """
        if switches.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        return F.max_unpool2d(x, switches, (2, 2))


def unit(layer: nn.Module, norm: bool = True) -> nn.Sequential:
    """Build a layer followed by batch norm and ReLU.

    Args:
        layer: a convolution or deconvolution.
        norm: whether there is batch norm.

    Returns:
        A module with the submodules `conv` (the layer), `norm` and `relu`.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=layer)
    if norm:
        parts["norm"] = nn.BatchNorm2d(cast(int, layer.out_channels))
    parts["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)


def block(layer: Callable[[int, int], nn.Module], inputs: int, outputs: tuple[int, ...], norm: bool = True) -> nn.Sequential:
    """Build units one after the other, named 1, 2, 3 as VGG's layers are.

    Args:
        layer: makes a layer from its input and output channels.
        inputs: input channels of the first unit.
        outputs: output channels of each unit.
        norm: whether the units have batch norm.
    """
    units: OrderedDict[str, nn.Module] = OrderedDict()
    for number, out in enumerate(outputs, start=1):
        units[str(number)] = unit(layer(inputs, out), norm)
        inputs = out
    return nn.Sequential(units)


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """Build a 3×3 convolution that keeps the size of its input."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Deconv3x3(nn.ConvTranspose2d):
    """A 3×3 deconvolution of stride 1 that keeps the size of its input.

    It is computed as the equivalent convolution, twice as fast on CPUs; its weights are stored as the deconvolution's.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        """Build the layer from its input and output channels."""
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Compute (N, inputs, H, W) -> (N, outputs, H, W); `output_size` is not used."""
        return F.conv2d(x, as_convolution_kernel(self.weight), self.bias, padding=1)


def as_convolution_kernel(kernel: Tensor) -> Tensor:
    """Turn the kernel of a deconvolution of stride 1 into that of the equivalent convolution.

    Args:
        kernel: (in, out, k, k), as `nn.ConvTranspose2d` keeps it.

    Returns:
        (out, in, k, k), a view, as `nn.Conv2d` keeps it.
    """
    return kernel.transpose(0, 1).flip(2, 3)


def vgg16_blocks(width: float, norm: bool) -> list[nn.Sequential]:
    """Build VGG-16's five blocks of convolutions, without the pooling after each.

    Args:
        width: channels relative to VGG-16's.
        norm: whether each convolution is followed by batch norm.
    """
    blocks, inputs = [], 3
    for paper in VGG16_CHANNELS:
        outputs = tuple(channels(c, width) for c in paper)
        blocks.append(block(conv3x3, inputs, outputs, norm))
        inputs = outputs[-1]
    return blocks


def he_initialise(module: nn.Module) -> None:
    """Set convolutions to He's initialisation and their biases to 0.

    When training from scratch, activations from a smaller initialisation vanish within VGG's 13 layers.

    Args:
        module: every `nn.Conv2d` below it is changed in place.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
