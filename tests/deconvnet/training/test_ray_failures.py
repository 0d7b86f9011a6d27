"""Trainings on Ray whose driver or workers are killed, in the night's tests."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from deconvnet.settings import ComputeSettings
from deconvnet.training.ray_trainer import train_on_ray
from tests.conftest import ROOT
from tests.deconvnet.ray_trainings import WHILE_WRITTEN, job, losses, processes_below
from tests.deconvnet.training_tables import examples_table


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
