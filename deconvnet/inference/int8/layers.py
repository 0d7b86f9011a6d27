"""Layers that compute with 8-bit integers, for prediction on CPUs.

Between layers, activations are uint8 tensors. A value q stands for the activation q · s. The scale s of each layer is known
before prediction, see `conversion`. All activations are at least 0, because each layer ends with ReLU.

Convolutions are computed by oneDNN, with the operators that torch's compiler uses for networks in 8-bit integers. Sums of
products of integers are exact, so results depend neither on the number of threads nor on the other examples of a batch.
"""

from typing import cast

import torch
from torch import Tensor, nn

_LARGEST_WEIGHT = 127
_LARGEST_ACTIVATION = 255
_SMALLEST = 1e-20  # lower limit of a channel's largest weight, so that a channel of zeros does not cause a division by 0


class Int8Conv2d(nn.Module):
    """A convolution with stride 1, and ReLU.

    Attributes:
        bias: parameter of shape (K,), float32, which is not trained.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        padding: int,
        scale: float,
        new_scale: float | None,
        limits: tuple[float, float] | None = None,
    ) -> None:
        """Round the weights to 8-bit integers. Each output channel has a scale of its own for them.

        Args:
            weight: kernel (K, C, height, width), float32.
            bias: tensor of shape (K,), float32.
            padding: width of the border of zeros around the input.
            scale: the scale of the input. Not used if `limits` are given.
            new_scale: the scale of the result. None: the result is float32, and there is no ReLU.
            limits: smallest and largest value of the input, below and above 0, if it is float32 and not uint8.
        """
        super().__init__()
        self._scales = weight.abs().amax((1, 2, 3)).clamp_min(_SMALLEST) / _LARGEST_WEIGHT
        integers = (weight / self._scales.view(-1, 1, 1, 1)).round().to(torch.int8)
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self._zeros, self._padding = torch.zeros(len(bias), dtype=torch.int64), [padding, padding]
        self._is_first, self._scale, self._zero, self._new_scale = limits is not None, scale, 0, new_scale
        if limits is not None:
            self._scale = (limits[1] - limits[0]) / _LARGEST_ACTIVATION
            self._zero = round(-limits[0] / self._scale)
        self._weight = torch.ops.onednn.qconv_prepack(
            integers, self._scales, self._scale, self._zero, [1, 1], self._padding, [1, 1], 1, None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer.

        Args:
            x: tensor of shape (N, C, H, W), uint8 activations or, if `limits` were given, float32.

        Returns:
            Tensor of shape (N, K, H', W') in memory format channels_last, uint8 activations or, without `new_scale`, float32.
        """
        if self._is_first:
            x = (x / self._scale).add_(self._zero).round_().clamp_(0, _LARGEST_ACTIVATION).to(torch.uint8)
        dtype, last_step = (torch.float32, "none") if self._new_scale is None else (torch.uint8, "relu")
        result = torch.ops.onednn.qconv2d_pointwise(
            x.contiguous(memory_format=torch.channels_last),
            self._scale,
            self._zero,
            self._weight,
            self._scales,
            self._zeros,
            self.bias,
            [1, 1],  # stride
            self._padding,
            [1, 1],  # dilation
            1,  # groups
            1.0 if self._new_scale is None else self._new_scale,
            0,
            dtype,
            last_step,
            [],
            "",
        )
        return cast(Tensor, result)


class Int8PixelDeconv2d(nn.Module):
    """A deconvolution without padding of a single pixel (a 1×1 map), and ReLU. Each output pixel is a 1×1 convolution of it."""

    def __init__(self, weight: Tensor, bias: Tensor, scale: float, new_scale: float) -> None:
        """Round the weights to 8-bit integers.

        Args:
            weight: kernel (C, K, height, width), float32.
            bias: tensor of shape (K,), float32.
            scale: the scale of the input.
            new_scale: the scale of the result.
        """
        super().__init__()
        inputs, outputs, height, width = weight.shape
        self._shape = height, width, outputs
        rows = weight.permute(2, 3, 1, 0).reshape(-1, inputs, 1, 1)
        self.conv = Int8Conv2d(rows, bias.repeat(height * width), 0, scale, new_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer.

        Args:
            x: uint8 activations of shape (N, C, 1, 1).

        Returns:
            uint8 activations of shape (N, K, height, width), in memory format channels_last.
        """
        pixels = cast(Tensor, self.conv(x))
        return pixels.reshape(len(x), *self._shape).permute(0, 3, 1, 2)
