"""Mean-field inference in a fully connected CRF in torch, for GPUs. `mean_field` explains the method, and does it on CPUs."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deconvnet.crf.torch_lattice import Filter, build


def mean_field(
    positions: NDArray[np.float32],
    features: NDArray[np.float32],
    weights: tuple[float, float],
    log_p: NDArray[np.float32],
    iterations: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """Run the mean-field iterations, which compute the refined class probabilities Q.

    Q begins as p. Each iteration replaces Q by p · exp(K₁ Q + K₂ Q), where K₁ and K₂ are the kernels, and normalises it in each
    pixel. No class is removed between iterations, because deciding on it would have to wait for the GPU.

    Args:
        positions: float32 (N, 2), the pixels' positions divided by the smoothness kernel's standard deviation.
        features: float32 (N, 5), the pixels' positions and colours divided by the appearance kernel's standard deviations.
        weights: weights of both kernels.
        log_p: float32 (N, classes), logarithms of the input probabilities p of N pixels.
        iterations: number of iterations.
        device: the device to compute on.

    Returns:
        Q as float32 (N, classes).
    """
    kernels = [
        _normalised(torch.from_numpy(each).to(device), weight)
        for each, weight in zip((positions, features), weights, strict=True)
        if weight
    ]
    unary = torch.from_numpy(log_p).to(device)
    q = unary.softmax(1)
    for _ in range(iterations):
        message = unary
        for kernel in kernels:
            message = message + kernel(q)
        q = message.softmax(1)
    return q.cpu().numpy()


def _normalised(features: Tensor, weight: float) -> Filter:
    """Build a Gaussian kernel between pixels and normalise it symmetrically, as `mean_field._build_kernel` does on CPUs.

    Args:
        features: float32 (N, d), the pixels' features divided by the kernel's standard deviations.
        weight: factor by which the normalised kernel is multiplied.
    """
    lattice = build(features)
    norm = Filter(lattice, lattice.weights)(features.new_ones(len(features), 1)) / lattice.gain
    return Filter(lattice, lattice.weights * torch.sqrt(weight / lattice.gain / (norm + 1e-20)))
