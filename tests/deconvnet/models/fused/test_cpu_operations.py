"""What only the operations for CPUs have: convolutions, SGD, float64 and threads."""

from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from torch import nn

from deconvnet.models.fused.cpu import convolution, parallel, winograd
from deconvnet.models.fused.cpu.convolution import convolve
from deconvnet.models.fused.cpu.cross_entropy import cross_entropy
from deconvnet.models.fused.cpu.norm_kernels import norm_kernels
from deconvnet.models.fused.cpu.norm_relu import norm_relu
from deconvnet.models.fused.cpu.pooling import max_pool, max_unpool
from deconvnet.models.fused.cpu.sgd import FusedSGD
from deconvnet.models.fused.operations import supports_convolution
from deconvnet.models.layers import Deconv3x3
from tests.deconvnet.models.fused.kernels import TOLERANCE, close, cpu_kernels

batch_norm = cpu_kernels().batch_norm


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_gradients_of_batch_norm_with_relu():
    def compute(x, weight, bias):
        norm = nn.BatchNorm2d(8).double()
        del norm.weight, norm.bias
        norm.weight, norm.bias = weight, bias
        return norm_relu(x, norm)

    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 8, 2, 4), (8,), (8,)))
    assert torch.autograd.gradcheck(compute, (x, weight, bias))


CONVOLUTIONS = {
    "few pixels": (lambda: nn.Conv2d(8, 16, 3, padding=1), (2, 8, 6, 5)),
    "a kernel larger than the map": (lambda: nn.Conv2d(8, 16, 7, padding=3), (2, 8, 3, 5)),
    "no padding": (lambda: nn.Conv2d(8, 16, 3), (2, 8, 6, 5)),
    "more pixels": (lambda: nn.Conv2d(8, 16, 3, padding=1), (2, 8, 18, 19)),
    "many pixels": (lambda: nn.Conv2d(8, 16, 3, padding=1), (4, 8, 18, 19)),
    "deconvolution, few pixels": (lambda: Deconv3x3(8, 16), (2, 8, 6, 5)),
    "deconvolution, many pixels": (lambda: Deconv3x3(8, 16), (4, 8, 18, 19)),
    "by Winograd's method": (lambda: nn.Conv2d(16, 48, 3, padding=1), (3, 16, 18, 21)),
    "deconvolution by Winograd's method": (lambda: Deconv3x3(48, 16), (3, 48, 18, 21)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions(case, dtype, monkeypatch):
    used = []
    for name in ("convolve", "weight_gradient"):
        original = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *a, f=original: used.append(f.__name__) or f(*a))
    for limit in ("WINOGRAD_MIN_CHANNELS", "WINOGRAD_MIN_WORK", "WINOGRAD_MIN_WEIGHTS"):
        monkeypatch.setattr(convolution, limit, 0)
    make, shape = CONVOLUTIONS[case]
    layer = make().to(memory_format=torch.channels_last)
    layer = layer.double() if dtype == torch.float64 else layer
    x = torch.randn(shape).to(dtype)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, expected = convolve(layer, a), layer(b) - layer.bias.view(-1, 1, 1)
    gradient = torch.randn(found.shape).to(dtype)
    assert supports_convolution(layer) and found.dtype == dtype
    by_winograd = "Winograd" in case and dtype != torch.bfloat16
    tolerance = (3 if by_winograd else 1) * TOLERANCE.get(dtype, 1e-12)
    close(found, expected, tolerance)
    results = [torch.autograd.grad(y.to(dtype), [inputs, layer.weight], gradient) for y, inputs in ((found, a), (expected, b))]
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        close(ours, theirs, tolerance)
    assert results[0][1].stride() == layer.weight.stride()
    assert used == (["convolve", "convolve", "weight_gradient"] if by_winograd else [])


@pytest.mark.parametrize("case", [case for case in CONVOLUTIONS if "few pixels" in case or "Winograd" in case])
def test_gradients_of_convolutions(case, monkeypatch):
    make, (_, channels, *_) = CONVOLUTIONS[case]
    if "Winograd" in case:
        for limit in ("MATMUL_PIXELS_WEIGHT", "WINOGRAD_MIN_CHANNELS", "WINOGRAD_MIN_WORK", "WINOGRAD_MIN_WEIGHTS"):
            monkeypatch.setattr(convolution, limit, 0)
    layer = make().double()
    assert torch.autograd.gradcheck(
        lambda x: convolve(layer, x), torch.randn(1, channels, 3, 2, dtype=torch.float64, requires_grad=True), fast_mode=True
    )


def test_winograds_method_gives_the_same_bits_with_any_number_of_threads_and_tiles_at_a_time(monkeypatch):
    x, grad, kernel = torch.randn(5, 48, 13, 10), torch.randn(5, 80, 13, 10), torch.randn(80, 48, 3, 3)

    def compute():
        weights = [winograd.transformed_weights(kernel, turned) for turned in (False, True)]
        return winograd.convolve(x, weights[0], 80), winograd.convolve(grad, weights[1], 48), winograd.weight_gradient(grad, x)

    expected = compute()
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(winograd, "CACHE_NUMBERS", 1)
        assert all(torch.equal(a, b) for a, b in zip(compute(), expected, strict=True))
    monkeypatch.setattr(winograd, "PASS_NUMBERS", 36 * 160 * 7)  # not all tiles are kept for the weights' gradient
    monkeypatch.setattr(winograd, "PASS_NUMBERS_PER_WEIGHT", 0)
    close(compute()[2], expected[2], 1e-5)


def test_winograds_method_of_no_images():
    weights = winograd.transformed_weights(torch.randn(32, 16, 3, 3))
    assert winograd.convolve(torch.randn(0, 16, 8, 8), weights, 32).shape == (0, 32, 8, 8)


def test_other_convolutions_are_left_to_torch():
    others = [nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 8, 3, groups=2)]
    others += [nn.Conv2d(8, 8, 3, padding="same"), nn.ConvTranspose2d(8, 8, 3), nn.Linear(8, 8)]
    assert not any(supports_convolution(layer) for layer in others)


def test_a_kernel_refuses_tensors_with_gaps():
    with pytest.raises(ValueError, match=r"shape \(2, 4, 6, 4\) and strides \(192, 2, 32, 8\)"):
        parallel.run(None, 1, torch.zeros(2, 8, 6, 4).contiguous(memory_format=torch.channels_last)[:, ::2])


def test_gradients_of_pooling_and_unpooling():
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: max_unpool(*max_pool(x)), (x,))


@pytest.mark.parametrize("wrong", [3, -1, 2**40])
def test_class_ids_without_a_score_are_refused(wrong):
    truth = torch.zeros(1, 2, 2, dtype=torch.int64)
    truth[0, 1, 1] = wrong
    with pytest.raises(IndexError, match="neither below 3 nor 255"):
        cross_entropy(torch.randn(1, 3, 2, 2), truth, 255, 1.0)


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(1)
    weights = [
        torch.randn(9, 5, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(7),
        torch.randn(300, 700),
        torch.randn(3),
    ]
    return [nn.Parameter(w) for w in weights]


def test_sgd():
    found, expected = parameters(), parameters()
    optimisers = [
        kind([{"params": p[:2], "weight_decay": 0.1, "lr": 0.5}, {"params": p[2:]}], lr=0.2, momentum=0.9)
        for kind, p in ((FusedSGD, found), (torch.optim.SGD, expected))
    ]
    for _ in range(3):
        for a, b in zip(found[:3], expected[:3], strict=True):  # the last has no gradient
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
        for name, value in optimisers[1].state[b].items():
            torch.testing.assert_close(optimisers[0].state[a][name], value)


def test_sgd_continues_with_momenta_of_another_memory_layout():
    found, expected = parameters()[:1], parameters()[:1]
    optimisers = [FusedSGD(found, lr=0.2, momentum=0.9), torch.optim.SGD(expected, lr=0.2, momentum=0.9)]
    momentum, gradient = torch.randn(9, 5, 3, 3), torch.randn(9, 5, 3, 3)
    for optimiser, (parameter,) in zip(optimisers, (found, expected), strict=True):
        optimiser.state[parameter]["momentum_buffer"] = momentum.clone()
        parameter.grad = gradient.clone()
        optimiser.step()
    torch.testing.assert_close(found, expected)


def test_sgd_takes_no_closure():
    with pytest.raises(ValueError, match="closure"):
        FusedSGD(parameters(), lr=0.1).step(lambda: 0.0)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(threads, monkeypatch):
    x = torch.randn(16, 32, 32, 32)
    expected = norm_relu(x, batch_norm(32))
    monkeypatch.setattr(parallel.torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    torch.randn(16, 32, 32, 32)
    torch.testing.assert_close(norm_relu(x, batch_norm(32)), expected, rtol=0, atol=0)


def test_without_openmp_one_thread_does_the_work(monkeypatch):
    monkeypatch.setattr(parallel, "_gomp_parallel", lambda: None)
    x = torch.randn(4, 8, 64, 64)
    close(norm_relu(x, nn.BatchNorm2d(8)), torch.relu(nn.BatchNorm2d(8)(x)), 1e-5)


def test_torchs_openmp_library_is_found():
    torch.ones(10**6).sum()
    assert parallel._gomp_parallel() is not None or "libgomp" not in Path("/proc/self/maps").read_text()


def test_each_chunk_is_taken_once():
    kernels = norm_kernels(parallel.types.float32, parallel.types.float32)
    x, vector = np.ones(1000 * 8, np.float32), np.zeros(8, np.float32)
    out = np.zeros((1000, 2, 8), np.float32)
    parallel.run(kernels.moments, 1000, x.size, 8, 1, x, vector, out)
    assert (out == 1).all()


def test_each_version_of_a_kernel_has_a_file_of_its_own_in_numbas_cache(tmp_path, monkeypatch):
    def make(dtype):
        @parallel.compiled(dtype)
        def kernel(block):
            numba.carray(parallel.pointer(block[2], dtype), 1)[0] = 1

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    make(numba.float32)
    make(numba.float64)
    monkeypatch.setattr(parallel, "_VERSION", "another")
    make(numba.float32)
    assert len(list(tmp_path.rglob("*.nbi"))) == 3


def test_compiling_fails_where_numba_can_write_nowhere(monkeypatch):
    from deconvnet.models.fused import available

    available._can_compile.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "deconvnet.models.fused.cpu.sgd", None)
    try:
        assert not available.use_fused(torch.device("cpu"))
        assert not available.use_fused(torch.device("meta"))
    finally:
        available._can_compile.cache_clear()
