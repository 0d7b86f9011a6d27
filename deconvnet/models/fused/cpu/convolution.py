"""Convolutions and 3×3 deconvolutions without bias, with the algorithm that is fastest on CPUs for each of their gradients.

oneDNN computes most of them. But where there are few pixels, most of its time goes to rearranging weights and gradients, and
matrix products are several times as fast. With more pixels, Winograd's method needs fewer multiplications for 3×3 kernels, where
these are in float32. A deconvolution is the gradient of a convolution by its input, so it needs no flipped weights.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet.models.fused.cpu import winograd
from deconvnet.models.layers import Deconv3x3

MATMUL_PIXELS_WEIGHT, MATMUL_PIXELS = 1024, 512
"""Largest numbers of pixels, over all examples, for which matrix products are used.

The first is for the gradient of the weights, the second for the forward pass and the gradient of the input.
"""
WINOGRAD_MIN_CHANNELS, WINOGRAD_MIN_WORK, WINOGRAD_MIN_WEIGHTS = 32, 2**25, 2**14
"""Smallest sizes at which Winograd's method was measured to be faster.

They are: the number of input channels and of output channels; pixels · inputs · outputs; and, for the gradient of the weights,
inputs · outputs.
"""


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """Compute a layer without its bias, in bfloat16 within autocast.

    Args:
        layer: a layer that `supports_convolution` accepts.
        x: tensor of shape (N, C, H, W) on the CPU.

    Returns:
        Tensor of shape (N, C', H', W') in memory format channels_last.
    """
    weight = cast(Tensor, layer.weight)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    if isinstance(layer, Deconv3x3):
        return cast(Tensor, _Deconvolution.apply(x, weight))
    return cast(Tensor, _Convolution.apply(x, weight, cast(nn.Conv2d, layer).padding))


def convolve_relu(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Compute a convolution and ReLU without recording them for autograd.

    Args:
        x: tensor of shape (N, C, H, W) on the CPU.
        weight: kernel (C', C, height, width).
        bias: tensor of shape (C',).
        padding: padding of height and width.

    Returns:
        Tensor of shape (N, C', H', W').
    """
    if _winograd_suits(x, weight, padding) and not torch.is_autocast_enabled("cpu"):
        epilogue = torch.stack([bias, torch.zeros_like(bias)])
        return winograd.convolve(x, winograd.transformed_weights(weight), len(weight), epilogue)
    return F.relu(F.conv2d(x, weight, bias, padding=padding), inplace=True)


def _winograd_suits(x: Tensor, kernel: Tensor, padding: tuple[int, ...]) -> bool:
    """Return whether Winograd's method computes a convolution, and the gradient of its input, faster.

    Args:
        x: the input, or the result.
        kernel: the kernel (C', C, height, width).
        padding: padding of height and width.
    """
    pixels, least = x.numel() // x.shape[1], min(kernel.shape[:2])
    return (
        (*kernel.shape[2:], *padding) == (3, 3, 1, 1)
        and kernel.dtype == x.dtype
        and x.dtype in winograd.DTYPES
        and all(winograd.supports_channels(channels) for channels in kernel.shape[:2])
        and least >= WINOGRAD_MIN_CHANNELS
        and pixels > MATMUL_PIXELS_WEIGHT
        and pixels * kernel.shape[0] * kernel.shape[1] >= WINOGRAD_MIN_WORK
    )


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, ...], output_mask: list[bool]
) -> tuple[Tensor, Tensor, None]:
    """Compute the gradients of a convolution by oneDNN.

    Args:
        grad: gradient of the result.
        x: the input. For its gradient only its shape counts.
        weight: the kernel, of the same dtype.
        padding: padding of height and width.
        output_mask: whether to compute the gradients of the input, of the weight, and (not supported here) of a bias.
    """
    one, zero = (1, 1), (0, 0)
    result = torch.ops.aten.convolution_backward(grad, x, weight, None, one, padding, one, False, zero, 1, output_mask)
    return cast(tuple[Tensor, Tensor, None], result)


def _rows(x: Tensor) -> Tensor:
    """Return activations (N, C, H, W) as a matrix (N·H·W, C), without a copy if they are in memory format channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _neighbourhoods(x: Tensor, kernel: tuple[int, int], padding: tuple[int, ...]) -> Tensor:
    """Return the pixels under the kernel at each of its positions.

    Args:
        x: activations of shape (N, C, H, W).
        kernel: height and width of the kernel.
        padding: padding of height and width.

    Returns:
        Matrix of shape (N·H'·W', height·width·C), where H' and W' are the height and width of the convolution's result.
    """
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    windows = padded.unfold(1, kernel[0], 1).unfold(2, kernel[1], 1)  # (N, H', W', C, height, width)
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel[0] * kernel[1] * x.shape[1])


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Compute the gradient of a convolution's weight, in the dtype and memory format channels_last.

    Args:
        grad: gradient of the result (N, C', H', W').
        x: the input (N, C, H, W).
        weight: the kernel (C', C, height, width), of the same dtype.
        padding: padding of height and width.
    """
    if _winograd_suits(x, weight, padding) and weight.shape[0] * weight.shape[1] >= WINOGRAD_MIN_WEIGHTS:
        return winograd.weight_gradient(grad, x)
    if grad.numel() // grad.shape[1] > MATMUL_PIXELS_WEIGHT:
        return _gradients(grad, x, weight, padding, [False, True, False])[1]
    outputs, inputs, *kernel = weight.shape
    product = _rows(grad).t() @ _neighbourhoods(x, (kernel[0], kernel[1]), padding)
    return product.view(outputs, *kernel, inputs).permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    """The autograd function of a convolution with stride 1. The weight is cast to the dtype of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
        """Compute the convolution of `x` (N, C, H, W) with a kernel (C', C, height, width)."""
        kernel = weight.to(x.dtype)
        ctx.save_for_backward(x, kernel)
        ctx.padding, ctx.dtype = padding, weight.dtype
        outputs, _, *size = weight.shape
        if _winograd_suits(x, kernel, padding):
            return winograd.convolve(x, winograd.transformed_weights(kernel), outputs)
        height, width = (s + 2 * p - k + 1 for s, p, k in zip(x.shape[2:], padding, size, strict=True))
        if len(x) * height * width > MATMUL_PIXELS:
            return torch.conv2d(x, kernel, None, padding=padding)
        product = _neighbourhoods(x, (size[0], size[1]), padding) @ kernel.permute(0, 2, 3, 1).reshape(outputs, -1).t()
        return product.view(len(x), height, width, outputs).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """Compute the gradients of `x` and `weight` (arguments of `forward`)."""
        x, kernel = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        grad_x = None
        if ctx.needs_input_grad[0]:
            if _winograd_suits(x, kernel, ctx.padding):
                grad_x = winograd.convolve(grad, winograd.transformed_weights(kernel, for_input_gradient=True), x.shape[1])
            elif grad.numel() // grad.shape[1] <= MATMUL_PIXELS:
                grad_x = _input_gradient(grad, x, kernel, ctx.padding)
            else:
                grad_x = _gradients(grad, x, kernel, ctx.padding, [True, False, False])[0]
        return grad_x, _weight_gradient(grad, x, kernel, ctx.padding).to(ctx.dtype), None


def _input_gradient(grad: Tensor, x: Tensor, kernel: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Compute the gradient of a convolution's input by a matrix product; the arguments are those of `_weight_gradient`."""
    outputs, inputs, rows, columns = kernel.shape
    n, _, height, width = grad.shape
    shares = (_rows(grad) @ kernel.permute(0, 2, 3, 1).reshape(outputs, -1)).view(n, height, width, rows, columns, inputs)
    sums = torch.zeros(n, height + rows - 1, width + columns - 1, inputs, dtype=torch.promote_types(x.dtype, torch.float32))
    for row in range(rows):
        for column in range(columns):
            sums[:, row : row + height, column : column + width] += shares[:, :, :, row, column]
    inside = sums[:, padding[0] :, padding[1] :][:, : x.shape[2], : x.shape[3]]
    return inside.to(x.dtype).permute(0, 3, 1, 2)


class _Deconvolution(torch.autograd.Function):
    """The autograd function of `Deconv3x3`. It is a convolution in which the input and the gradient have changed places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Compute the deconvolution of `x` (N, C, H, W) with a kernel (C, C', 3, 3)."""
        kernel = weight.to(x.dtype)
        ctx.save_for_backward(x, kernel)
        ctx.dtype = weight.dtype
        if _winograd_suits(x, kernel, (1, 1)):
            return winograd.convolve(x, winograd.transformed_weights(kernel, for_input_gradient=True), weight.shape[1])
        shape = (len(x), weight.shape[1], *x.shape[2:])
        like = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        return _gradients(x, like, kernel, (1, 1), [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        """Compute the gradients of `x` and `weight` (arguments of `forward`)."""
        x, kernel = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        grad_x = None
        if ctx.needs_input_grad[0]:
            if _winograd_suits(grad, kernel, (1, 1)):
                grad_x = winograd.convolve(grad, winograd.transformed_weights(kernel), len(kernel))
            else:
                grad_x = torch.conv2d(grad, kernel, None, padding=1)
        return grad_x, _weight_gradient(x, grad, kernel, (1, 1)).to(ctx.dtype)
