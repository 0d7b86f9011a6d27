"""Kernels of 2×2 max-pooling and unpooling, on activations in memory format channels_last.

The position of each maximum in its 2×2 square is a uint8: 0 and 1 in the upper row, 2 and 3 in the lower. The backward pass of
pooling is unpooling of the gradient, and the backward pass of unpooling gathers the gradient at the positions.

The first arguments are the number of rows (of pixels, in the smaller map, of all examples), their length in pixels, the number of
channels, and the number of rows in a chunk.
"""

from functools import cache
from typing import Any, NamedTuple

from numba import carray, types

from deconvnet.models.fused.cpu.parallel import compiled, load, pointer, store, take_chunk


class PoolKernels(NamedTuple):
    """The kernels for one dtype of activations."""

    pool: Any
    unpool: Any
    gather: Any


@cache
def pool_kernels(dtype: Any, bits: Any) -> PoolKernels:
    """Compile the kernels. Long because each of them is a function that uses the dtype.

    Args:
        dtype: numba type of the activations; uint16 stands for bfloat16.
        bits: numba type of an unsigned integer of the same size, as which activations are copied.
    """

    @compiled(dtype, bits)
    def pool(block: Any) -> None:
        """Find the maximum of each 2×2 square, the first of equals, or NaN if there is one.

        Further arguments: the activations, and the results: maxima and positions.
        """
        a = carray(block, 9)
        rows, width, channels, per_chunk = a[2], a[3], a[4], a[5]
        size = rows * width * channels
        x = carray(pointer(a[6], dtype), 4 * size)
        out, positions = carray(pointer(a[7], dtype), size), carray(pointer(a[8], types.uint8), size)
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            for pixel in range(chunk * per_chunk * width, min(rows, (chunk + 1) * per_chunk) * width):
                upper = x[(2 * pixel + (pixel // width) * 2 * width) * channels :][: 2 * channels]
                lower = x[(2 * pixel + (pixel // width) * 2 * width + 2 * width) * channels :][: 2 * channels]
                target, pixel_positions = out[pixel * channels :][:channels], positions[pixel * channels :][:channels]
                for i in range(channels):
                    best, position = load(upper, i), types.uint8(0)
                    other = load(upper, channels + i)
                    larger = other > best or other != other
                    best, position = (other if larger else best), (types.uint8(1) if larger else position)
                    other = load(lower, i)
                    larger = other > best or other != other
                    best, position = (other if larger else best), (types.uint8(2) if larger else position)
                    other = load(lower, channels + i)
                    larger = other > best or other != other
                    best, position = (other if larger else best), (types.uint8(3) if larger else position)
                    store(target, i, best)
                    pixel_positions[i] = position

    @compiled(dtype, bits)
    def unpool(block: Any) -> None:
        """Put values at positions, and 0 elsewhere. Further arguments: values, positions, and the result."""
        a = carray(block, 9)
        rows, width, channels, per_chunk = a[2], a[3], a[4], a[5]
        size = rows * width * channels
        x, positions = carray(pointer(a[6], bits), size), carray(pointer(a[7], types.uint8), size)
        out = carray(pointer(a[8], bits), 4 * size)
        zero = bits(0)
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            for pixel in range(chunk * per_chunk * width, min(rows, (chunk + 1) * per_chunk) * width):
                upper = out[(2 * pixel + (pixel // width) * 2 * width) * channels :]
                lower = upper[2 * width * channels :]
                first, second = upper[:channels], upper[channels:][:channels]
                third, fourth = lower[:channels], lower[channels:][:channels]
                values, pixel_positions = x[pixel * channels :][:channels], positions[pixel * channels :][:channels]
                for i in range(channels):
                    value, position = values[i], pixel_positions[i]
                    first[i] = value if position == 0 else zero
                    second[i] = value if position == 1 else zero
                for i in range(channels):  # a loop of its own, because LLVM vectorises no loop that writes to four arrays
                    value, position = values[i], pixel_positions[i]
                    third[i] = value if position == 2 else zero
                    fourth[i] = value if position == 3 else zero

    @compiled(dtype, bits)
    def gather(block: Any) -> None:
        """Take the values at positions. Further arguments: the larger map, positions, and the result."""
        a = carray(block, 9)
        rows, width, channels, per_chunk = a[2], a[3], a[4], a[5]
        size = rows * width * channels
        x, positions = carray(pointer(a[6], bits), 4 * size), carray(pointer(a[7], types.uint8), size)
        out = carray(pointer(a[8], bits), size)
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            for pixel in range(chunk * per_chunk * width, min(rows, (chunk + 1) * per_chunk) * width):
                upper = x[(2 * pixel + (pixel // width) * 2 * width) * channels :][: 2 * channels]
                lower = x[(2 * pixel + (pixel // width) * 2 * width + 2 * width) * channels :][: 2 * channels]
                target, pixel_positions = out[pixel * channels :][:channels], positions[pixel * channels :][:channels]
                for i in range(channels):
                    position = pixel_positions[i]
                    first, second, third, fourth = upper[i], upper[channels + i], lower[i], lower[channels + i]
                    above, below = second if position == 1 else first, fourth if position == 3 else third
                    target[i] = above if position < 2 else below

    return PoolKernels(pool, unpool, gather)
