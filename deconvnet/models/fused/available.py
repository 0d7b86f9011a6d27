"""Whether fused operations can be used on this machine."""

import importlib
import logging
from functools import cache

import torch

logger = logging.getLogger(__name__)


def use_fused(device: torch.device) -> bool:
    """Return whether training on a device should use the fused operations of this package.

    Args:
        device: the device that the network is trained on.
    """
    if device.type == "cuda":
        return _has_triton()
    return device.type == "cpu" and _can_compile()


@cache
def _can_compile() -> bool:
    """Compile a kernel by numba and return whether that succeeded. If not, the reason is logged once."""
    try:
        importlib.import_module("deconvnet.models.fused.cpu.sgd")
    except (ImportError, RuntimeError, OSError) as error:  # no numba, or no folder where it can write its cache
        logger.warning(f"  training takes longer than it could, because numba can't compile: {error}")
        return False
    return True


@cache
def _has_triton() -> bool:
    """Return whether Triton can be imported. If not, that is logged once."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        logger.warning(f"  training takes longer than it could, because Triton is missing: {error}")
        return False
    return True
