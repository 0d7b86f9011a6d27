"""The training loop in one process: it learns, a resumed run equals an undisturbed one, other checkpoints are refused."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deconvnet.models import checkpoint
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.training import trainer as trainer_module
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.data.sampler import ORDER_VERSION
from deconvnet.training.interfaces import State
from deconvnet.training.trainer import Diverged, Trainer
from infra.errors import Interrupted, UserError
from tests.deconvnet.training_runs import Seen, loader, run, stage
from tests.deconvnet.training_tables import Small


def test_the_loss_falls_and_the_dev_score_rises(crops):
    seen = Seen()
    _, outcome = run(crops, seen, epochs=6, schedule="plateau")
    assert outcome.steps == 66
    assert outcome.epochs == 6
    assert seen.losses[-1] < 0.4 * seen.losses[0]
    assert outcome.dev_mean_iou > 0.6
    assert outcome.best_dev_mean_iou == max(m["dev_mean_iou"] for m in seen.metrics if "dev_mean_iou" in m)


def test_the_loss_is_the_mean_over_the_batch_s_non_void_pixels_and_the_accuracy_the_share_of_them_that_is_correct(crops):
    seen = Seen()
    run(crops, seen, max_steps=1)
    torch.manual_seed(0)
    model = Small()
    images, labels = (torch.from_numpy(a) for a in next(loader(crops).batches(0, 1)))
    scores = model(model.prepare(images))
    expected = F.cross_entropy(scores, labels.long(), ignore_index=255)
    assert (labels == 255).any()
    assert seen.losses[0] == pytest.approx(expected.item(), rel=1e-6)
    correct = (scores.argmax(1) == labels).sum() / (labels != 255).sum()
    assert seen.metrics[0]["pixel_accuracy"] == pytest.approx(correct.item(), abs=1e-3)


def test_a_report_has_the_mean_loss_of_its_steps_and_the_accuracy_and_learning_rate_of_the_last_of_them(crops):
    each, third = Seen(), Seen()
    run(crops, each, max_steps=6, schedule="poly")
    run(crops, third, max_steps=6, schedule="poly", log_every=3, checkpoint_every=100)
    rates, found = ([m["lr"] for m in seen.metrics if "loss" in m] for seen in (each, third))
    assert rates == pytest.approx([0.05 * (1 - step / 6) ** 0.9 for step in range(6)]) and found == rates[2::3]
    assert third.losses == pytest.approx([np.mean(each.losses[:3]), np.mean(each.losses[3:])])
    accuracies, found = ([m["pixel_accuracy"] for m in seen.metrics if "loss" in m] for seen in (each, third))
    assert len(set(accuracies)) == 6 and found == pytest.approx(accuracies[2::3])


def test_training_evaluation_and_statistics_are_computed_in_bfloat16_only_if_it_is_set(crops):
    for bf16 in (False, True):
        model, seen = Small(), set()
        model.register_forward_pre_hook(
            lambda module, _, seen=seen: seen.add(
                (module.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
            )
        )
        dev = DevSet(crops, limit=8)
        trainer = Trainer(model, stage(max_steps=1, bn_batches=1), loader(crops), seed=0, dev=dev, bf16=bf16)
        trainer.fit()
        # a step, the statistics of batch norm (of which the network is not in training mode), and the evaluation
        assert seen == {(training, grad, bf16, torch.bfloat16) for training, grad in ((True, True), (False, False))}
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


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


def test_micro_batches_add_up_to_the_batch_and_gradients_are_exchanged_in_the_last_of_them(crops, monkeypatch):
    """In a network without batch norm, whose statistics are those of a micro-batch."""
    losses, exchanged = [], []
    monkeypatch.setattr(trainer_module, "gradient_sync", lambda _, sync: exchanged.append(sync) or nullcontext())
    for micro in (None, 4, 1):
        torch.manual_seed(0)
        model = Small()
        del model.layers[1]
        seen = Seen()
        Trainer(model, stage(micro_batch=micro, max_steps=6), loader(crops), seed=0).fit(report=seen)
        losses.append(seen.losses)
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[2] == pytest.approx(losses[0], abs=1e-6)
    assert exchanged == [*[True] * 6, *[False, True] * 6, *[*[False] * 7, True] * 6]


RESUMED = {"dropout": 0.3, "schedule": "plateau", "patience": 1, "checkpoint_every": 1000, "bn_batches": 3}


@pytest.fixture(scope="module")
def undisturbed(crops) -> tuple[Seen, Small]:
    """What a whole training with the options `RESUMED` has reported, and its network."""
    whole = Seen()
    return whole, run(crops, whole, **RESUMED)[0]


@pytest.mark.parametrize("stop_at", [3, 11, 16])
def test_a_resumed_run_equals_an_undisturbed_one(crops, undisturbed, stop_at, tmp_path: Path):
    """Also within an epoch, from files, with dropout, momentum and schedule."""
    whole, expected = undisturbed
    first, second = Seen(stop_at), Seen()
    with pytest.raises(Interrupted):
        run(crops, first, **RESUMED)
    assert first.metrics[-1]["step"] == stop_at
    checkpoint.save_state(str(tmp_path), first.states[-1].tensors, first.states[-1].values)
    found, outcome = run(crops, second, state=State(*checkpoint.load_state(str(tmp_path))), **RESUMED)
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


@pytest.mark.parametrize(("micro", "pieces"), [(None, [(0, 8)]), (3, [(0, 2), (2, 5), (5, 8)])])
def test_batch_norm_statistics_are_recomputed_at_the_end(crops, micro, pieces):
    """From as many examples at once as in training."""
    (stale, _), (fresh, outcome) = (
        run(crops, Seen(), max_steps=3, lr=1e-6, micro_batch=micro),
        run(crops, Seen(), max_steps=3, lr=1e-6, micro_batch=micro, bn_batches=4),
    )
    images = [batch[0][start:end] for batch in loader(crops).batches(22, 26) for start, end in pieces]
    outputs = [fresh.layers[0](fresh.prepare(torch.from_numpy(x))) for x in images]
    expected = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    assert torch.allclose(fresh.layers[1].running_mean, expected, atol=1e-4)
    variance = torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0)
    torch.testing.assert_close(fresh.layers[1].running_var, variance, rtol=1e-4, atol=1e-6)
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


def test_a_checkpoint_is_due_after_a_step_where_the_caller_requests_it(crops):
    seen, steps = Seen(), iter(range(100))
    trainer = Trainer(Small(), stage(max_steps=4, log_every=100), loader(crops), seed=0)
    trainer.fit(report=seen, should_save=lambda: next(steps) == 1)
    assert [state.values["step"] for state in seen.states] == [2, 4]
