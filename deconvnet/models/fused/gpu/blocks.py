"""How kernels divide activations among the programs that a GPU runs at the same time.

In memory format channels_last, activations (N, C, H, W) are a matrix: a row for each pixel, a column for each channel. A program
works on blocks of ROWS rows and COLUMNS columns.
"""

from typing import Any

import torch
from torch import Tensor

PROGRAMS = 1024
"""How many programs compute sums, about: enough for all processors of a large GPU."""
ELEMENTS = 4096
"""Number of elements of a block."""
MAX_COLUMNS = 128
"""Largest number of columns of a block."""


def block_sizes(channels: int) -> dict[str, Any]:
    """Return the kernels' constants ROWS and COLUMNS, which are powers of 2.

    Args:
        channels: number of channels.
    """
    columns = min(MAX_COLUMNS, power_of_2(channels))
    return {"ROWS": ELEMENTS // columns, "COLUMNS": columns}


def power_of_2(number: int) -> int:
    """Return the smallest power of 2 that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def channels_last(x: Tensor) -> Tensor:
    """Return a tensor (N, C, H, W) in memory format channels_last."""
    return x.contiguous(memory_format=torch.channels_last)
