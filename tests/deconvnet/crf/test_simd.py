"""The vector type's operations against numpy's."""

import numpy as np
from numba import njit

from deconvnet.crf import simd


@njit
def _apply_all(a, b, out):
    for row in range(a.shape[0]):
        for block in range(a.shape[1] // simd.WIDTH):
            x, y = simd.load(a, row, block), simd.load(b, row, block)
            simd.prefetch(a, row, block)
            simd.store(out[0], row, block, simd.add(x, y))
            simd.store(out[1], row, block, simd.subtract(x, y))
            simd.store(out[2], row, block, simd.multiply(x, y))
            simd.store(out[3], row, block, simd.maximum(x, y))
            simd.store(out[4], row, block, simd.exp(x))
            simd.store(out[5], row, block, simd.broadcast(simd.reduce_max(x)))
            simd.store(out[6], row, block, simd.broadcast(simd.reduce_sum(x)))


def test_operations_agree_with_numpy(rng):
    a, b = -np.float32(95) * rng.random((2, 30, 24), np.float32)
    a[0, :8] = [0, -0.5, -87, -86.99, -87.01, -1e-8, -1e31, -np.inf]
    out = np.empty((7, 30, 24), np.float32)
    _apply_all(a, b, out)
    for found, expected in zip(out, (a + b, a - b, a * b, np.maximum(a, b)), strict=False):
        np.testing.assert_array_equal(found, expected)
    exact = np.where(a > -87, np.exp(a.astype(np.float64)), 0)
    np.testing.assert_allclose(out[4], exact, rtol=2e-7, atol=0)
    groups = a.reshape(30, 3, 8)
    np.testing.assert_array_equal(out[5].reshape(30, 3, 8), np.broadcast_to(groups.max(-1, keepdims=True), groups.shape))
    finite = np.isfinite(groups).all(-1) & (groups > -1e30).all(-1)
    np.testing.assert_allclose(out[6].reshape(30, 3, 8)[finite][:, 0], groups[finite].sum(-1), rtol=1e-5)
