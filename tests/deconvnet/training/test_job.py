"""What a training is given, what it reports, and what it does not take for granted."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deconvnet.models import checkpoint
from deconvnet.models.factory import build_network
from deconvnet.models.network import Network
from deconvnet.settings import ComputeSettings, ModelSettings, StageSettings
from deconvnet.training import job as job_module
from deconvnet.training.data import dev_set
from deconvnet.training.data.dataloader import BatchLoader
from deconvnet.training.job import TrainingJob, progress_line
from infra.errors import UserError
from infra.storage import tables
from tests.deconvnet.training_tables import SIZE, images_table
from tests.processes import run_ranks


def test_a_progress_line_shows_every_metric_it_was_given():
    metrics = {"step": 1200, "epoch": 1.5, "loss": 0.51234, "lr": 0.001, "pixel_accuracy": 0.853, "samples_per_s": 61.23}
    line = progress_line({**metrics, "dev_mean_iou": 0.4}, 2400)
    assert line == (
        "step 1,200/2,400, epoch 1.50, loss 0.5123, pixel accuracy 85.3%, lr 0.001, 61.2 examples/s, dev mean IoU 0.4000"
    )


def job(folder: str, dev: str | None) -> TrainingJob:
    model = ModelSettings(width=0.05, input_size=SIZE, fcn_input_size=64)
    uris = {"checkpoints_uri": f"{folder}/runs", "run_name": "run", "out_uri": f"{folder}/out"}
    return TrainingJob("fcn8s", model, StageSettings(), ComputeSettings(), folder, dev, ("background", "red", "green"), **uris)


def test_a_training_without_dev_examples_has_none(tmp_path: Path):
    folder = images_table(str(tmp_path / "images"), 8)
    assert job(folder, folder).dev_examples() is not None and job(folder, None).dev_examples() is None
    few = images_table(str(tmp_path / "few"), 8)
    made = tables.require_commit(few)
    for part in made.parts:
        for group in part.row_groups:
            group.splits.pop("dev", None)
    tables.commit(few, made.fingerprint, made.parts)
    assert job(few, few).dev_examples() is None


def test_dev_examples_that_are_not_used_are_counted_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    folder = images_table(str(tmp_path / "images"), 20)
    caplog.set_level(logging.INFO, "deconvnet")
    assert job(folder, folder).dev_examples() is not None and not caplog.messages
    groups = tables.require_commit(folder).parts[0].row_groups
    monkeypatch.setattr(dev_set, "DEV_BYTES", 3.5 * sum(group.nbytes for group in groups) / 20)
    assert job(folder, folder).dev_examples() is not None
    assert caplog.messages == ["  the mean IoU is measured on 3 of 5 dev examples, spread evenly over the table"]


@pytest.mark.parametrize(
    ("init", "model", "warned"),
    [
        (None, {}, True),
        (None, {"fcn_batch_norm": True}, False),
        (None, {"vgg16": "vgg16.npz"}, False),
        ("models/fcn8s", {}, False),
    ],
)
def test_fcn8s_without_batch_norm_from_random_weights_gives_a_warning(init, model, warned, caplog):
    this = replace(job("folder", None), init=init)
    replace(this, model=this.model.model_copy(update=model)).check(1)
    assert ["set model.fcn_batch_norm to true" in message for message in caplog.messages] == [True] * warned


@pytest.mark.parametrize(
    "error", [UserError("credentials are wrong"), UserError("was rewritten by another run"), OSError(5, "I/O")]
)
def test_a_table_of_dev_examples_that_cant_be_read_is_no_empty_one(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(job_module, "open_examples", fail)
    with pytest.raises(type(error), match=str(error.args[-1])):
        job(str(tmp_path), str(tmp_path)).dev_examples()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("chosen", "bf16", "rounded"),
    [
        ({}, True, False),
        ({"bf16": False, "allreduce_dtype": "float32"}, False, False),
        ({"allreduce_dtype": "bfloat16"}, True, True),
    ],
)
def test_the_trainer_computes_and_exchanges_in_the_formats_of_the_settings(
    chosen: dict[str, Any], bf16: bool, rounded: bool, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In bfloat16 only on a device that is fast at it. For the time of the training, cuDNN chooses the fastest algorithms."""
    made: list[tuple[bool, bool]] = []

    def trainer(*_: Any, bf16: bool, bf16_allreduce: bool, **__: Any) -> Any:
        made.append((bf16, bf16_allreduce))
        return SimpleNamespace(fit=fit)

    def fit(**_: Any) -> None:
        assert torch.backends.cudnn.benchmark
        raise InterruptedError

    monkeypatch.setattr(job_module, "Trainer", trainer)
    monkeypatch.setattr(job_module, "build_network", lambda *_: None)
    monkeypatch.setattr(job_module, "initialise", lambda *_: None)
    monkeypatch.setattr(job_module, "fast_bf16", lambda device: fast)
    this = replace(job(str(tmp_path), None), compute=ComputeSettings(**chosen))
    with pytest.raises(InterruptedError):
        job_module.run_job(this, None, None, torch.device("cpu"), state=None, report=print, should_stop=bool)
    assert made == [(bf16 and fast, rounded)] and not torch.backends.cudnn.benchmark


def test_weights_dropout_and_the_order_of_examples_are_those_of_the_job_s_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: dict[str, Any] = {}

    def trainer(model: Network, *_: Any, seed: int, **__: Any) -> None:
        made.update(weight=next(model.parameters()), seed=seed)
        raise InterruptedError

    monkeypatch.setattr(job_module, "Trainer", trainer)
    this = replace(job(images_table(str(tmp_path / "images"), 8), None), seed=5)
    torch.manual_seed(1)  # what was drawn before must not matter
    with pytest.raises(InterruptedError):
        job_module.run_job(this, None, None, torch.device("cpu"), state=None, report=print, should_stop=bool)
    assert made["seed"] == this.batch_plan(1).order.seed == 5
    torch.manual_seed(5)
    assert torch.equal(made["weight"], next(build_network(this.architecture, this.model, 3).parameters()))


def _train_from(rank: int, this: TrainingJob, folder: str) -> None:
    """One of two ranks, which trains for a step and writes its weights. Only rank 0 has the folder of the initial weights."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    made: list[Network] = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job_module, "build_network", lambda *given: made.append(build_network(*given)) or made[0])
            here = replace(this, init=this.init if rank == 0 else f"{folder}/not-there")
            batches = BatchLoader(here.batch_plan(2), rank, 1)
            options = {"state": None, "report": lambda *_: None, "should_stop": lambda: False}
            job_module.run_job(here, batches, None, torch.device("cpu"), **options)
        torch.save(made[0].state_dict(), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.xdist_group("ranks")
def test_rank_0_alone_reads_the_initial_weights_and_the_others_get_them_from_it(tmp_path: Path):
    settings = StageSettings(batch=4, max_steps=1, lr=1e-9, schedule="constant", bn_batches=0)
    folder = images_table(str(tmp_path / "images"), 8)
    this = replace(job(folder, None), settings=settings, init=f"{tmp_path}/init", out_uri=f"{tmp_path}/out", seed=1)
    torch.manual_seed(2)  # not what the ranks draw
    first = build_network(this.architecture, this.model, 3)
    checkpoint.save_model(first, f"{tmp_path}/init", this.classes)
    run_ranks(_train_from, (this, str(tmp_path)), 2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in first.state_dict().items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=f"{name} of rank {rank}")
