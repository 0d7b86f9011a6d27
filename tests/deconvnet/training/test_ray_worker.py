"""What a worker of a training on Ray does: it saves checkpoints beside the training, and in time before a node is taken away."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.train
import torch

from deconvnet.models import checkpoint
from deconvnet.settings import ComputeSettings
from deconvnet.training import ray_worker
from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.data.examples import Examples
from deconvnet.training.interfaces import State, TrainingResult
from deconvnet.training.job import TrainingJob
from deconvnet.training.ray_worker import PreemptionPolicy, RayCheckpoints, train_worker
from deconvnet.training.trainer import Diverged
from infra.errors import Interrupted, UserError
from infra.runtime.ray_compat import PREEMPTION_SECONDS
from tests.deconvnet.ray_trainings import job

MODES = ray.train.CheckpointUploadMode


class TakenAway(Exception):
    """Ray has restarted the training."""


class Training:
    """A training in simulated time, until Ray restarts it. It notices a step's or a checkpoint's end only if that is in time."""

    def __init__(self, step: float, saving: float, notice: float, ends: float, deadline: float, validation: float = 0.0) -> None:
        self.now, self.ends, self.notice = 0.0, ends, notice
        self.steps = self.saved = self.checkpoints = 0
        self.told: list[float] = []
        preemption = PreemptionPolicy(
            lambda: deadline if self.now >= notice else None,
            self.told.append,
            lambda: self.now,
            lambda seconds: self.work(seconds),
        )
        try:
            while self.now < 10_000:
                save = preemption.should_save()
                self.work(step + (validation if self.steps == 7 else 0))
                self.steps += 1
                if save:
                    self.work(saving)
                    self.saved, self.checkpoints = self.steps, self.checkpoints + 1
                    preemption.on_saved(saving)
        except TakenAway:
            pass

    def work(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.ends:
            raise TakenAway


@pytest.mark.parametrize(
    ("step", "saving", "notice", "checkpoints"),
    [
        (0.4, 10.0, 30.0, 1),  # after the first checkpoint there is no time for another one
        (0.4, 5.0, 30.0, 2),
        (0.1, 0.05, 30.0, 2),
        (5.0, 10.0, 120.0, 2),
        (5.0, 1.0, 30.0, 2),
        (1.0, 8.0, 10.0, 1),
    ],
)
@pytest.mark.parametrize("begun", [20.0, 20.03, 20.3])
def test_a_node_that_is_taken_away_after_its_notice_costs_no_step(
    step: float, saving: float, notice: float, checkpoints: int, begun: float
):
    found = Training(step, saving, begun, begun + notice, begun + notice)
    assert found.saved == found.steps > 0
    assert found.checkpoints == checkpoints
    assert len(found.told) == 1 and notice - 2 * step - saving <= found.told[0] <= notice


def test_a_slow_validation_does_not_make_the_training_wait_for_long():
    found = Training(1.0, 1.0, 12.0, 132.0, 132.0, validation=40.0)
    assert found.saved == found.steps and found.checkpoints == 2
    assert found.steps > 80


def test_a_node_that_is_gone_before_its_time_costs_the_steps_since_the_notice():
    found = Training(1.0, 1.0, 20.0, 40.0, 50.0)
    assert found.checkpoints == 1 and found.saved == 21 and found.steps == 38


def test_without_a_deadline_ray_s_own_is_taken():
    found = Training(1.0, 1.0, 20.0, 20.0 + PREEMPTION_SECONDS, math.inf)
    assert found.saved == found.steps and found.checkpoints == 2
    assert found.steps > PREEMPTION_SECONDS


def test_without_a_notice_nothing_is_saved_and_after_a_deadline_that_passed_training_goes_on():
    assert Training(1.0, 1.0, 1e9, 100.0, 1e9).checkpoints == 0
    found = Training(1.0, 1.0, 20.0, 500.0, 50.0)
    assert found.checkpoints == 2 and found.steps > 470 - 10


class Reports:
    """Stands for Ray Train's reports: what it is told, and a thread that writes checkpoints when `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.modes: list[Any] = []
        self.go = threading.Event()
        self.written: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []
        where = SimpleNamespace(build_checkpoint_path_from_name=lambda name: f"{folder}/{name}", storage_filesystem=None)
        monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: where))
        monkeypatch.setattr(ray.train, "report", self)

    def __call__(
        self,
        metrics: dict[str, float],
        checkpoint: Any = None,
        checkpoint_upload_mode: Any = MODES.SYNC,
        checkpoint_upload_fn: Callable[..., Any] | None = None,
        delete_local_checkpoint_after_upload: bool = False,
    ) -> None:
        self.modes.append(checkpoint_upload_mode)
        if checkpoint_upload_fn is None:
            return
        assert delete_local_checkpoint_after_upload and not list(Path(checkpoint.path).iterdir())
        name = f"checkpoint_{metrics['step']:.0f}"

        def write() -> None:
            try:
                self.written.append(checkpoint_upload_fn(checkpoint, name))
            except UserError as error:
                self.errors.append(error)

        if checkpoint_upload_mode == MODES.SYNC:
            write()
        else:
            self.threads.append(threading.Thread(target=lambda: [self.go.wait(), write()]))
            self.threads[-1].start()

    def finish(self) -> None:
        self.go.set()
        for thread in self.threads:
            thread.join()


def state(step: int) -> State:
    return State({"model.w": torch.full((2, 3), float(step))}, {"step": step})


def no_notice() -> PreemptionPolicy:
    return PreemptionPolicy(lambda: None, lambda seconds: None)


def test_training_goes_on_while_a_copy_of_the_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reports = Reports(monkeypatch, tmp_path)
    checkpoints = RayCheckpoints(str(tmp_path), no_notice())
    checkpoints.report({"step": 1}, None)
    saved = state(2)
    checkpoints.report({"step": 2}, saved)
    saved.tensors["model.w"].zero_()  # the next step
    checkpoints.report({"step": 3}, None)
    assert not list(tmp_path.rglob("*.safetensors"))
    reports.finish()
    checkpoints.report({"step": 4}, None)
    assert reports.modes == [MODES.SYNC, MODES.ASYNC, MODES.ASYNC, MODES.SYNC]
    tensors, values = checkpoint.load_state(f"{tmp_path}/checkpoint_2")
    assert values["step"] == 2 and torch.equal(tensors["model.w"], torch.full((2, 3), 2.0))
    assert [each.path for each in reports.written] == [f"{tmp_path}/checkpoint_2"]


def test_a_second_checkpoint_waits_until_the_first_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So that memory never holds more than one copy; also if the first could not be written."""
    reports = Reports(monkeypatch, tmp_path)
    checkpoints = RayCheckpoints(str(tmp_path), no_notice())
    (tmp_path / "checkpoint_1").write_text("a file where a folder must be")
    checkpoints.report({"step": 1}, state(1))
    second = threading.Thread(target=lambda: checkpoints.report({"step": 2}, state(2)))
    second.start()
    assert len(reports.modes) == 1 and second.is_alive()
    reports.go.set()
    second.join()
    reports.finish()
    assert len(reports.errors) == 1 and [each.path for each in reports.written] == [f"{tmp_path}/checkpoint_2"]


def test_after_a_notice_training_waits_until_the_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reports = Reports(monkeypatch, tmp_path)
    told: list[float] = []
    checkpoints = RayCheckpoints(str(tmp_path), PreemptionPolicy(lambda: 1060.0, told.append, lambda: 1000.0))
    checkpoints.report({"step": 5}, state(5))
    assert reports.modes == [MODES.SYNC] and told == [60.0]
    assert checkpoint.newest_state(str(tmp_path))[1]["step"] == 5


class Worker:
    """A worker of the given rank, one of two where four were planned. `run_job` notes what it is given, and `ends` says how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, device: str = "cpu") -> None:
        self.given: dict[str, Any] = {}
        self.threads: list[int] = []
        self.sent: list[Any] = []
        self.reported: list[Any] = []
        self.ends: Callable[[], TrainingResult] = lambda: TrainingResult(7, 1.0, 0.5, 0.5, {})
        monkeypatch.setattr(ray_worker, "rank_and_world_size", lambda: (rank, 2))
        monkeypatch.setattr(ray_worker, "broadcast_state", self.broadcast)
        monkeypatch.setattr(ray_worker, "run_job", self.run_job)
        monkeypatch.setattr(ray_worker, "_quieten_ray", lambda: None)
        monkeypatch.setattr(ray_worker, "StopFlag", lambda queue: lambda: True)
        monkeypatch.setattr(ray_worker, "preemption_deadline", lambda: 1e12)
        monkeypatch.setattr(torch, "set_num_threads", self.threads.append)
        monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device(device))
        monkeypatch.setattr(ray.train, "report", lambda metrics, **options: self.reported.append((metrics, options)))

    def broadcast(self, state: State | None) -> State | None:
        self.sent.append(state)
        return state

    def run_job(
        self, job: TrainingJob, loader: BatchLoader, dev: DevSet | None, device: torch.device, **options: Any
    ) -> TrainingResult:
        self.given = {"job": job, "loader": loader, "dev": dev, "device": device} | options
        return self.ends()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_takes_its_share_and_only_the_first_reads_and_writes_checkpoints(
    rank: int, crops: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of fewer workers than were planned. Every worker reports, as Ray waits for all."""
    worker, plan = Worker(monkeypatch, rank), BatchPlan.of(crops, 8, 4, 0)
    this = job(tmp_path, compute=ComputeSettings(threads=5, cpus_per_worker=3))
    checkpoint.save_state(f"{this.run_uri}/checkpoint_1", {"model.w": torch.ones(2)}, {"step": 4})
    told: list[dict[str, float]] = []
    queue = SimpleNamespace(put=SimpleNamespace(remote=told.append))
    assert train_worker({"job": this, "plan": plan, "dev": crops, "queue": queue})["steps"] == 7
    given = worker.given
    assert (given["loader"].plan.workers, given["loader"].rank, given["loader"].own_process) == (2, rank, False)
    assert worker.threads == [5] and given["loader"].threads == 2
    assert [batch.shape for batch in next(given["loader"].batches(0, 1))] == [(4, 3, 32, 32), (4, 32, 32)]
    found, share = (next(each.batches(30)) for each in (given["dev"], DevSet(crops, rank, 2)))
    assert len(given["dev"]) == 30 and all(map(np.array_equal, found, share)) and given["job"] is this
    first = rank == 0
    assert [state and state.values["step"] for state in worker.sent] == [4 if first else None]
    assert given["should_stop"]() == given["should_save"]() == first
    assert (getattr(given["report"], "__func__", None) is RayCheckpoints.report) == first
    given["report"]({"step": 5}, None)
    assert [metrics for metrics, _ in worker.reported] == [{"step": 5}]
    if first:
        given["report"].__self__._preemption.on_saved(0.0)
    assert [[*message] for message in told] == [["leaving"]] * first, "the driver logs that a node will be preempted"


@pytest.mark.parametrize(
    ("error", "expected"), [(Interrupted("at step 7"), {"interrupted": "at step 7"}), (Diverged("nan"), {"diverged": "nan"})]
)
def test_a_worker_returns_why_it_stopped_as_an_error_would_restart_it(error, expected, crops, tmp_path: Path, monkeypatch):
    def fail() -> TrainingResult:
        raise error

    worker = Worker(monkeypatch, 1, "cuda")
    worker.ends = fail
    assert train_worker({"job": job(tmp_path), "plan": BatchPlan.of(crops, 8, 2, 0), "dev": None, "queue": None}) == expected
    assert worker.given["dev"] is None
    assert worker.given["device"].type == "cuda" and worker.given["loader"].own_process, "a GPU's batches are made beside it"
