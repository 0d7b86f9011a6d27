"""Freed memory is kept inside the block, and returned after it. Each test measures a process of its own."""

import os
import subprocess
import sys
import textwrap

import pytest

from infra import memory
from infra.memory import keep_freed_memory

MEASURE = """
import ctypes, os
from infra.memory import keep_freed_memory

def growth():
    \"\"\"Allocate, fill and free 64 MB; return by how many MB the process has grown since the start.\"\"\"
    libc.free(ctypes.memset(libc.malloc(64 << 20), 1, 64 << 20))
    return (resident() - start) >> 20

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
ctypes.memset.restype = ctypes.c_void_p
start = resident()
"""


def measured(code: str, **variables: str) -> list[int]:
    """Run code in a new process after the definitions above, and return the numbers that it prints."""
    command, env = [sys.executable, "-c", MEASURE + textwrap.dedent(code)], os.environ | variables
    return [int(n) for n in subprocess.run(command, capture_output=True, check=True, text=True, env=env).stdout.split()]


@pytest.mark.skipif("glibc" not in memory._library(), reason="glibc's allocator")
def test_a_freed_block_stays_until_the_end():
    before, inside, after = measured("""
        print(growth())
        with keep_freed_memory():
            print(growth())
        print(growth())
    """)
    assert before < 16 and inside > 48 and after < 16


@pytest.mark.skipif("glibc" not in memory._library(), reason="glibc's allocator")
def test_memory_is_returned_after_an_error():
    inside, after, later = measured("""
        try:
            with keep_freed_memory():
                print(growth())
                raise KeyError
        except KeyError:
            print((resident() - start) >> 20)
        print(growth())
    """)
    assert inside > 48 and after < 16 and later < 16


@pytest.mark.skipif("glibc" not in memory._library(), reason="glibc's allocator")
def test_another_thread_keeps_freed_blocks_in_a_process_with_one_arena():
    code = """
        from concurrent.futures import ThreadPoolExecutor

        def grow():
            blocks = [libc.malloc(8 << 20) for _ in range(32)]
            for block in blocks:
                libc.free(ctypes.memset(block, 1, 8 << 20))
            return (resident() - start) >> 20

        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()  # the thread, with its arena, is there before
            with keep_freed_memory():
                print(pool.submit(grow).result())
    """
    (kept,), (returned,) = measured(code, **memory.SINGLE_ARENA_ENV), measured(code, MALLOC_ARENA_MAX="8")
    assert kept > 200 and returned < 100


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_library", lambda: "")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("it was changed"))
    with keep_freed_memory():
        pass
