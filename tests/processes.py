"""Processes for tests of distributed training. They start within a moment, as all are forked from one that has torch already."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import start_processes

_LARGE = ("numpy", "scipy.ndimage", "cv2", "pyarrow.parquet", "pydantic", "numba", "hypothesis", "torch", "torch.distributed")


def run_ranks(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Call a function in processes of their own, with the rank of each before the other arguments, and wait for them.

    An exception in one of them ends all, and is raised here with its traceback.

    Args:
        function: a function of a module.
        arguments: the other arguments, which must be picklable.
        count: number of processes.
    """
    multiprocessing.set_forkserver_preload([*_LARGE])
    start_processes(function, arguments, nprocs=count, start_method="forkserver")
