"""Training in one process without Ray: the loop's own losses, and runs that are stopped and resumed."""

import errno
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deconvnet.models import checkpoint
from deconvnet.models.factory import build_network
from deconvnet.settings import ComputeSettings, ModelSettings, StageSettings
from deconvnet.training import local_trainer
from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.data.examples import open_examples
from deconvnet.training.interfaces import State
from deconvnet.training.job import TrainingJob
from deconvnet.training.local_trainer import LocalCheckpoints, train_locally
from deconvnet.training.trainer import Trainer
from infra.errors import Interrupted, UserError
from infra.storage import tables
from tests.conftest import ROOT
from tests.deconvnet.training_tables import SIZE, examples_table, images_table

MODEL = ModelSettings(width=0.05, input_size=SIZE, fcn_input_size=64, fcn_batch_norm=True)


def job(folder: Path, run: str = "run", **changes: Any) -> TrainingJob:
    values = {"batch": 16, "max_steps": 7, "lr": 0.001, "log_every": 1, "schedule": "constant", "bn_batches": 2}
    options: dict[str, Any] = {
        "stage": "stage1",
        "model": MODEL,
        "settings": StageSettings(**{**values, **changes.pop("settings", {})}),
        "compute": ComputeSettings(threads=1, bf16=False),
        "examples_uri": f"{folder}/examples",
        "dev_uri": f"{folder}/examples",
        "classes": ("background", "red", "green"),
        "checkpoints_uri": f"{folder}/runs",
        "run_name": run,
        "out_uri": f"{folder}/models/{run}",
    }
    return TrainingJob(**{**options, **changes})


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return checkpoint.load_model(f"{folder}/models/{run}")[0].state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("training")
    examples_table(f"{made}/examples", 60)
    return made


def test_losses_and_weights_are_those_of_the_loop_fed_directly(folder: Path, caplog: pytest.LogCaptureFixture):
    """The log ends with what a step took."""
    caplog.set_level(logging.INFO, "deconvnet")
    reports: list[dict[str, float]] = []
    found = train_locally(job(folder), device="cpu", on_report=reports.append)
    assert re.search(r"a step: .*forward and backward [\d.]+", caplog.messages[-1])
    assert all("time.optimiser_s" in metrics for metrics in reports if "loss" in metrics)
    assert sum(found["step_seconds"].values()) > 0
    assert "step_seconds" not in checkpoint.load_model(f"{folder}/models/run")[1]["extra"]

    examples = open_examples(f"{folder}/examples", SIZE)
    torch.manual_seed(0)
    model = build_network(job(folder).architecture, MODEL, 3)
    direct: list[float] = []
    trainer = Trainer(model, job(folder).settings, BatchLoader(BatchPlan.of(examples, 16, 1, 0)), seed=0, dev=DevSet(examples))
    outcome = trainer.fit(report=lambda metrics, state: direct.append(metrics["loss"]) if "loss" in metrics else None)
    assert [metrics["loss"] for metrics in reports if "loss" in metrics] == direct
    assert (found["steps"], found["dev_mean_iou"]) == (outcome.steps, outcome.dev_mean_iou)
    saved = weights(folder, "run")
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_a_stopped_and_resumed_run_has_the_weights_of_an_undisturbed_one(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local_trainer, "CHEAP_SECONDS", float("inf"))  # on a busy machine, saving may take more than a second
    train_locally(job(folder, "whole"), device="cpu")
    steps: list[float] = []
    with pytest.raises(Interrupted, match="stage1 was interrupted and has left a checkpoint"):
        train_locally(
            job(folder, "stopped"),
            device="cpu",
            on_report=lambda metrics: steps.append(metrics["step"]),
            should_stop=lambda: len(steps) >= 3,
        )
    assert steps == [1, 2, 3, 3]
    (kept,) = (folder / "runs" / "stopped").iterdir()
    assert kept.name == "step_000000003"
    (folder / "runs" / "stopped" / "step_000000006").mkdir()  # a killed run left it half written
    (folder / "runs" / "stopped" / "step_000000006" / "state.json").write_text('{"step": 6, "form')
    resumed: list[float] = []
    train_locally(job(folder, "stopped"), device="cpu", on_report=lambda metrics: resumed.append(metrics["step"]))
    assert resumed[0] == 4
    whole, stopped = weights(folder, "whole"), weights(folder, "stopped")
    assert all(torch.equal(whole[name], value) for name, value in stopped.items())
    assert [path.name for path in (folder / "runs" / "stopped").iterdir()] == ["step_000000007"]


def test_a_training_whose_stage_was_not_completed_repeats_no_step(folder: Path):
    """As where MLflow can't be reached at the end of the stage."""
    train_locally(job(folder, "ended"), device="cpu")
    assert [path.name for path in (folder / "runs" / "ended").iterdir()] == ["step_000000007"]
    before = weights(folder, "ended")
    shutil.rmtree(folder / "models" / "ended")
    again: list[dict[str, float]] = []
    assert train_locally(job(folder, "ended"), device="cpu", on_report=again.append)["steps"] == 7
    assert [sorted(metrics) for metrics in again] == [["epoch", "final_dev_mean_iou", "step"]]
    assert all(torch.equal(before[name], value) for name, value in weights(folder, "ended").items())


def test_checkpoints_take_a_twentieth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now, taken = [100.0], [2.0]
    monkeypatch.setattr(local_trainer.time, "monotonic", lambda: now[0])

    def save_state(*_: object) -> None:
        now[0] += taken[0]

    monkeypatch.setattr(local_trainer.checkpoint, "save_state", save_state)
    checkpoints = LocalCheckpoints(str(tmp_path))
    assert checkpoints.may_save()
    checkpoints.save(State({}, {"step": 1}))
    now[0] += 39
    assert not checkpoints.may_save()
    now[0] += 1
    assert checkpoints.may_save()
    taken[0] = 0.5
    checkpoints.save(State({}, {"step": 2}))
    assert checkpoints.may_save()


def test_the_last_checkpoint_is_saved_even_if_it_does_not_pay(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LocalCheckpoints, "may_save", lambda self: False)
    steps: list[float] = []
    with pytest.raises(Interrupted):
        train_locally(
            job(folder, "late"),
            device="cpu",
            on_report=lambda metrics: steps.append(metrics["step"]),
            should_stop=lambda: len(steps) >= 3,
        )
    assert [path.name for path in (folder / "runs" / "late").iterdir()] == ["step_000000003"]


def test_the_newest_complete_checkpoint_is_found_whoever_wrote_it(tmp_path: Path):
    checkpoints = LocalCheckpoints(str(tmp_path))
    assert checkpoints.newest() is None
    for name, step in (("checkpoint_2026", 5), ("step_000000004", 4), ("step_000000006", 6)):
        checkpoint.save_state(f"{tmp_path}/{name}", {"x": torch.full((2,), float(step))}, {"step": step})
    assert checkpoints.newest().values["step"] == 6
    (tmp_path / "step_000000006" / "state.safetensors").write_bytes(b"cut short")
    assert checkpoints.newest().values["step"] == 5
    checkpoints.save(State({"x": torch.zeros(2)}, {"step": 7}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_2026", "step_000000007"]


def test_a_run_that_lost_its_lock_leaves_the_newer_checkpoints_of_the_one_that_took_over(tmp_path: Path):
    suspended, other = (LocalCheckpoints(str(tmp_path)) for _ in range(2))
    for checkpoints, step in ((suspended, 3), (other, 12), (suspended, 4)):
        checkpoints.save(State({"x": torch.full((2,), float(step))}, {"step": step}))
    assert other.newest().values["step"] == 12
    other.save(State({"x": torch.zeros(2)}, {"step": 13}))
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000013"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = LocalCheckpoints(str(tmp_path))
    checkpoints.save(State({"x": torch.zeros(2)}, {"step": 1}))

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_state", no_space)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(State({"x": torch.zeros(2)}, {"step": 2}))
    assert checkpoints.newest().values["step"] == 1


def test_a_checkpoint_that_is_due_but_does_not_pay_yet_causes_no_reports(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Else every step would be reported until it pays. Epochs have 5 steps."""
    monkeypatch.setattr(local_trainer, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(LocalCheckpoints, "may_save", lambda self: False)
    steps: list[float] = []
    slow = job(folder, "slow", settings={"log_every": 100})
    train_locally(slow, device="cpu", on_report=lambda metrics: steps.append(metrics["step"]))
    assert steps == [5, 7, 7]
    assert not (folder / "runs" / "slow").exists()


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [1, 2, 3, 3]), (1e9, [3, 3])])
def test_a_checkpoint_is_due_when_enough_time_has_passed(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds, expected):
    """Each is reported, and so is the end of the training, twice: with the last checkpoint, and with the final mean IoU."""
    monkeypatch.setattr(local_trainer, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(LocalCheckpoints, "may_save", lambda self: True)
    steps: list[float] = []
    timed = job(folder, f"timed{seconds}", settings={"log_every": 100, "checkpoint_every": 100, "max_steps": 3})
    train_locally(timed, device="cpu", on_report=lambda metrics: steps.append(metrics["step"]))
    assert steps == expected


@pytest.mark.parametrize(("chosen", "expected", "device"), [(None, 3, "cpu"), (2, 2, "cuda")])
def test_torch_and_the_loader_use_the_threads_of_the_settings_or_all_cpus(
    folder: Path, monkeypatch: pytest.MonkeyPatch, chosen, expected, device
):
    """Beside a GPU, the loader's threads are in a process of its own."""
    monkeypatch.setattr(local_trainer, "available_cpus", lambda: 3)
    seen: list[int] = []

    def run_job(job: TrainingJob, loader: BatchLoader, dev: DevSet, *_: Any, **__: Any) -> None:
        seen.extend([torch.get_num_threads(), loader.threads, dev.threads, loader.own_process])
        raise InterruptedError

    monkeypatch.setattr(local_trainer, "run_job", run_job)
    with pytest.raises(InterruptedError):
        train_locally(job(folder, "threads", compute=ComputeSettings(threads=chosen)), device=device)
    assert seen == [*[expected] * 3, device == "cuda"]


def test_training_without_dev_examples_says_what_they_would_have_decided(folder: Path, tmp_path: Path, caplog):
    tables.commit(f"{tmp_path}/none", "f", [])
    with caplog.at_level(logging.INFO):
        assert job(folder, dev_uri=f"{tmp_path}/none").dev_examples() is None
    assert "none has no dev examples" in caplog.text and "plateau never reduces the learning rate" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert job(folder).dev_examples() and job(folder, dev_uri=None).dev_examples() is None
    assert not caplog.text


def test_fcn8s_trains_on_whole_images(tmp_path: Path):
    table = images_table(f"{tmp_path}/images", 12)
    fcn8s = job(tmp_path, stage="fcn8s", examples_uri=table, dev_uri=table, settings={"batch": 4, "max_steps": 2})
    assert train_locally(fcn8s, device="cpu")["steps"] == 2
    assert checkpoint.load_model(f"{tmp_path}/models/run")[0].architecture == "fcn8s"


def test_a_batch_that_can_t_be_divided_and_a_diverging_loss_are_user_errors(folder: Path):
    with pytest.raises(UserError, match=r"train\.stage1\.micro_batch 17 is more"):
        train_locally(job(folder, settings={"micro_batch": 17}), device="cpu")
    with pytest.raises(UserError, match=r"train\.stage1\.micro_batch 1 with .* one example at once"):
        train_locally(job(folder, settings={"micro_batch": 1}), device="cpu")
    with pytest.raises(UserError, match=r"stage1: the loss is .*lower lr"):
        train_locally(job(folder, "wild", settings={"lr": 1e30}), device="cpu")


def test_no_ray_or_mlflow_or_boto3_is_imported():
    code = (
        "import sys, deconvnet.training.local_trainer; found = [m for m in ('ray', 'mlflow', 'boto3') if m in sys.modules]; "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
