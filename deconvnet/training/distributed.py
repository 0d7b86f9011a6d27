"""Functions for the ranks (training processes): their number, random seeds, sums over ranks, and averaged gradients (DDP)."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes, or (0, 1) if torch.distributed is not in use."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks (training processes). Every rank must call this, and waits for the others.

    Args:
        values: tensor on the CPU, changed in place.

    Returns:
        The same tensor, which now holds the sum.
    """
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(values)
    return values


def data_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap a model in DistributedDataParallel (DDP), which averages gradients over the ranks.

    Rank 0's weights are copied to all ranks. Every rank (training process) must call this.

    Args:
        model: the network, already on the device.
        device: the device of this rank. For a GPU without an index, torch's current GPU is used.
    """
    ids = None
    if device.type == "cuda":
        ids = [device.index if device.index is not None else torch.cuda.current_device()]
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Combine a seed, a step and a rank into the seed of torch's random generator for this step.

    Args:
        seed: seed of the training.
        step: number of the step, from 0.
        rank: rank of this training process, from 0.

    Returns:
        A non-negative integer below 2^63.
    """
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
