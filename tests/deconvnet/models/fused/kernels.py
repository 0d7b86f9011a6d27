"""The fused operations for CPUs and for GPUs under one name, and what their tests share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}


@dataclass(frozen=True)
class Kernels:
    """The operations for one kind of device, and the device that they are tested on."""

    device: str
    norm_relu: Callable[..., Any]
    max_pool: Callable[..., Any]
    max_unpool: Callable[..., Any]
    cross_entropy: Callable[..., Any]

    def noise(self, shape: tuple[int, ...] | int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Normally distributed numbers, drawn on the CPU, so that they are the same everywhere."""
        return torch.randn(shape).to(self.device, dtype)

    def batch_norm(self, channels: int) -> nn.BatchNorm2d:
        """A batch norm none of whose values is a default."""
        norm = nn.BatchNorm2d(channels, momentum=0.3)
        nn.init.uniform_(norm.weight, -0.5, 2)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        return norm.to(self.device)


def cpu_kernels() -> Kernels:
    """The kernels that numba compiles."""
    from deconvnet.models.fused.cpu import cross_entropy, norm_relu, pooling

    return Kernels("cpu", norm_relu.norm_relu, pooling.max_pool, pooling.max_unpool, cross_entropy.cross_entropy)


def gpu_kernels() -> Kernels:
    """Triton's kernels: on a GPU, or else in Triton's interpreter, which reads the CPU's memory."""
    pytest.importorskip("triton", reason="Triton is not installed (the extra dev has it)")
    from deconvnet.models.fused.gpu import cross_entropy, norm_relu, pooling

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Kernels(device, norm_relu.norm_relu, pooling.max_pool, pooling.max_unpool, cross_entropy.cross_entropy)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Compare relatively to the largest value."""
    scale = float(expected.detach().float().abs().max()) + 1e-9
    torch.testing.assert_close(found.float() / scale, expected.float() / scale, rtol=0, atol=tolerance)
