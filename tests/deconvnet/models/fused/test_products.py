"""Convolutions computed as matrix products give torch's results, and only layers that become faster are replaced."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet import FCN8s
from deconvnet.models import fusion
from deconvnet.models.fused import products
from deconvnet.models.fused.cpu.winograd_code import WIDTH
from deconvnet.models.fused.products import NeighbourhoodConv2d, WinogradConv2d
from deconvnet.models.fusion import for_inference


def weights(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("inputs, outputs", [(32, 64), (16, 48)])
@pytest.mark.parametrize("height, width", [(12, 8), (9, 6), (1, 3), (5, 18)])
def test_winograds_convolution_gives_torchs_values(inputs, outputs, height, width, relu):
    conv = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)
    conv.weight.data, conv.bias.data = weights(outputs, inputs, 3, 3), weights(outputs)
    x = weights(3, inputs, height, width)
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    expected = F.relu(expected) if relu else expected
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        found = WinogradConv2d(conv, relu)(given)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_a_converted_convolution_has_no_values_from_memory_beside_the_image(monkeypatch):
    """What lies in memory that was used before is often NaN or huge; only what belongs to an image may change its result."""
    conv = nn.Conv2d(16, 48, 3, padding=1).requires_grad_(False)
    images = torch.full((3, 16, 7, 6), torch.nan)
    images[1] = weights(16, 7, 6)
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *shape: torch.full(shape, torch.nan, dtype=self.dtype))
    found = WinogradConv2d(conv)(images)
    assert found[[0, 2]].isnan().all()
    torch.testing.assert_close(found[1:2], conv(images[1:2]), rtol=1e-5, atol=1e-5)


def test_a_network_with_too_many_channels_for_its_weights_is_refused():
    with pytest.raises(ValueError, match="don't fit 32 and 48 channels"):
        WinogradConv2d(nn.Conv2d(16, 48, 3, padding=1))(weights(1, 32, 4, 4))


@pytest.mark.parametrize("padding", [(3, 3), (0, 2)])
@pytest.mark.parametrize("most", [0, 256])
def test_a_convolution_by_neighbourhoods_gives_torchs_values(monkeypatch, padding, most):
    monkeypatch.setattr(products, "_MAX_PIXELS", most)  # with 0, torch's convolution is used
    layer = nn.Conv2d(3, 4, 7, padding=padding).requires_grad_(False)
    layer.weight.data, layer.bias.data = weights(4, 3, 7, 7), weights(4)
    x = weights(2, 3, 9, 8)
    torch.testing.assert_close(NeighbourhoodConv2d.of(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_a_layer_that_would_not_become_faster_or_would_differ_is_kept():
    with torch.device("meta"):
        vgg = nn.Conv2d(WIDTH, 3 * WIDTH, 3, padding=1)
        others = [
            nn.Conv2d(3, 64, 3, padding=1),
            nn.Conv2d(64, 24, 3, padding=1),
            nn.Conv2d(128, 256, 3),
            nn.Conv2d(128, 256, 3, padding=2, dilation=2),
            nn.Conv2d(128, 256, 3, padding=1, stride=2),
            nn.Conv2d(256, 512, 3, padding=1, groups=2),
            nn.Conv2d(128, 256, 3, padding=1, bias=False),
            nn.Conv2d(128, 256, 7, padding=3),  # small enough for the caches
            nn.Conv2d(256, 2048, 7, padding=3, stride=2),
            nn.Linear(256, 2048),
        ]
        fc6 = nn.Conv2d(256, 2048, 7, padding=3)
    assert WinogradConv2d.supports(vgg) and not NeighbourhoodConv2d.supports(vgg)
    assert NeighbourhoodConv2d.supports(fc6) and not WinogradConv2d.supports(fc6)
    assert not any(WinogradConv2d.supports(layer) or NeighbourhoodConv2d.supports(layer) for layer in others)


def test_a_network_whose_layers_are_replaced_has_the_same_scores(monkeypatch):
    """The limit is lowered, so that a narrow network has such layers."""
    monkeypatch.setattr(products, "_HUGE", 1)
    torch.manual_seed(0)
    network = FCN8s(5, 0.125, batch_norm=True).eval()
    for score in (network.score, network.score_pool4, network.score_pool3):
        nn.init.normal_(score.weight)
    images = (torch.rand(2, 3, 45, 70) * 255).to(torch.uint8)
    converted = for_inference(network, bf16=False)
    kinds = {type(module) for module in converted.modules()}
    assert {WinogradConv2d, NeighbourhoodConv2d} <= kinds
    with torch.inference_mode():
        expected, found = network(network.prepare(images)), converted(converted.prepare(images))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_layers_are_not_replaced_where_bfloat16_is_fast(monkeypatch):
    monkeypatch.setattr(products, "_HUGE", 1)
    monkeypatch.setattr(fusion, "fast_bf16", lambda device: True)
    converted = for_inference(FCN8s(3, 0.25))
    assert not any(isinstance(module, WinogradConv2d | NeighbourhoodConv2d) for module in converted.modules())


def test_without_numba_3x3_convolutions_are_torchs(monkeypatch):
    monkeypatch.setattr(fusion, "use_fused", lambda device: False)
    converted = for_inference(FCN8s(3, 0.25), bf16=False)
    assert not any(isinstance(module, WinogradConv2d) for module in converted.modules())
    assert sum(isinstance(module, nn.ReLU) for module in converted.modules()) == 15
