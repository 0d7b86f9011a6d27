"""The training loop on several ranks: its losses, dev scores and weights don't depend on their number."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from deconvnet.models import checkpoint
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.network import Network
from deconvnet.models.sync_batchnorm import SyncBatchNorm2d
from deconvnet.training import trainer as trainer_module
from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.data.examples import Examples, open_examples
from deconvnet.training.interfaces import State
from deconvnet.training.trainer import Trainer
from infra.errors import Interrupted
from tests.deconvnet.training_runs import Seen, loader, stage
from tests.deconvnet.training_tables import SIZE, Small
from tests.processes import run_ranks

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.mark.parametrize("able", [1, 2])
def test_fused_layers_and_optimiser_are_used_only_if_all_ranks_can(crops, able, monkeypatch):
    """This rank can. On two ranks of different kinds, the exchanged statistics would not fit together."""
    monkeypatch.setattr(trainer_module, "rank_and_world_size", lambda: (0, 2))
    monkeypatch.setattr(trainer_module, "sum_over_ranks", lambda values: values + able - 1)
    model = DeconvNet(3, 0.1, SIZE)
    trainer = Trainer(model, stage(), loader(crops), seed=0)
    fused = {type(module).__name__ for module in model.modules()} & {"FusedUnit", "FusedMaxPool2d", "FusedUnpool"}
    assert len(fused) == (3 if able == 2 else 0)
    assert (type(trainer.optimiser) is torch.optim.SGD) == (able == 1)


@pytest.mark.parametrize(("micro", "synchronised"), [(None, False), (64, False), (32, False), (31, True), (16, True)])
def test_batch_norm_is_synchronised_where_a_rank_computes_fewer_than_32_examples_at_once(crops, micro, synchronised, monkeypatch):
    monkeypatch.setattr(trainer_module, "rank_and_world_size", lambda: (0, 2))
    monkeypatch.setattr(trainer_module, "sum_over_ranks", lambda values: values)
    model = Small()
    Trainer(model, stage(batch=128, micro_batch=micro), loader(crops), seed=0)
    assert isinstance(model.layers[1], SyncBatchNorm2d) == synchronised


def _trained(
    crops: Examples, network: Network, rank: int, workers: int, seen: Seen, state: State | None = None, steps: int = 20, **options
) -> dict:
    """Train a network on one rank for some steps of 16. Returns its losses, its dev scores, and the last of these or None."""
    settings = stage(batch=16, max_steps=steps, epochs=9, lr=0.002, schedule="plateau", bn_batches=2)
    batches = BatchLoader(BatchPlan.of(crops, 16, workers, 0), rank, 1)
    trainer = Trainer(network, settings, batches, seed=0, dev=DevSet(crops, rank, workers, 20), **options)
    if state is not None:
        trainer.load_state_dict(state)
    outcome = None
    with suppress(Interrupted):
        outcome = trainer.fit(report=seen, should_stop=seen.stopping).dev_mean_iou
    return {"losses": seen.losses, "dev": [m["dev_mean_iou"] for m in seen.metrics if "dev_mean_iou" in m], "outcome": outcome}


def _seeded(network: type[Network], rank: int, dtype: torch.dtype = torch.float64) -> Network:
    """A network whose weights are those of the rank: DDP must give rank 0's to all.

    DeconvNet is in float64 by default: in float32, rounding grows from step to step, and how much it does depends on the CPU.
    """
    torch.manual_seed(rank)
    return DeconvNet(3, 0.1, SIZE).to(dtype) if network is DeconvNet else Small()


def _two_ranks(rank: int, table: str, folder: str) -> None:
    """One of two ranks: whole trainings, one that rank 1 stops at step 7, and one that resumes it. Rank 0 writes the results."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        crops = open_examples(table, SIZE)
        found = {"deconvnet": _trained(crops, _seeded(DeconvNet, rank), rank, 2, Seen(), steps=6)}
        found["fused"] = _trained(crops, _seeded(DeconvNet, rank, torch.float32), rank, 2, Seen(), steps=2)
        seen = Seen(7 if rank else None)
        found["whole"] = _trained(crops, _seeded(Small, rank), rank, 2, Seen())
        found["stopped"] = _trained(crops, _seeded(Small, rank), rank, 2, seen)
        if rank == 0:
            checkpoint.save_state(f"{folder}/state", seen.states[-1].tensors, seen.states[-1].values)
        torch.distributed.barrier()
        state = State(*checkpoint.load_state(f"{folder}/state"))
        found["resumed"] = _trained(crops, _seeded(Small, rank), rank, 2, Seen(), state)
        found["rounded"] = _trained(crops, _seeded(Small, rank), rank, 2, Seen(), bf16_allreduce=True)
        if rank == 0:
            Path(folder, "found.json").write_text(json.dumps(found))
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(crops, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What rank 0 of two has seen in each training of `_two_ranks`."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(_two_ranks, (crops.table, str(folder)), 2)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    ("name", "network", "steps", "difference"), [("deconvnet", DeconvNet, 6, 5e-7), ("whole", Small, 20, 2e-5)]
)
def test_two_workers_and_one_have_the_same_losses(crops, two_ranks: dict, name, network, steps, difference):
    """With synchronised batch norm. A DeconvNet in more than an epoch, which has 5 steps. Losses themselves are in float32."""
    one, two = _trained(crops, _seeded(network, 0), 0, 1, Seen(), steps=steps), two_ranks[name]
    assert len(one["losses"]) == len(two["losses"]) == steps
    assert two["losses"] == pytest.approx(one["losses"], abs=difference)
    assert two["dev"] == pytest.approx(one["dev"], abs=0.02)
    assert two["outcome"] == pytest.approx(one["outcome"], abs=0.02)


def test_two_workers_and_one_have_the_same_losses_in_float32(crops, two_ranks: dict):
    """With all fused operations and the fused SGD. After the first steps, rounding hides what could be seen."""
    one = _trained(crops, _seeded(DeconvNet, 0, torch.float32), 0, 1, Seen(), steps=2)
    assert two_ranks["fused"]["losses"] == pytest.approx(one["losses"], abs=1e-5)


def test_a_training_that_one_of_two_workers_stops_is_resumed_by_both(two_ranks: dict):
    stopped, resumed = two_ranks["stopped"], two_ranks["resumed"]
    assert stopped["outcome"] is None and len(stopped["losses"]) == 7
    assert stopped["losses"] + resumed["losses"] == pytest.approx(two_ranks["whole"]["losses"], abs=1e-5)


def test_gradients_that_are_rounded_for_their_exchange_change_losses_little(two_ranks: dict):
    whole, rounded = two_ranks["whole"]["losses"], two_ranks["rounded"]["losses"]
    assert len(rounded) == 20 and rounded != whole
    assert rounded == pytest.approx(whole, abs=2e-4)


CASES = {"whole": (True, None), "in pieces of one": (False, 1), "batch norm in pieces": (True, 2)}


def _case(crops: Examples, name: str, rank: int = 0, workers: int = 1) -> dict:
    norm, micro = CASES[name]
    torch.manual_seed(0)
    model = Small()
    if not norm:
        del model.layers[1]
    seen = Seen()
    settings = stage(micro_batch=micro, max_steps=6, bn_batches=2)
    trainer = Trainer(model, settings, loader(crops, rank, workers), seed=0, dev=DevSet(crops, rank, workers, 16))
    outcome = trainer.fit(report=seen)
    return {"losses": seen.losses, "dev": outcome.dev_mean_iou, "state": model.state_dict()}


def _own_statistics(crops: Examples, rank: int, workers: int) -> dict:
    """Train with a batch norm that is not synchronised and keeps the statistics of its last batch, and evaluate."""
    torch.manual_seed(0)
    model = Small()
    model.layers[1].momentum = 1.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "SYNC_BATCH_NORM_BELOW", 0)
        trainer = Trainer(model, stage(max_steps=6), loader(crops, rank, workers), seed=0)
    trainer.fit()
    own = model.layers[1].running_mean.clone()
    trainer.dev = DevSet(crops, rank, workers, 16)
    return {"own": own, "matrix": torch.from_numpy(trainer.evaluate().matrix), "state": model.state_dict()}


def _unequal(rank: int, workers: int, table: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    try:
        crops = open_examples(table, SIZE)
        found = {name: _case(crops, name, rank, workers) for name in CASES}
        found["own statistics"] = _own_statistics(crops, rank, workers)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def unequal(crops, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of three ranks has found, which have 2, 3 and 3 examples of a batch of 8."""
    folder = tmp_path_factory.mktemp("three")
    run_ranks(_unequal, (3, crops.table, str(folder)), 3)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.mark.parametrize("name", CASES)
def test_unequal_shares_learn_what_one_worker_learns(crops, unequal: list[dict], name):
    """Also in micro-batches, where batch norm makes only the workers agree with each other."""
    norm, micro = CASES[name]
    ranks, one = [rank[name] for rank in unequal], _case(crops, name)
    assert len(ranks[0]["losses"]) == 6
    if not (norm and micro):
        assert ranks[0]["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert ranks[0]["dev"] == pytest.approx(one["dev"], abs=0.01)
    for rank in ranks:
        assert rank["losses"] == ranks[0]["losses"]
        for key, value in rank["state"].items():
            if not (norm and micro):
                assert torch.allclose(value, one["state"][key], atol=1e-4), key
            assert torch.allclose(value, ranks[0]["state"][key], atol=1e-6), key


def test_ranks_with_statistics_of_their_own_learn_the_same_weights_and_are_evaluated_with_those_of_rank_0(
    crops, unequal: list[dict]
):
    """As where batches are large. Rank 0's statistics are saved with the network."""
    ranks = [rank["own statistics"] for rank in unequal]
    assert not torch.allclose(ranks[1]["own"], ranks[0]["own"], atol=1e-3), "else this test notices nothing"
    model = Small()
    model.load_state_dict(ranks[0]["state"])
    expected = Trainer(model, stage(), loader(crops), seed=0, dev=DevSet(crops, limit=16)).evaluate().matrix
    for rank in ranks:
        assert np.abs(rank["matrix"].numpy() - expected).sum() <= 4, "but for rounding, of thousands of pixels"
        for key, value in rank["state"].items():
            assert torch.equal(value, ranks[0]["state"][key]), key
