"""The five results: what each rests on, their order, and their size."""

import cv2
import numpy as np
import pytest
import torch

from deconvnet.crf import dense_crf
from deconvnet.inference import predictor
from deconvnet.inference.ensemble import combine, softmax
from deconvnet.inference.instances import segment_instances, whole_image_scores
from deconvnet.inference.predictor import RESULTS, Segmenter, segmenter_options
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.fcn8s import FCN8s
from deconvnet.settings import SegmentSettings
from proposals.settings import ExampleSettings


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(1)
    found = DeconvNet(num_classes=4, width=0.0625, input_size=32), FCN8s(num_classes=4, width=0.0625, batch_norm=True)
    for network in found:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        network.eval()
    return found


@pytest.fixture
def photograph(rng):
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), (64, 48), interpolation=cv2.INTER_NEAREST)
    return image, np.array([[5, 5, 40, 40], [20, 0, 64, 30], [30, 20, 60, 47]], np.float32)


@pytest.mark.parametrize("ensemble", ["mean", "product"])
def test_each_result_rests_on_the_right_ones(networks, photograph, ensemble):
    image, boxes = photograph
    crf = {"iterations": 3, "bilateral_rgb_sigma": 9.0}
    found = Segmenter(*networks, proposals=2, ensemble=ensemble, crf=crf, bf16=False).probabilities(image, boxes)
    instances, whole = segment_instances(networks[0], image, boxes[:2]), whole_image_scores(networks[1], image)
    joint = combine(instances, whole, ensemble)
    expected = {
        "fcn8s": softmax(whole),
        "deconvnet": softmax(instances),
        "deconvnet_crf": dense_crf(image, softmax(instances), **crf),
        "edeconvnet": joint,
        "edeconvnet_crf": dense_crf(image, joint, **crf),
    }
    assert tuple(found) == RESULTS
    for name in RESULTS:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4, err_msg=name)
    assert not np.allclose(found["deconvnet"], found["deconvnet_crf"], atol=1e-2)


def test_only_what_is_wanted_is_computed(networks, photograph, monkeypatch):
    called = []
    for name in ("segment_instances", "whole_image_scores", "dense_crf"):
        real = getattr(predictor, name)
        monkeypatch.setattr(predictor, name, lambda *a, real=real, name=name, **k: called.append(name) or real(*a, **k))
    both = Segmenter(*networks)
    for wanted, needed in (
        (["fcn8s"], ["whole_image_scores"]),
        (["deconvnet_crf"], ["segment_instances", "dense_crf"]),
        (["edeconvnet", "fcn8s"], ["whole_image_scores", "segment_instances"]),
        (["edeconvnet_crf"], ["whole_image_scores", "segment_instances", "dense_crf"]),
    ):
        called.clear()
        assert list(both.segment(*photograph, wanted)) == [name for name in RESULTS if name in wanted]
        assert called == needed
    with pytest.raises(ValueError, match="unknown results: best"):
        both.segment(*photograph, ["best"])


def test_labels_and_the_best(networks, photograph):
    both = Segmenter(*networks)
    labels, probabilities = both.segment(*photograph), both.probabilities(*photograph)
    for name in RESULTS:
        assert labels[name].dtype == np.uint8
        assert (labels[name] == probabilities[name].argmax(0)).all()
    assert (both.best(*photograph) == labels["edeconvnet_crf"]).all()


def test_large_photographs_are_worked_small_and_labelled_in_full(networks, photograph):
    image, boxes = photograph
    large = cv2.resize(image, (256, 192), interpolation=cv2.INTER_NEAREST)
    small = Segmenter(*networks).segment(image, boxes)
    found = Segmenter(*networks, max_side=64).segment(large, boxes * 4)
    assert Segmenter(*networks, max_side=64).probabilities(large, boxes * 4, ["fcn8s"])["fcn8s"].shape == (4, 48, 64)
    for name in RESULTS:
        assert found[name].shape == (192, 256)
        assert (found[name] == small[name].repeat(4, 0).repeat(4, 1)).mean() > 0.98
    assert len(np.unique(found["deconvnet"])) > 1


def test_a_very_long_photograph_keeps_a_pixel_each_way(networks):
    image = np.zeros((2, 3000, 3), np.uint8)
    assert Segmenter(*networks, max_side=100).best(image, np.array([[0, 0, 900, 2]])).shape == (2, 3000)


def test_no_boxes_and_one_pixel(networks):
    found = Segmenter(*networks).segment(np.zeros((1, 1, 3), np.uint8), np.zeros((0, 4), np.float32))
    assert found["deconvnet"].tolist() == [[0]] and found["edeconvnet_crf"].shape == (1, 1)


def test_settings_reach_their_places(networks):
    segment = SegmentSettings(
        proposals=7, min_side=3, aggregation="sum", ensemble="product", fcn_weight=0.3, batch=9, max_side=99
    )
    made = Segmenter(*networks, **segmenter_options(segment, ExampleSettings(context=1.5, window="stretched")))
    assert (made.proposals, made.min_side, made.aggregation, made.ensemble) == (7, 3, "sum", "product")
    assert (made.fcn_weight, made.batch, made.max_side, made.context, made.window) == (0.3, 9, 99, 1.5, "stretched")
    assert made.crf == segment.crf.model_dump()


def test_networks_of_other_classes_are_refused(networks):
    with pytest.raises(ValueError, match="4 classes, FCN-8s 3"):
        Segmenter(networks[0], FCN8s(num_classes=3, width=0.0625))


@pytest.mark.parametrize("batch", [1, 50])
def test_labels_after_some_of_the_boxes_are_those_of_these_boxes_alone(networks, photograph, batch):
    image, boxes = photograph
    small = Segmenter(*networks, proposals=3, batch=batch, bf16=False, max_side=48, crf={"iterations": 1})
    labels, after = small.segment_stepwise(image, boxes, (5, 1, 2))
    assert list(after) == [1, 2, 5]
    for count, found in after.items():
        np.testing.assert_array_equal(found, small.segment(image, boxes[:count], ("deconvnet",))["deconvnet"])
    assert (after[1] != after[2]).any() and (after[2] != after[5]).any()
    for name, expected in small.segment(image, boxes).items():
        np.testing.assert_array_equal(labels[name], expected)
    _, none = small.segment_stepwise(image, boxes[:0], (1,), ("deconvnet",))
    assert not none[1].any()
