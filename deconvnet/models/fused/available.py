"""Whether fused operations can be used on this machine."""

import importlib
import logging
from functools import cache

import torch

logger = logging.getLogger(__name__)


def use_fused(device: torch.device) -> bool:
    """Return whether networks on a device should use the fused operations of this package.

    Args:
        device: the device that the network is on.
    """
    if device.type == "cuda":
        return _triton_works()
    return device.type == "cpu" and _can_compile()


@cache
def _can_compile() -> bool:
    """Compile a kernel by numba and return whether that succeeded. If not, the reason is logged once."""
    try:
        importlib.import_module("deconvnet.models.fused.cpu.sgd")
    except (ImportError, RuntimeError, OSError) as error:  # no numba, or no folder where it can write its cache
        logger.warning(f"  networks take longer than they could, because numba can't compile: {error}")
        return False
    return True


@cache
def _triton_works() -> bool:
    """Compile a kernel by Triton, run it, and return whether that succeeded. If not, the reason is logged once."""
    try:
        pooling = importlib.import_module("deconvnet.models.fused.gpu.pooling")
        pooling.max_pool(torch.zeros(1, 8, 2, 2, device="cuda"))
    except Exception as error:  # no Triton, no C compiler for it, no folder for its cache, a GPU that is too old
        logger.warning(f"  training takes longer than it could, because Triton can't compile: {error}")
        return False
    return True
