"""3×3 convolutions with a padding of 1 by Winograd's method for tiles of 4×4 pixels, and their gradients.

They need a quarter of the multiplications of the usual way. Results differ from it by about 1e-5 of the largest one in float32.
"""

import numpy as np
import torch
from numba import types
from torch import Tensor

from deconvnet.models.fused.cpu.parallel import run
from deconvnet.models.fused.cpu.winograd_code import PANEL, ROWS, WIDTH
from deconvnet.models.fused.cpu.winograd_kernels import (
    TABLES,
    convolution_kernel,
    planes_kernel,
    weight_gradients_kernel,
    weights_kernel,
)

DTYPES = {torch.float32: types.float32, torch.float64: types.float64}
"""Numba types of the supported dtypes."""
CACHE_NUMBERS = 2**18
"""About how many numbers a thread works on at a time, so that they stay in the caches of its core (1 MB of float32)."""
WEIGHTS_PER_TILE = 2**9
"""A thread works on at least one tile for this many weights, because weights are read once for all tiles together."""
MAX_TILES = 16 * ROWS
"""Largest number of tiles that `WEIGHTS_PER_TILE` may ask for."""
PASS_NUMBERS, PASS_NUMBERS_PER_WEIGHT = 2**19, 2**5
"""The gradient of the weights is computed in passes over some of the tiles. A pass holds at most so many transformed numbers.

The limit is the larger of `PASS_NUMBERS` and `PASS_NUMBERS_PER_WEIGHT` · inputs · outputs. Smaller passes would be slower,
because each pass reads and writes all sums once.
"""
MAX_BLOCK = (128, 2 * PANEL)
"""Largest numbers of output and of input channels of a block of weights whose gradient is computed at a time."""


def supports_channels(channels: int) -> bool:
    """Return whether these functions can compute with a number of channels."""
    return channels > 0 and channels % WIDTH == 0


def transformed_weights(kernel: Tensor, for_input_gradient: bool = False) -> Tensor:
    """Transform the weights of a convolution for `convolve`.

    Args:
        kernel: kernel (outputs, inputs, 3, 3) of a dtype in `DTYPES`, with numbers of channels that `supports_channels` accepts.
        for_input_gradient: True to prepare the weights for the gradient of the input. The deconvolution with this kernel is the
            same computation.

    Returns:
        The weights. They are not meant for any other use.
    """
    size, (outputs, inputs) = kernel.element_size(), kernel.shape[:2]
    numbers = kernel.permute(0, 2, 3, 1).reshape(outputs, 9 * inputs)
    rows, columns = (outputs, inputs) if for_input_gradient else (inputs, outputs)
    if for_input_gradient:
        start, step, row = numbers.data_ptr() + 8 * inputs * size, -inputs * size, 9 * inputs * size
    else:
        numbers = numbers.t().contiguous()  # (3, 3, inputs, outputs)
        start, step, row = numbers.data_ptr(), inputs * outputs * size, outputs * size
    panels, per_chunk = -(-columns // PANEL), max(1, 2**13 // columns)
    shape = (36 * panels, rows, PANEL)  # not of four dimensions, because `Module.to` would change the order of the numbers
    weights = kernel.new_empty(shape) if columns % PANEL == 0 else kernel.new_zeros(shape)
    chunks, panel = -(-rows // per_chunk), rows * PANEL * size
    given, result = (start, step, row, PANEL * size), (weights, panels * panel, PANEL * size, panel)
    run(weights_kernel(DTYPES[kernel.dtype]), chunks, rows, per_chunk, columns, *given, *result, _tables(chunks))
    return weights


def convolve(x: Tensor, weights: Tensor, outputs: int, epilogue: Tensor | None = None) -> Tensor:
    """Compute a convolution.

    Args:
        x: tensor of shape (N, inputs, H, W) on the CPU.
        weights: weights of the same dtype, made by `transformed_weights`.
        outputs: number of output channels.
        epilogue: tensor of shape (2, outputs): for each channel, a bias that is added to the results, and their minimum
            afterwards (0 for ReLU). None to leave the results as they are.

    Returns:
        Tensor of shape (N, outputs, H, W), in memory format channels_last.

    Raises:
        ValueError: if number of channels or dtype of the input are not those of the weights.
    """
    count, inputs, height, width = x.shape
    panels, size = -(-outputs // PANEL), x.element_size()
    if (inputs, 36 * panels, x.dtype) != (weights.shape[1], len(weights), weights.dtype):
        raise ValueError(
            f"weights {tuple(weights.shape)} of {weights.dtype} don't fit {inputs} and {outputs} channels of {x.dtype}"
        )
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty((count, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    if epilogue is None:
        epilogue = x.new_tensor([[0.0], [-torch.inf]]).repeat(1, outputs)
    tiles, threads, each = _tiles(x), torch.get_num_threads(), 36 * (inputs + panels * PANEL + 2 * WIDTH)
    most = min(MAX_TILES, max(CACHE_NUMBERS // each, inputs * outputs // WEIGHTS_PER_TILE), -(-tiles // threads))
    most = max(1, -(-most // ROWS)) * ROWS
    threads = max(1, min(threads, -(-tiles // most)))
    memory = x.new_empty(threads, TABLES // size + most * each)
    outside = x.new_zeros(inputs), x.new_empty(outputs)
    kernel, counter = convolution_kernel(DTYPES[x.dtype]), np.zeros(1, np.int64)
    tensors = x, weights, out, *outside, epilogue[0], epilogue[1], counter, memory
    run(kernel, threads, tiles, most, inputs, outputs, height, width, *tensors, memory.shape[1] * size)
    return out


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Compute the gradient of a convolution's weights.

    Args:
        grad: gradient of the results: tensor of shape (N, outputs, H, W) on the CPU.
        x: the input: tensor of shape (N, inputs, H, W) of the same dtype.

    Returns:
        Tensor of shape (outputs, inputs, 3, 3), in memory format channels_last.
    """
    outputs, inputs, tiles = grad.shape[1], x.shape[1], _tiles(x)
    dtype = DTYPES[x.dtype]
    numbers, most_numbers = 36 * (outputs + inputs + 2 * WIDTH), max(PASS_NUMBERS, PASS_NUMBERS_PER_WEIGHT * outputs * inputs)
    most = -(-tiles // max(1, -(-tiles * numbers // most_numbers)))
    kept = [x.new_empty(36, most, channels + WIDTH) for channels in (outputs, inputs)]
    some = _block(outputs, inputs)
    blocks = -(-outputs // some[0]) * -(-inputs // some[1])
    sums, tables = x.new_empty(blocks, 36, *some), _tables(blocks)
    result = torch.empty((outputs, inputs, 3, 3), dtype=x.dtype, memory_format=torch.channels_last)
    for first in range(0, tiles, most):
        count = min(most, tiles - first)
        left, right = (
            _planes(planes_kernel(dtype, images is x), images, first, count, memory)
            for images, memory in zip((grad, x), kept, strict=True)
        )
        last = first + count == tiles
        sizes = count, outputs, inputs, *some
        run(weight_gradients_kernel(dtype), blocks, *sizes, *left, *right, sums, int(first > 0), result if last else 0, tables)
    return result


def _block(outputs: int, inputs: int) -> tuple[int, int]:
    """Return how many outputs and inputs the gradient of the weights is computed for at a time, so that all threads have work."""
    rows, columns = min(MAX_BLOCK[0], outputs), min(MAX_BLOCK[1], -(-inputs // PANEL) * PANEL)
    while rows > 2 * WIDTH and -(-outputs // rows) * -(-inputs // columns) < 4 * torch.get_num_threads():
        rows //= 2
    return -(-rows // WIDTH) * WIDTH, columns


def _planes(kernel: object, images: Tensor, first: int, count: int, planes: Tensor) -> tuple[Tensor, int, int]:
    """Transform tiles.

    Args:
        kernel: the kernel that does it.
        images: tensor of shape (N, C, H, W).
        first: number of the first tile.
        count: number of tiles.
        planes: memory for the result, of shape (36, tiles, C + `WIDTH`).

    Returns:
        The planes' memory, and the bytes between planes and between their rows.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    channels, height, width = images.shape[1:]
    per_chunk = max(1, 2**10 // channels)
    chunks, (step, row, _) = -(-count // per_chunk), (stride * planes.element_size() for stride in planes.stride())
    sizes = first, count, per_chunk, channels, height, width
    run(kernel, chunks, *sizes, images, images.new_zeros(channels), planes, step, row, _tables(chunks))
    return planes, step, row


def _tables(chunks: int) -> np.ndarray:
    """Return memory for the addresses that each chunk needs."""
    return np.empty((chunks, TABLES), np.uint8)


def _tiles(x: Tensor) -> int:
    """Return the number of tiles of images (N, C, H, W)."""
    return len(x) * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
