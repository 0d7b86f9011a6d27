"""Convolutions computed as matrix products give torch's results, and only layers that become faster are replaced."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deconvnet import FCN8s
from deconvnet.models import fusion
from deconvnet.models.fused import products
from deconvnet.models.fused.products import NeighbourhoodConv2d, WinogradConv2d
from deconvnet.models.fusion import for_inference


def weights(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


@pytest.fixture
def conv():
    layer = nn.Conv2d(5, 7, 3, padding=1)
    layer.weight.data, layer.bias.data = weights(7, 5, 3, 3), weights(7)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("height, width", [(12, 8), (9, 6), (1, 3), (5, 18)])
@pytest.mark.parametrize("tiles", [1, 8, 256])
def test_winograds_convolution_gives_torchs_values(conv, monkeypatch, height, width, tiles):
    monkeypatch.setattr(products, "_TILES", tiles)  # three images in one step, or in two or three
    x = weights(3, 5, height, width)
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        found = WinogradConv2d(conv)(given)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


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
        vgg = nn.Conv2d(128, 256, 3, padding=1)
        others = [
            nn.Conv2d(64, 256, 3, padding=1),  # too few channels
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
    assert WinogradConv2d.suits(vgg) and not NeighbourhoodConv2d.suits(vgg)
    assert NeighbourhoodConv2d.suits(fc6) and not WinogradConv2d.suits(fc6)
    assert not any(WinogradConv2d.suits(layer) or NeighbourhoodConv2d.suits(layer) for layer in others)


def test_a_network_whose_layers_are_replaced_has_the_same_scores(monkeypatch):
    """The limits are lowered, so that a narrow network has such layers."""
    monkeypatch.setattr(products, "_MIN_WEIGHTS", 16 * 32)
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
    monkeypatch.setattr(products, "_MIN_WEIGHTS", 1)
    monkeypatch.setattr(products, "_HUGE", 1)
    monkeypatch.setattr(fusion, "fast_bf16", lambda device: True)
    converted = for_inference(FCN8s(3, 0.05))
    assert not any(isinstance(module, WinogradConv2d | NeighbourhoodConv2d) for module in converted.modules())
