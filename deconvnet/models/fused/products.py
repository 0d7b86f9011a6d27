"""Faster convolutions for inference in float32 on CPUs.

torch's 3×3 convolutions are limited by the processor's arithmetic, and those with few pixels and huge kernels by the memory. Both
take less time here; the results are the same up to rounding.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_VECTOR = 16  # numbers of channels must be multiples of it
_HUGE = 2**24  # weights of a kernel that does not fit into the processor's caches
_MAX_PIXELS = 256  # largest number of output pixels for which torch spends more time reordering a huge kernel than computing


class WinogradConv2d(nn.Module):
    """A 3×3 convolution by Winograd's method, with a quarter of the multiplications, optionally followed by ReLU.

    Its weights take four times the memory. Results differ from torch's by about 1e-5 of the largest one.
    """

    weight: Tensor
    epilogue: Tensor

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        """Take the weights of a convolution for which `WinogradConv2d.supports` is true.

        Args:
            conv: the convolution.
            relu: whether to compute the ReLU of the results.
        """
        from deconvnet.models.fused.cpu.winograd import transformed_weights  # needs numba

        super().__init__()
        bias = cast(Tensor, conv.bias).detach()
        self.register_buffer("weight", transformed_weights(conv.weight.detach()))
        self.register_buffer("epilogue", torch.stack([bias, torch.full_like(bias, 0.0 if relu else -torch.inf)]))

    @staticmethod
    def supports(layer: nn.Module) -> bool:
        """Return whether a layer is a convolution that keeps its input's size, with numbers of channels that fit the vectors."""
        return (
            isinstance(layer, nn.Conv2d)
            and (layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups)
            == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
            and layer.bias is not None
            and layer.in_channels % _VECTOR == 0
            and layer.out_channels % _VECTOR == 0
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the convolution.

        Args:
            x: float32 (N, inputs, H, W).

        Returns:
            float32 (N, outputs, H, W), in memory format channels_last.
        """
        from deconvnet.models.fused.cpu.winograd import convolve

        return convolve(x, self.weight, self.epilogue.shape[1], self.epilogue)


class NeighbourhoodConv2d(nn.Conv2d):
    """A convolution with a huge kernel, such as FCN-8s' fc6, computed by im2col: neighbourhoods of pixels times the kernel.

    torch's convolution reorders the weights (0.4 GB for fc6) in each call. If there are many pixels, this hardly matters, and
    torch's convolution is used.
    """

    @staticmethod
    def supports(layer: nn.Module) -> bool:
        """Return whether a layer is a convolution with a huge kernel of 7×7, with all channels together and no strides."""
        return (
            isinstance(layer, nn.Conv2d)
            and (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == ((7, 7), (1, 1), (1, 1), 1)
            and layer.weight.numel() >= _HUGE
        )

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "NeighbourhoodConv2d":
        """Return a layer with the weights of a convolution for which `NeighbourhoodConv2d.supports` is true."""
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
