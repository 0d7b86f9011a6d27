"""Vector registers in numba against numpy."""

import numpy as np
from numba import njit

from deconvnet import lanes


@njit
def _all(a, b, out):
    for row in range(a.shape[0]):
        for block in range(a.shape[1] // lanes.WIDTH):
            x, y = lanes.load(a, row, block), lanes.load(b, row, block)
            lanes.prefetch(a, row, block)
            lanes.store(out[0], row, block, lanes.add(x, y))
            lanes.store(out[1], row, block, lanes.subtract(x, y))
            lanes.store(out[2], row, block, lanes.multiply(x, y))
            lanes.store(out[3], row, block, lanes.maximum(x, y))
            lanes.store(out[4], row, block, lanes.exp(x))
            lanes.store(out[5], row, block, lanes.fill(lanes.highest(x)))
            lanes.store(out[6], row, block, lanes.fill(lanes.total(x)))


def test_operations_equal_numpys(rng):
    a, b = -np.float32(95) * rng.random((2, 30, 24), np.float32)
    a[0, :8] = [0, -0.5, -87, -86.99, -87.01, -1e-8, -1e31, -np.inf]
    out = np.empty((7, 30, 24), np.float32)
    _all(a, b, out)
    for found, expected in zip(out, (a + b, a - b, a * b, np.maximum(a, b)), strict=False):
        np.testing.assert_array_equal(found, expected)
    exact = np.where(a > -87, np.exp(a.astype(np.float64)), 0)
    np.testing.assert_allclose(out[4], exact, rtol=2e-7, atol=0)
    groups = a.reshape(30, 3, 8)
    np.testing.assert_array_equal(out[5].reshape(30, 3, 8), np.broadcast_to(groups.max(-1, keepdims=True), groups.shape))
    finite = np.isfinite(groups).all(-1) & (groups > -1e30).all(-1)
    np.testing.assert_allclose(out[6].reshape(30, 3, 8)[finite][:, 0], groups[finite].sum(-1), rtol=1e-5)
