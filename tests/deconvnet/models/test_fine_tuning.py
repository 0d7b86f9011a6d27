"""Weights of a trained model taken over for other classes."""

import pytest
import torch
from torch import nn

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.init_weights.fine_tuning import load_trained_weights
from infra.errors import UserError

OLD, NEW = ("background", "cat", "dog", "cow"), ("background", "horse", "dog", "cat", "sheep")


@pytest.mark.parametrize("kind", [DeconvNet, FCN8s])
def test_class_scores_are_taken_over_by_class_name(kind):
    options = {"width": 0.125} | ({"input_size": 32} if kind is DeconvNet else {})
    torch.manual_seed(1)
    old, new = kind(len(OLD), **options), kind(len(NEW), **options)
    for p in old.parameters():
        nn.init.normal_(p)
    fresh = {k: v.clone() for k, v in new.state_dict().items()}
    kept = load_trained_weights(new, old.state_dict(), OLD, NEW, old.convention)
    assert kept == ("background", "dog", "cat")
    for layer in ("score",) if kind is DeconvNet else ("score", "score_pool4", "score_pool3"):
        for j, name in enumerate(NEW):
            expected = getattr(old, layer).weight[OLD.index(name)] if name in OLD else fresh[f"{layer}.weight"][j]
            assert torch.equal(getattr(new, layer).weight[j], expected), (layer, name)
    if kind is FCN8s:
        assert torch.equal(new.up_pool3.weight[3, 2], old.up_pool3.weight[1, 2])  # from dog to cat, which both have
        assert torch.equal(new.up_pool3.weight[1], fresh["up_pool3.weight"][1])  # horse is a new class
    assert torch.equal(new.conv1.get_submodule("1.conv").weight, old.conv1.get_submodule("1.conv").weight)


def test_the_same_classes_give_the_same_network():
    old, new = (DeconvNet(4, width=0.125, input_size=32).eval() for _ in range(2))
    load_trained_weights(new, old.state_dict(), OLD, OLD, "caffe")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(old(x), new(x))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda: FCN8s(4, width=0.125), "another architecture"),
        (lambda: DeconvNet(4, width=0.25, input_size=32), "don't fit"),
        (lambda: DeconvNet(4, width=0.125, input_size=64), "don't fit"),
        (lambda: DeconvNet(3, width=0.125, input_size=32), "don't fit"),
    ],
    ids=["architecture", "width", "input size", "classes"],
)
def test_weights_that_do_not_fit_are_refused(other, reason):
    with torch.device("meta"):  # their shapes are all that matters
        weights = other().state_dict()
    net = DeconvNet(5, width=0.125, input_size=32)
    with pytest.raises(UserError, match=reason):
        load_trained_weights(net, weights, OLD, NEW, "caffe")


def test_weights_of_another_convention_are_refused():
    old, new = DeconvNet(4, 0.125, 32, "torchvision"), DeconvNet(5, 0.125, 32)
    with pytest.raises(UserError, match=r"set model\.convention to torchvision"):
        load_trained_weights(new, old.state_dict(), OLD, NEW, old.convention)
