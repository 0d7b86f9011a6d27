"""Gaussian filtering on the permutohedral lattice in torch, for GPUs. `permutohedral` has the explanation and does it on CPUs."""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconvnet.crf.permutohedral import multipliers

warnings.filterwarnings("ignore", "Sparse (CSR tensor support is in beta|invariant checks are implicitly disabled)")


@dataclass(frozen=True)
class TorchLattice:
    """A permutohedral lattice, the grid in which a Gaussian filter is computed, for N points in d dimensions.

    Attributes:
        corners: int64 (N, d+1), the corners of the grid cell (simplex) that contains each point, as indices from 0 to M-1.
        weights: float32 (N, d+1), barycentric coordinates of each point in its simplex. Each row sums to 1.
        neighbours: int64 (d+1, 2, M), for each axis the corners before and after each corner; M where there is none.
    """

    corners: Tensor
    weights: Tensor
    neighbours: Tensor

    @property
    def size(self) -> int:
        """Return the number M of corners that belong to at least one point."""
        return self.neighbours.shape[2]

    @property
    def gain(self) -> float:
        """Return the factor by which the results of a `Filter` are too large, compared with a normalised Gaussian filter."""
        return 1 + 2.0 ** -(self.corners.shape[1] - 1)

    @cached_property
    def by_corner(self) -> tuple[Tensor, Tensor]:
        """Return the order that sorts the flattened `corners`, int64 (N·(d+1),), and the end of each corner's run, int64 (M+2,).

        The first end is 0. The last one belongs to the corner M, which no point has.
        """
        flat = self.corners.flatten()
        counts = torch.bincount(flat, minlength=self.size)
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0), counts.new_full((1,), len(flat))])
        return flat.argsort(stable=True), ends


def build(features: Tensor) -> TorchLattice:
    """Build the permutohedral lattice of N points, the grid in which their values can be filtered.

    Args:
        features: float32 (N, d), the coordinates of the points, divided by the Gaussian's standard deviation on each axis.
    """
    factors = torch.from_numpy(multipliers(features.shape[1]).view("int64")).to(features.device)
    keys, weights = _embed(features, factors)
    found, corners = torch.unique(keys, return_inverse=True)
    return TorchLattice(corners, weights, _neighbours(found, factors))


def _embed(features: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Find the simplex of the lattice that contains each point.

    Args:
        features: float32 (N, d), the coordinates of the points.
        factors: int64 (d,), the factors of the hash function (see `permutohedral.multipliers`).

    Returns:
        The hash keys of each point's corners, int64 (N, d+1), and the corners' weights, float32 (N, d+1).
    """
    points, d = features.shape
    axes = torch.arange(1, d + 2, device=features.device)
    scaled = features * ((2 / 3) ** 0.5 * (d + 1) / (axes[:-1] * axes[1:]) ** 0.5)
    # Map each point to the hyperplane Σx = 0.
    following = scaled.flip(1).cumsum(1).flip(1)  # the sum of a coordinate and those after it
    zero = features.new_zeros(points, 1)
    elevated = torch.cat([following, zero], 1) - torch.cat([zero, scaled * axes[:-1]], 1)
    # Find the nearest corner of remainder 0, and rank the differences to it, the largest first.
    nearest = torch.floor(elevated / (d + 1) + 0.5)
    difference = elevated - nearest * (d + 1)
    later = torch.ones(d + 1, d + 1, dtype=torch.bool, device=features.device).triu(1)
    lower = difference[:, :, None] < difference[:, None, :]
    rank = (lower & later).sum(2) + (~lower & later).sum(1) + nearest.sum(1, keepdim=True).long()
    turns = (rank < 0).long() - (rank > d).long()
    rank += turns * (d + 1)
    corner = (nearest.long() + turns) * (d + 1)
    v = (elevated - corner) / (d + 1)
    bary = features.new_zeros(points, d + 2).scatter_(1, d - rank, v)
    bary -= features.new_zeros(points, d + 2).scatter_(1, d + 1 - rank, v)
    bary[:, 0] += 1 + bary[:, d + 1]
    # Corner k is the corner of remainder 0 plus k in every coordinate, minus d + 1 in the k coordinates of the highest ranks.
    ranked = torch.zeros_like(rank).scatter_(1, rank, torch.cat([factors, factors.new_zeros(1)]).expand(points, -1))
    highest = torch.cat([factors.new_zeros(points, 1), ranked.flip(1).cumsum(1)[:, :d]], 1)
    keys = (corner[:, :d] * factors).sum(1, keepdim=True) + (axes - 1) * factors.sum() - (d + 1) * highest
    return keys, bary[:, : d + 1]


def _neighbours(keys: Tensor, factors: Tensor) -> Tensor:
    """Find the neighbours of each corner on each axis, as described in `TorchLattice.neighbours`.

    Args:
        keys: int64 (M,), the hash keys of the corners, sorted.
        factors: int64 (d,), the factors of the hash function (see `permutohedral.multipliers`).
    """
    if not len(keys):
        return keys.new_zeros(len(factors) + 1, 2, 0)
    # To get the corner after another one, subtract 1 from every coordinate and add d + 1 to that of the axis.
    step = (len(factors) + 1) * torch.cat([factors, factors.new_zeros(1)]) - factors.sum()
    wanted = torch.stack([keys - step[:, None], keys + step[:, None]], 1)
    place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, place, len(keys))


class Filter:
    """A Gaussian filter on a lattice, with weights of its own."""

    def __init__(self, lattice: TorchLattice, weights: Tensor) -> None:
        """Prepare the two sparse matrices. Their products with values may differ in the last bits from call to call on a GPU.

        Args:
            lattice: the lattice.
            weights: float32 (N, d+1), the weights of each point's corners, for splatting and slicing.
        """
        points, corners = lattice.corners.shape
        flat, (order, ends), sizes = lattice.corners.flatten(), lattice.by_corner, (lattice.size + 1, points)
        starts = torch.arange(0, points * corners + 1, corners, device=flat.device)
        self.neighbours = lattice.neighbours
        self.splat = torch.sparse_csr_tensor(ends, order // corners, weights.flatten()[order], sizes)
        self.slice = torch.sparse_csr_tensor(starts, flat, weights.flatten(), sizes[::-1])

    def __call__(self, values: Tensor) -> Tensor:
        """Filter values.

        Args:
            values: float32 (N, C), the channels of each point.

        Returns:
            float32 (N, C).
        """
        rows = self.splat @ values  # the last row, which belongs to no corner, is 0
        for before, after in self.neighbours:
            rows[:-1].add_(rows[before] + rows[after], alpha=0.5)
        return self.slice @ rows
