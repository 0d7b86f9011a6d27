"""FCN-8s takes any size, starts from bilinear interpolation, and adds the scores of three layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deconvnet import FCN8s
from deconvnet.models.fcn8s import Upsample


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 96), (50, 37)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_fcn_takes_any_size(size, batch_norm):
    net = FCN8s(4, width=0.125, batch_norm=batch_norm).eval()
    assert net(torch.randn(2, 3, *size)).shape == (2, 4, *size)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 7, 8])
def test_upsampling_by_any_factor_starts_as_bilinear_interpolation(factor):
    scores = torch.randn(2, 3, 5, 4)
    expected = F.interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(Upsample(3, factor)(scores), expected)


@pytest.mark.parametrize("factor", [0, -2])
def test_upsampling_by_less_than_1_is_refused(factor):
    with pytest.raises(ValueError, match=f"factor is {factor}"):
        Upsample(3, factor)


def test_fcn_starts_from_zero_scores_and_bilinear_upsampling():
    net = FCN8s(3, width=0.125)
    assert net(torch.randn(1, 3, 40, 40)).count_nonzero() == 0
    scores = torch.randn(1, 3, 5, 7)
    for layer, factor in ((net.up_score, 2), (net.up_pool4, 2), (net.up_pool3, 8)):
        assert layer.weight.requires_grad
        expected = F.interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=False)
        torch.testing.assert_close(layer(scores), expected, rtol=1e-4, atol=1e-5)


def test_fcn_adds_the_scores_of_pool3_and_pool4():
    net = FCN8s(3, width=0.125).eval()
    images = torch.randn(1, 3, 64, 64)
    outputs = []
    for layer in (net.score, net.score_pool4, net.score_pool3):
        for each in (net.score, net.score_pool4, net.score_pool3):
            nn.init.zeros_(each.weight)
        nn.init.normal_(layer.weight)
        outputs.append(net(images))
    assert all(out.abs().sum() > 0 for out in outputs)
    for layer in (net.score, net.score_pool4, net.score_pool3):
        nn.init.zeros_(layer.weight)
        layer.bias.data.fill_(1.0)
    torch.testing.assert_close(net(images), torch.full((1, 3, 64, 64), 3.0))


def test_fcn_padding_is_the_mean_colour_at_bottom_and_right():
    net = FCN8s(3, width=0.125).eval()
    nn.init.normal_(net.score_pool3.weight)
    images = torch.randn(1, 3, 40, 50)
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :40, :50] = images
    seen = []
    net.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    torch.testing.assert_close(net(images), net(padded)[..., :40, :50])
    assert [torch.equal(each, padded) for each in seen] == [True, True]


def test_fcn_dropout_is_on_in_training_only():
    net = FCN8s(3, width=0.125)
    nn.init.normal_(net.score.weight)
    images = torch.randn(1, 3, 32, 32)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize(("before", "after"), [("fc6", "fc7"), ("fc7", "score")])
def test_fcn_drops_half_of_fc6_s_and_of_fc7_s_outputs(before, after):
    net, seen = FCN8s(3, width=0.125), {}
    net.get_submodule(before).register_forward_hook(lambda _m, _i, out: seen.update(out=out.detach().clone()))
    net.get_submodule(after).register_forward_pre_hook(lambda _m, inputs: seen.update(given=inputs[0].detach().clone()))
    net(torch.randn(1, 3, 64, 64))
    kept = seen["given"] != 0
    torch.testing.assert_close(seen["given"][kept], 2 * seen["out"][kept])
    assert 0.4 < kept.sum() / (seen["out"] != 0).sum() < 0.6


def test_fcn_upsamples_scores_in_float32_within_autocast():
    layer, scores = Upsample(3, 8), torch.randn(2, 3, 5, 4)
    nn.init.normal_(layer.weight)
    expected = layer(scores)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(scores)
        coarse = layer(scores.bfloat16())
    assert found.dtype == coarse.dtype == torch.float32 and torch.equal(found, expected)
    assert torch.equal(coarse, layer(scores.bfloat16().float()))
