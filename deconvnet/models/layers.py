"""Layers that both networks are built of: VGG-16's convolutions, unpooling and 3×3 deconvolution.

VGG-16's layers have the same names in both networks. For example, `conv3.2.conv` is VGG-16's conv3_2, and `conv3.2.norm` is the
batch norm after it.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG-16's 13 convolutions, grouped by block. A 2×2 max-pooling follows each block."""
VGG16_CONVOLUTIONS = tuple(f"conv{b}_{i}" for b, block in enumerate(VGG16_CHANNELS, 1) for i in range(1, len(block) + 1))
"""Names of VGG-16's 13 convolutions in order: conv1_1, conv1_2, conv2_1, …, conv5_3."""
FC_CHANNELS = 4096
"""Output channels of VGG-16's fc6 and fc7."""


def channels(paper: int, width: float) -> int:
    """Return the number of channels of a layer in a network of adjustable width.

    Args:
        paper: number of channels of the layer in the published network.
        width: width of the network as a fraction of the published network's.

    Returns:
        paper × width, rounded to a multiple of 8, and at least 8.
    """
    return max(8, round(paper * width / 8) * 8)


class Unpool(nn.Module):
    """The inverse of 2×2 max-pooling (§3.2.1 of Noh et al., ICCV 2015).

    It puts each activation at the position of the maximum that pooling found, and zeros everywhere else.
    """

    def forward(self, x: Tensor, switches: Tensor) -> Tensor:
        """Enlarge activations to twice their height and width.

        The result has the memory format of `switches`. DeconvNet's decoder starts from a 1×1 map, which does not record that
        the memory format is channels_last. Taking the format from `switches` restores it. Otherwise the decoder would be a
        third slower on CPUs.

        Args:
            x: activations of shape (N, C, H, W).
            switches: positions of the maxima: int64 indices of shape (N, C, H, W), as returned by the matching pooling layer
                `nn.MaxPool2d(2, 2, return_indices=True)`.

        Returns:
            Tensor of shape (N, C, 2H, 2W).
        """
        if switches.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        return F.max_unpool2d(x, switches, (2, 2))


def unit(layer: nn.Module, norm: bool = True) -> nn.Sequential:
    """Chain a layer, batch norm and ReLU in one module.

    Args:
        layer: a convolution or deconvolution.
        norm: whether to include batch norm.

    Returns:
        A module with the submodules `conv` (the layer), `norm` (unless `norm` is False) and `relu`, which run in this order.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=layer)
    if norm:
        parts["norm"] = nn.BatchNorm2d(cast(int, layer.out_channels))
    parts["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)


def units(module: nn.Module) -> dict[str, nn.Sequential]:
    """Return the parts of a module that were made by `unit`, by name, in the order in which they were added.

    Args:
        module: a network, which may have been converted by `fusion.for_inference`.
    """
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Sequential) and hasattr(part, "conv")}


def block(layer: Callable[[int, int], nn.Module], inputs: int, outputs: tuple[int, ...], norm: bool = True) -> nn.Sequential:
    """Build a sequence of layers, each followed by batch norm (optional) and ReLU.

    Args:
        layer: function that makes a layer from its numbers of input and output channels.
        inputs: number of input channels of the first layer.
        outputs: number of output channels of each layer. Its length is the number of layers.
        norm: whether to include batch norm.

    Returns:
        A module whose submodules are named "1", "2", "3" and so on, as in VGG-16's layer names (conv3_1, conv3_2, …).
    """
    units: OrderedDict[str, nn.Module] = OrderedDict()
    for number, out in enumerate(outputs, start=1):
        units[str(number)] = unit(layer(inputs, out), norm)
        inputs = out
    return nn.Sequential(units)


class Deconv3x3(nn.ConvTranspose2d):
    """A 3×3 deconvolution with stride 1 that keeps the height and width of its input.

    It is computed as the equivalent convolution, because this is twice as fast on CPUs. Its weights are stored in the layout of
    a deconvolution.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        """Build the layer with torch's default initial weights.

        Args:
            inputs: number of input channels.
            outputs: number of output channels.
        """
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Compute the deconvolution.

        Args:
            x: tensor of shape (N, inputs, H, W).
            output_size: unused; it is there because the base class has it.

        Returns:
            Tensor of shape (N, outputs, H, W).
        """
        return F.conv2d(x, as_convolution_kernel(self.weight), self.bias, padding=1)


class MatrixConv2d(nn.Conv2d):
    """A convolution that is computed as a matrix product if its kernel has a single pixel or covers the whole input.

    The result is the same, and the matrix product is up to 20 times as fast on CPUs.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Compute the convolution.

        Args:
            input: tensor of shape (N, in_channels, H, W).

        Returns:
            Tensor of shape (N, out_channels, H', W').
        """
        if self.kernel_size == (1, 1):
            return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        if self.padding != (0, 0) or self.kernel_size != input.shape[-2:]:
            return super().forward(input)
        # In memory format channels_last neither of these copies anything.
        pixels, weight = (tensor.permute(0, 2, 3, 1).flatten(1) for tensor in (input, self.weight))
        return F.linear(pixels, weight, self.bias)[..., None, None]


class MatrixDeconv2d(nn.ConvTranspose2d):
    """A deconvolution without padding that is computed as a matrix product if its input is a single pixel (a 1×1 map)."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Compute the deconvolution.

        Args:
            input: tensor of shape (N, in_channels, H, W).
            output_size: unused; it is there because the base class has it.

        Returns:
            Tensor of shape (N, out_channels, H + k − 1, W + k − 1), where k is the side of the kernel.
        """
        if input.shape[-2:] != (1, 1):
            return super().forward(input, output_size)
        bias = cast(Tensor, self.bias).repeat(self.weight[0, 0].numel())
        pixels = torch.addmm(bias, input.flatten(1), self.weight.permute(0, 2, 3, 1).flatten(1))
        return pixels.view(input.shape[0], *self.kernel_size, self.out_channels).permute(0, 3, 1, 2)


def as_convolution_kernel(kernel: Tensor) -> Tensor:
    """Convert the kernel of a deconvolution with stride 1 to the kernel of the equivalent convolution.

    Args:
        kernel: tensor of shape (in, out, k, k), the layout of `nn.ConvTranspose2d`. Here "in" and "out" are numbers of
            channels.

    Returns:
        Tensor of shape (out, in, k, k), the layout of `nn.Conv2d`.
    """
    return kernel.transpose(0, 1).flip(2, 3)


def vgg16_blocks(width: float, norm: bool) -> list[nn.Sequential]:
    """Build VGG-16's five blocks of convolutions, without the pooling after each block.

    Args:
        width: number of channels per layer as a fraction of VGG-16's.
        norm: whether each convolution is followed by batch norm.

    Returns:
        The five blocks, in the order in which they run.
    """
    blocks, inputs = [], 3
    for paper in VGG16_CHANNELS:
        outputs = tuple(channels(c, width) for c in paper)
        blocks.append(block(partial(nn.Conv2d, kernel_size=3, padding=1), inputs, outputs, norm))
        inputs = outputs[-1]
    return blocks


def he_initialise(module: nn.Module) -> None:
    """Give all convolutions in a module He's initialisation, with biases of 0.

    With smaller initial weights, activations would vanish within VGG-16's 13 layers when training from scratch.

    Args:
        module: a network or layer. Every `nn.Conv2d` in it is changed in place, except on torch's device "meta".
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
