"""The lattice's filter against the exact Gaussian, and properties of the lattice."""

import numpy as np
import pytest

from deconvnet.crf import permutohedral


def gaussian(features, values):
    """Exact filtering over all pairs of points."""
    square = ((features[:, None] - features[None]) ** 2).sum(-1)
    return np.exp(-square / 2) @ values


@pytest.mark.parametrize("dimensions", [2, 5])
def test_smooth_is_close_to_a_gaussian(rng, dimensions):
    features = rng.random((600, dimensions)).astype(np.float32) * (4 if dimensions == 2 else 2)
    values = rng.random((600, 3)).astype(np.float32)
    ones = np.ones((600, 1), np.float32)
    lattice = permutohedral.build(features)
    found = permutohedral.smooth(lattice, values) / permutohedral.smooth(lattice, ones)
    exact = gaussian(features, values) / gaussian(features, ones)
    assert np.abs(found - exact).mean() < 0.15 * np.abs(exact - values).mean(), (
        "must be much closer to the Gaussian than the input is"
    )
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.9


def test_the_response_to_an_impulse_is_close_to_a_gaussian():
    x = np.linspace(-3, 3, 61, dtype=np.float32)
    features = np.stack(np.meshgrid(x, x), -1).reshape(-1, 2)
    impulse = np.zeros((len(features), 1), np.float32)
    impulse[len(features) // 2] = 1
    found = permutohedral.smooth(permutohedral.build(features), impulse)[:, 0]
    exact = np.exp(-(features**2).sum(1) / 2)
    assert np.abs(found / found.max() - exact).max() < 0.15


def test_weights_are_barycentric_and_corners_are_numbered_from_0(rng):
    lattice = permutohedral.build(rng.normal(size=(500, 5)).astype(np.float32) * 20)
    np.testing.assert_allclose(lattice.weights.sum(1), 1, atol=1e-4)
    assert lattice.weights.min() > -1e-4
    assert sorted(set(lattice.corners.ravel().tolist())) == list(range(lattice.size))


def test_distant_points_do_not_affect_each_other_and_equal_points_get_equal_results(rng):
    features = np.array([[0, 0], [1000, 0], [1000, 0]], np.float32)
    values = np.array([[1, 0], [0, 1], [0, 3]], np.float32)
    found = permutohedral.smooth(permutohedral.build(features), values)
    assert found[0, 1] == found[1, 0] == 0
    assert found[1, 1] == pytest.approx(found[2, 1])


def test_no_corner_is_lost_when_the_hash_table_grows(rng):
    """Distant points have d + 1 corners of their own; a value only comes back if all of them are found again."""
    features = rng.permutation(np.stack(np.meshgrid(*[np.arange(0, 2000, 10)] * 2), -1).reshape(-1, 2)).astype(np.float32)
    lattice = permutohedral.build(features)
    assert lattice.size == 3 * len(features)
    values = rng.random((len(features), 1)).astype(np.float32)
    ratio = permutohedral.smooth(lattice, values) / values
    assert ratio.min() > 0.2 and ratio.max() < 2


def test_blurring_along_chains_equals_blurring_with_neighbours(rng):
    """One pass in place over the chains gives old + (one neighbour + the other) / 2 on each axis."""
    lattice = permutohedral.build(rng.random((400, 2)).astype(np.float32) * 6)
    rows = np.vstack([rng.random((lattice.size, 16)), np.zeros((1, 16))]).astype(np.float32)
    expected, used = rows.copy(), set()
    before = rows.copy()
    permutohedral.blur(lattice.chains, rows)
    lines = np.split(lattice.chains, np.flatnonzero(lattice.chains == lattice.size) + 1)
    for line in (part[:-1] for part in lines if len(part)):
        if used & set(line.tolist()):
            used = set()  # a corner is repeated: the next axis begins
        used |= set(line.tolist())
        old = np.vstack([np.zeros((1, 16)), expected[line], np.zeros((1, 16))])
        expected[line] = old[1:-1] + (old[:-2] + old[2:]) / 2
    np.testing.assert_allclose(rows, expected, rtol=1e-5)
    assert not np.array_equal(rows, before) and not rows[-1].any()


def test_a_lattice_of_no_points_is_empty():
    assert permutohedral.build(np.zeros((0, 5), np.float32)).size == 0
