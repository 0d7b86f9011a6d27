"""What the CRF takes, and what it refuses because the result would be wrong."""

import numpy as np
import pytest
import torch

from deconvnet.crf import dense_crf

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
SCORES = np.random.default_rng(1).normal(0, 3, (4, 12, 16)).astype(np.float32)
P = np.exp(SCORES) / np.exp(SCORES).sum(axis=0)


def test_inputs_are_not_modified():
    image, probabilities = RGB.copy(), P.copy()
    dense_crf(image, probabilities)
    assert (probabilities == P).all() and (image == RGB).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_the_crf_takes_floats_of_any_size(dtype):
    found = dense_crf(RGB, P.astype(dtype))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, dense_crf(RGB, P), atol=2e-2)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_the_crf_takes_one_hot_labels(dtype):
    one_hot = P.argmax(0) == np.arange(4)[:, None, None]
    np.testing.assert_array_equal(dense_crf(RGB, one_hot.astype(dtype)), dense_crf(RGB, one_hot.astype(np.float32)))


def test_the_crf_takes_probabilities_that_are_rounded_or_have_a_lower_limit():
    for p in (np.maximum(P, 1e-4), np.round(P, 3), P * 1.005):
        assert np.isfinite(dense_crf(RGB, p)).all()


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (SCORES, r"are from -\d.* expected 0 to 1 .*softmax of the scores \(logits\)"),
        (np.log(P), "softmax of the scores"),
        (1 / (1 + np.exp(-SCORES)), r"sum to .* at row \d+, column \d+; .*divide them by their sum"),
        (P * 255, "divide them by their sum"),
        ((P * 255).astype(np.uint8), "divide them by their sum"),
        (np.zeros_like(P), "sum to 0"),
        (np.where(P.max() == P, np.nan, P), "finite"),
        (np.where(P.max() == P, np.inf, P), "finite"),
        (P.transpose(1, 2, 0), r"expected \(C, 12, 16\).*transpose\(2, 0, 1\)"),
        (P.transpose(0, 2, 1), r"are \(4, 16, 12\); expected \(C, 12, 16\)"),
        (P[:, :6], r"are \(4, 6, 16\)"),
        (P[0], r"are \(12, 16\)"),
        (P[None], r"are \(1, 4, 12, 16\)"),
        (P[:0], r"are \(0, 12, 16\)"),
        (torch.from_numpy(P), "probabilities is a Tensor; expected a numpy array"),
        (P.tolist(), "probabilities is a list"),
        (P.astype(np.complex64), "expected a numpy array of floats"),
    ],
)
def test_what_is_no_probability_is_refused_by_the_crf(probabilities, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(RGB, probabilities)


def test_probabilities_with_the_classes_last_are_found_out_in_a_square_image():
    """C = H = W: the shape fits, so the sums tell."""
    scores = np.random.default_rng(2).normal(0, 3, (8, 8, 8))
    last = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
    with pytest.raises(ValueError, match="sum of 1 over the classes"):
        dense_crf(np.zeros((8, 8, 3), np.uint8), last)


@pytest.mark.parametrize(
    "keywords",
    [
        {"xy_sigma": 0},
        {"xy_sigma": np.nan},
        {"xy_sigma": np.inf},
        {"bilateral_weight": -1},
        {"bilateral_weight": np.nan},
        {"iterations": 0},
    ],
)
def test_numbers_of_the_crf_out_of_range_are_refused(keywords):
    with pytest.raises(ValueError, match="must be positive"):
        dense_crf(RGB, P, **keywords)


@pytest.mark.parametrize("image", [RGB[..., 0], RGB.astype(np.float32), RGB.transpose(2, 0, 1)])
def test_images_of_another_kind_are_refused(image):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\), RGB"):
        dense_crf(image, P)
