"""What two ranks exchange: gradients in float32 and in bfloat16, and the state from which they continue; and their times."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deconvnet.training import distributed, meter
from deconvnet.training.distributed import broadcast_state, data_parallel, gradient_sync
from deconvnet.training.interfaces import State
from deconvnet.training.meter import PHASES, StepTimes
from tests.deconvnet.training_tables import Small
from tests.processes import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")

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
            with gradient_sync(network, sync=part == parts[-1]):
                network(torch.tensor([[part]])).sum().backward()
        assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
        found.append(layer.weight.grad.item())
    return found


def _state(rank: int) -> bool:
    """Whether both ranks get the state that only the first one has."""
    weights = torch.arange(24.0).view(1, 4, 2, 3).contiguous(memory_format=torch.channels_last)
    saved = State({"model.w": weights, "model.n": torch.tensor(7)}, {"step": 3, "schedule": {"best": None}})
    found = broadcast_state(saved if rank == 0 else None)
    assert found is not None and list(found.tensors) == ["model.w", "model.n"] and found.values == saved.values
    assert torch.equal(found.tensors["model.w"], weights) and found.tensors["model.n"].item() == 7
    assert found.tensors["model.n"].dtype == torch.int64
    return broadcast_state(None) is None


def _laps(rank: int) -> list[object]:
    """The laps of a step in two pieces, for which only the second rank waits for data, the mean times, and sums of gradients."""
    now = [100.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        found = StepTimes(torch.device("cpu"))
        network = data_parallel(Small(), torch.device("cpu"), lambda: found.lap("forward_and_backward"))
        now[0] += 6.0 * rank
        found.lap("waiting_for_data")
        laps = []
        for last in (False, True):
            with gradient_sync(network, last):
                network(torch.rand(2, 3, 8, 8)).sum().backward()
            laps.append([phase for phase, _ in found._laps])
        found.lap("optimiser")
        return [laps, found.read(), [parameter.grad.double().sum().item() for parameter in network.parameters()]]


def _two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        gradients = [_gradients(rank, bf16) for bf16 in (False, True)]
        found = {"gradients": gradients, "state": _state(rank), "laps": _laps(rank)}
        Path(folder, f"{rank}.json").write_text(json.dumps(found))
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two ranks has found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(_two_ranks, (str(folder),), 2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_gradients_are_averaged_in_the_format_that_is_set(ranks: list[dict]):
    """In bfloat16, which has 8 bits, each rank's sum over its pieces is rounded once: 1 + 2⁻⁷ is kept, 1 + 2⁻⁸ would not be."""
    first, second = (rank["gradients"] for rank in ranks)
    assert first == second
    plain, rounded = first
    assert plain == pytest.approx([2.002, 1 + 2**-7], abs=1e-6)
    assert rounded == [2.0, 1 + 2**-7]


def test_a_rank_with_a_gpu_computes_on_that_of_its_device(monkeypatch):
    """Else all ranks of a machine would compute on its first GPU."""
    made = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    monkeypatch.setattr(
        distributed,
        "DistributedDataParallel",
        lambda *_, device_ids, **__: made.append(device_ids) or SimpleNamespace(register_comm_hook=lambda *_: None),
    )
    for device in ("cpu", "cuda", "cuda:0", "cuda:3"):
        data_parallel(nn.Linear(1, 1), torch.device(device), lambda: None)
    assert made == [None, [5], [0], [3]]


def test_only_the_first_worker_needs_the_state_from_which_all_continue(ranks: list[dict]):
    assert [rank["state"] for rank in ranks] == [True, True]
    assert broadcast_state(None) is None
    alone = State({"model.w": torch.ones(2)}, {"step": 1})
    assert broadcast_state(alone) is alone


def test_times_are_means_over_the_workers_and_the_exchange_begins_when_all_gradients_are_computed(ranks: list[dict]):
    first, second = (rank["laps"] for rank in ranks)
    assert first[0] == second[0] == [["waiting_for_data"], ["waiting_for_data", "forward_and_backward"]]
    assert first[1] == second[1] == {f"time.{phase}_s": 3.0 if phase == "waiting_for_data" else 0.0 for phase in PHASES}
    assert first[2] == second[2]  # averaged gradients
