"""A stage on Ray Train: the losses of one process; runs that are refused, interrupted and broken."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import pytest
import ray
import torch
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from deconvnet.models import checkpoint
from deconvnet.settings import ComputeSettings, ModelSettings, StageSettings
from deconvnet.training import ray_trainer
from deconvnet.training.job import TrainingJob
from deconvnet.training.local_trainer import train_locally
from deconvnet.training.ray_trainer import check_resources, train_on_ray
from deconvnet.training.trainer import Diverged
from infra.errors import Interrupted, UserError
from infra.runtime.report_queue import ReportQueue
from infra.settings import ClusterSettings
from tests.conftest import ROOT
from tests.deconvnet.training_tables import SIZE, examples_table, images_table
from tests.waiting import wait_until

CLASSES = ("background", "red", "green")
WHILE_WRITTEN = 2
"""Most steps that these small trainings do while a checkpoint is written."""
NONE_YET = "  stopping: no workers run yet (again to stop at once)"
THEY_FINISH = "  stopping: the workers finish their step and leave a checkpoint (again to stop at once)"
MODEL = ModelSettings(width=0.05, input_size=SIZE, fcn_input_size=64, fcn_batch_norm=True)


def stage(**changes: Any) -> StageSettings:
    values = {"batch": 16, "max_steps": 8, "lr": 0.001, "log_every": 1, "schedule": "constant", "bn_batches": 2}
    return StageSettings(**{**values, **changes})


def job(folder: Path, **changes: Any) -> TrainingJob:
    options: dict[str, Any] = {
        "stage": "stage1",
        "model": MODEL,
        "settings": stage(),
        "compute": ComputeSettings(),
        "examples_uri": f"{folder}/examples",
        "dev_uri": f"{folder}/examples",
        "classes": CLASSES,
        "checkpoints_uri": f"{folder}/runs",
        "run_name": "run",
        "out_uri": f"{folder}/model",
    }
    return TrainingJob(**{**options, **changes})


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Collects what is logged, in its `messages`."""
    caplog.set_level(logging.INFO, "deconvnet")
    return caplog


def losses(lines: list[str]) -> dict[int, float]:
    found = (re.search(r"step (\d+)/.*loss ([\d.]+)", line) for line in lines)
    return {int(m[1]): float(m[2]) for m in found if m}


def test_a_batch_that_can_t_be_shared_is_refused_before_ray_is_used(tmp_path: Path):
    with pytest.raises(UserError, match=r"train\.stage1\.batch 16 leaves some of 17 workers"):
        train_on_ray(job(tmp_path, compute=ComputeSettings(workers=17)))
    with pytest.raises(UserError, match=r"train\.stage1\.micro_batch 17 is more"):
        train_on_ray(job(tmp_path, settings=stage(micro_batch=17)))
    with pytest.raises(UserError, match=r"compute\.min_workers 3 is more"):
        train_on_ray(job(tmp_path, compute=ComputeSettings(workers=2, min_workers=3)))


@pytest.mark.ray
def test_more_resources_than_ray_has_are_refused(tmp_path: Path, ray_session, logged):
    with pytest.raises(UserError, match=r"room for 8 training workers of 1 CPU each \(Ray has it for 2\): lower compute.workers"):
        train_on_ray(job(tmp_path, compute=ComputeSettings(workers=8)))
    with pytest.raises(
        UserError, match=r"room for a training worker of 1 CPU and a GPU \(Ray has it for 0\).*compute.gpu to false"
    ):
        train_on_ray(job(tmp_path, compute=ComputeSettings(gpu=True)))
    with pytest.raises(UserError, match=r"room for 3 training workers"):
        check_resources(ComputeSettings(workers=8, min_workers=3), ClusterSettings())
    with pytest.raises(
        UserError, match=r"no alive node of this Ray is labelled pool=gpu \(cluster.training_nodes\): .*--labels pool=gpu`"
    ):
        train_on_ray(job(tmp_path), cluster=ClusterSettings(training_nodes="pool=gpu"))
    check_resources(ComputeSettings(workers=8, min_workers=2), ClusterSettings())
    here = f"ray.io/node-id={ray.get_runtime_context().get_node_id()}"
    check_resources(ComputeSettings(), ClusterSettings(training_nodes=here))
    assert not logged.messages


@pytest.mark.ray
@pytest.mark.slow
def test_fcn8s_trains_on_images_and_a_diverging_loss_ends_the_run_at_once(tmp_path: Path, ray_session):
    table = images_table(f"{tmp_path}/images", 12)
    options = {"stage": "fcn8s", "examples_uri": table, "dev_uri": table}
    found = train_on_ray(job(tmp_path, **options, settings=stage(batch=4, max_steps=3, bn_batches=0)))
    assert found["steps"] == 3
    assert checkpoint.load_model(f"{tmp_path}/model")[0].architecture == "fcn8s"
    with pytest.raises(UserError, match=r"fcn8s: the loss is .*lower lr"):
        train_on_ray(job(tmp_path, **options, run_name="wild", settings=stage(batch=4, lr=1e30)))


@pytest.mark.ray
def test_two_workers_on_ray_resume_a_local_run_and_are_resumed_by_one_with_the_losses_of_an_undisturbed_run(
    tmp_path: Path, ray_session, logged
):
    """The workers reserve every CPU; the saved model is the same, too."""
    examples_table(f"{tmp_path}/examples", 60)
    settings = stage(max_steps=30, checkpoint_every=2)  # so many that no part ends before it is asked to stop
    compute = ComputeSettings(threads=1, bf16=False)
    this = job(tmp_path, compute=compute, settings=settings)
    whole_job = job(tmp_path, compute=compute, settings=settings, run_name="whole", out_uri=f"{tmp_path}/whole")

    def losses_until(end: int, train: Callable[..., Any], job: TrainingJob) -> dict[int, float]:
        """Train until the step `end` was logged, or the run is over, and return the logged losses."""
        logged.clear()
        if end == settings.max_steps:
            assert train(job)["steps"] == end
        else:
            with pytest.raises(Interrupted, match="the same command resumes it"):
                train(job, should_stop=lambda: max(losses(logged.messages), default=0) >= end)
        return losses(logged.messages)

    whole = losses_until(30, train_locally, whole_job)
    assert list(whole) == list(range(1, 31))
    locally = losses_until(3, train_locally, this)
    on_ray = losses_until(6, train_on_ray, replace(this, compute=ComputeSettings(workers=2, bf16=False)))
    again = losses_until(30, train_locally, this)
    assert 3 <= max(locally) < min(on_ray) == max(locally) + 1
    assert 6 <= max(on_ray) < min(again) == max(on_ray) + 1
    assert locally | on_ray | again == pytest.approx(whole, abs=1e-3)
    (kept, meta), (undisturbed, _) = (checkpoint.load_model(f"{tmp_path}/{name}") for name in ("model", "whole"))
    assert meta["classes"] == list(CLASSES)
    assert meta["extra"]["stage"] == "stage1"
    for name, value in undisturbed.state_dict().items():  # rounding grows in 30 steps, most of all in the variances of few pixels
        assert torch.allclose(kept.state_dict()[name].float(), value.float(), rtol=0.1, atol=0.05), name


@pytest.mark.ray
def test_a_training_says_that_it_waits_for_cpus_that_other_work_takes_and_ends_when_asked_to(
    tmp_path: Path, ray_session, logged, monkeypatch: pytest.MonkeyPatch
):
    """The controller of the training ends with it, or it would begin when the CPUs are free."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    examples_table(f"{tmp_path}/examples", 60)
    other = ray.remote(ReportQueue).options(num_cpus=1).remote()
    waits = "  workers: none yet; waiting for room for 2 training workers of 1 CPU each that no other work takes"
    with pytest.raises(Interrupted, match="while waiting for room for the workers: the same command resumes"):
        train_on_ray(job(tmp_path, compute=ComputeSettings(workers=2)), should_stop=lambda: waits in logged.messages)
    assert logged.messages.count(waits) == 1 and not any("stopping" in message for message in logged.messages)
    wait_until(lambda: not processes_below(os.getpid(), "TrainController"), seconds=60)
    ray.kill(other)


@pytest.mark.parametrize(("first", "then", "said"), [([], [], NONE_YET), ([0], [2], THEY_FINISH), ([2], [], THEY_FINISH)])
def test_a_stop_says_what_the_workers_do_by_the_newest_message(tmp_path: Path, first, then, said, logged, monkeypatch):
    """The second look for messages comes with the stop request."""
    stopped, looks = threading.Event(), iter([first, then])
    queue = SimpleNamespace(
        take=SimpleNamespace(remote=lambda: [{"workers": number} for number in next(looks, [])]),
        request_stop=SimpleNamespace(remote=stopped.set),
    )
    trainer = SimpleNamespace(fit=lambda: stopped.wait(60) and SimpleNamespace(return_value={"interrupted": "at step 7"}))
    monkeypatch.setattr(ray, "get", lambda found: found)
    asked = iter([False])
    with pytest.raises(Interrupted, match="at step 7"):
        ray_trainer._Run(job(tmp_path), trainer, queue, 30).wait(lambda: next(asked, True))
    assert [message for message in logged.messages if "stopping" in message] == [said]


class Received(Exception):
    """Stands for the KeyboardInterrupt with which a command reacts to a signal. pytest itself would end at that."""


@pytest.mark.parametrize(
    ("returned", "error"),
    [({"steps": 8}, Received), ({"interrupted": "at step 7"}, Interrupted), ({"diverged": "the loss is nan"}, Diverged)],
)
def test_ctrl_c_that_comes_too_late_to_stop_the_workers_interrupts_the_driver(tmp_path: Path, returned, error, monkeypatch):
    """If they have stopped, the signal has done its work."""

    def receive(*_: Any) -> NoReturn:
        raise Received

    stopped, signals = threading.Event(), iter([signal.SIGINT])
    queue = SimpleNamespace(
        take=SimpleNamespace(remote=lambda: [signal.raise_signal(number) for number in signals] and []),
        request_stop=SimpleNamespace(remote=stopped.set),
    )
    trainer = SimpleNamespace(fit=lambda: stopped.wait(60) and SimpleNamespace(return_value=returned))
    monkeypatch.setattr(ray, "get", lambda found: found)
    monkeypatch.setattr(ray_trainer, "POLL_SECONDS", 0.01)
    before = signal.signal(signal.SIGINT, receive)
    try:
        with pytest.raises(error):
            ray_trainer._Run(job(tmp_path), trainer, queue, 30).wait(lambda: False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.is_set()


def processes_below(pid: int, name: str) -> list[psutil.Process]:
    """The processes of Ray with this name, of the Ray that process `pid` has started: other tests run beside this one."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found += [process] if name in " ".join(process.cmdline()) else []
    return found


class Driver:
    """`training_driver` in a process of its own."""

    def __init__(self, folder: Path, workers: int = 1, epochs: int = 3) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tests.deconvnet.training_driver", str(folder), str(workers), str(epochs)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, pattern: str) -> str:
        """Read up to a line that matches, and return it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if re.search(pattern, line):
                return line
        raise AssertionError("\n".join(self.lines))

    def end(self) -> int:
        """Read to the end and return the exit code."""
        assert self.process.stdout is not None
        self.lines += [line.rstrip() for line in self.process.stdout]
        return self.process.wait(60)

    def workers(self) -> list[psutil.Process]:
        """The training workers."""
        return processes_below(self.process.pid, "RayTrainWorker")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    examples_table(f"{tmp_path}/examples", 60)
    started: list[Driver] = []

    def start(**options: int) -> Driver:
        started.append(Driver(tmp_path, **options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_driver_leaves_a_checkpoint_and_exits_with_75(driver, number, tmp_path: Path):
    first = driver()
    first.until(r"step 7/")
    first.process.send_signal(number)
    assert first.end() == 75, first.lines
    last = max(losses(first.lines))
    assert 7 <= last < 30
    assert any("the same command resumes" in line for line in first.lines)
    second = driver()
    assert second.end() == 0, second.lines
    assert min(losses(second.lines)) == last + 1
    assert max(losses(second.lines)) == 33
    assert (tmp_path / "model" / "model.json").is_file()
    assert not any("Traceback" in line for line in first.lines + second.lines)


@pytest.mark.ray
@pytest.mark.slow
def test_after_a_killed_worker_and_a_killed_driver_training_resumes_from_the_last_checkpoint(driver):
    first = driver(workers=2)
    first.until(r"step 7/")
    (worker, *_) = first.workers()
    worker.kill()
    first.until(r"workers failed")
    again = first.until(r"step (\d+)/.*loss")
    assert int(re.search(r"step (\d+)/", again)[1]) in (1, 6, 11)  # the step after a checkpoint, every fifth
    first.until(r"step 16/")
    of_ray = psutil.Process(first.process.pid).children(recursive=True)
    first.process.kill()
    first.process.wait()
    psutil.wait_procs(of_ray, timeout=60)  # they notice, and end
    second = driver(workers=2)
    assert second.end() == 0, second.lines
    steps = losses(second.lines)
    both = losses(first.lines)
    assert max(both) - 5 - WHILE_WRITTEN < min(steps) < max(steps) == 33
    assert all(steps[s] == pytest.approx(both[s], abs=1e-3) for s in steps.keys() & both.keys())


def reported_steps(lines: list[str]) -> list[int]:
    """Return the step of each progress line, in order."""
    return [int(found[1]) for line in lines if (found := re.search(r"step (\d+)/.*loss", line))]


@pytest.mark.ray
def test_elastic_training_continues_when_a_worker_is_killed(tmp_path: Path, ray_session, logged):
    """At most a checkpoint interval (5 steps), and the steps while the checkpoint was written, are repeated, with the same losses."""
    before: list[psutil.Process] = []
    after: list[psutil.Process] = []
    killed = 0

    def kill_a_worker() -> bool:
        nonlocal killed
        if not before and max(losses(logged.messages), default=0) >= 8:
            before.extend(processes_below(os.getpid(), "RayTrainWorker"))
            assert len(before) == 2
            assert all(
                worker.environ()["MALLOC_ARENA_MAX"] == "1" for worker in before
            )  # they keep freed memory: infra/memory.py
            before[1].kill()
        if not killed:
            killed = next((i for i, line in enumerate(logged.messages) if "workers failed" in line), 0)
        elif not after and losses(logged.messages[killed:]):
            after.extend(processes_below(os.getpid(), "RayTrainWorker"))
        return False

    examples_table(f"{tmp_path}/examples", 60)
    settings = stage(batch=8, epochs=2, max_steps=None, lr=0.002, checkpoint_every=5, bn_batches=0)
    found = train_on_ray(
        job(tmp_path, settings=settings, compute=ComputeSettings(workers=2, min_workers=1)), should_stop=kill_a_worker
    )
    assert found["steps"] == 22 and after and not {p.pid for p in before} & {p.pid for p in after}
    first, again = reported_steps(logged.messages[:killed]), reported_steps(logged.messages[killed:])
    assert first == list(range(1, first[-1] + 1))
    assert again == list(range(again[0], 23))
    assert again[0] in (6, 11)  # the step after a checkpoint
    assert -1 <= first[-1] - (again[0] - 1) <= 5 + WHILE_WRITTEN  # -1: the last step's report was lost with its worker
    old, new = losses(logged.messages[:killed]), losses(logged.messages[killed:])
    assert all(new[step] == pytest.approx(old[step], abs=1e-3) for step in new.keys() & old.keys())


class DiesAtStart(WorkerGroupCallback):
    """Kills a worker of the first group before the workers are connected; `silent`: another worker's error arrives first."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent
        self.starts = 0

    def after_worker_group_start(self, worker_group: Any) -> None:
        self.starts += 1
        if self.starts == 1:
            ray.kill(worker_group.get_workers()[1].actor)
            worker_group.execute_single(0, os.listdir, "/lost connection") if self.silent else worker_group.execute(os.getpid)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("compute", [ComputeSettings(workers=2), ComputeSettings(workers=2, min_workers=2)])
@pytest.mark.parametrize("silent", [False, True])
def test_a_worker_that_dies_at_the_start_does_not_keep_its_resources(tmp_path: Path, ray_session, compute, silent, logged):
    examples_table(f"{tmp_path}/examples", 60)
    train_on_ray(job(tmp_path, compute=compute), callbacks=[DiesAtStart(silent)])
    assert list(losses(logged.messages)) == list(range(1, 9))
