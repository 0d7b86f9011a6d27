"""The CRF against the authors' code (pydensecrf2), against the mean field over all pairs, and on unusual input."""

import os
import sys

import cv2
import numpy as np
import pytest
import yaml

from deconvnet.crf import dense_crf, mean_field, permutohedral
from deconvnet.datasets import synthetic
from deconvnet.datasets.palette import GENERATED_CLASSES
from proposals.image_codec import decode_image, decode_mask
from tests.conftest import ROOT

CLASSES = 21


def make_probabilities(mask, rng, classes=CLASSES, noise=20.0):
    """Probabilities (C, H, W) like a network's: the softmax of the blurred truth plus smooth noise for every class."""
    truth = np.where(mask == 255, 0, mask)
    scores = [6 * cv2.GaussianBlur((truth == c).astype(np.float32), (0, 0), 8) for c in range(classes)]
    scores = [s + noise * cv2.GaussianBlur(rng.normal(size=s.shape).astype(np.float32), (0, 0), 6) for s in scores]
    odds = np.exp(np.stack(scores))
    return (odds / odds.sum(0)).astype(np.float32)


def authors_crf(image, probabilities, iterations=10, xy_sigma=3, xy_weight=3, bxy=20, rgb=3, weight=5):
    """The result of the authors' code. Where it is not installed, the test is skipped, but in CI it fails."""
    try:
        import pydensecrf.densecrf as dcrf
    except ImportError:
        if "DECONVNET_CI" in os.environ:
            pytest.fail(
                "pydensecrf2 is not installed, so CI would not compare the CRF with the authors': `pip install pydensecrf2`"
            )
        pytest.skip("pydensecrf2 is not installed")
    classes, height, width = probabilities.shape
    crf = dcrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(-np.log(np.maximum(probabilities, 1e-5)).reshape(classes, -1))
    crf.addPairwiseGaussian(sxy=xy_sigma, compat=xy_weight)
    crf.addPairwiseBilateral(sxy=bxy, srgb=rgb, rgbim=np.ascontiguousarray(image), compat=weight)
    return np.array(crf.inference(iterations)).reshape(probabilities.shape)


def annotated_images(shared, count):
    """The middle 320×240 pixels of images with class masks, spread evenly over the sample of VOC. The authors' code is slow."""
    files = sorted((shared / "voc-sample" / "SegmentationClass").glob("*.png"))
    for file in files[:: len(files) // count][:count]:
        image = decode_image((shared / "voc-sample" / "JPEGImages" / f"{file.stem}.jpg").read_bytes())
        y, x = (image.shape[0] - 240) // 2, (image.shape[1] - 320) // 2
        middle = np.s_[y : y + 240, x : x + 320]
        yield np.ascontiguousarray(image[middle]), np.ascontiguousarray(decode_mask(file.read_bytes())[middle])


def test_agrees_with_the_authors_code_on_voc_images(shared, rng):
    for image, mask in annotated_images(shared, 2):
        probabilities = make_probabilities(mask, rng)
        ours, theirs = dense_crf(image, probabilities), authors_crf(image, probabilities)
        assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.9999
        assert (ours.argmax(0) != probabilities.argmax(0)).mean() > 0.002, "the CRF must change something"
        assert (np.abs(ours - theirs) > 0.01).mean() < 3e-4
        assert np.count_nonzero(ours.any(axis=(1, 2))) < CLASSES, "some classes must be pruned"


def test_agrees_with_the_authors_code_though_classes_are_pruned(shared, rng):
    """Most classes are almost impossible in an image; our code prunes them, the authors' code does not."""
    image, mask = next(annotated_images(shared, 1))
    probabilities = make_probabilities(mask, rng, noise=30)
    absent = [c for c in range(CLASSES) if c not in mask]
    probabilities[absent] = np.minimum(probabilities[absent], 5e-4)
    probabilities[0] += 1 - probabilities.sum(0)
    ours, theirs = dense_crf(image, probabilities), authors_crf(image, probabilities)
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.9999
    assert not ours[absent].any()
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-4)


def test_agrees_with_the_authors_code_for_other_parameters(shared, rng):
    image, mask = next(annotated_images(shared, 1))
    probabilities = make_probabilities(mask, rng)
    ours = dense_crf(
        image,
        probabilities,
        iterations=3,
        xy_sigma=2,
        xy_weight=1,
        bilateral_xy_sigma=50,
        bilateral_rgb_sigma=10,
        bilateral_weight=8,
    )
    theirs = authors_crf(image, probabilities, 3, 2, 1, 50, 10, 8)
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.9999


def test_agrees_with_the_authors_code_on_generated_images(rng):
    """These need no sample data."""
    for index in range(2):
        image, mask, _ = synthetic.generate(index, 0, 96, 128)
        probabilities = make_probabilities(mask, rng, len(GENERATED_CLASSES), noise=60)
        ours, theirs = dense_crf(image, probabilities), authors_crf(image, probabilities)
        assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.9999
        assert (ours.argmax(0) != probabilities.argmax(0)).mean() > 0.002, "the CRF must change something"


@pytest.mark.parametrize(("in_ci", "outcome"), [(True, pytest.fail.Exception), (False, pytest.skip.Exception)])
def test_without_the_authors_code_ci_fails_and_other_runs_skip_the_comparison(monkeypatch, in_ci, outcome):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    monkeypatch.setenv("DECONVNET_CI", "1")
    if not in_ci:
        monkeypatch.delenv("DECONVNET_CI")
    with pytest.raises(outcome, match="pydensecrf2 is not installed"):
        authors_crf(np.zeros((4, 4, 3), np.uint8), np.ones((1, 4, 4), np.float32))


def test_every_workflow_of_ci_that_tests_makes_a_comparison_that_is_left_out_fail():
    found = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
    testing = {name: each.get("env", {}) for name, each in found.items() if "make test" in str(each)}
    assert testing and all(environment == {"DECONVNET_CI": "1"} for environment in testing.values())


def test_is_close_to_the_mean_field_over_all_pairs(rng):
    """Without a lattice: q ∝ p · exp(Σ w k q) with symmetrically normalised kernels. The lattice approximates it to about 10 %."""
    image = np.zeros((14, 16, 3), np.uint8)
    image[:, 8:] = 90
    image += rng.integers(0, 3, image.shape).astype(np.uint8)
    p = rng.random((3, 14, 16)) + 2 * np.stack([image[..., 0] < 45, image[..., 0] >= 45, image[..., 0] < 0])
    p = (p / p.sum(0)).astype(np.float32)
    y, x = np.mgrid[:14, :16]
    position = np.stack([x, y], -1).reshape(-1, 2)
    unary, message = np.log(p).reshape(3, -1), 0
    kernels = []
    for weight, features in ((3, position / 3), (5, np.hstack([position / 20, image.reshape(-1, 3) / 3]))):
        k = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)
        norm = 1 / np.sqrt(k.sum(1))
        kernels.append(weight * k * norm * norm[:, None])
    q = p.reshape(3, -1)
    for _ in range(10):
        message = sum(q @ k for k in kernels)
        q = np.exp(unary + message - (unary + message).max(0))
        q /= q.sum(0)
    ours = dense_crf(image, p).reshape(3, -1)
    assert (ours.argmax(0) == q.argmax(0)).mean() > 0.97
    assert np.abs(ours - q).mean() < 0.03


def normalised_kernel(features):
    """The lattice's own kernel between all pairs of pixels, float64 (N, N), without a constant factor, then normalised."""
    k = permutohedral.smooth(permutohedral.build(features.astype(np.float32)), np.eye(len(features), dtype=np.float32))
    norm = np.sqrt(k.sum(axis=1, dtype=np.float64))
    return k / norm / norm[:, None]


@pytest.mark.parametrize("seed", range(8))
def test_is_the_exact_mean_field_of_the_lattices_kernels(seed):
    """In float64 and over all pairs of 8×6 pixels, for random images, probabilities, weights and widths."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (6, 8, 3)).astype(np.uint8)
    p = rng.dirichlet(np.full(3, 2.0), (6, 8)).transpose(2, 0, 1)
    keys = ("xy_sigma", "xy_weight", "bilateral_xy_sigma", "bilateral_rgb_sigma", "bilateral_weight")
    o = dict(zip(keys, rng.uniform([0.3, 0, 2, 5, 0], [2, 4, 9, 30, 4]), strict=True), iterations=int(rng.integers(1, 6)))
    y, x = np.mgrid[:6, :8]
    position = np.stack([x, y], -1).reshape(-1, 2)
    both = np.hstack([position / o["bilateral_xy_sigma"], image.reshape(-1, 3) / o["bilateral_rgb_sigma"]])
    kernel = o["xy_weight"] * normalised_kernel(position / o["xy_sigma"]) + o["bilateral_weight"] * normalised_kernel(both)
    q = start = p.reshape(3, -1)
    for _ in range(o["iterations"]):
        q = start * np.exp(q @ kernel.T)
        q /= q.sum(axis=0)
    np.testing.assert_allclose(dense_crf(image, p, **o).reshape(3, -1), q, atol=2e-5)


def test_a_single_possible_class_and_tiny_images():
    image = np.zeros((5, 4, 3), np.uint8)
    sure = np.zeros((3, 5, 4), np.float32)
    sure[1] = 1
    assert (dense_crf(image, sure) == sure).all()
    pixel = dense_crf(image[:1, :1], np.array([[[0.6]], [[0.4]]], np.float32))
    assert pixel.shape == (2, 1, 1) and pixel.sum() == pytest.approx(1, abs=1e-5) and pixel[0] > 0.6
    assert dense_crf(image[:0], sure[:, :0]).shape == (3, 0, 4)


def test_weights_of_0_change_nothing(rng):
    p = rng.dirichlet(np.ones(4), (6, 7)).transpose(2, 0, 1).astype(np.float32)
    image = rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)
    np.testing.assert_allclose(dense_crf(image, p, xy_weight=0, bilateral_weight=0), p, atol=1e-4)


def test_an_improbable_class_is_pruned_unless_it_is_the_arg_max_of_a_pixel():
    image = np.full((24, 32, 3), 120, np.uint8)
    probabilities = np.full((12, 24, 32), 0.02, np.float32)
    probabilities[1] = 0.1  # nowhere the arg max
    probabilities[0] = 1 - probabilities[1:].sum(0)
    probabilities[2:, 4, 5] = 0.1 - 1e-4
    probabilities[:2, 4, 5] = 0
    probabilities[7, 4, 5] = 0.1  # improbable, but the arg max here
    assert list(mean_field._initial_classes(probabilities)) == [0, 7]
    assert not dense_crf(image, probabilities)[1].any()


def test_a_class_that_is_nowhere_the_arg_max_may_win_unless_it_is_improbable():
    """Two classes alternate as the arg max from pixel to pixel; a third is second everywhere, and smoothing makes it win."""
    image = np.full((24, 24, 3), 128, np.uint8)
    alternating = np.indices((24, 24)).sum(0) % 2
    second, improbable = np.full((24, 24), 0.4, np.float32), np.full((24, 24), 0.05, np.float32)
    strong = 0.55 * alternating, 0.55 * (1 - alternating)
    found = dense_crf(image, np.stack([*strong, second, improbable]).astype(np.float32))
    assert (found.argmax(0) == 2).all()
    assert not found[3].any(), "it must be pruned at the start"


def test_ties_go_to_the_lowest_class_id():
    assert list(mean_field._initial_classes(np.full((3, 2, 2), 0.1, np.float32))) == [0]


def test_no_class_is_special(rng: np.random.Generator) -> None:
    """The classes in another order, one of which is pruned, give the same probabilities in that order."""
    image = rng.integers(0, 255, (24, 31, 3)).astype(np.uint8)
    p = rng.dirichlet(np.ones(5), (24, 31)).transpose(2, 0, 1).astype(np.float32)
    p[0] *= 0.01
    p /= p.sum(axis=0)
    order = [3, 1, 4, 2, 0]
    np.testing.assert_allclose(dense_crf(image, p[order], iterations=3), dense_crf(image, p, iterations=3)[order], atol=1e-5)
