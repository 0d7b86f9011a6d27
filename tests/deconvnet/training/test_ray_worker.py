"""What a worker of a training on Ray does: it saves checkpoints beside the training, and in time before a node is taken away."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch

from deconvnet.models import checkpoint
from deconvnet.training.distributed import broadcast_state
from deconvnet.training.interfaces import State
from deconvnet.training.ray_worker import Preemption, RayCheckpoints
from infra.errors import UserError
from infra.runtime.ray_compat import PREEMPTION_SECONDS
from tests.processes import run_ranks

MODES = ray.train.CheckpointUploadMode


class TakenAway(Exception):
    """Ray has restarted the training."""


class Training:
    """A training in simulated time, until Ray restarts it. It notices a step's or a checkpoint's end only if that is in time."""

    def __init__(self, step: float, saving: float, notice: float, ends: float, deadline: float, validation: float = 0.0) -> None:
        self.now, self.ends, self.notice = 0.0, ends, notice
        self.steps = self.saved = self.checkpoints = 0
        self.told: list[float] = []
        preemption = Preemption(
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
                    preemption.saved(saving)
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


def no_notice() -> Preemption:
    return Preemption(lambda: None, lambda seconds: None)


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
    checkpoints = RayCheckpoints(str(tmp_path), Preemption(lambda: 1060.0, told.append, lambda: 1000.0))
    checkpoints.report({"step": 5}, state(5))
    assert reports.modes == [MODES.SYNC] and told == [60.0]
    assert checkpoint.newest_state(str(tmp_path))[1]["step"] == 5


def _ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        weights = torch.arange(24.0).view(1, 4, 2, 3).contiguous(memory_format=torch.channels_last)
        saved = State({"model.w": weights, "model.n": torch.tensor(7)}, {"step": 3, "schedule": {"best": None}})
        found = broadcast_state(saved if rank == 0 else None)
        assert found is not None and list(found.tensors) == ["model.w", "model.n"] and found.values == saved.values
        assert torch.equal(found.tensors["model.w"], weights) and found.tensors["model.n"].item() == 7
        assert found.tensors["model.n"].dtype == torch.int64
        assert broadcast_state(None) is None
        Path(folder, f"{rank}.json").write_text(json.dumps(True))
    finally:
        torch.distributed.destroy_process_group()


def test_only_the_first_worker_needs_the_state_from_which_all_continue(tmp_path: Path):
    run_ranks(_ranks, (str(tmp_path),), 2)
    assert {path.name for path in tmp_path.glob("*.json")} == {"0.json", "1.json"}
    assert broadcast_state(None) is None
    alone = state(1)
    assert broadcast_state(alone) is alone
