"""Gradients that two ranks exchange in float32 and in bfloat16."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from deconvnet.training.distributed import data_parallel, gradient_sync
from tests.processes import run_ranks

INPUTS = {0: (1.001, 1 + 2**-8, 2**-8), 1: (3.003, 1 + 2**-8, 2**-8)}
"""For each rank, inputs of a step in one piece, and of the two pieces of another step. The gradient of a weight is its input."""


def _gradients(rank: int, bf16: bool) -> list[float]:
    """The gradient after a step in one piece, and after one in two pieces, which are added before they are exchanged."""
    layer = nn.Linear(1, 1, bias=False)
    network = data_parallel(layer, torch.device("cpu"), lambda: None, bf16)
    whole, *pieces = INPUTS[rank]
    found = []
    for parts in ([whole], pieces):
        layer.zero_grad()
        for part in parts:
            with gradient_sync(network, last=part == parts[-1]):
                network(torch.tensor([[part]])).sum().backward()
        assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
        found.append(layer.weight.grad.item())
    return found


def _two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        Path(folder, f"{rank}.json").write_text(json.dumps([_gradients(rank, bf16) for bf16 in (False, True)]))
    finally:
        torch.distributed.destroy_process_group()


def test_gradients_are_averaged_in_the_format_that_is_set(tmp_path: Path):
    """In bfloat16, which has 8 bits, each rank's sum over its pieces is rounded once: 1 + 2⁻⁷ is kept, 1 + 2⁻⁸ would not be."""
    run_ranks(_two_ranks, (str(tmp_path),), 2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    plain, rounded = first
    assert plain == pytest.approx([2.002, 1 + 2**-7], abs=1e-6)
    assert rounded == [2.0, 1 + 2**-7]
