"""What only the operations for GPUs have: a network learns with them, and torch's layers where Triton does not work."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed (the extra dev has it)")

from deconvnet.models.fused import available, operations
from deconvnet.models.fused.gpu import pooling
from deconvnet.models.fused.layers import use_fused_layers
from deconvnet.models.layers import Deconv3x3, MatrixConv2d, Unpool, unit
from tests.deconvnet.models.fused.kernels import close, gpu_kernels

KERNELS = gpu_kernels()
DEVICE = KERNELS.device


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("wrong", [3, -1, 2**40])
def test_class_ids_without_a_score_make_the_loss_nan(wrong):
    truth = torch.zeros(1, 2, 2, dtype=torch.int64, device=DEVICE)
    truth[0, 1, 1] = wrong
    assert KERNELS.cross_entropy(KERNELS.noise((1, 3, 2, 2)), truth, 255, 1.0).isnan()


class Small(nn.Module):
    """Each kind of layer of both networks once. In a whole network, rounding grows too much over the layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = unit(nn.Conv2d(3, 16, 5, padding=2)), unit(MatrixConv2d(16, 24, 1))
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), Unpool()
        self.third = unit(Deconv3x3(24, 8))

    def forward(self, x):
        small, switches = self.pool(self.second(self.first(x)))
        return self.third(self.unpool(small, switches))


def test_a_network_learns_what_it_learns_with_torchs_layers(monkeypatch):
    monkeypatch.setattr(operations, "_on_gpu", lambda x: True)  # here Triton's interpreter reads the CPU's memory
    plain = Small().to(DEVICE, memory_format=torch.channels_last).train()
    fused = copy.deepcopy(plain)
    use_fused_layers(fused)
    x = KERNELS.noise((6, 3, 12, 8))
    for network in (plain, fused):
        (network(x) * torch.linspace(-1, 1, 8, device=DEVICE)).sum().backward()
    for name, parameter in plain.named_parameters():
        if not name.endswith("conv.bias"):  # batch norm makes their gradients 0, so what is left is rounding
            close(fused.get_parameter(name).grad, parameter.grad, 1e-4)
    for name, buffer in plain.named_buffers():
        close(fused.get_buffer(name), buffer, 1e-5)


@pytest.mark.parametrize("works", [True, False])
def test_torchs_layers_are_used_where_triton_can_not_compile(monkeypatch, caplog, works):
    def max_pool(x):
        if not works:
            raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(pooling, "max_pool", max_pool)
    monkeypatch.setattr(available.torch, "zeros", lambda *shape, device: None)
    available._triton_works.cache_clear()
    try:
        assert available.use_fused(torch.device("cuda")) == works
        assert ("Triton can't compile: Failed to find C compiler" in caplog.text) == (not works)
    finally:
        available._triton_works.cache_clear()
