"""Kernels of batch norm followed by ReLU, on activations in memory format channels_last.

The kernels see activations as a flat array in which channels repeat: channel c has the indices c, c + C, c + 2C, … Short loops
are slow, so the loops go over rows of `width` numbers, where `width` is a multiple of C of at least a few hundred. Values per
channel (scale, shift …) are tiled to arrays of `width` numbers.

Their first arguments are the number of all activations, `width`, and the number of rows in a chunk.
"""

from functools import cache
from typing import Any, NamedTuple

from numba import carray, types

from deconvnet.models.fused.cpu.parallel import compiled, load, pointer, store, take_chunk

FASTMATH_FLAGS = {"contract", "reassoc", "nsz", "arcp"}
"""Those of LLVM's fast-math flags with which infinities and NaNs stay as they are."""


class NormKernels(NamedTuple):
    """The kernels for one dtype of activations."""

    moments: Any
    apply: Any
    gradient_sums: Any
    gradient: Any


@cache
def norm_kernels(dtype: Any, sums: Any) -> NormKernels:
    """Compile the kernels. Long because each of them is a function that uses the dtype.

    Args:
        dtype: numba type of the activations; uint16 stands for bfloat16.
        sums: numba type of the calculation and of sums, float32 or float64.
    """

    @compiled(dtype, sums, fastmath=FASTMATH_FLAGS)
    def moments(block: Any) -> None:
        """Sum up x − shift and its square. Further arguments: x, shift (width,), and the sums (chunks, 2, width), 0 before."""
        a = carray(block, 8)
        total, width, rows = a[2], a[3], a[4]
        x, shift = carray(pointer(a[5], dtype), total), carray(pointer(a[6], sums), width)
        out = carray(pointer(a[7], sums), a[1] * 2 * width)
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            first, square = out[2 * chunk * width :][:width], out[(2 * chunk + 1) * width :][:width]
            for start in range(chunk * rows * width, min(total, (chunk + 1) * rows * width), width):
                row = x[start : start + width]
                for i in range(len(row)):
                    value = load(row, i) - shift[i]
                    first[i] += value
                    square[i] += value * value

    @compiled(dtype, sums, fastmath=FASTMATH_FLAGS)
    def apply(block: Any) -> None:
        """Compute max(0, scale·x + offset). Further arguments: x, scale and offset (width,), and the result."""
        a = carray(block, 9)
        total, width, rows = a[2], a[3], a[4]
        x, out = carray(pointer(a[5], dtype), total), carray(pointer(a[8], dtype), total)
        scale, offset = carray(pointer(a[6], sums), width), carray(pointer(a[7], sums), width)
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            for start in range(chunk * rows * width, min(total, (chunk + 1) * rows * width), width):
                row, target = x[start : start + width], out[start : start + width]
                for i in range(len(row)):
                    value = load(row, i) * scale[i] + offset[i]
                    store(target, i, sums(0) if value < 0 else value)  # NaN stays NaN

    @compiled(dtype, sums, fastmath=FASTMATH_FLAGS)
    def gradient_sums(block: Any) -> None:
        """Sum up the gradient g before ReLU, and g·(x − mean).

        Further arguments: x, scale, offset and mean (width,), the gradient after ReLU, the sums (chunks, 2, width), 0 before.
        """
        a = carray(block, 11)
        total, width, rows = a[2], a[3], a[4]
        x, after = carray(pointer(a[5], dtype), total), carray(pointer(a[9], dtype), total)
        scale, offset = carray(pointer(a[6], sums), width), carray(pointer(a[7], sums), width)
        mean, out = carray(pointer(a[8], sums), width), carray(pointer(a[10], sums), a[1] * 2 * width)
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            first, product = out[2 * chunk * width :][:width], out[(2 * chunk + 1) * width :][:width]
            for start in range(chunk * rows * width, min(total, (chunk + 1) * rows * width), width):
                row, grads = x[start : start + width], after[start : start + width]
                for i in range(len(row)):
                    value = load(row, i)
                    grad = load(grads, i) if value * scale[i] + offset[i] > 0 else sums(0)
                    first[i] += grad
                    product[i] += grad * (value - mean[i])

    @compiled(dtype, sums, fastmath=FASTMATH_FLAGS)
    def gradient(block: Any) -> None:
        """Compute scale·g + b·x + c, where g is the gradient before ReLU.

        Further arguments: x, scale and offset (width,), the gradient after ReLU, b and c (width,), and the result.
        """
        a = carray(block, 12)
        total, width, rows = a[2], a[3], a[4]
        x, after, out = (
            carray(pointer(a[5], dtype), total),
            carray(pointer(a[8], dtype), total),
            carray(pointer(a[11], dtype), total),
        )
        scale, offset = carray(pointer(a[6], sums), width), carray(pointer(a[7], sums), width)
        b, c = carray(pointer(a[9], sums), width), carray(pointer(a[10], sums), width)
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            for start in range(chunk * rows * width, min(total, (chunk + 1) * rows * width), width):
                row, grads, target = x[start : start + width], after[start : start + width], out[start : start + width]
                for i in range(len(row)):
                    value = load(row, i)
                    grad = load(grads, i) if value * scale[i] + offset[i] > 0 else sums(0)
                    store(target, i, scale[i] * grad + b[i] * value + c[i])

    return NormKernels(moments, apply, gradient_sums, gradient)


DTYPES = {"bfloat16": (types.uint16, types.float32), "float32": (types.float32, types.float32), "float64": (types.float64,) * 2}
"""The numba types of activations and of sums, by the name of torch's dtype."""
