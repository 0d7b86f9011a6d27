"""The ensemble of two networks against values computed by hand."""

import numpy as np
import pytest

from deconvnet.inference.ensemble import combine, softmax


def pixel(*scores):
    return np.array(scores, np.float32).reshape(-1, 1, 1)


def test_softmax_of_large_scores_is_finite(rng):
    scores = rng.normal(size=(5, 3, 4)).astype(np.float32)
    exact = np.exp(scores.astype(np.float64)) / np.exp(scores.astype(np.float64)).sum(0)
    np.testing.assert_allclose(softmax(scores), exact, rtol=1e-5)
    np.testing.assert_allclose(softmax(scores + 1000), exact, rtol=1e-3)
    assert softmax(scores).dtype == np.float32


def test_mean_is_the_mean_of_both_probabilities():
    found = combine(pixel(np.log(3), 0), pixel(0, 0), "mean")
    np.testing.assert_allclose(found.ravel(), [(0.75 + 0.5) / 2, (0.25 + 0.5) / 2], rtol=1e-6)
    assert found.dtype == np.float32


def test_mean_weights_fcn_by_fcn_weight():
    found = combine(pixel(np.log(3), 0), pixel(0, 0), fcn_weight=0.8)
    np.testing.assert_allclose(found.ravel(), [0.2 * 0.75 + 0.8 * 0.5, 0.2 * 0.25 + 0.8 * 0.5], rtol=1e-6)


def test_product_clips_fcn_scores_at_zero():
    found = combine(pixel(2, 3, 5), pixel(1, 0.5, -4), "product")
    odds = np.exp([2, 1.5, 0])
    np.testing.assert_allclose(found.ravel(), odds / odds.sum(), rtol=1e-6)


def test_unknown_names_and_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="mean or product"):
        combine(pixel(1), pixel(1), "median")
    with pytest.raises(ValueError, match="unequal shape"):
        combine(pixel(1), pixel(1, 2))
    with pytest.raises(ValueError, match=r"expected \(C, H, W\)"):
        combine(pixel(1)[None], pixel(1)[None])


@pytest.mark.parametrize("weight", [-0.01, 1.01, 50, np.nan])
def test_a_weight_that_is_no_share_is_refused(weight):
    with pytest.raises(ValueError, match=rf"fcn_weight {weight}; expected .* a weight from 0 to 1"):
        combine(pixel(1), pixel(1), fcn_weight=weight)
