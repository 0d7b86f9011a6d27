"""Tune glibc's allocator so that a training reuses freed memory."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # from glibc's malloc.h
_MMAP_MAX_DEFAULT, _THRESHOLD_DEFAULT = 65536, 32 * 2**20

SINGLE_ARENA_ENV = {"MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "1")}
"""The environment variable for a process that does its main work outside the main thread, as Ray Train's workers do.

glibc gives such threads arenas of their own, to which `keep_freed_memory` does not apply. With this variable, all threads
share one arena. A value that the user has set is not overridden.
"""


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Inside the `with` block, let glibc reuse freed memory instead of returning it to the operating system.

    By default glibc returns every freed block above 32 MB. A training step frees and allocates the same large blocks over and
    over, and the kernel zeroes each page again: up to a third of a step's time. When the block ends, the free memory is returned.
    Without glibc, this does nothing. It works in threads other than the main one only if the process was started with the
    environment variable in `SINGLE_ARENA_ENV`.
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
