"""The operations that exist for CPUs and for GPUs give what torch's give, with their gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.deconvnet.models.fused.kernels import TOLERANCE, Kernels, close, cpu_kernels, gpu_kernels

CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
SHAPES = [(4, 24, 5, 7), (3, 8, 2, 2), (1, 300, 2, 2), (2, 32, 64, 32)]
LARGE = [(2, 520, 3, 3), (16, 1000, 1, 1), (1, 8, 256, 160)]
OF_MANY_PROGRAMS = [(2, 136, 3, 3), (16, 136, 1, 1), (1, 8, 64, 70)]
"""For Triton's kernels: more columns than a block has, and more blocks (9) than programs, whose sums don't fit into one block.

Triton's interpreter is slow, so the shapes and the numbers of programs are small (see `kernels`).
"""
EACH = [(cpu_kernels, shape) for shape in (*SHAPES, *LARGE)] + [(gpu_kernels, shape) for shape in (*SHAPES, *OF_MANY_PROGRAMS)]


@pytest.fixture(params=[cpu_kernels, gpu_kernels], ids=["cpu", "gpu"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    torch.manual_seed(0)
    made = request.param()
    if request.param is gpu_kernels:
        from deconvnet.models.fused.gpu import norm_relu

        monkeypatch.setattr(norm_relu, "PROGRAMS", 6)
        monkeypatch.setattr(norm_relu, "SUMMED_ROWS", 4)
    return made


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("kernels", "shape"), EACH, indirect=["kernels"], ids=[f"{make.__name__}-{shape}" for make, shape in EACH]
)
def test_batch_norm_with_relu(kernels: Kernels, shape, dtype):
    memory_format = CHANNELS_LAST if shape[0] % 4 else CONTIGUOUS
    x = (kernels.noise(shape) * 2 + 3).to(dtype).contiguous(memory_format=memory_format)
    gradient = kernels.noise(shape, dtype)
    ours = kernels.batch_norm(shape[1])
    theirs, exact = copy.deepcopy(ours).double(), copy.deepcopy(ours).double()
    gradient[exact(x.double()).detach().abs() < 1e-2] = 0  # because rounding decides there on which side of 0 a value is
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = kernels.norm_relu(a, ours), torch.relu(theirs(b))
    y.backward(gradient)
    expected.backward(gradient.double())
    assert y.dtype == dtype and y.is_contiguous(memory_format=CHANNELS_LAST)
    close(y, expected, TOLERANCE[dtype])
    close(a.grad, b.grad, TOLERANCE[dtype])
    for name, parameter in ours.named_parameters():
        close(parameter.grad, theirs.get_parameter(name).grad, TOLERANCE[dtype])
    for name, buffer in ours.named_buffers():
        close(buffer, theirs.get_buffer(name), 1e-5)


def test_batch_norm_of_values_with_a_large_mean(kernels: Kernels):
    x = kernels.noise((8, 16, 9, 9)) + 1000
    ours = kernels.batch_norm(16)
    theirs = copy.deepcopy(ours).double()
    close(kernels.norm_relu(x, ours), torch.relu(theirs(x.double())), 1e-4)


def test_the_bias_before_batch_norm_only_moves_the_running_mean(kernels: Kernels):
    x, bias = kernels.noise((4, 8, 5, 5)), nn.Parameter(kernels.noise(8))
    ours = kernels.batch_norm(8)
    theirs = copy.deepcopy(ours)
    y = kernels.norm_relu(x, ours, bias)
    close(y, torch.relu(theirs(x + bias.view(-1, 1, 1))), 1e-5)
    y.sum().backward()
    assert not bias.grad.any()
    close(ours.running_mean, theirs.running_mean, 1e-5)
    close(ours.running_var, theirs.running_var, 1e-5)


def test_batch_norm_without_running_statistics_keeps_none(kernels: Kernels):
    norm = nn.BatchNorm2d(8, track_running_stats=False).to(kernels.device)
    x = kernels.noise((4, 8, 6, 6))
    close(kernels.norm_relu(x, norm), torch.relu(norm(x)), 1e-5)
    assert norm.running_mean is None and torch.equal(norm.weight, torch.ones_like(norm.weight))


def test_one_value_a_channel_is_refused(kernels: Kernels):
    with pytest.raises(ValueError, match="more than 1 value"):
        kernels.norm_relu(kernels.noise((1, 8, 1, 1)), kernels.batch_norm(8))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_not_hidden(kernels: Kernels, dtype, bad):
    x = kernels.noise((2, 8, 4, 4), dtype)
    x[0, 3, 1, 1] = bad
    assert kernels.norm_relu(x, kernels.batch_norm(8))[:, 3].isnan().all()
    scores = torch.full((1, 5, 2, 2), bad, dtype=dtype, device=kernels.device)
    truth = torch.zeros(1, 2, 2, dtype=torch.int64, device=kernels.device)
    assert not kernels.cross_entropy(scores, truth, 255, 1.0).isfinite()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 4, 6), (3, 24, 10, 2), (2, 160, 8, 12)], ids=str)
def test_pooling_and_unpooling(kernels: Kernels, shape, dtype):
    x = torch.relu(kernels.noise(shape, dtype)).contiguous(memory_format=CHANNELS_LAST)  # with equal values, which are 0
    x[0, 0, 0, 1] = float("nan")
    gradient = kernels.noise(shape, dtype)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    small, positions = kernels.max_pool(a)
    expected_small, switches = F.max_pool2d(b, 2, 2, return_indices=True)
    large = kernels.max_unpool(small * 2, positions)
    expected = F.max_unpool2d(expected_small * 2, switches, 2, 2)
    large.backward(gradient)
    expected.backward(gradient)
    for found, wanted in ((small, expected_small), (large, expected), (a.grad, b.grad)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_unpooling_by_some_of_the_channels_of_pooling(kernels: Kernels):
    """As in a decoder that is narrower than the encoder. The positions then have gaps in memory, or no memory format."""
    maxima, positions = kernels.max_pool(kernels.noise((2, 8, 6, 4)))
    for some in (slice(None, None, 2), [0, 2, 5], [1, 1, 7, 3, 0, 2, 4, 4, 6, 5]):
        x = maxima[:, some].clone(memory_format=CONTIGUOUS).requires_grad_()
        found, expected = kernels.max_unpool(x, positions[:, some]), kernels.max_unpool(maxima, positions)[:, some]
        assert torch.equal(found, expected)
        found.backward(found.detach())
        assert torch.equal(x.grad, x.detach())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (3, 21, 40, 40), (1, 2, 1, 1), (1, 150, 9, 7)], ids=str)
@pytest.mark.parametrize("ignored", [255, 1])
def test_cross_entropy(kernels: Kernels, shape, dtype, ignored):
    scores = kernels.noise(shape, dtype) * 20
    truth = torch.randint(0, shape[1], (shape[0], *shape[2:])).to(kernels.device)
    truth[-1, 1:] = ignored
    a, b = (scores.clone().requires_grad_() for _ in range(2))
    found = kernels.cross_entropy(a, truth, ignored, 0.25)
    expected = F.cross_entropy(b.float(), truth, ignore_index=ignored, reduction="sum") * 0.25
    (found * 3).backward()
    (expected * 3).backward()
    close(found, expected, 1e-5)
    close(a.grad, b.grad, TOLERANCE[dtype])


def test_pixels_that_are_all_void_have_no_loss(kernels: Kernels):
    scores = kernels.noise((1, 3, 2, 2)).requires_grad_()
    loss = kernels.cross_entropy(scores, torch.full((1, 2, 2), 255, device=kernels.device), 255, 1.0)
    loss.backward()
    assert loss == 0 and not scores.grad.any()


@pytest.mark.parametrize("truth", [torch.zeros(1, 3, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.uint8)])
def test_class_ids_of_another_shape_or_dtype_are_refused(kernels: Kernels, truth):
    with pytest.raises(ValueError, match="class ids must be int64 of shape"):
        kernels.cross_entropy(kernels.noise((1, 3, 2, 2)), truth.to(kernels.device), 255, 1.0)
