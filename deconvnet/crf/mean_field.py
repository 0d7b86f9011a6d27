"""Mean-field inference in a fully connected CRF over the pixels of an image (Krähenbühl and Koltun, NIPS 2011).

It refines the class probabilities that a network predicts (see `dense_crf`). The pairwise potentials are Potts potentials,
weighted by two Gaussian kernels. The smoothness kernel depends on the positions of two pixels, the appearance kernel on their
positions and colours. Both are normalised symmetrically, as in the authors' code. Everything is computed in float32 on one
thread. Python's global interpreter lock is released meanwhile.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deconvnet.crf import permutohedral, simd
from deconvnet.crf.permutohedral import Floats, Ints, Lattice
from infra.stopwatch import timed
from proposals.masks import check_image

if TYPE_CHECKING:
    import torch

MIN_PROBABILITY = 1e-5
"""Smallest probability: lower ones are raised to it before the logarithm is taken, which is then at least -11.5."""

MIN_PEAK = 0.15
"""Classes are removed before the first iteration if they are nowhere the most probable class and nowhere exceed this.

Keeping them would change the result in a few of ten thousand pixels (docs/experiments.md).
"""


KernelSettings = tuple[float, float | None, float]
"""Standard deviations of a kernel for positions and colours (None: it does not depend on colours), and its weight."""

_TOLERANCE = 0.01  # largest deviation of a pixel's sum of probabilities from 1, and of a probability below 0


@dataclass(frozen=True)
class _Kernel:
    """A Gaussian kernel between all pairs of N pixels, approximated on a permutohedral lattice.

    The lattice is the grid in which the Gaussian filter is computed. To apply the kernel, the values of the pixels are added to
    the corners of the grid ("splat"), blurred along its axes, and interpolated at the pixels ("slice").

    Attributes:
        lattice: the lattice of the pixels' features, which have d dimensions: position, or position and colour.
        weights: float32 (N, d+1), the weights of each pixel's d+1 corners for splatting and slicing. They include the square
            root of the kernel's constant factor (its weight and normalisation, divided by the lattice's gain). So splatting and
            slicing together apply the factor once.
    """

    lattice: Lattice
    weights: Floats


@timed("crf")
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
    device: "torch.device | None" = None,
) -> Floats:
    """Refine the class probabilities of an image so that nearby pixels of similar colour tend to get the same class.

    This is the fully connected CRF of Krähenbühl and Koltun (NIPS 2011). The default parameters are those released with DeconvNet
    (Noh et al., ICCV 2015). To save time, classes that are unlikely to become the most probable class of any pixel are removed.
    Before the first iteration, a class is removed if its probability is at most MIN_PEAK (0.15) in all pixels and it is nowhere
    the most probable class. Between iterations, `_pruning_threshold` decides. The result of a removed class is 0 in all pixels.

    Args:
        image: uint8 array (H, W, 3), RGB.
        probabilities: float array (C, H, W) of values from 0 to 1 that sum to 1 over the C classes, such as the softmax of a
            network's scores. Their negative logarithm is the unary potential.
        iterations: number of mean-field iterations, each of which updates all pixels at once.
        xy_sigma: standard deviation of the smoothness kernel in pixels.
        xy_weight: weight of the smoothness kernel; 0 turns it off.
        bilateral_xy_sigma: standard deviation of the appearance kernel for positions, in pixels.
        bilateral_rgb_sigma: standard deviation of the appearance kernel for colours, in units of the image's 0 to 255.
        bilateral_weight: weight of the appearance kernel; 0 turns it off.
        device: a GPU to compute on. None, or a CPU: computed on one thread of the CPU. On a GPU, no class is removed between
            iterations.

    Returns:
        float32 array (C, H, W) of probabilities that sum to 1 over the classes.

    Raises:
        ValueError: if shapes or dtypes do not fit, the probabilities are not finite, lie outside 0 to 1 or do not sum to about
            1, `iterations` or a sigma is not positive, or a weight is negative.
    """
    _check(image, probabilities, iterations, (xy_sigma, bilateral_xy_sigma, bilateral_rgb_sigma), (xy_weight, bilateral_weight))
    if probabilities.dtype == np.float16:
        probabilities = probabilities.astype(np.float32)
    kernels = (xy_sigma, None, xy_weight), (bilateral_xy_sigma, bilateral_rgb_sigma, bilateral_weight)
    if device is not None and device.type != "cpu":
        from deconvnet.crf.torch_mean_field import refine

        return refine(image, probabilities, kernels, iterations, device)
    return _refine(image, probabilities, kernels, iterations)


def _refine(
    image: NDArray[np.uint8], probabilities: Floats, kernels: tuple[KernelSettings, KernelSettings], iterations: int
) -> Floats:
    """Run the CRF on the CPU. Arguments and result are those of `dense_crf`, without its checks.

    Args:
        image: uint8 array (H, W, 3), RGB.
        probabilities: float array (C, H, W) of values from 0 to 1 that sum to 1 over the C classes.
        kernels: settings of the smoothness and of the appearance kernel.
        iterations: number of iterations.

    Returns:
        float32 array (C, H, W) of probabilities that sum to 1 over the classes.
    """
    classes, height, width = probabilities.shape
    out = np.zeros((classes, height, width), np.float32)
    kept = _initial_classes(probabilities)
    if not out.size or len(kept) == 1:
        out[kept] = 1
        return out

    y, x = (axis.astype(np.float32).ravel() for axis in np.mgrid[:height, :width])
    position = np.stack([x, y], axis=1)
    colour = image.reshape(-1, 3).astype(np.float32)
    smoothness, appearance = (
        _build_kernel(position / xy if rgb is None else np.hstack([position / xy, colour / rgb]), weight)
        for xy, rgb, weight in kernels
    )
    p = np.maximum(probabilities[kept].reshape(len(kept), -1).T, MIN_PROBABILITY)
    log_p = permutohedral.pad(np.log(p), fill=-np.inf)
    q, remaining = _mean_field(log_p, len(kept), (smoothness, appearance), iterations, sum(weight for *_, weight in kernels))
    out[kept[remaining]] = q[:, : len(remaining)].T.reshape(len(remaining), height, width)
    return out


def _check(
    image: NDArray[np.uint8], probabilities: Floats, iterations: int, sigmas: tuple[float, ...], weights: tuple[float, ...]
) -> None:
    """Raise ValueError if the arguments of `dense_crf` are not valid.

    Args:
        image: must be a uint8 array (H, W, 3), RGB.
        probabilities: must be an array (C, H, W) of numbers from 0 to 1 that sum to about 1 over the classes, with C > 0.
        iterations: must be at least 1.
        sigmas: standard deviations of the kernels; all must be positive.
        weights: weights of the kernels; none may be negative.
    """
    check_image(image)
    if not isinstance(probabilities, np.ndarray) or probabilities.dtype.kind not in "fiub":
        raise ValueError(f"probabilities is a {type(probabilities).__name__}; expected a numpy array of floats (C, H, W)")
    shape, size = probabilities.shape, image.shape[:2]
    if probabilities.ndim != 3 or shape[1:] != size or not len(probabilities):
        last = ": the classes must come first, pass probabilities.transpose(2, 0, 1)" if shape[:2] == size else ""
        raise ValueError(f"probabilities are {shape}; expected (C, {size[0]}, {size[1]}) for an image of {image.shape}{last}")
    sums = probabilities.sum(axis=0, dtype=np.float32)
    low = probabilities.min(initial=0)
    if not (np.abs(sums - 1) <= _TOLERANCE).all() or low < -_TOLERANCE:
        raise ValueError(_sums_message(probabilities, sums))
    if not (iterations >= 1 and all(0 < s < np.inf for s in sigmas) and all(0 <= w < np.inf for w in weights)):
        raise ValueError(f"iterations {iterations} and sigmas {sigmas} must be positive, weights {weights} not negative")


def _sums_message(probabilities: Floats, sums: Floats) -> str:
    """Return the error message for an array whose values are not probabilities.

    Args:
        probabilities: the invalid array (C, H, W).
        sums: sums of `probabilities` over the C classes, float32 (H, W).
    """
    if not np.isfinite(sums).all():
        return "probabilities must be finite; some are nan or infinite"
    worst = np.unravel_index(int(np.abs(sums - 1).argmax()), sums.shape)
    what = (
        f"probabilities are from {probabilities.min():.4g} to {probabilities.max():.4g} and sum to {sums[worst]:.4g} "
        f"at row {worst[0]}, column {worst[1]}"
    )
    advice = "pass the softmax of the scores (logits) over axis 0"
    if probabilities.min() >= 0:
        advice = "divide them by their sum over axis 0; if they are scores (logits), pass their softmax instead"
    return f"{what}; expected 0 to 1 with a sum of 1 over the classes: {advice}"


def _initial_classes(probabilities: Floats) -> NDArray[np.intp]:
    """Return the ids of the classes to keep before the first iteration.

    A class is kept if it is the most probable class of at least one pixel (ties go to the lowest id), or if its probability
    exceeds MIN_PEAK (0.15) in at least one pixel.

    Args:
        probabilities: float array (C, H, W) of class probabilities.

    Returns:
        Integer array of class ids, ascending.
    """
    peaks = probabilities.max(axis=(1, 2), initial=0)
    pixels = np.bincount(probabilities.argmax(axis=0).ravel(), minlength=len(probabilities))
    return np.flatnonzero((pixels > 0) | (peaks > MIN_PEAK))


def _pruning_threshold(classes: int, weight: float) -> float:
    """Return the probability below which a class can be removed between two mean-field iterations.

    A class is removed if its highest probability x in any pixel does not exceed the threshold. The threshold is the smaller of
    two bounds:

    * 0.5 / classes. This is half of the lowest probability that the most probable class of a pixel can have.
    * 1 / (e·weight). A class below this bound stays below 1 / weight, unless other classes become weaker. Proof: its probability
      in a pixel is a·exp(m), where m is the message from the other pixels, with 0 ≤ m ≤ about weight·x, and a collects all other
      factors. Now a ≤ x ≤ 1 / (e·weight), because exp(m) ≥ 1. As long as x ≤ 1 / weight, m ≤ 1. So the next probability is
      at most a·e ≤ 1 / weight.

    Args:
        classes: number of classes that have not been removed yet.
        weight: sum of the weights of the smoothness and the appearance kernel.

    Returns:
        The threshold, a probability above 0 and below 1.
    """
    return min(1 / (np.e * max(weight, 1e-9)), 0.5 / classes)


def _build_kernel(features: NDArray[np.floating], weight: float) -> _Kernel:
    """Build a Gaussian kernel between pixels and normalise it symmetrically.

    The kernel's value k_ij for the pixels i and j is divided by sqrt(Σ_j k_ij · Σ_i k_ij).

    Args:
        features: float array (N, d), the pixels' features (position, or position and colour) divided by the kernel's standard
            deviations.
        weight: factor by which the normalised kernel is multiplied.
    """
    lattice = permutohedral.build(features.astype(np.float32))
    norm = permutohedral.smooth(lattice, np.ones((len(features), 1), np.float32))
    factor = np.sqrt(np.float32(weight / lattice.gain) / (norm + np.float32(1e-20)))
    return _Kernel(lattice, lattice.weights * factor)


def _mean_field(
    log_p: Floats, classes: int, kernels: tuple[_Kernel, _Kernel], iterations: int, weight: float
) -> tuple[Floats, NDArray[np.intp]]:
    """Run the mean-field iterations, which compute the refined class probabilities Q.

    Q begins as p. Each iteration replaces Q by p · exp(K₁ Q + K₂ Q), where K₁ and K₂ are the kernels, and normalises it in each
    pixel. The number of columns of Q is a multiple of 8, the size of a vector register. Between iterations, very improbable
    classes (see `_pruning_threshold`) are removed if the remaining classes need fewer columns.

    Args:
        log_p: float32 (N, columns), logarithms of the input probabilities p of N pixels. The first columns are classes, the
            others are padding with -inf.
        classes: number of classes, at most `columns`.
        kernels: the smoothness kernel and the appearance kernel.
        iterations: number of iterations.
        weight: sum of the weights of both kernels.

    Returns:
        Q as float32 (N, columns), which may have fewer columns than `log_p`, and the indices of the remaining classes. The first
        columns of Q belong to these classes.
    """
    remaining = np.arange(classes)
    q = np.exp(log_p)
    q /= q.sum(axis=1, keepdims=True)
    rows: list[Floats] = []
    for iteration in range(iterations):
        if iteration and q.shape[1] > simd.WIDTH:
            kept = np.flatnonzero(q[:, : len(remaining)].max(axis=0) > _pruning_threshold(len(remaining), weight))
            if 0 < -(-len(kept) // simd.WIDTH) < q.shape[1] // simd.WIDTH:
                remaining = remaining[kept]
                q, log_p = permutohedral.pad(q[:, kept]), permutohedral.pad(log_p[:, kept], fill=-np.inf)
        if not rows or rows[0].shape[1] != q.shape[1]:
            rows = [permutohedral.empty_rows(kernel.lattice.size + 1, q.shape[1]) for kernel in kernels]
        for kernel, values in zip(kernels, rows, strict=True):
            values[:] = 0
            permutohedral.splat(kernel.lattice.corners, kernel.weights, q, values)
            permutohedral.blur(kernel.lattice.chains, values)
        a, b = kernels
        _update(log_p, a.lattice.corners, a.weights, rows[0], b.lattice.corners, b.weights, rows[1], q)
    return q, remaining


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
    """Compute the new class probabilities of each pixel at the end of a mean-field iteration.

    They are the softmax over the classes of `log_p` plus the messages of two kernels. The messages are interpolated ("sliced")
    from the permutohedral lattice of each kernel, the grid in which the Gaussian filter is computed.

    Args:
        log_p: float32 (N, columns), logarithms of the input probabilities of N pixels. Each column is a class.
        corners_a: int32 (N, d+1), the corners of the first kernel's lattice that surround each pixel, as indices into `rows_a`.
        weights_a: float32 (N, d+1), the weights of these corners.
        rows_a: float32 (M + 1, columns), the blurred values of the M corners of the first kernel's lattice.
        corners_b: like `corners_a`, for the second kernel.
        weights_b: like `weights_a`, for the second kernel.
        rows_b: like `rows_a`, for the second kernel.
        q: float32 (N, columns), to which the new probabilities are written.
    """
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
