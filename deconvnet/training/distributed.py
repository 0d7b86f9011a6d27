"""Functions for the ranks (training processes): their number, random seeds, sums over ranks, and averaged gradients (DDP)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from deconvnet.training.interfaces import State


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


def broadcast_state(state: State | None) -> State | None:
    """Send rank 0's training state to all ranks, so that only rank 0 has to read it. Every rank must call this.

    Args:
        state: on rank 0, the state with its tensors on the CPU, or None if there is none. Ignored on the other ranks.

    Returns:
        The state, or None, on every rank.
    """
    rank, world_size = rank_and_world_size()
    if world_size == 1:
        return state
    payload = [None if state is None else ({n: (t.shape, t.dtype) for n, t in state.tensors.items()}, state.values)]
    dist.broadcast_object_list(payload, src=0, device=torch.device("cpu"))
    if payload[0] is None:
        return None
    specs, values = payload[0]
    sent = state.tensors if rank == 0 and state is not None else {}
    tensors = {
        name: sent[name].contiguous() if name in sent else torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in specs.items()
    }
    for tensor in tensors.values():
        dist.broadcast(tensor, src=0)
    return State(tensors, values)


def data_parallel(
    model: nn.Module, device: torch.device, on_gradients_computed: Callable[[], None], bf16: bool = False
) -> DistributedDataParallel:
    """Wrap a model in DistributedDataParallel (DDP), which averages gradients over the ranks.

    Rank 0's weights are copied to all ranks. Every rank (training process) must call this.

    Args:
        model: the network, already on the device.
        device: the device of this rank. For a GPU without an index, torch's current GPU is used.
        on_gradients_computed: called when this rank has computed all gradients of a backward pass in which they are averaged. The
            rest of that backward pass is waiting for the other ranks.
        bf16: whether the ranks exchange gradients in bfloat16, which is half the bytes. Weights and gradients stay float32.
    """
    hook = bf16_compress_hook if bf16 else allreduce_hook

    def average(
        group: dist.ProcessGroup | None,
        bucket: dist.GradBucket,  # type: ignore[name-defined]  # DDP requires this annotation, which torch's types lack
    ) -> torch.futures.Future[Tensor]:
        """Average a bucket of gradients over all ranks. DDP calls this for each bucket, as soon as its gradients are computed."""
        if bucket.is_last():
            on_gradients_computed()
        return hook(group, bucket)  # type: ignore[arg-type]  # None is the group of all ranks

    ids = None
    if device.type == "cuda":
        ids = [device.index if device.index is not None else torch.cuda.current_device()]
    network = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    network.register_comm_hook(None, average)
    return network


def gradient_sync(network: nn.Module, sync: bool) -> AbstractContextManager[None]:
    """Return a context manager for the forward and backward pass of a micro-batch (a piece of this rank's batch).

    With DDP, the gradients are averaged over the ranks (training processes) only in the last micro-batch of a step.

    Args:
        network: the network, which `data_parallel` has wrapped if there are several ranks.
        sync: whether to average: True in the last micro-batch of the step.
    """
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not sync else nullcontext()


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
