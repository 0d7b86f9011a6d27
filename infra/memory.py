"""How the C library's allocator treats freed memory in this process."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # from glibc's malloc.h
_MMAP_MAX_DEFAULT, _THRESHOLD_DEFAULT = 65536, 32 * 2**20

ONE_ARENA = {"MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "1")}
"""Environment variables for a process that does its main work outside the main thread, as Ray Train's workers do.

glibc gives such threads arenas of their own, and returns the freed memory of these arenas in spite of `freed_memory_is_kept`.
With these variables, there is one arena for all threads. A value that the user has set stays.
"""


@contextmanager
def freed_memory_is_kept() -> Iterator[None]:
    """Return a context manager in which freed memory stays with the process and is used again.

    By default glibc returns every freed block above 32 MB to the operating system. A training step frees and allocates the same
    large blocks again and again, and the operating system must clear each page anew: up to a third of a step's time. The memory
    is returned at the end. With another C library nothing changes. In other threads than the main one, this only works in processes
    that were started with the environment variables `ONE_ARENA`.
    """
    if "glibc" not in _library():
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # -1 stands for the largest number
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _MMAP_MAX_DEFAULT)
        libc.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_DEFAULT)
        libc.mallopt(_M_TRIM_THRESHOLD, _THRESHOLD_DEFAULT)
        libc.malloc_trim(0)


def _library() -> str:
    """Return name and version of the C library, such as "glibc 2.36", or "" if they are not known."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # no confstr on Windows, no such name on macOS and musl
        return ""
