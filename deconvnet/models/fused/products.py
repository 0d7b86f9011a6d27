"""Convolutions computed as matrix products, for inference in float32 on CPUs.

torch's convolutions are limited by the processor's arithmetic for many channels, and by the memory for few pixels and huge
kernels. Both take less time here; the results are the same up to rounding.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MIN_WEIGHTS = 128 * 256  # input × output channels from which Winograd's products take less than 0.6 of torch's time
_HUGE = 2**24  # weights of a kernel that does not fit into the processor's caches
_MAX_PIXELS = 256  # of the output, up to which torch spends more time on the order of a huge kernel's weights than on computing
_TILES = 256  # in one product: enough that the weights are not read too often, and few enough for the processor's caches

# Winograd's F(4×4, 3×3), Lavin and Gray (CVPR 2016), §4.3: 4×4 outputs are A·[(G·g·Gᵀ) ∘ (B·d·Bᵀ)]·Aᵀ for a kernel g, 6×6 inputs d.
_B = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_G = [[1 / 4, 0, 0], [-1 / 6] * 3, [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


class WinogradConv2d(nn.Module):
    """A 3×3 convolution that needs a quarter of the multiplications, by Winograd's method for tiles of 4×4 pixels.

    Its weights take four times the memory. Results differ from torch's by about 1e-5 of the largest one.
    """

    weight: Tensor
    bias: Tensor
    inputs: Tensor
    outputs: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take the weights of a convolution for which `WinogradConv2d.suits` is true."""
        super().__init__()
        g = torch.tensor(_G, dtype=torch.float64)
        weight = torch.einsum("ai,bj,ocij->abco", g, g, conv.weight.detach().double()).flatten(0, 1)
        self.register_buffer("weight", weight.float().contiguous())  # (36, inputs, outputs)
        self.register_buffer("bias", cast(Tensor, conv.bias).detach())
        self.register_buffer("inputs", torch.kron(*[torch.tensor(_B, dtype=torch.float32)] * 2))
        self.register_buffer("outputs", torch.kron(*[torch.tensor(_A, dtype=torch.float32)] * 2))

    @staticmethod
    def suits(layer: nn.Module) -> bool:
        """Return whether a layer is a convolution that keeps its input's size and has enough channels to become faster."""
        return (
            isinstance(layer, nn.Conv2d)
            and (layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups)
            == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
            and layer.bias is not None
            and layer.in_channels * layer.out_channels >= _MIN_WEIGHTS
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the convolution.

        Args:
            x: float32 (N, inputs, H, W).

        Returns:
            float32 (N, outputs, H, W), in memory format channels_last.
        """
        count, channels, height, width = x.shape
        rows, columns = -(-height // 4), -(-width // 4)
        out = x.new_empty(count, height, width, self.weight.shape[2])
        images = max(1, _TILES // (rows * columns))
        for into, part in zip(out.split(images), x.permute(0, 2, 3, 1).split(images), strict=True):
            padded = F.pad(part, (0, 0, 1, 4 * columns + 1 - width, 1, 4 * rows + 1 - height)).contiguous()
            image, row, column, channel = padded.stride()
            tiles = padded.as_strided(
                (6, 6, len(part), rows, columns, channels), (row, column, image, 4 * row, 4 * column, channel)
            )
            transformed = (self.inputs @ tiles.reshape(36, -1)).view(36, -1, channels)
            found = self.outputs @ torch.bmm(transformed, self.weight).view(36, -1)
            pixels = found.view(4, 4, len(part), rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
            torch.add(pixels.reshape(len(part), 4 * rows, 4 * columns, -1)[:, :height, :width], self.bias, out=into)
        return out.permute(0, 3, 1, 2)


class NeighbourhoodConv2d(nn.Conv2d):
    """A convolution with a huge kernel, as FCN-8s' fc6, that is computed as the product of the pixels' neighbourhoods and the kernel.

    torch's own brings the weights (0.4 GB for fc6) into another order in each call. For many pixels this matters little, so torch's
    is used.
    """

    @staticmethod
    def suits(layer: nn.Module) -> bool:
        """Return whether a layer is a convolution with a huge kernel of 7×7, with all channels together and no strides."""
        return (
            isinstance(layer, nn.Conv2d)
            and (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == ((7, 7), (1, 1), (1, 1), 1)
            and layer.weight.numel() >= _HUGE
        )

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "NeighbourhoodConv2d":
        """Return a layer with the weights of a convolution for which `NeighbourhoodConv2d.suits` is true."""
        made = cls(conv.in_channels, conv.out_channels, 7, padding=cast(tuple[int, int], conv.padding), device="meta")
        made.weight, made.bias = conv.weight, conv.bias
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Compute the convolution.

        Args:
            input: float32 (N, in_channels, H, W).

        Returns:
            float32 (N, out_channels, H', W').
        """
        up, left = cast(tuple[int, int], self.padding)
        padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, left, left, up, up)).contiguous()
        count, height, width, channels = padded.shape[0], padded.shape[1] - 6, padded.shape[2] - 6, padded.shape[3]
        if count * height * width > _MAX_PIXELS:
            return super().forward(input)
        image, row, column, channel = padded.stride()
        around = padded.as_strided((count, height, width, 7, 7, channels), (image, row, column, row, column, channel))
        # In memory format channels_last the kernel is not copied.
        kernel = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(around.reshape(count, height, width, -1), kernel, self.bias).permute(0, 3, 1, 2)
