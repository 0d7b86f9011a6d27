"""Freed memory is kept inside the block, and returned after it. Each test measures a process of its own."""

import subprocess
import sys
import textwrap

import pytest

from infra import memory
from infra.memory import freed_memory_is_kept

MEASURE = """
import ctypes, os
from infra.memory import freed_memory_is_kept

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


def measured(code: str) -> list[int]:
    """Run code in a new process after the definitions above, and return the numbers that it prints."""
    program = MEASURE + textwrap.dedent(code)
    return [
        int(n) for n in subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout.split()
    ]


@pytest.mark.skipif("glibc" not in memory._library(), reason="glibc's allocator")
def test_a_freed_block_stays_until_the_end():
    before, inside, after = measured("""
        print(growth())
        with freed_memory_is_kept():
            print(growth())
        print(growth())
    """)
    assert before < 16 and inside > 48 and after < 16


@pytest.mark.skipif("glibc" not in memory._library(), reason="glibc's allocator")
def test_memory_is_returned_after_an_error():
    inside, after, later = measured("""
        try:
            with freed_memory_is_kept():
                print(growth())
                raise KeyError
        except KeyError:
            print((resident() - start) >> 20)
        print(growth())
    """)
    assert inside > 48 and after < 16 and later < 16


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_library", lambda: "")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("it was changed"))
    with freed_memory_is_kept():
        pass
