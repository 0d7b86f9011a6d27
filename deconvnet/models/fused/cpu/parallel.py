"""Compiled loops (numba) that run on torch's own threads.

numba has its own thread pool. But torch's threads spin between two operations, so both pools would compete for the cores.
Therefore the loops run on the threads of torch's OpenMP library, through its function GOMP_parallel.

A kernel is a C function of one argument, the address of an array of 64-bit integers. The first two are the number of chunks taken
so far and the number of all chunks (parts of the work); the others are sizes and the addresses of tensors. Threads take a chunk
when they have finished one. What a kernel writes depends on the chunk alone, so results don't depend on the number of threads.
"""

import ctypes
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import cfunc, types
from numba.extending import intrinsic
from torch import Tensor

SIGNATURE = types.void(types.CPointer(types.int64))
"""The numba type of a kernel."""

_VERSION = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
_BITS, _LONG = ir.IntType(32), ir.IntType(64)


def compiled(*dtypes: Any, **options: Any) -> Callable[[Callable[[Any], None]], Any]:
    """Return a decorator that compiles a kernel, or reads it from numba's cache.

    Its files in the cache are named after the dtypes and this module's version. By itself, numba would keep a compiled kernel
    when this module changes, and two processes that add kernels for different dtypes at the same time could exchange them.

    Args:
        dtypes: the numba types that the kernel is compiled for, if it exists for several.
        options: options of `numba.cfunc`.
    """

    def decorate(function: Callable[[Any], None]) -> Any:
        function.__qualname__ = "_".join([function.__qualname__, *map(str, dtypes), _VERSION])
        return cfunc(SIGNATURE, cache=True, **options)(function)

    return decorate


def run(kernel: Any, chunks: int, *arguments: "int | Tensor | np.ndarray") -> None:
    """Run a kernel on all of torch's threads and wait for its end.

    Args:
        kernel: the kernel, made by `compiled`.
        chunks: number of chunks.
        arguments: sizes, and tensors and arrays whose addresses the kernel gets, in the memory layout that it expects.

    Raises:
        ValueError: if a tensor has gaps in memory, because kernels would read what is in the gaps.
    """
    for each in arguments:
        if isinstance(each, Tensor) and not (each.is_contiguous() or each.is_contiguous(memory_format=torch.channels_last)):
            raise ValueError(f"a kernel was given a tensor of shape {tuple(each.shape)} and strides {each.stride()}")
    values = [a.data_ptr() if isinstance(a, Tensor) else a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    block = np.array([0, chunks, *values], dtype=np.int64)
    parallel = _gomp_parallel()
    if parallel is None or chunks == 1:
        kernel.ctypes(ctypes.cast(block.ctypes.data, ctypes.POINTER(ctypes.c_int64)))
    else:
        parallel(kernel.address, block.ctypes.data, torch.get_num_threads(), 0)


@cache
def _gomp_parallel() -> Any:
    """Return GOMP_parallel of the OpenMP library that torch has loaded, or None if there is none (then one thread is used)."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    loaded = sorted({line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line})
    own = [path for path in loaded if "torch" in path] or loaded
    if not own:
        return None
    function = ctypes.CDLL(own[0]).GOMP_parallel
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


@intrinsic
def take_chunk(typing: Any, block: Any) -> Any:
    """Return the next chunk that no thread has taken, and mark it as taken. Call it as `take_chunk(block)` in kernels.

    Args:
        typing: numba's typing context, which numba adds to a call.
        block: the kernel's argument. Its first number is raised by one.

    Returns:
        The number of the chunk, from 0. The work is done if it is not below the number of chunks.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", args[0], ir.Constant(_LONG, 1), "monotonic")

    return types.int64(block), code


@intrinsic
def pointer(typing: Any, address: Any, dtype: Any) -> Any:
    """Make a pointer from an address. Call it as `pointer(address, dtype)` in kernels.

    Args:
        typing: numba's typing context, which numba adds to a call.
        address: the address, an int64.
        dtype: numba type of the numbers there.
    """
    kind = types.CPointer(dtype.dtype)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(address, dtype), code


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Read a number of an array. Call it as `load(array, index)` in kernels.

    Args:
        typing: numba's typing context, which numba adds to a call.
        array: array (N,) of float32, float64, or uint16, which stands for bfloat16.
        index: index of the number, not negative.

    Returns:
        The number, a float32 if the array is of bfloat16.
    """
    half = array.dtype == types.uint16

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        value = builder.load(builder.gep(data, [args[1]]))
        if not half:
            return value
        return builder.bitcast(builder.shl(builder.zext(value, _BITS), ir.Constant(_BITS, 16)), ir.FloatType())

    return (types.float32 if half else array.dtype)(array, types.intp), code


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a number to an array, rounded to the nearest bfloat16 if it is of those. Call it as `store(array, index, value)`.

    Args:
        typing: numba's typing context, which numba adds to a call.
        array: array (N,) of float32, float64, or uint16, which stands for bfloat16.
        index: index of the number, not negative.
        value: the number, a float32 if the array is of bfloat16.
    """
    half = array.dtype == types.uint16

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = args[2]
        if half:
            bits = builder.bitcast(value, _BITS)
            odd = builder.and_(builder.lshr(bits, ir.Constant(_BITS, 16)), ir.Constant(_BITS, 1))  # ties go to the even number
            rounded = builder.add(builder.add(bits, odd), ir.Constant(_BITS, 0x7FFF))
            value = builder.trunc(builder.lshr(rounded, ir.Constant(_BITS, 16)), ir.IntType(16))
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store(value, builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32 if half else array.dtype), code
