"""Mean-field inference in a fully connected CRF in torch, for GPUs. `mean_field` explains the method, and does it on CPUs."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deconvnet.crf.mean_field import MIN_PEAK, MIN_PROBABILITY, KernelSettings
from deconvnet.crf.torch_lattice import Filter, build
from infra.device import to_numpy


def refine(
    image: NDArray[np.uint8],
    probabilities: NDArray[np.floating],
    kernels: Sequence[KernelSettings],
    iterations: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """Run the CRF on a GPU. Arguments and result are those of `mean_field.dense_crf`, without its checks.

    No class is removed between iterations, because deciding on it would have to wait for the GPU.

    Args:
        image: uint8 array (H, W, 3), RGB.
        probabilities: float array (C, H, W) of values from 0 to 1 that sum to 1 over the C classes.
        kernels: settings of the kernels.
        iterations: number of iterations.
        device: the device to compute on.

    Returns:
        float32 array (C, H, W) of probabilities that sum to 1 over the classes.
    """
    p = torch.from_numpy(np.ascontiguousarray(probabilities)).to(device, torch.float32).flatten(1)
    out = torch.zeros_like(p)
    if p.numel():
        wins = torch.bincount(p.argmax(0), minlength=len(p)) > 0
        kept = (wins | (p.amax(1) > MIN_PEAK)).nonzero()[:, 0]
        unary = p[kept].T.clamp(min=MIN_PROBABILITY).log().contiguous()
        filters = [_normalised(_features(image, xy, rgb, device), weight) for xy, rgb, weight in kernels if weight]
        out[kept] = _mean_field(unary, filters, iterations).T
    return to_numpy(out.view(probabilities.shape))


def _mean_field(unary: Tensor, kernels: Sequence[Filter], iterations: int) -> Tensor:
    """Run the mean-field iterations, which compute the refined class probabilities Q.

    Q begins as p. Each iteration replaces Q by p · exp(K₁ Q + K₂ Q), where K₁ and K₂ are the kernels, and normalises it in each
    pixel.

    Args:
        unary: float32 (N, classes), logarithms of the input probabilities p of N pixels.
        kernels: the kernels.
        iterations: number of iterations.

    Returns:
        Q as float32 (N, classes).
    """
    q = unary.softmax(1)
    for _ in range(iterations):
        scores = unary
        for kernel in kernels:
            scores = scores + kernel(q)
        q = scores.softmax(1)
    return q


def _features(image: NDArray[np.uint8], xy_sigma: float, rgb_sigma: float | None, device: torch.device) -> Tensor:
    """Return the features of a kernel's pixels.

    Args:
        image: uint8 array (H, W, 3), RGB.
        xy_sigma: standard deviation for positions, in pixels.
        rgb_sigma: standard deviation for colours, in units of the image's 0 to 255. None: only positions count.
        device: the device to put them on.

    Returns:
        float32 (N, 2) or (N, 5), positions and colours divided by their standard deviations.
    """
    height, width = image.shape[:2]
    x = torch.arange(width, device=device).expand(height, width)
    y = torch.arange(height, device=device)[:, None].expand(height, width)
    position = torch.stack([x, y], -1).reshape(-1, 2) / xy_sigma
    if rgb_sigma is None:
        return position
    colour = torch.from_numpy(np.ascontiguousarray(image)).to(device).reshape(-1, 3)
    return torch.cat([position, colour / rgb_sigma], 1)


def _normalised(features: Tensor, weight: float) -> Filter:
    """Build a Gaussian kernel between pixels and normalise it symmetrically, as `mean_field._build_kernel` does on CPUs.

    Args:
        features: float32 (N, d), the pixels' features divided by the kernel's standard deviations.
        weight: factor by which the normalised kernel is multiplied.
    """
    lattice = build(features)
    norm = Filter(lattice, lattice.weights)(features.new_ones(len(features), 1)) / lattice.gain
    return Filter(lattice, lattice.weights * torch.sqrt(weight / lattice.gain / (norm + 1e-20)))
