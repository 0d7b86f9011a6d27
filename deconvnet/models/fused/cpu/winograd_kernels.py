"""Kernels of 3×3 convolutions and their gradients by Winograd's method, on activations in memory format channels_last.

Images are cut into tiles of 4×4 outputs, numbered over all images. Each tile needs 6×6 inputs. The transforms bring tiles and 3×3
kernels into planes: 36 matrices, whose rows are tiles (or one side's channels of the kernels), and whose columns are channels. A
convolution is then a product of matrices for each of the 36.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from numba import carray, njit, types

from deconvnet.models.fused.cpu.parallel import compiled, pointer, take_chunk
from deconvnet.models.fused.cpu.winograd_code import PANEL, ROWS, VERSION, WIDTH, A, B, G, Matrix, product, transformation

TABLES = 1024
"""Bytes at the start of each thread's memory, for addresses."""
GRADIENT_ROWS = min(ROWS, 8)
"""Number of rows that are computed together for the gradient of the weights. It divides the numbers of channels."""


class Images(NamedTuple):
    """Where activations (N, C, H, W) are."""

    address: int
    height: int
    width: int
    pixel: int  # bytes
    outside: int  # address of a pixel that is read, or written to, in place of those outside


class Planes(NamedTuple):
    """Where 36 matrices are, or the 9 numbers of 3×3 kernels."""

    address: int
    step: int  # bytes between planes
    row: int  # bytes between rows
    panel: int  # bytes between groups of `PANEL` columns


class Epilogue(NamedTuple):
    """Addresses of two numbers for each channel: what is added to the results, and their minimum afterwards."""

    bias: int
    minimum: int


def _part(*closure: object) -> Callable[[Callable[..., None]], Any]:
    """Return a decorator that compiles a part of kernels, whose name it makes unique.

    Without this, parts that differ only in their closure would have the same name, besides a number that numba counts in each
    process. When a process loads kernels that several processes have compiled, such numbers can be equal, and a kernel would
    then silently call the part of another one.

    Args:
        closure: the values of the part's closure.
    """

    def decorate(function: Callable[..., None]) -> Any:
        digest = hashlib.sha256(repr(closure).encode()).hexdigest()[:8]
        function.__qualname__ = f"{function.__qualname__}_{digest}"
        return njit(function)

    return decorate


def _tile_table(side: int) -> Any:
    """Return a function for kernels that writes the addresses of a tile's pixels to a table, relative to the first of them.

    Args:
        side: side of the tile.
    """

    @_part(side)
    def fill(table: Any, images: Images, top: int, left: int, outside: int) -> None:
        for i in range(side):
            for j in range(side):
                inside = 0 <= top + i < images.height and 0 <= left + j < images.width
                table[side * i + j] = (i * images.width + j) * images.pixel if inside else outside

    return fill


def _tiles(matrices: tuple[Matrix, ...], given: bool) -> Any:
    """Return a function for kernels that transforms tiles to planes, or planes to tiles.

    Its arguments are in this order: the address of `TABLES` bytes; the first tile; the number of tiles; the number of channels;
    where the images are; where the planes are; what is done to the results, if these are tiles; the dtype.

    Args:
        matrices: matrices whose product is that of the transform. Tiles of 6×6 pixels overlap, those of 4×4 do not.
        given: whether tiles are given and planes are the result.
    """
    transform = transformation(matrices, epilogue=not given)
    side = len(matrices[-1][0] if given else matrices[0])
    fill, before = _tile_table(side), (side - 4) // 2

    @_part(matrices, given)
    def move(
        tables: int, first: int, count: int, channels: int, images: Images, planes: Planes, epilogue: Epilogue, dtype: Any
    ) -> None:
        pixels, matrices = carray(pointer(tables, types.int64), 36), carray(pointer(tables + 288, types.int64), 36)
        for i in range(36):
            matrices[i] = planes.address + i * planes.step
        size = images.pixel // channels
        rows, columns = (images.height + 3) // 4, (images.width + 3) // 4
        image, place = first // (rows * columns), first % (rows * columns)
        row, column = place // columns, place % columns
        whole = False  # whether the table is that of a tile without pixels outside
        for tile in range(count):
            top, left = 4 * row - before, 4 * column - before
            start = images.address + ((image * images.height + top) * images.width + left) * images.pixel
            inside = top >= 0 and left >= 0 and top + side <= images.height and left + side <= images.width
            if not (whole and inside):
                fill(pixels, images, top, left, images.outside - start)
            whole = inside
            for channel in range(0, channels, WIDTH):
                at = channel * size
                here = tile * planes.row + at
                if given:
                    transform(tables, start + at, tables + 288, here, at, at, dtype)
                else:
                    transform(tables + 288, here, tables, start + at, epilogue.bias + at, epilogue.minimum + at, dtype)
            column += 1
            if column == columns:
                row, column = row + 1, 0
            if row == rows:
                row, image = 0, image + 1

    return move


def _planes(matrices: tuple[Matrix, ...]) -> Any:
    """Return a function for kernels that transforms planes to planes.

    Its arguments are the address of `TABLES` bytes; the first row and the number of rows; the number of columns; where both
    planes are; the bytes of a number, and the dtype.

    Args:
        matrices: matrices whose product is that of the transform.
    """
    transform = transformation(matrices)
    numbers, results = len(matrices[-1][0]) ** 2, len(matrices[0]) ** 2

    @_part(matrices)
    def move(tables: int, first: int, count: int, columns: int, given: Planes, result: Planes, size: int, dtype: Any) -> None:
        source, target = carray(pointer(tables, types.int64), 36), carray(pointer(tables + 288, types.int64), 36)
        for i in range(numbers):
            source[i] = given.address + i * given.step
        for i in range(results):
            target[i] = result.address + i * result.step
        for row in range(first, first + count):
            for column in range(0, columns, WIDTH):
                panel, at = column // PANEL, column % PANEL * size
                start, out = row * given.row + panel * given.panel + at, row * result.row + panel * result.panel + at
                transform(tables, start, tables + 288, out, 0, 0, dtype)

    return move


_turned_a, _turned_g = (tuple(tuple(zip(*m, strict=True)) for m in reversed(pair)) for pair in (A, G))
# Numba's cache finds a kernel by its closure, so functions that are compiled anew in each process must not be in it.
_move_inputs, _move_outputs, _move_gradients = _tiles(B, True), _tiles(A, False), _tiles(_turned_a, True)
_move_weights, _move_weight_gradients = _planes(G), _planes(_turned_g)
_multiply, _multiply_gradients = product(ROWS), product(GRADIENT_ROWS)


@cache
def weights_kernel(dtype: Any) -> Any:
    """Compile the kernel that transforms 3×3 kernels.

    The numbers that the kernel gets, by their index:

        2     number of rows
        3     number of rows in a chunk
        4     number of columns
        5–8   where the 3×3 kernels are, see `Planes`
        9–12  where the result is, see `Planes`
        13    address of `TABLES` bytes for each chunk

    Args:
        dtype: numba type of the numbers, float32 or float64.
    """
    size = dtype.bitwidth // 8

    @compiled(dtype, VERSION)
    def weights(block: Any) -> None:
        a = carray(block, 14)
        given, result = Planes(a[5], a[6], a[7], a[8]), Planes(a[9], a[10], a[11], a[12])
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            first = chunk * a[3]
            _move_weights(a[13] + chunk * TABLES, first, min(a[3], a[2] - first), a[4], given, result, size, dtype)

    return weights


@cache
def convolution_kernel(dtype: Any) -> Any:
    """Compile the kernel of the convolution. Each chunk stands for a thread's memory; tiles are counted separately.

    The numbers that the kernel gets, by their index:

        2, 3    number of tiles, and of tiles at a time (a multiple of `ROWS`)
        4, 5    number of input channels, and of output channels
        6, 7    height and width of the images
        8       address of the inputs
        9       address of the weights' planes, in panels
        10      address of the results
        11      address of a pixel of zeros, which is read in place of those outside
        12      address of a pixel that is written in place of those outside
        13, 14  addresses of each channel's bias and minimum
        15      address of a number that counts the tiles, 0 before
        16, 17  address of the memory for the chunks, and its bytes for each

    Args:
        dtype: numba type of the numbers, float32 or float64.
    """
    size = dtype.bitwidth // 8

    @compiled(dtype, VERSION)
    def convolution(block: Any) -> None:
        a = carray(block, 18)
        tiles, most, inputs, outputs = a[2], a[3], a[4], a[5]
        before = Images(a[8], a[6], a[7], inputs * size, a[11])
        after = Images(a[10], a[6], a[7], outputs * size, a[12])
        epilogue = Epilogue(a[13], a[14])
        panels = (outputs + PANEL - 1) // PANEL
        row, out_row = (inputs + WIDTH) * size, (panels * PANEL + WIDTH) * size
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            tables = a[16] + chunk * a[17]
            planes = Planes(tables + TABLES, most * row, row, 0)
            products = Planes(planes.address + 36 * planes.step, most * out_row, out_row, 0)
            while True:
                first = take_chunk(pointer(a[15], types.int64)) * most
                if first >= tiles:
                    break
                count = min(most, tiles - first)
                _move_inputs(tables, first, count, inputs, before, planes, epilogue, dtype)
                for i in range(36):
                    for panel in range(panels):
                        right = a[9] + (i * panels + panel) * inputs * PANEL * size
                        for tile in range(0, count, ROWS):
                            left = planes.address + i * planes.step + tile * row
                            out = products.address + i * products.step + tile * out_row + panel * PANEL * size
                            _multiply(left, row, size, right, PANEL * size, out, out_row, inputs, 0, dtype)
                _move_outputs(tables, first, count, outputs, after, products, epilogue, dtype)

    return convolution


@cache
def planes_kernel(dtype: Any, inputs: bool) -> Any:
    """Compile a kernel that transforms tiles to planes.

    The numbers that the kernel gets, by their index:

        2      first tile
        3, 4   number of tiles, and of tiles in a chunk
        5      number of channels
        6, 7   height and width of the images
        8      address of the images
        9      address of a pixel of zeros, which is read in place of those outside
        10–12  address of the planes, and the bytes between planes and between rows
        13     address of `TABLES` bytes for each chunk

    Args:
        dtype: numba type of the numbers, float32 or float64.
        inputs: whether the tiles are those of inputs, or those of the outputs' gradients.
    """
    size = dtype.bitwidth // 8

    @compiled(dtype, "inputs" if inputs else "gradients", VERSION)
    def to_planes(block: Any) -> None:
        a = carray(block, 14)
        images, planes = Images(a[8], a[6], a[7], a[5] * size, a[9]), Planes(a[10], a[11], a[12], 0)
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            first = chunk * a[4]
            part = Planes(planes.address + first * planes.row, planes.step, planes.row, 0)
            tables, count = a[13] + chunk * TABLES, min(a[4], a[3] - first)
            if inputs:
                _move_inputs(tables, a[2] + first, count, a[5], images, part, Epilogue(0, 0), dtype)
            else:
                _move_gradients(tables, a[2] + first, count, a[5], images, part, Epilogue(0, 0), dtype)

    return to_planes


@cache
def weight_gradients_kernel(dtype: Any) -> Any:
    """Compile the kernel of the weights' gradient. A chunk is a block of outputs × inputs.

    The numbers that the kernel gets, by their index:

        2      number of tiles
        3, 4   number of output channels, and of input channels
        5, 6   the same of a chunk; that of input channels is a multiple of `PANEL`
        7–9    planes of the outputs' gradients: address, bytes between planes, bytes between rows
        10–12  planes of the inputs: the same
        13     address of the sums, 36 planes for each chunk
        14     1 to add to these sums, 0 to replace them
        15     address of the result (outputs, 3, 3, inputs); 0 if more tiles will follow
        16     address of `TABLES` bytes for each chunk

    Args:
        dtype: numba type of the numbers, float32 or float64.
    """
    size = dtype.bitwidth // 8

    @compiled(dtype, VERSION)
    def weight_gradients(block: Any) -> None:
        a = carray(block, 17)
        tiles, outputs, inputs, some_outputs, some_inputs = a[2], a[3], a[4], a[5], a[6]
        left, right = Planes(a[7], a[8], a[9], 0), Planes(a[10], a[11], a[12], 0)
        across, row = (inputs + some_inputs - 1) // some_inputs, some_inputs * size
        while True:
            chunk = take_chunk(block)
            if chunk >= a[1]:
                return
            first_output, first_input = chunk // across * some_outputs, chunk % across * some_inputs
            count, columns = min(some_outputs, outputs - first_output), min(some_inputs, inputs - first_input)
            sums = Planes(a[13] + chunk * 36 * some_outputs * row, some_outputs * row, row, PANEL * size)
            for i in range(36):
                for column in range(0, columns, PANEL):
                    given = right.address + i * right.step + (first_input + column) * size
                    for output in range(0, count, GRADIENT_ROWS):
                        gradients = left.address + i * left.step + (first_output + output) * size
                        out = sums.address + i * sums.step + output * row + column * size
                        _multiply_gradients(gradients, size, left.row, given, right.row, out, row, tiles, a[14], dtype)
            if a[15] != 0:
                start = a[15] + (first_output * 9 * inputs + first_input) * size
                result = Planes(start, inputs * size, 9 * inputs * size, PANEL * size)
                _move_weight_gradients(a[16] + chunk * TABLES, 0, count, columns, sums, result, size, dtype)

    return weight_gradients
