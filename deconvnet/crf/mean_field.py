"""Mean-field inference in a fully connected CRF over the pixels of an image (Krähenbühl and Koltun, NIPS 2011).

Pairwise potentials are Potts potentials weighted by two Gaussian kernels: smoothness (of position) and appearance (of position and
colour). Kernels are normalised symmetrically, as in the authors' code. Everything is computed in float32 on one thread, without
holding Python's global lock.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deconvnet.crf import permutohedral, simd
from deconvnet.crf.permutohedral import Floats, Ints, Lattice

MIN_PROBABILITY = 1e-5
"""Probabilities are raised to this before their logarithm is taken, so that it stays finite (-11.5)."""

MIN_PEAK = 0.15
"""Classes that are nowhere the arg max and stay below this probability are pruned before the first iteration.

Keeping them would change the result in a few of ten thousand pixels (docs/experiments.md).
"""


@dataclass(frozen=True)
class _Kernel:
    """A Gaussian kernel for all pairs of N pixels.

    Attributes:
        lattice: the lattice of the pixels' features.
        weights: float32 (N, d+1), weights for both splatting and slicing. They contain the square roots of the kernel's weight,
            its normalisation and the lattice's gain, so that splatting, blurring and slicing apply the whole kernel.
    """

    lattice: Lattice
    weights: Floats


def dense_crf(
    image: NDArray[np.uint8],
    probabilities: Floats,
    *,
    iterations: int = 10,
    xy_sigma: float = 3.0,
    xy_weight: float = 3.0,
    bilateral_xy_sigma: float = 20.0,
    bilateral_rgb_sigma: float = 3.0,
    bilateral_weight: float = 5.0,
) -> Floats:
    """Refine class probabilities so that near pixels of similar colour tend to have the same class.

    Defaults are the parameters released with DeconvNet. Classes that can't become the arg max of any pixel are pruned, at the start
    (MIN_PEAK) and between iterations (`_pruning_threshold`); their result is 0.

    Args:
        image: uint8 array (H, W, 3), RGB.
        probabilities: float array (C, H, W), 0 to 1; the unary potential is -log of them.
        iterations: number of mean-field updates.
        xy_sigma: standard deviation of the smoothness kernel, in pixels.
        xy_weight: weight of the smoothness kernel; 0 leaves it out.
        bilateral_xy_sigma: standard deviation of the appearance kernel in position, in pixels.
        bilateral_rgb_sigma: standard deviation of the appearance kernel in colour, in levels of 0 to 255.
        bilateral_weight: weight of the appearance kernel; 0 leaves it out.

    Returns:
        float32 array (C, H, W) that sums to 1 over the classes.

    Raises:
        ValueError: if shapes or dtypes don't fit, probabilities are not finite, iterations or a sigma is not positive, or a weight
            is negative.
    """
    _check(image, probabilities, iterations, (xy_sigma, bilateral_xy_sigma, bilateral_rgb_sigma), (xy_weight, bilateral_weight))
    classes, height, width = probabilities.shape
    out = np.zeros((classes, height, width), np.float32)
    weight = xy_weight + bilateral_weight
    kept = _initial_classes(probabilities)
    if not out.size or len(kept) == 1:
        out[kept] = 1
        return out

    y, x = (axis.astype(np.float32).ravel() for axis in np.mgrid[:height, :width])
    position = np.stack([x, y], axis=1)
    colour = image.reshape(-1, 3).astype(np.float32)
    smoothness = _build_kernel(position / xy_sigma, xy_weight)
    appearance = _build_kernel(np.hstack([position / bilateral_xy_sigma, colour / bilateral_rgb_sigma]), bilateral_weight)
    p = np.maximum(probabilities[kept].reshape(len(kept), -1).T, MIN_PROBABILITY)
    log_p = permutohedral.pad(np.log(p), fill=-np.inf)
    q, left = _mean_field(log_p, len(kept), (smoothness, appearance), iterations, weight)
    out[kept[left]] = q[:, : len(left)].T.reshape(len(left), height, width)
    return out


def _check(
    image: NDArray[np.uint8], probabilities: Floats, iterations: int, sigmas: tuple[float, ...], weights: tuple[float, ...]
) -> None:
    """Raise ValueError if the arguments of `dense_crf` are not valid."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if probabilities.ndim != 3 or probabilities.shape[1:] != image.shape[:2] or not len(probabilities):
        raise ValueError(f"probabilities are {probabilities.shape}, the image is {image.shape}")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    if iterations < 1 or min(sigmas) <= 0 or min(weights) < 0:
        raise ValueError(f"iterations {iterations} and sigmas {sigmas} must be positive, weights {weights} not negative")


def _initial_classes(probabilities: Floats) -> NDArray[np.intp]:
    """Ids of the classes to start with: those that are the arg max of a pixel or reach MIN_PEAK in one."""
    peaks = probabilities.reshape(len(probabilities), -1).max(axis=1, initial=0)
    return np.flatnonzero(_is_arg_max(probabilities) | (peaks > MIN_PEAK))


@njit(cache=True, nogil=True)
def _is_arg_max(probabilities: Floats) -> NDArray[np.bool_]:
    """For each class of (C, H, W), whether it is the arg max of any pixel: bool (C,). Ties go to the lowest class id."""
    classes, height, width = probabilities.shape
    found = np.zeros(classes, np.bool_)
    for y in range(height):
        best, arg_max = probabilities[0, y].copy(), np.zeros(width, np.int32)
        for c in range(1, classes):  # row by row, in the order of memory
            for x in range(width):
                if probabilities[c, y, x] > best[x]:
                    best[x], arg_max[x] = probabilities[c, y, x], c
        for x in range(width):
            found[arg_max[x]] = True
    return found


def _pruning_threshold(classes: int, weight: float) -> float:
    """Probability above which a class must be in some pixel after an iteration, else it is pruned.

    In a pixel the class has the probability a·exp(m). Its message m is at most `weight` times its highest probability anywhere; a is
    its share of the rest. For a ≤ 1 / (e·weight) the equation x = a·exp(weight·x) has a solution, and as long as the other classes
    don't lose, the class can't exceed the smallest solution, which is at most 1 / weight. The threshold is also below half of what
    the arg max of `classes` classes has at least (1 / classes).

    Args:
        classes: number of classes left.
        weight: sum of the kernels' weights.
    """
    return min(1 / (np.e * max(weight, 1e-9)), 0.5 / classes)


def _above(peaks: Floats, threshold: float) -> NDArray[np.intp]:
    """Indices of the classes whose highest probability exceeds a threshold; all classes if none does."""
    return np.flatnonzero(peaks > threshold) if (peaks > threshold).any() else np.arange(len(peaks))


def _build_kernel(features: NDArray[np.floating], weight: float) -> _Kernel:
    """Build a kernel on features (N, d), in units of its standard deviation.

    The symmetric normalisation is 1/sqrt(Σ_j k_ij · Σ_i k_ij).
    """
    lattice = permutohedral.build(features.astype(np.float32))
    norm = permutohedral.smooth(lattice, np.ones((len(features), 1), np.float32))
    factor = np.sqrt(np.float32(weight / lattice.gain) / (norm + np.float32(1e-20)))
    return _Kernel(lattice, lattice.weights * factor)


def _mean_field(
    log_p: Floats, classes: int, kernels: tuple[_Kernel, _Kernel], iterations: int, weight: float
) -> tuple[Floats, NDArray[np.intp]]:
    """Repeat the parallel update Q ∝ p · exp(Σ_kernels K Q), starting from Q = p.

    Classes are pruned between iterations where that saves a vector register per pixel.

    Args:
        log_p: float32 (N, columns), log probabilities; columns after the classes are padding.
        classes: number of classes.
        kernels: the smoothness and the appearance kernel.
        iterations: number of updates.
        weight: sum of the kernels' weights.

    Returns:
        Q, float32 (N, columns), and the classes that its first columns belong to.
    """
    left = np.arange(classes)
    q = np.exp(log_p)
    q /= q.sum(axis=1, keepdims=True)
    rows: list[Floats] = []
    for iteration in range(iterations):
        if iteration and q.shape[1] > simd.WIDTH:
            kept = _above(q[:, : len(left)].max(axis=0), _pruning_threshold(len(left), weight))
            if -(-len(kept) // simd.WIDTH) < q.shape[1] // simd.WIDTH:
                left = left[kept]
                q, log_p = permutohedral.pad(q[:, kept]), permutohedral.pad(log_p[:, kept], fill=-np.inf)
        if not rows or rows[0].shape[1] != q.shape[1]:
            rows = [permutohedral.empty_rows(kernel.lattice.size + 1, q.shape[1]) for kernel in kernels]
        for kernel, values in zip(kernels, rows, strict=True):
            values[:] = 0
            permutohedral.splat(kernel.lattice.corners, kernel.weights, q, values)
            permutohedral.blur(kernel.lattice.chains, values)
        a, b = kernels
        _update(log_p, a.lattice.corners, a.weights, rows[0], b.lattice.corners, b.weights, rows[1], q)
    return q, left


@njit(cache=True, nogil=True)
def _update(
    log_p: Floats,
    corners_a: Ints,
    weights_a: Floats,
    rows_a: Floats,
    corners_b: Ints,
    weights_b: Floats,
    rows_b: Floats,
    q: Floats,
) -> None:
    """Write the softmax of log_p plus both kernels' messages to q (N, columns); messages are sliced from the kernels' blurred rows."""
    blocks = log_p.shape[1] // simd.WIDTH
    for p in range(log_p.shape[0]):
        top = simd.broadcast(np.float32(-np.inf))
        for b in range(blocks):
            z = simd.load(log_p, p, b)
            for k in range(corners_a.shape[1]):
                z = simd.add(z, simd.multiply(simd.broadcast(weights_a[p, k]), simd.load(rows_a, corners_a[p, k], b)))
            for k in range(corners_b.shape[1]):
                z = simd.add(z, simd.multiply(simd.broadcast(weights_b[p, k]), simd.load(rows_b, corners_b[p, k], b)))
            simd.store(q, p, b, z)
            top = simd.maximum(top, z)
        top = simd.broadcast(simd.reduce_max(top))
        sums = simd.broadcast(np.float32(0))
        for b in range(blocks):
            z = simd.exp(simd.subtract(simd.load(q, p, b), top))
            simd.store(q, p, b, z)
            sums = simd.add(sums, z)
        share = simd.broadcast(np.float32(1) / simd.reduce_sum(sums))
        for b in range(blocks):
            simd.store(q, p, b, simd.multiply(simd.load(q, p, b), share))
