"""The executor of one machine: what is left of a job that is stopped or killed, and units that share a GPU."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from infra.errors import Interrupted, UserError
from infra.runtime.executor import Actors
from infra.runtime.local_executor import LocalExecutor
from tests.conftest import ROOT
from tests.infra.runtime.units import WORDS, deadly, doubled, refusing, squares, waiting


def test_the_user_errors_of_an_actor_are_raised(executor: LocalExecutor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^7 can't be squared$"):
        list(executor.map_actors({0: 7}, partial(squares, tmp_path / "log", -1, 7), Actors(), **WORDS))
    with pytest.raises(UserError, match=r"^there is no model$"):
        list(executor.map_actors({0: 7}, refusing, Actors(), **WORDS))


def test_units_with_a_gpu_are_done_at_the_same_time_and_others_one_after_another() -> None:
    """A GPU would wait while a single thread reads images. A network on CPUs uses all of them itself."""
    both = threading.Barrier(2, timeout=20)
    given = []

    def meeting(threads: int) -> Callable[[int, int], int]:
        given.append(threads)
        return lambda index, unit: (both.wait(), unit)[1]

    def alone(threads: int) -> Callable[[int, int], bool]:
        given.append(threads)
        return lambda index, unit: threading.current_thread() is threading.main_thread()

    with LocalExecutor(2) as executor:
        assert dict(executor.map_actors({0: 1, 1: 2}, meeting, Actors(gpus=1), **WORDS)) == {0: 1, 1: 2}
        assert dict(executor.map_actors({0: 1, 1: 2}, alone, Actors(), **WORDS)) == {0: True, 1: True}
    assert given == [2, 2]


def test_at_a_stop_units_of_a_pool_that_have_begun_are_finished_and_the_others_given_up(tmp_path: Path) -> None:
    """Even if the error is kept, as a notebook keeps it, and though Ctrl-C sends a signal to the pool's processes, too.

    One unit ends when another has begun, all others after the stop.
    """
    first, then = ([tmp_path / f"{name} {index}" for index in range(20)] for name in ("first", "then"))
    last = tmp_path / "last"

    def units(files: list[Path], stopped: Path) -> dict[int, tuple[Path, Path]]:
        return dict(enumerate([(files[0], files[1]), *((file, stopped) for file in files[1:])]))

    stops = iter([True, False, True])

    def stopped() -> bool:
        for process in multiprocessing.active_children():
            os.kill(process.pid or 0, signal.SIGINT)
        return next(stops)

    with pytest.raises(Interrupted), LocalExecutor(2, stopped) as executor:
        with pytest.raises(Interrupted) as kept:
            list(executor.map(units(first, tmp_path / "stopped"), waiting, title="waiting"))
        (tmp_path / "stopped").touch()
        list(executor.map({0: (last, last)}, waiting, title="waiting"))  # done after all that was not given up
        assert 2 <= sum(file.exists() for file in first) < 10
        assert isinstance(kept.value, Interrupted)
        try:
            list(executor.map(units(then, tmp_path / "stopped again"), waiting, title="waiting"))
        finally:
            (tmp_path / "stopped again").touch()
    begun = [file for file in (*first, *then) if file.exists()]
    assert {file.read_text() for file in begun} == {"finished"} and 4 <= len(begun) < 20


def test_a_unit_that_kills_a_process_of_the_pool_ends_the_job_and_the_next_gets_another_pool(tmp_path: Path) -> None:
    with LocalExecutor(2) as executor:
        with pytest.raises(UserError, match=r"^dying: a process died .*: lower cluster\.num_cpus$"):
            list(executor.map({0: 1}, partial(deadly, tmp_path / "log"), title="dying"))
        assert dict(executor.map({0: 1}, doubled, title="doubling")) == {0: 2}


KILLED = """
import time
from infra.runtime.local_executor import LocalExecutor

def begin(index, unit):
    print("begun\\n", end="", flush=True)  # in one system call, as two processes write
    time.sleep(600)

if __name__ == "__main__":
    with LocalExecutor(2) as executor:
        list(executor.map({0: 0, 1: 1}, begin, title="sleeping"))
"""


def test_the_processes_of_a_pool_end_if_the_command_is_killed(tmp_path: Path) -> None:
    """They would live on for ever, and keep its output open."""
    (tmp_path / "killed.py").write_text(KILLED)
    command = subprocess.Popen(
        [sys.executable, tmp_path / "killed.py"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        assert command.stdout and [command.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        command.kill()
        assert command.communicate(timeout=60) == ("", None), "nothing has its output open any more"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
