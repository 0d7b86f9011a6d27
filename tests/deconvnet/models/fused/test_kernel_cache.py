"""Kernels that several processes have compiled can be used together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from deconvnet.models.fused.cpu import winograd_kernels
from tests.conftest import ROOT

GRADIENT = """
import torch
from deconvnet.models.fused.cpu import winograd
torch.manual_seed(0)
x, grad = (torch.randn(2, 32, 16, 20, dtype=torch.float64).contiguous(memory_format=torch.channels_last) for _ in "xg")
weights = torch.zeros(32, 32, 3, 3, dtype=torch.float64, requires_grad=True)
torch.nn.functional.conv2d(x, weights, padding=1).backward(grad)
torch.testing.assert_close(winograd.weight_gradient(grad, x), weights.grad)
"""


def test_the_parts_of_kernels_have_different_names() -> None:
    """numba links a kernel with parts by their names, which it tells apart only within a process: see `_part`."""
    parts = [each for each in vars(winograd_kernels).values() if isinstance(each, Dispatcher)]
    values = [cell.cell_contents for part in parts for cell in part.py_func.__closure__ or ()]
    parts += {id(each): each for each in values if isinstance(each, Dispatcher)}.values()
    assert len(parts) == 8, "transforms of tiles (3) and of weights (2), and tables of the tiles"
    named = {part.py_func.__qualname__: [cell.cell_contents for cell in part.py_func.__closure__] for part in parts}
    tables = [closure for name, closure in named.items() if "_tile_table" in name]
    assert len(named) == 7 and sorted(tables) == [[4], [6]], "two of the transforms have tables of the same tiles"


@pytest.mark.slow
def test_a_kernel_that_is_compiled_beside_cached_ones_leaves_them_as_they_are(tmp_path: Path) -> None:
    """The first process compiles all, the second what is missing (as a process that was killed leaves it), the third nothing."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for attempt in range(3):
        subprocess.run([sys.executable, "-c", GRADIENT], env=environment, check=True)
        if attempt == 0:
            removed = [path.unlink() for path in tmp_path.rglob("*to_planes*inputs*")]
            assert len(removed) == 2, "the kernel and its index"
