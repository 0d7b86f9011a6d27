"""The training loop: it learns, losses don't depend on the number of workers, and a resumed run equals an undisturbed one."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deconvnet.models import checkpoint
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.settings import StageSettings
from deconvnet.training import trainer as trainer_module
from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.data.examples import Examples, open_examples
from deconvnet.training.data.sampler import ORDER_VERSION
from deconvnet.training.interfaces import Outcome, State
from deconvnet.training.trainer import Diverged, Trainer
from infra.errors import Interrupted, UserError
from tests.deconvnet.training_tables import SIZE, Small, examples_table
from tests.processes import run_ranks

HELD_BYTES = 51_000  # a third of `crops`


@pytest.fixture(scope="module")
def crops(tmp_path_factory) -> Examples:
    return open_examples(examples_table(str(tmp_path_factory.mktemp("examples")), 60), SIZE)


def stage(**changes) -> StageSettings:
    values = {"batch": 8, "epochs": 2, "lr": 0.05, "schedule": "constant", "log_every": 1, "bn_batches": 0, "checkpoint_every": 5}
    return StageSettings(**{**values, **changes})


class Seen:
    """Collects what a training reports: metrics, and copies of states."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.metrics: list[dict] = []
        self.states: list[State] = []
        self.stop_at = stop_at

    def __call__(self, metrics, state) -> None:
        self.metrics.append(metrics)
        if state is not None:
            self.states.append(
                State({n: t.detach().clone() for n, t in state.tensors.items()}, json.loads(json.dumps(state.values)))
            )

    def stopping(self) -> bool:
        return self.stop_at is not None and bool(self.metrics) and self.metrics[-1]["step"] >= self.stop_at

    @property
    def losses(self) -> list[float]:
        return [m["loss"] for m in self.metrics if "loss" in m]


def loader(crops: Examples, rank: int = 0, workers: int = 1) -> BatchLoader:
    """Batches of 8, of which a third of an epoch fits in memory."""
    return BatchLoader(BatchPlan.of(crops, 8, workers, 0, HELD_BYTES), rank, 1)


def run(
    crops: Examples, seen: Seen, dropout: float = 0.0, state: State | None = None, seed: int = 0, **changes
) -> tuple[Small, Outcome]:
    torch.manual_seed(0)
    model = Small(dropout)
    trainer = Trainer(model, stage(**changes), loader(crops), seed=seed, dev=DevSet(crops, limit=16))
    if state is not None:
        trainer.load_state_dict(state)
    return model, trainer.fit(report=seen, should_stop=seen.stopping)


def test_the_loss_falls_and_the_dev_score_rises(crops):
    seen = Seen()
    _, outcome = run(crops, seen, epochs=6, schedule="plateau")
    assert outcome.steps == 66
    assert outcome.epochs == 6
    assert seen.losses[-1] < 0.4 * seen.losses[0]
    assert outcome.dev_mean_iou > 0.6
    assert outcome.best_dev_mean_iou == max(m["dev_mean_iou"] for m in seen.metrics if "dev_mean_iou" in m)
    assert all(m["samples_per_s"] > 0 and 0 <= m["pixel_accuracy"] <= 1 for m in seen.metrics if "loss" in m)


def test_the_loss_is_the_mean_over_the_batch_s_non_void_pixels(crops):
    seen = Seen()
    run(crops, seen, max_steps=1)
    torch.manual_seed(0)
    model = Small()
    images, labels = (torch.from_numpy(a) for a in next(loader(crops).batches(0, 1)))
    expected = F.cross_entropy(model(model.prepare(images)), labels.long(), ignore_index=255)
    assert (labels == 255).any()
    assert seen.losses[0] == pytest.approx(expected.item(), rel=1e-6)


def test_dropout_s_random_numbers_differ_between_steps_ranks_and_seeds_and_repeat_for_the_same(crops):
    """They are drawn by torch's generator, whose seed the network sees."""

    def seeds(seed: int, rank: int) -> list[int]:
        seen: list[int] = []
        model = Small(0.3)
        model.register_forward_pre_hook(lambda *_: seen.append(torch.initial_seed()))
        trainer = Trainer(model, stage(max_steps=3), loader(crops), seed=seed)
        trainer.rank = rank
        trainer.fit()
        return seen

    found = [seeds(0, 0), seeds(0, 1), seeds(1, 0)]
    assert len({each for every in found for each in every}) == 9 and seeds(0, 1) == found[1]


def test_micro_batches_add_up_to_the_batch(crops):
    """In a network without batch norm, whose statistics are those of a micro-batch."""
    losses = []
    for micro in (None, 4, 1):
        torch.manual_seed(0)
        model = Small()
        del model.layers[1]
        seen = Seen()
        Trainer(model, stage(micro_batch=micro), loader(crops), seed=0).fit(report=seen)
        losses.append(seen.losses)
    assert len(losses[0]) == 22
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[2] == pytest.approx(losses[0], abs=1e-6)


@pytest.mark.parametrize("stop_at", [3, 5, 11, 16])
def test_a_resumed_run_equals_an_undisturbed_one(crops, stop_at, tmp_path: Path):
    """Also within an epoch, from files, with dropout, momentum and schedule."""
    options = {"dropout": 0.3, "schedule": "plateau", "patience": 1, "checkpoint_every": 1000, "bn_batches": 3}
    whole, first, second = Seen(), Seen(stop_at), Seen()
    expected, _ = run(crops, whole, **options)
    with pytest.raises(Interrupted):
        run(crops, first, **options)
    assert first.metrics[-1]["step"] == stop_at
    checkpoint.save_state(str(tmp_path), first.states[-1].tensors, first.states[-1].values)
    found, outcome = run(crops, second, state=State(*checkpoint.load_state(str(tmp_path))), **options)
    assert first.losses + second.losses == pytest.approx(whole.losses, abs=1e-6)
    assert len(second.losses) == 22 - stop_at
    assert second.metrics[-1] == pytest.approx(whole.metrics[-1])
    assert outcome.steps == 22
    for name, value in expected.state_dict().items():
        assert torch.allclose(found.state_dict()[name], value, atol=1e-6), name


def test_a_finished_training_is_not_done_again(crops):
    seen, again = Seen(), Seen()
    model, outcome = run(crops, seen)
    found, same = run(crops, again, state=seen.states[-1])
    assert again.losses == []
    assert same == outcome
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), found.state_dict().values(), strict=True))


def test_checkpoints_are_due_at_intervals_and_epoch_ends(crops):
    seen = Seen()
    run(crops, seen, log_every=4, checkpoint_every=7, epochs=2)
    assert [s.values["step"] for s in seen.states] == [7, 11, 14, 21, 22]
    assert [m["step"] for m in seen.metrics] == [4, 7, 8, 11, 12, 14, 16, 20, 21, 22, 22]
    assert [m["step"] for m in seen.metrics if "dev_mean_iou" in m] == [11, 22]


def test_max_steps_ends_within_an_epoch_with_an_evaluation(crops):
    seen = Seen()
    _, outcome = run(crops, seen, max_steps=4)
    assert outcome.steps == 4
    assert "dev_mean_iou" in seen.metrics[3]
    assert seen.states[-1].values["step"] == 4


def test_training_stops_when_the_dev_score_does_not_rise(crops):
    _, outcome = run(crops, Seen(), epochs=9, lr=1e-12, early_stopping_patience=2)
    assert outcome.epochs == 3


def test_a_loss_that_is_not_finite_is_a_user_error(crops):
    seen = Seen()
    with pytest.raises(Diverged, match=r"the loss is (nan|inf).*lower lr \(now 1e\+30\)"):
        run(crops, seen, lr=1e30, log_every=3)
    assert not seen.states  # there is no checkpoint of a diverged network
    assert len(seen.losses) == 0


def test_gradients_are_clipped(crops):
    free, clipped = Seen(), Seen()
    torch.manual_seed(0)
    before = {n: t.clone() for n, t in Small().state_dict().items()}
    run(crops, free, max_steps=1, weight_decay=0.0)
    run(crops, clipped, max_steps=1, weight_decay=0.0, grad_clip=1e-3)
    moved = [
        sum(
            (s.states[0].tensors[f"model.{n}"] - before[n]).square().sum() for n in before if n.endswith(("weight", "bias"))
        ).sqrt()
        for s in (free, clipped)
    ]
    assert moved[0] > 10 * moved[1]
    assert moved[1] <= 0.05 * 1.001e-3  # lr × the largest norm


def test_a_batch_of_void_has_loss_0():
    class Void:
        steps_per_epoch = 2

        def batches(self, first, stop):
            for _ in range(first, stop):
                yield np.zeros((8, 3, 32, 32), np.uint8), np.full((8, 32, 32), 255, np.uint8)

    seen = Seen()
    Trainer(Small(), stage(), Void(), seed=0).fit(report=seen)
    assert seen.losses == [0.0] * 4


def test_batch_norm_statistics_are_recomputed_at_the_end(crops):
    (stale, _), (fresh, outcome) = (
        run(crops, Seen(), max_steps=3, lr=1e-6),
        run(crops, Seen(), max_steps=3, lr=1e-6, bn_batches=4),
    )
    images = [batch[0] for batch in loader(crops).batches(22, 26)]
    outputs = [fresh.layers[0](fresh.prepare(torch.from_numpy(x))) for x in images]
    expected = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    assert torch.allclose(fresh.layers[1].running_mean, expected, atol=1e-4)
    assert not torch.allclose(stale.layers[1].running_mean, expected, atol=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(stale.parameters(), fresh.parameters(), strict=True))
    again = Trainer(fresh, stage(), loader(crops), seed=0, dev=DevSet(crops, limit=16))
    assert outcome.dev_mean_iou == again.evaluate().mean_iou


def test_frozen_blocks_are_neither_trained_nor_remeasured(crops):
    torch.manual_seed(0)
    model = DeconvNet(3, 0.05, 32)
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.fill_(0.5)  # not what a batch norm that is measured anew begins with
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examples = replace(crops, size=32)
    trained = Trainer(model, stage(max_steps=2, bn_batches=2, freeze=("conv1", "conv2")), loader(examples), seed=0)
    trained.fit()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in before} - changed == {"conv1", "conv2"}
    assert not [name for name in trained.state_dict().tensors if name.startswith("momentum.conv1")]


def test_another_training_s_checkpoint_is_refused(crops):
    seen = Seen()
    run(crops, seen, max_steps=1)
    with pytest.raises(UserError, match="another network or seed"):
        Trainer(DeconvNet(3, 0.05, 32), stage(), loader(crops), seed=0).load_state_dict(seen.states[0])
    with pytest.raises(UserError, match="another network or seed"):
        run(crops, Seen(), state=seen.states[0], seed=5)


@pytest.mark.parametrize("order", [None, ORDER_VERSION - 1, ORDER_VERSION + 1])
def test_a_checkpoint_of_another_order_of_examples_is_refused(crops, order):
    trainer = Trainer(Small(), stage(max_steps=3), loader(crops), seed=0)
    trainer.fit()
    state = trainer.state_dict()
    others = {name: value for name, value in state.values.items() if name != "order"}
    with pytest.raises(UserError, match="another order"):
        trainer.load_state_dict(State(state.tensors, others if order is None else {**others, "order": order}))
    trainer.load_state_dict(state)


def test_a_state_holds_weights_momenta_seed_and_step(crops):
    model = Small()
    trainer = Trainer(model, stage(max_steps=3), loader(crops), seed=7)
    trainer.fit()
    state = trainer.state_dict()
    assert {n for n in state.tensors if n.startswith("momentum.")} == {f"momentum.{n}" for n, _ in model.named_parameters()}
    assert (state.values["seed"], state.values["step"]) == (7, 3)


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


def test_a_checkpoint_is_due_after_a_step_where_the_caller_requests_it(crops):
    seen, steps = Seen(), iter(range(100))
    trainer = Trainer(Small(), stage(max_steps=4, log_every=100), loader(crops), seed=0)
    trainer.fit(report=seen, should_save=lambda: next(steps) == 1)
    assert [state.values["step"] for state in seen.states] == [2, 4]


def _twenty_steps(crops: Examples, rank: int, workers: int, seen: Seen, state: State | None = None, **options) -> dict:
    """Train a DeconvNet on one rank for at most 20 steps. Returns its losses, its dev scores, and the last of these or None."""
    settings = stage(batch=16, max_steps=20, epochs=9, lr=0.002, schedule="plateau", bn_batches=2)
    torch.manual_seed(rank)  # DDP must give rank 0's weights to all
    batches = BatchLoader(BatchPlan.of(crops, 16, workers, 0), rank, 1)
    dev = DevSet(crops, rank, workers, 20)
    trainer = Trainer(DeconvNet(3, 0.1, SIZE), settings, batches, seed=0, dev=dev, **options)
    if state is not None:
        trainer.load_state_dict(state)
    outcome = None
    with suppress(Interrupted):
        outcome = trainer.fit(report=seen, should_stop=seen.stopping).dev_mean_iou
    return {"losses": seen.losses, "dev": [m["dev_mean_iou"] for m in seen.metrics if "dev_mean_iou" in m], "outcome": outcome}


def _two_ranks(rank: int, table: str, folder: str) -> None:
    """One of two ranks: a whole training, one that rank 1 stops at step 7, and one that resumes it. Rank 0 writes the results."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        crops = open_examples(table, SIZE)
        seen = Seen(7 if rank else None)
        found = {"whole": _twenty_steps(crops, rank, 2, Seen()), "stopped": _twenty_steps(crops, rank, 2, seen)}
        if rank == 0:
            checkpoint.save_state(f"{folder}/state", seen.states[-1].tensors, seen.states[-1].values)
        torch.distributed.barrier()
        found["resumed"] = _twenty_steps(crops, rank, 2, Seen(), State(*checkpoint.load_state(f"{folder}/state")))
        if rank == 0:
            Path(folder, "found.json").write_text(json.dumps(found))
        rounded = _twenty_steps(crops, rank, 2, Seen(), bf16_allreduce=True)["losses"]
        if rank == 0:
            Path(folder, "rounded.json").write_text(json.dumps(rounded))
    finally:
        torch.distributed.destroy_process_group()


def test_two_workers_and_one_have_the_same_losses(crops, tmp_path: Path):
    """20 global batches with synchronised batch norm; also where one of two workers requests a stop at step 7 and both are resumed.

    With gradients that are rounded to bfloat16 for their exchange, losses differ no more than those of one worker and two.

    The learning rate is low because so small a network on 16 examples is chaotic at a higher one: a change of its weights by one
    part in 10⁷ is then found again in the third digit of the loss ten steps later.
    """
    one = _twenty_steps(crops, 0, 1, Seen())
    run_ranks(_two_ranks, (crops.table, str(tmp_path)), 2)
    two, stopped, resumed = json.loads((tmp_path / "found.json").read_text()).values()
    assert len(one["losses"]) == len(two["losses"]) == 20
    assert two["losses"] == pytest.approx(one["losses"], abs=2e-3)
    assert two["losses"][:6] == pytest.approx(one["losses"][:6], abs=2e-5)
    assert two["dev"] == pytest.approx(one["dev"], abs=0.02)
    assert two["outcome"] == pytest.approx(one["outcome"], abs=0.02)
    assert one["losses"][-1] < one["losses"][0]
    assert stopped["outcome"] is None and len(stopped["losses"]) == 7
    assert stopped["losses"] + resumed["losses"] == pytest.approx(two["losses"], abs=1e-5)
    rounded = json.loads((tmp_path / "rounded.json").read_text())
    assert len(rounded) == 20 and rounded != two["losses"]
    assert rounded == pytest.approx(two["losses"], abs=2e-3)


CASES = {"whole": (True, None), "in pieces of one": (False, 1), "batch norm in pieces": (True, 2)}


def _case(crops: Examples, name: str, rank: int = 0, workers: int = 1) -> dict:
    norm, micro = CASES[name]
    torch.manual_seed(0)
    model = Small()
    if not norm:
        del model.layers[1]
    seen = Seen()
    settings = stage(micro_batch=micro, max_steps=12, bn_batches=2)
    trainer = Trainer(model, settings, loader(crops, rank, workers), seed=0, dev=DevSet(crops, rank, workers, 16))
    outcome = trainer.fit(report=seen)
    return {"losses": seen.losses, "dev": outcome.dev_mean_iou, "state": model.state_dict()}


def _unequal(rank: int, workers: int, table: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    try:
        found = {name: _case(open_examples(table, SIZE), name, rank, workers) for name in CASES}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_unequal_shares_learn_what_one_worker_learns(crops, tmp_path: Path):
    """Batches of 8 on 3 workers (2, 3 and 3 examples), also in micro-batches, where batch norm makes only the workers agree with each other."""
    run_ranks(_unequal, (3, crops.table, str(tmp_path)), 3)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3)]
    for name, (norm, micro) in CASES.items():
        one = _case(crops, name)
        assert len(ranks[0][name]["losses"]) == 12
        if not (norm and micro):
            assert ranks[0][name]["losses"] == pytest.approx(one["losses"], abs=1e-5)
            assert ranks[0][name]["dev"] == pytest.approx(one["dev"], abs=0.01)
        for rank in ranks:
            assert rank[name]["losses"] == ranks[0][name]["losses"]
            for key, value in rank[name]["state"].items():
                if not (norm and micro):
                    assert torch.allclose(value, one["state"][key], atol=1e-4), (name, key)
                assert torch.allclose(value, ranks[0][name]["state"][key], atol=1e-6), (name, key)
