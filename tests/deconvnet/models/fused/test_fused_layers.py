"""Networks with fused layers learn what they learn without."""

import copy

import pytest
import torch

from deconvnet.models.fused.cpu import convolution
from deconvnet.models.fused.layers import FusedMaxPool2d, FusedUnit, FusedUnpool, use_fused_layers
from deconvnet.models.fusion import for_inference
from tests.deconvnet.models.fused.networks import KINDS, assert_alike, gradients, images, network


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [("deconvnet", ()), ("deconvnet", ("conv1", "conv2")), ("decoder of another width", ()), ("fcn8s", ("conv1", "conv2"))],
)
def test_scores_gradients_and_statistics_are_those_of_torchs_layers(kind, frozen, monkeypatch):
    for limit in (
        "WINOGRAD_MIN_CHANNELS",
        "WINOGRAD_MIN_WORK",
        "WINOGRAD_MIN_WEIGHTS",
    ):  # so that narrow layers are computed by Winograd's method
        monkeypatch.setattr(convolution, limit, 0)
    plain = network(kind)
    plain.freeze(frozen)
    plain.train()
    fused = copy.deepcopy(plain)
    use_fused_layers(fused)
    assert_alike(gradients(fused, images()), gradients(plain, images()))
    assert fused.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def test_gradients_pass_through_frozen_layers_to_trained_ones(monkeypatch):
    for limit in ("WINOGRAD_MIN_CHANNELS", "WINOGRAD_MIN_WORK"):
        monkeypatch.setattr(convolution, limit, 0)
    plain = network("fcn8s")
    plain.freeze(("conv2",))
    plain.train()
    fused = copy.deepcopy(plain)
    use_fused_layers(fused)
    assert_alike(gradients(fused, images()), gradients(plain, images()))


def test_all_layers_are_converted_once():
    model = network("deconvnet")
    for _ in range(2):
        use_fused_layers(model)
        counts = [sum(type(m) is kind for m in model.modules()) for kind in (FusedUnit, FusedMaxPool2d, FusedUnpool)]
        assert counts == [29, 1, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_and_inference_are_unchanged(kind):
    plain = network(kind).eval()
    fused = copy.deepcopy(plain)
    use_fused_layers(fused)
    with torch.no_grad():
        assert torch.equal(fused(images()), plain(images()))
        assert torch.equal(for_inference(fused, bf16=False)(images().float()), for_inference(plain, bf16=False)(images().float()))
