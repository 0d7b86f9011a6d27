"""The layers that both networks are built of: VGG-16's convolutions, unpooling, deconvolution.

VGG-16's layers are named alike in both: `conv3.2.conv` is VGG's conv3_2, `conv3.2.norm` the batch norm after it.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG16_LAYERS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
FC_CHANNELS = 4096


def channels(paper: int, width: float) -> int:
    """Channels of a layer that has `paper` of them at width 1: the nearest multiple of 8, at least 8."""
    return max(8, round(paper * width / 8) * 8)


class Unpool(nn.Module):
    """Undoes 2×2 max-pooling: each activation goes back to the place its switch names, zeros elsewhere.

    Windows don't overlap, so no two activations want the same place. The result takes the switches' memory format: fc6-deconv
    starts from 1×1, where channels_last is lost, and the decoder would be a third slower on CPUs without it.
    """

    def forward(self, x: Tensor, switches: Tensor) -> Tensor:
        """(N, C, H, W) activations and the int64 indices of the pooling -> (N, C, 2H, 2W)."""
        if switches.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        return F.max_unpool2d(x, switches, (2, 2))


def unit(layer: nn.Module, norm: bool = True) -> nn.Sequential:
    """A layer, batch norm, ReLU."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=layer)
    if norm:
        parts["norm"] = nn.BatchNorm2d(cast(int, layer.out_channels))
    parts["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)


def block(layer: Callable[[int, int], nn.Module], inputs: int, outputs: tuple[int, ...], norm: bool = True) -> nn.Sequential:
    """Units one after the other, named 1, 2, 3 as VGG's layers are."""
    units: OrderedDict[str, nn.Module] = OrderedDict()
    for number, out in enumerate(outputs, start=1):
        units[str(number)] = unit(layer(inputs, out), norm)
        inputs = out
    return nn.Sequential(units)


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Deconv3(nn.ConvTranspose2d):
    """A 3×3 deconvolution of stride 1, computed as the convolution with the turned kernel that it is: on CPUs twice as fast."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return F.conv2d(x, turned(self.weight), self.bias, padding=1)


def turned(kernel: Tensor) -> Tensor:
    """A deconvolution's kernel (in, out, k, k) as that of the convolution (out, in, k, k) which does the same at stride 1."""
    return kernel.transpose(0, 1).flip(2, 3)


def vgg16_blocks(width: float, norm: bool) -> list[nn.Sequential]:
    """VGG-16's five blocks of convolutions, without the pooling between them."""
    blocks, inputs = [], 3
    for layers in VGG16_LAYERS:
        outputs = tuple(channels(c, width) for c in layers)
        blocks.append(block(conv3, inputs, outputs, norm))
        inputs = outputs[-1]
    return blocks


def he_initialise(module: nn.Module) -> None:
    """He initialisation of every convolution below `module`, biases 0: from scratch, anything smaller dies out in 13 layers."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
