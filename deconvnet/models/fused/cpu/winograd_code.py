"""LLVM code for Winograd's 3×3 convolutions: transforms of small squares of numbers, and products of matrices.

Both work with vectors of `WIDTH` numbers and take addresses, as int64. A vector is a register of AVX-512, or two smaller ones.
"""

import hashlib
from pathlib import Path
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 16
"""Numbers in a vector."""
PANEL = 2 * WIDTH
"""Columns of a matrix that are computed at a time."""
ROWS = 12 if binding.get_host_cpu_features().get("avx512f", False) else 2
"""Rows of a matrix that are computed at a time, so that the sums and what they are made from fit into the registers."""
VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
"""Version of this module, for the names of the kernels that use it."""

Matrix = tuple[tuple[float, ...], ...]
# Winograd's F(4×4, 3×3), Lavin and Gray (CVPR 2016), §4.3: 4×4 outputs are A·[(G·g·Gᵀ) ∘ (B·d·Bᵀ)]·Aᵀ for a kernel g, 6×6 inputs
# d. The gradient of g is therefore Gᵀ·[(Aᵀ·y·A) ∘ (B·d·Bᵀ)]·G for the outputs' gradients y, summed over the tiles. Each of the
# three matrices is the product of two with fewer numbers that are not 0. The second one of a pair is applied first.
B: tuple[Matrix, ...] = (
    (
        (1, 0, 0, 0, 0, 0),
        (0, 1, 1, 0, 0, 0),
        (0, 1, -1, 0, 0, 0),
        (0, 0, 0, 1, 2, 0),
        (0, 0, 0, 1, -2, 0),
        (0, 0, 0, 0, 0, 1),
    ),
    (
        (4, 0, -5, 0, 1, 0),
        (0, 0, -4, 0, 1, 0),
        (0, -4, 0, 1, 0, 0),
        (0, 0, -1, 0, 1, 0),
        (0, -1, 0, 1, 0, 0),
        (0, 4, 0, -5, 0, 1),
    ),
)
G: tuple[Matrix, ...] = (
    (
        (1 / 4, 0, 0, 0, 0),
        (0, -1 / 6, -1 / 6, 0, 0),
        (0, -1 / 6, 1 / 6, 0, 0),
        (0, 0, 1 / 12, 1 / 24, 0),
        (0, 0, -1 / 12, 1 / 24, 0),
        (0, 0, 0, 0, 1),
    ),
    ((1, 0, 0), (1, 0, 1), (0, 1, 0), (1, 0, 4), (0, 0, 1)),
)
A: tuple[Matrix, ...] = (
    ((1, 1, 0, 1, 0, 0), (0, 0, 1, 0, 2, 0), (0, 1, 0, 4, 0, 0), (0, 0, 1, 0, 8, 1)),
    (
        (1, 0, 0, 0, 0, 0),
        (0, 1, 1, 0, 0, 0),
        (0, 1, -1, 0, 0, 0),
        (0, 0, 0, 1, 1, 0),
        (0, 0, 0, 1, -1, 0),
        (0, 0, 0, 0, 0, 1),
    ),
)


def _types(dtype: Any) -> tuple[Any, Any, int]:
    """Return the LLVM types of a number and of a vector, and the bytes of a number, for numba's type of a dtype."""
    scalar = ir.FloatType() if dtype.dtype == types.float32 else ir.DoubleType()
    return scalar, ir.VectorType(scalar, WIDTH), dtype.dtype.bitwidth // 8


def _repeated(builder: Any, number: Any, vector: Any) -> Any:
    """Emit LLVM code for a vector all of whose numbers are the same."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))


def _sum(builder: Any, factors: tuple[float, ...], values: list[Any]) -> Any:
    """Emit LLVM code for the sum of vectors times constant factors, of which some are not 0."""
    total = None
    for factor, value in sorted(zip(factors, values, strict=True), key=lambda pair: pair[0] != 1):  # factors of 1 first
        if factor == 0:
            continue
        if abs(factor) != 1:
            value = builder.fmul(value, ir.Constant(value.type, [abs(factor)] * WIDTH), flags=["contract"])
        if total is None:
            total = value if factor > 0 else builder.fneg(value)
        else:
            total = (builder.fadd if factor > 0 else builder.fsub)(total, value, flags=["contract"])
    return total


def _matrix_column(builder: Any, matrices: tuple[Matrix, ...], values: list[Any]) -> list[Any]:
    """Emit LLVM code for the product of constant matrices and a column of vectors, one for each number of the column."""
    for matrix in reversed(matrices):
        values = [_sum(builder, factors, values) for factors in matrix]
    return values


def transformation(matrices: tuple[Matrix, ...], epilogue: bool = False) -> Any:
    """Return a function for kernels that computes M·d·Mᵀ for `WIDTH` channels.

    Its arguments, by their index:

        0, 1  address of a table with the addresses of d's numbers, row by row, and what to add to each of these addresses
        2, 3  the same for the result
        4, 5  addresses of the bias and of the minimum of all results; they are used if `epilogue` is set
        6     dtype, float32 or float64

    Args:
        matrices: matrices whose product is M.
        epilogue: whether to add a bias to the results, and then to replace lower ones by a minimum.
    """
    size, side = len(matrices[0]), len(matrices[-1][0])
    table = ir.IntType(64).as_pointer()

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, kind, align = _types(signature.args[-1])
        vector = kind.as_pointer()

        def place(start: Any, index: int, offset: Any) -> Any:
            entry = builder.gep(builder.inttoptr(start, table), [ir.IntType(64)(index)])
            return builder.inttoptr(builder.add(builder.load(entry), offset), vector)

        columns = []
        for column in range(side):
            numbers = [builder.load(place(args[0], side * row + column, args[1]), align=align) for row in range(side)]
            columns.append(_matrix_column(builder, matrices, numbers))
        if epilogue:
            bias, minimum = (builder.load(builder.inttoptr(address, vector), align=align) for address in args[4:6])
        for row in range(size):
            for column, value in enumerate(_matrix_column(builder, matrices, [each[row] for each in columns])):
                if epilogue:
                    value = builder.fadd(value, bias)
                    value = builder.select(builder.fcmp_ordered("<", value, minimum), minimum, value)  # NaN stays NaN
                builder.store(value, place(args[2], size * row + column, args[3]), align=align)
        return context.get_dummy_value()

    @intrinsic
    def transform(typing: Any, given: Any, offset: Any, result: Any, out: Any, bias: Any, minimum: Any, dtype: Any) -> Any:
        return types.void(*[types.int64] * 6, dtype), code

    return transform


def product(rows: int) -> Any:
    """Return a function for kernels that computes a block of `rows` × `PANEL` numbers of a product of matrices.

    Its arguments, by their index:

        0–2  the first matrix: address, bytes between rows, bytes between columns
        3–6  the second matrix: address, bytes between rows; the same of the block
        7–9  number of products in each sum; 1 to add to what is in the block, 0 to replace it; dtype, float32 or float64

    Args:
        rows: number of rows.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scalar, vector, size = _types(signature.args[-1])
        first, first_row, first_column, second, second_row, block, block_row, count, add, _ = args

        def vectors(address: Any) -> list[Any]:
            starts = [builder.add(address, ir.IntType(64)(i * WIDTH * size)) for i in range(PANEL // WIDTH)]
            return [builder.inttoptr(start, vector.as_pointer()) for start in starts]

        sums = [[cgutils.alloca_once(builder, vector) for _ in range(PANEL // WIDTH)] for _ in range(rows)]
        places = [vectors(builder.add(block, builder.mul(block_row, ir.IntType(64)(i)))) for i in range(rows)]
        pairs = [pair for some, targets in zip(sums, places, strict=True) for pair in zip(some, targets, strict=True)]
        for total, _ in pairs:
            builder.store(ir.Constant(vector, [0.0] * WIDTH), total)
        with builder.if_then(builder.icmp_signed("!=", add, ir.IntType(64)(0))):
            for total, place in pairs:
                builder.store(builder.load(place, align=size), total)
        with cgutils.for_range(builder, count) as loop:
            column = builder.add(first, builder.mul(loop.index, first_column))
            right = [builder.load(p, align=size) for p in vectors(builder.add(second, builder.mul(loop.index, second_row)))]
            for i, totals in enumerate(sums):
                at = builder.inttoptr(builder.add(column, builder.mul(first_row, ir.IntType(64)(i))), scalar.as_pointer())
                left = _repeated(builder, builder.load(at, align=size), vector)
                for total, each in zip(totals, right, strict=True):
                    fresh = builder.fmul(left, each, flags=["contract"])
                    builder.store(builder.fadd(builder.load(total), fresh, flags=["contract"]), total)
        for total, place in pairs:
            builder.store(builder.load(total), place, align=size)
        return context.get_dummy_value()

    @intrinsic
    def multiply(
        typing: Any,
        first: Any,
        row: Any,
        column: Any,
        second: Any,
        second_row: Any,
        block: Any,
        block_row: Any,
        count: Any,
        add: Any,
        dtype: Any,
    ) -> Any:
        return types.void(*[types.int64] * 9, dtype), code

    return multiply
