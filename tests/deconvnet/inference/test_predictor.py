"""`Predictor`: what each of the five results is computed from, their order and their size."""

from dataclasses import asdict, fields

import cv2
import numpy as np
import pytest
import torch

from deconvnet.crf import dense_crf
from deconvnet.inference import predictor
from deconvnet.inference.ensemble import combine, softmax
from deconvnet.inference.instances import segment_instances, whole_image_scores
from deconvnet.inference.predictor import RESULTS, Predictor, PredictorOptions
from deconvnet.inference.scaling import scale_down
from deconvnet.models import fusion
from deconvnet.models.fcn8s import FCN8s
from deconvnet.settings import DataSettings, SegmentSettings
from proposals.settings import ExampleSettings, ProposalSettings
from tests.deconvnet.ensembles import random_networks


@pytest.fixture(scope="module")
def networks():
    return random_networks(4)


@pytest.fixture
def sample(rng):
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), (64, 48), interpolation=cv2.INTER_NEAREST)
    return image, np.array([[5, 5, 40, 40], [20, 0, 64, 30], [30, 20, 60, 47]], np.float32)


@pytest.mark.parametrize("ensemble", ["mean", "product"])
def test_each_result_is_computed_from_the_right_scores(networks, sample, ensemble):
    image, boxes = sample
    crf = {"iterations": 3, "bilateral_rgb_sigma": 9.0}
    found = Predictor(*networks, PredictorOptions(proposals=2, ensemble=ensemble, crf=crf, bf16=False)).probabilities(
        image, boxes
    )
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


def test_only_what_the_requested_results_need_is_computed(networks, sample, monkeypatch):
    called = []
    for name in ("segment_instances", "whole_image_scores", "dense_crf"):
        real = getattr(predictor, name)
        monkeypatch.setattr(predictor, name, lambda *a, real=real, name=name, **k: called.append(name) or real(*a, **k))
    loaded = Predictor(*networks)
    for results, needed in (
        (["fcn8s"], ["whole_image_scores"]),
        (["deconvnet_crf"], ["segment_instances", "dense_crf"]),
        (["edeconvnet", "fcn8s"], ["whole_image_scores", "segment_instances"]),
        (["edeconvnet_crf"], ["whole_image_scores", "segment_instances", "dense_crf"]),
    ):
        called.clear()
        assert list(loaded.masks(*sample, results)) == [name for name in RESULTS if name in results]
        assert called == needed
    with pytest.raises(ValueError, match="unknown results: best"):
        loaded.masks(*sample, ["best"])


def test_masks_are_the_arg_max_of_the_probabilities(networks, sample):
    predictor = Predictor(*networks)
    masks, probabilities = predictor.masks(*sample), predictor.probabilities(*sample)
    for name in RESULTS:
        assert masks[name].dtype == np.uint8
        assert (masks[name] == probabilities[name].argmax(0)).all()
    assert (predictor.predict(*sample).mask == masks["edeconvnet_crf"]).all()


@pytest.mark.parametrize("name", ["ensemble", "fcn_weight", "crf"])
def test_a_prediction_is_by_the_same_options_as_the_results(networks, sample, name):
    """By those that `predict` applies itself; the networks' scores are computed by the same code."""
    default, other = (Predictor(*networks, PredictorOptions(**options)) for options in ({}, {name: ANOTHER[name]}))
    mask = other.masks(*sample)["edeconvnet_crf"]
    np.testing.assert_array_equal(other.predict(*sample).mask, mask)
    assert (default.masks(*sample)["edeconvnet_crf"] != mask).any()


def test_a_prediction_says_how_sure_it_is(networks, sample):
    predictor = Predictor(*networks)
    found, p = predictor.predict(*sample), predictor.probabilities(*sample)
    final = p["edeconvnet_crf"]
    assert len(np.unique(found.mask)) > 1, "a mask of one class would prove little"
    chosen = np.take_along_axis(p["edeconvnet"], final.argmax(axis=0)[None], axis=0)[0]
    assert np.abs(chosen - final.max(axis=0)).mean() > 0.1, "the CRF changes the probabilities"
    np.testing.assert_array_equal(found.confidence_map, np.rint(255 * chosen))
    entropies = -np.sum(p["edeconvnet"] * np.log(np.maximum(p["edeconvnet"], 1e-12)), axis=0) / np.log(4)
    disagrees = p["deconvnet"].argmax(0) != p["fcn8s"].argmax(0)
    assert 0 < disagrees.mean() < 1
    means = found.uncertainty.image
    assert means.confidence == pytest.approx(final.max(axis=0).mean(), abs=1e-6)
    assert means.confidence_before_crf == pytest.approx(chosen.mean(), abs=1e-6)
    assert means.entropy == pytest.approx(entropies.mean(), abs=1e-5)
    assert means.disagreement == pytest.approx(disagrees.mean())
    for class_id, of_class in found.uncertainty.classes.items():
        inside = found.mask == class_id
        assert of_class.entropy == pytest.approx(entropies[inside].mean(), abs=1e-5)
        assert of_class.disagreement == pytest.approx(disagrees[inside].mean())


def test_large_images_are_scaled_down_and_masks_come_back_at_full_size(networks, sample):
    image, boxes = sample
    large = cv2.resize(image, (256, 192), interpolation=cv2.INTER_NEAREST)
    small = Predictor(*networks).masks(image, boxes)
    found = Predictor(*networks, PredictorOptions(max_side=64)).masks(large, boxes * 4)
    assert Predictor(*networks, PredictorOptions(max_side=64)).probabilities(large, boxes * 4, ["fcn8s"])["fcn8s"].shape == (
        4,
        48,
        64,
    )
    for name in RESULTS:
        assert found[name].shape == (192, 256)
        assert (found[name] == small[name].repeat(4, 0).repeat(4, 1)).mean() > 0.98
    assert len(np.unique(found["deconvnet"])) > 1
    whole = Predictor(*networks, PredictorOptions(max_side=64)).predict(large, boxes * 4)
    np.testing.assert_array_equal(whole.mask, found["edeconvnet_crf"])
    assert whole.confidence_map.shape == (192, 256)
    assert whole.confidence_map.mean() / 255 == pytest.approx(whole.uncertainty.image.confidence_before_crf, abs=0.002)


@pytest.mark.parametrize("side", [64, 79])
def test_a_large_image_is_averaged_as_it_is_scaled_down(side):
    """Black and white pixels become grey. Interpolation between the nearest of them would leave some black or white."""
    board = np.repeat(255 * (np.indices((320, 320)).sum(0) % 2).astype(np.uint8)[..., None], 3, axis=2)
    small, _ = scale_down(board, np.zeros((0, 4)), side)
    assert small.shape == (side, side, 3) and np.abs(small - 127.5).max() < 8


def test_a_very_long_image_is_scaled_to_at_least_one_pixel_per_side(networks):
    image = np.zeros((2, 3000, 3), np.uint8)
    assert Predictor(*networks, PredictorOptions(max_side=100)).predict(image, np.array([[0, 0, 900, 2]])).mask.shape == (
        2,
        3000,
    )


def test_an_image_of_one_pixel_without_boxes_is_background(networks):
    found = Predictor(*networks).masks(np.zeros((1, 1, 3), np.uint8), np.zeros((0, 4), np.float32))
    assert found["deconvnet"].tolist() == [[0]] and found["edeconvnet_crf"].shape == (1, 1)


def test_every_setting_becomes_an_option() -> None:
    segment = SegmentSettings(
        proposals=7,
        min_side=3,
        aggregation="sum",
        ensemble="product",
        fcn_weight=0.3,
        flip=True,
        batch=9,
        early_exit=0.02,
        max_side=99,
        bf16=False,
        int8=True,
    )
    data = DataSettings(root="scenes", classes=("road", "sky"), background="none")
    windows = {"window_sizes": (1, 0.3), "window_overlap": 0.2}
    options = PredictorOptions.from_settings(
        segment, ExampleSettings(context=1.5, window="stretched"), ProposalSettings(kind="windows", **windows), data
    )
    assert asdict(options) == {
        **segment.model_dump(),
        **windows,
        "context": 1.5,
        "window": "stretched",
        "background": False,
    }
    assert {f.name for f in fields(PredictorOptions)} == asdict(options).keys()
    plain = PredictorOptions.from_settings(segment, ExampleSettings(), ProposalSettings(**windows), DataSettings())
    assert plain.window_sizes == () and plain.background


ANOTHER = {
    "proposals": 2,
    "min_side": 45.0,
    "aggregation": "sum",
    "ensemble": "product",
    "fcn_weight": 0.9,
    "flip": True,
    "batch": 1,
    "early_exit": 0.0,
    "bf16": True,
    "int8": True,
    "max_side": 48,
    "crf": {"iterations": 1},
    "context": 1.5,
    "window": "stretched",
    "window_sizes": (0.5,),
    "window_overlap": 0.9,
    "background": False,
}


@pytest.fixture(scope="module")
def known() -> dict[str, list[np.ndarray]]:
    """What was predicted with other options, by their text."""
    return {}


@pytest.mark.parametrize("name", ANOTHER)
def test_every_option_changes_the_probabilities_except_the_batch(networks, sample, rng, known, name, monkeypatch):
    """The sample's boxes differ in size, are not square, and leave a corner free. For the early exit, ten change nothing.

    The image is noise: in areas of one colour, rounding would decide which of equal values is the maximum that is pooled.
    In bfloat16 as on a CPU that is fast at it. 8-bit integers need the ranges of saved networks, see test_int8.py.
    """
    assert {f.name for f in fields(PredictorOptions)} == set(ANOTHER)
    monkeypatch.setattr(fusion, "fast_bf16", lambda device: True)
    image, boxes = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8), sample[1]
    boxes = boxes[[0] * 20 + [1, 2]] if name == "early_exit" else boxes

    def predicted(options):
        found = Predictor(*networks, PredictorOptions(**options)).probabilities(image, boxes, ["edeconvnet", "edeconvnet_crf"])
        return [*found.values()]

    before = {"bf16": False} | ({"window_sizes": (0.5,)} if name == "window_overlap" else {})
    if (key := f"{before} {len(boxes)}") not in known:
        known[key] = predicted(before)
    one, other = known[key], predicted({**before, name: ANOTHER[name]})
    # The CRF's iterations magnify rounding.
    same = one[0].shape == other[0].shape and all(
        np.allclose(a, b, rtol=0, atol=atol) for a, b, atol in zip(one, other, (1e-5, 1e-3), strict=True)
    )
    assert same is (name in ("batch", "int8"))


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_both_networks_are_computed_in_the_format_of_the_options(networks, bf16, dtype, monkeypatch):
    monkeypatch.setattr(fusion, "fast_bf16", lambda device: True)
    loaded = Predictor(*networks, PredictorOptions(bf16=bf16))
    for network in (loaded.deconvnet, loaded.fcn8s):
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}


def test_networks_with_different_numbers_of_classes_are_refused(networks):
    with pytest.raises(ValueError, match="4 classes, FCN-8s 3"):
        Predictor(networks[0], FCN8s(num_classes=3, width=0.0625))


@pytest.mark.parametrize("batch", [1, 50])
def test_the_mask_after_k_boxes_is_the_mask_from_these_boxes_alone(networks, sample, batch):
    image, boxes = sample
    small = Predictor(*networks, PredictorOptions(proposals=3, batch=batch, bf16=False, max_side=48, crf={"iterations": 1}))
    masks, after, probabilities = small.predict_with_box_counts(image, boxes, (5, 1, 2))
    assert list(after) == [1, 2, 5]
    for name, expected in small.probabilities(image, boxes).items():
        np.testing.assert_array_equal(probabilities[name], expected)
    for count, found in after.items():
        np.testing.assert_array_equal(found, small.masks(image, boxes[:count], ("deconvnet",))["deconvnet"])
    assert (after[1] != after[2]).any() and (after[2] != after[5]).any()
    for name, expected in small.masks(image, boxes).items():
        np.testing.assert_array_equal(masks[name], expected)
    _, none, _ = small.predict_with_box_counts(image, boxes[:0], (1,), ("deconvnet",))
    assert not none[1].any()
