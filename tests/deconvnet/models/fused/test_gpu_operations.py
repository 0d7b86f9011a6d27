"""Operations for GPUs give what torch's give, with their gradients: on a GPU, or else in Triton's interpreter."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed (the extra dev has it)")

from deconvnet.models.fused import available, operations
from deconvnet.models.fused.gpu import pooling
from deconvnet.models.fused.gpu.cross_entropy import cross_entropy
from deconvnet.models.fused.gpu.norm_relu import norm_relu
from deconvnet.models.fused.gpu.pooling import max_pool, max_unpool
from deconvnet.models.fused.layers import use_fused_layers
from deconvnet.models.layers import Deconv3x3, MatrixConv2d, Unpool, unit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(4, 24, 6, 8), (3, 8, 2, 2), (2, 520, 4, 2), (2, 32, 64, 32), (2, 304, 2, 2), (16, 1000, 1, 1), (1, 8, 256, 160)]
"""The last has more blocks than a program adds up at once."""
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=0.3)
    nn.init.uniform_(norm.weight, -0.5, 2)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    return norm.to(DEVICE)


def noise(shape, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def close(found, expected, tolerance) -> None:
    """Compare relatively to the largest value."""
    scale = float(expected.detach().float().abs().max()) + 1e-9
    torch.testing.assert_close(found.float() / scale, expected.float() / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_with_relu(shape, dtype):
    x = (noise(shape) * 2 + 3).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if shape[0] % 4 else x
    gradient = noise(shape, dtype)
    ours = batch_norm(shape[1])
    theirs, exact = copy.deepcopy(ours).double(), copy.deepcopy(ours).double()
    gradient[exact(x.double()).detach().abs() < 1e-2] = 0  # because rounding decides there on which side of 0 a value is
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = norm_relu(a, ours), torch.relu(theirs(b))
    y.backward(gradient)
    expected.backward(gradient.double())
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    close(y, expected, TOLERANCE[dtype])
    close(a.grad, b.grad, TOLERANCE[dtype])
    for name, parameter in ours.named_parameters():
        close(parameter.grad, theirs.get_parameter(name).grad, TOLERANCE[dtype])
    for name, buffer in ours.named_buffers():
        close(buffer, theirs.get_buffer(name), 1e-5)


def test_batch_norm_of_values_with_a_large_mean():
    x = noise((8, 16, 10, 10)) + 1000
    ours, theirs = batch_norm(16), nn.BatchNorm2d(16, momentum=0.3).double().to(DEVICE)
    theirs.load_state_dict(ours.state_dict())
    close(norm_relu(x, ours), torch.relu(theirs(x.double())), 1e-4)


def test_the_bias_before_batch_norm_only_moves_the_running_mean():
    x, bias = noise((4, 8, 6, 6)), nn.Parameter(noise(8))
    ours = batch_norm(8)
    theirs = copy.deepcopy(ours)
    y = norm_relu(x, ours, bias)
    close(y, torch.relu(theirs(x + bias.view(-1, 1, 1))), 1e-5)
    y.sum().backward()
    assert not bias.grad.any()
    close(ours.running_mean, theirs.running_mean, 1e-5)
    close(ours.running_var, theirs.running_var, 1e-5)


def test_batch_norm_without_running_statistics_keeps_none():
    norm = nn.BatchNorm2d(8, track_running_stats=False).to(DEVICE)
    x = noise((4, 8, 6, 6))
    close(norm_relu(x, norm), torch.relu(norm(x)), 1e-5)
    assert norm.running_mean is None and torch.equal(norm.weight, torch.ones_like(norm.weight))


def test_one_value_a_channel_is_refused():
    with pytest.raises(ValueError, match="more than 1 value"):
        norm_relu(noise((1, 8, 1, 1)), batch_norm(8))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_nan_and_infinity_are_not_hidden(dtype):
    for bad in (float("nan"), float("inf")):
        x = noise((2, 8, 4, 4), dtype)
        x[0, 3, 1, 1] = bad
        assert norm_relu(x, batch_norm(8))[:, 3].isnan().all()
        scores = torch.full((1, 5, 2, 2), bad, dtype=dtype, device=DEVICE)
        truth = torch.zeros(1, 2, 2, dtype=torch.int64, device=DEVICE)
        assert not cross_entropy(scores, truth, 255, 1.0).isfinite()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 4, 6), (3, 24, 10, 2), (2, 160, 8, 12)], ids=str)
def test_pooling_and_unpooling(shape, dtype):
    x = torch.relu(noise(shape, dtype)).contiguous(memory_format=torch.channels_last)  # with equal values, which are 0
    x[0, 0, 0, 1] = float("nan")
    gradient = noise(shape, dtype)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    small, positions = max_pool(a)
    expected_small, switches = F.max_pool2d(b, 2, 2, return_indices=True)
    large = max_unpool(small * 2, positions)
    expected = F.max_unpool2d(expected_small * 2, switches, 2, 2)
    large.backward(gradient)
    expected.backward(gradient)
    for found, wanted in ((small, expected_small), (large, expected), (a.grad, b.grad)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_unpooling_by_some_of_the_channels_of_pooling():
    """As in a decoder that is narrower than the encoder. The positions then have gaps in memory, or no memory format."""
    maxima, positions = max_pool(noise((2, 8, 6, 4)))
    for some in (slice(None, None, 2), [0, 2, 5], [1, 1, 7, 3, 0, 2, 4, 4, 6, 5]):
        x = maxima[:, some].clone(memory_format=torch.contiguous_format).requires_grad_()
        found, expected = max_unpool(x, positions[:, some]), max_unpool(maxima, positions)[:, some]
        assert torch.equal(found, expected)
        found.backward(found.detach())
        assert torch.equal(x.grad, x.detach())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (3, 21, 40, 40), (1, 2, 1, 1), (1, 150, 9, 7)], ids=str)
@pytest.mark.parametrize("ignored", [255, 1])
def test_cross_entropy(shape, dtype, ignored):
    scores = noise(shape, dtype) * 20
    truth = torch.randint(0, shape[1], (shape[0], *shape[2:])).to(DEVICE)
    truth[-1, 1:] = ignored
    a, b = (scores.clone().requires_grad_() for _ in range(2))
    found = cross_entropy(a, truth, ignored, 0.25)
    expected = F.cross_entropy(b.float(), truth, ignore_index=ignored, reduction="sum") * 0.25
    (found * 3).backward()
    (expected * 3).backward()
    close(found, expected, 1e-5)
    close(a.grad, b.grad, TOLERANCE[dtype])


def test_pixels_that_are_all_void_have_no_loss():
    scores = noise((1, 3, 2, 2)).requires_grad_()
    loss = cross_entropy(scores, torch.full((1, 2, 2), 255, device=DEVICE), 255, 1.0)
    loss.backward()
    assert loss == 0 and not scores.grad.any()


@pytest.mark.parametrize("wrong", [3, -1, 2**40])
def test_class_ids_without_a_score_make_the_loss_nan(wrong):
    truth = torch.zeros(1, 2, 2, dtype=torch.int64, device=DEVICE)
    truth[0, 1, 1] = wrong
    assert cross_entropy(noise((1, 3, 2, 2)), truth, 255, 1.0).isnan()


@pytest.mark.parametrize("truth", [torch.zeros(1, 3, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.uint8)])
def test_class_ids_of_another_shape_or_dtype_are_refused(truth):
    with pytest.raises(ValueError, match="class ids must be int64 of shape"):
        cross_entropy(noise((1, 3, 2, 2)), truth.to(DEVICE), 255, 1.0)


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
    x = noise((6, 3, 12, 8))
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
