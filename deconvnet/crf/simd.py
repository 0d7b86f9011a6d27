"""Eight float32 side by side as a value of numba's: a vector register, which its loops don't reliably become for short rows.

For use in `@njit` functions only; after a change here clear __pycache__, as numba caches callers by their own file. Rows are of C-contiguous float32 arrays (N, 8·B); block b is columns 8b to 8b + 7.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

WIDTH = 8


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


LANES = _Lanes()
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_FLOAT, WIDTH), ir.VectorType(_INT, WIDTH)


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _FLOATS)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * WIDTH)


def _integers(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * WIDTH)


def _broadcast(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _INT(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * WIDTH))


def _unary(builder: Any, name: str, value: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32"), [value])


def _address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Pointer to block `args[2]` of row `args[1]` of the array `args[0]`."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    row, block = (context.cast(builder, v, t, types.intp) for v, t in zip(args[1:3], signature.args[1:3], strict=True))
    width = builder.extract_value(array.shape, 1)
    offset = builder.add(builder.mul(row, width), builder.mul(block, ir.Constant(block.type, WIDTH)))
    return builder.bitcast(builder.gep(array.data, [offset]), _FLOATS.as_pointer())


@intrinsic
def load(typing: Any, array: Any, row: Any, block: Any) -> Any:
    """Block `block` of row `row`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, signature, args), align=4)

    return LANES(array, row, block), code


@intrinsic
def store(typing: Any, array: Any, row: Any, block: Any, lanes: Any) -> Any:
    """Write a block of a row."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[3], _address(context, builder, signature, args), align=4)
        return context.get_dummy_value()

    return types.void(array, row, block, LANES), code


@intrinsic
def prefetch(typing: Any, array: Any, row: Any, block: Any) -> Any:
    """Have a block of a row that will be read and written soon brought into the cache (block 0: of an array of any type)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.bitcast(_address(context, builder, signature, args), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, _INT(1), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.void(array, row, block), code


@intrinsic
def fill(typing: Any, scalar: Any) -> Any:
    """A float32 in every lane."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _broadcast(builder, args[0])

    return LANES(types.float32), code


def _binary(operation: Callable[[Any, Any, Any], Any], doc: str) -> Any:
    def lanes_binary(typing: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return operation(builder, *args)

        return LANES(LANES, LANES), code

    lanes_binary.__doc__ = doc
    return intrinsic(lanes_binary)


add = _binary(lambda builder, a, b: builder.fadd(a, b), "a + b.")
subtract = _binary(lambda builder, a, b: builder.fsub(a, b), "a - b.")
multiply = _binary(lambda builder, a, b: builder.fmul(a, b), "a · b.")
maximum = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b), "The larger of a and b.")


@intrinsic
def highest(typing: Any, lanes: Any) -> Any:
    """The largest of the eight: float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (value,) = args
        for step in (4, 2, 1):
            other = builder.shuffle_vector(value, value, ir.Constant(_INTS, [(i + step) % WIDTH for i in range(WIDTH)]))
            value = builder.select(builder.fcmp_ordered(">", value, other), value, other)
        return builder.extract_element(value, _INT(0))

    return types.float32(LANES), code


@intrinsic
def total(typing: Any, lanes: Any) -> Any:
    """The sum of the eight: float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (value,) = args
        for step in (4, 2, 1):
            other = builder.shuffle_vector(value, value, ir.Constant(_INTS, [(i + step) % WIDTH for i in range(WIDTH)]))
            value = builder.fadd(value, other)
        return builder.extract_element(value, _INT(0))

    return types.float32(LANES), code


@intrinsic
def exp(typing: Any, lanes: Any) -> Any:
    """e to each lane, for lanes not above 0, to 2 parts in 10⁷; exactly 0 under -87 (no denormal numbers, which are slow).

    Cephes' expf: 2ⁿ by the exponent's bits, the rest by a polynomial of degree 5.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        possible = builder.fcmp_ordered(">", args[0], _constant(-87.0))
        x = builder.select(possible, args[0], _constant(-87.0))
        n = _unary(builder, "floor", builder.fadd(builder.fmul(x, _constant(1.44269504088896341)), _constant(0.5)))
        r = builder.fsub(x, builder.fmul(n, _constant(0.693359375)))
        r = builder.fsub(r, builder.fmul(n, _constant(-2.12194440e-4)))
        y = _constant(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            y = builder.fadd(builder.fmul(y, r), _constant(c))
        y = builder.fadd(builder.fadd(builder.fmul(y, builder.fmul(r, r)), r), _constant(1.0))
        bits = builder.shl(builder.add(builder.fptosi(n, _INTS), _integers(127)), _integers(23))
        return builder.select(possible, builder.fmul(y, builder.bitcast(bits, _FLOATS)), _constant(0.0))

    return LANES(LANES), code
