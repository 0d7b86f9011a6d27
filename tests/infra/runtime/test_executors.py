"""Both executors do every unit once, by workers made once; a user error, no room and a deadly unit become messages."""

import gc
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.errors import Interrupted, UserError
from infra.runtime import ray_executor as ray_executor_module
from infra.runtime.executor import Actors, Executor
from infra.runtime.local_executor import LocalExecutor
from infra.runtime.ray_executor import RayExecutor
from infra.settings import ClusterSettings
from tests.conftest import ROOT
from tests.waiting import wait_until

WORDS = {"title": "counting", "unit": "numbers"}
ON_RAY = (pytest.mark.ray, pytest.mark.xdist_group("ray"))  # they ask for the session's Ray only when they run


@pytest.fixture(params=["one process", "pool", pytest.param("ray", marks=ON_RAY)])
def any_executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "ray":
        request.getfixturevalue("ray_session")
        yield RayExecutor(ClusterSettings())
    else:
        with LocalExecutor(1 if request.param == "one process" else 2) as local:
            yield local


def stopping(name: str) -> Executor:
    """An executor of this name that is to stop from the start."""
    return RayExecutor(ClusterSettings(), lambda: True) if name == "ray" else LocalExecutor(1, lambda: True)


def doubled(index: int, unit: int) -> int:
    if unit < 0:
        raise UserError(f"{unit} is negative")
    return 10 * index + 2 * unit


def squares(log: Path, deadly: int, wrong: int, threads: int) -> Callable[[int, int], tuple[int, int]]:
    """Work that notes each time it is made, and each unit; the unit `deadly` kills its process, `wrong` is a user error."""

    def note(what: str) -> None:
        with log.open("a") as file:
            file.write(f"{what}\n")

    note("made")

    def work(index: int, unit: int) -> tuple[int, int]:
        note(f"unit {unit}")
        if unit == deadly:
            os._exit(1)
        if unit == wrong:
            raise UserError(f"{unit} can't be squared")
        return unit * unit, os.getpid()

    return work


def counting(upto: int) -> Iterator[int]:
    for number in range(upto):
        if number == 3:
            raise UserError("3 is too many")
        yield number


def deadly(index: int, unit: int) -> None:
    os._exit(1)


def dying_in_preparation(threads: int) -> Callable[[int, int], None]:
    os._exit(1)


def refusing(threads: int) -> Callable[[int, int], None]:
    raise UserError("there is no model")


def dying_once(index: int, file: Path) -> str:
    if not file.exists():
        file.touch()
        os._exit(1)
    return file.name


def slow(index: int, file: Path) -> None:
    time.sleep(0.3)
    file.write_text("finished")


def napping(threads: int) -> Callable[[int, int], None]:
    def work(index: int, unit: int) -> None:
        if unit == 99:
            os._exit(1)
        time.sleep(0.3)

    return work


def test_every_unit_is_done_and_user_errors_are_raised(any_executor: Executor) -> None:
    assert dict(any_executor.map({3: 1, 5: 2}, doubled, title="doubling")) == {3: 32, 5: 54}
    assert list(any_executor.map({}, doubled, title="doubling")) == []
    with pytest.raises(UserError, match=r"^-1 is negative$"):
        list(any_executor.map({0: 4, 1: -1}, doubled, title="doubling"))


def test_an_actor_is_made_once_and_does_unit_after_unit(any_executor: Executor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    units = {index: 10 + index for index in range(0, 14, 2)}
    make = partial(squares, log, -1, 7)
    found = dict(any_executor.map_actors(units, make, Actors(most=1), **WORDS))
    assert {index: square for index, (square, _) in found.items()} == {index: unit * unit for index, unit in units.items()}
    assert len({pid for _, pid in found.values()}) == 1
    lines = log.read_text().splitlines()
    assert lines.count("made") == 1 and sorted(lines[1:]) == sorted(f"unit {unit}" for unit in units.values())
    assert list(any_executor.map_actors({}, make, Actors(), **WORDS)) == []
    with pytest.raises(UserError, match=r"^7 can't be squared$"):
        list(any_executor.map_actors({0: 7}, make, Actors(), **WORDS))
    with pytest.raises(UserError, match=r"^there is no model$"):
        list(any_executor.map_actors({0: 7}, refusing, Actors(), **WORDS))


def test_a_stream_passes_items_on_and_raises_user_errors(any_executor: Executor) -> None:
    assert list(any_executor.stream(partial(counting, 3))) == [0, 1, 2]
    assert list(any_executor.stream(partial(list, ("a", "b")))) == ["a", "b"]  # work that returns a list
    with pytest.raises(UserError, match=r"^3 is too many$"):
        list(any_executor.stream(partial(counting, 4), training=True))


@pytest.mark.parametrize("name", ["local", pytest.param("ray", marks=ON_RAY)])
def test_it_stops_after_a_result_once_told_to(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if name == "ray":
        request.getfixturevalue("ray_session")
    units = dict.fromkeys(range(5), 1)
    for results in (
        stopping(name).map(units, doubled, title="doubling"),
        stopping(name).map_actors(units, partial(squares, tmp_path / "log", -1, -1), Actors(most=1), **WORDS),
        stopping(name).stream(partial(counting, 3)),
    ):
        next(results)
        with pytest.raises(Interrupted, match="the same command resumes it"):
            next(results)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("units", "stop", "message"),
    [([0] * 200, True, "the same command resumes it"), ([99], False, "processes died")],
    ids=["a stop", "dead actors"],
)
def test_the_actors_of_a_job_that_ends_early_free_their_cpus_even_if_the_error_is_kept(
    ray_session: None, units: list[int], stop: bool, message: str
) -> None:
    """As a notebook keeps it. An error that is not kept still has its frames until the garbage is collected."""
    import ray

    executor = RayExecutor(ClusterSettings(), lambda: stop)
    all_cpus = ray.cluster_resources()["CPU"]
    gc.disable()
    try:
        with pytest.raises((UserError, Interrupted), match=message) as kept:
            list(executor.map_actors(dict(enumerate(units)), napping, Actors(most=1, retries=1), **WORDS))
        wait_until(lambda: ray.available_resources().get("CPU") == all_cpus, seconds=20)
        del kept
    finally:
        gc.enable()


def test_units_that_have_not_begun_in_a_pool_are_given_up_at_a_stop_even_if_the_error_is_kept(tmp_path: Path) -> None:
    files = {index: tmp_path / str(index) for index in range(20)}
    with LocalExecutor(2, lambda: True) as executor:
        with pytest.raises(Interrupted) as kept:
            list(executor.map(files, slow, title="sleeping"))
        with LocalExecutor(2) as other:  # takes longer than the units of the first that have begun
            dict(other.map({index: tmp_path / f"other {index}" for index in range(6)}, slow, title="sleeping"))
        assert sum(file.exists() for file in files.values()) < 10
        assert isinstance(kept.value, Interrupted)


def test_units_that_have_begun_in_a_pool_are_finished_at_a_stop(tmp_path: Path) -> None:
    files = {index: tmp_path / str(index) for index in range(20)}
    with LocalExecutor(2, lambda: True) as executor, pytest.raises(Interrupted):
        list(executor.map(files, slow, title="sleeping"))
    finished = sum(file.exists() for file in files.values())
    assert 2 <= finished < 20 and all(file.read_text() == "finished" for file in files.values() if file.exists())


def test_a_unit_that_kills_a_process_of_the_pool_ends_the_job_and_the_next_gets_another_pool() -> None:
    with LocalExecutor(2) as executor:
        with pytest.raises(UserError, match=r"^dying: a process died .*: lower cluster\.num_cpus$"):
            list(executor.map({0: 1}, deadly, title="dying"))
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


@pytest.mark.ray
def test_a_task_that_kills_its_processes_ends_the_job(ray_executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor_module, "TASK_RETRIES", 0)  # each attempt takes seconds
    died = r"^dying: processes died 1 times while they worked on one of the parts .*: use nodes with more memory$"
    with pytest.raises(UserError, match=died):
        list(ray_executor.map({0: 1}, deadly, title="dying"))
    with pytest.raises(UserError, match=r"^the processes of a task died 1 times .*: use nodes with more memory$"):
        list(ray_executor.stream(partial(deadly, 0, 1)))


@pytest.mark.ray
def test_a_unit_whose_process_dies_is_done_by_another_one(ray_executor: RayExecutor, tmp_path: Path) -> None:
    assert dict(ray_executor.map({0: tmp_path / "task"}, dying_once, title="dying")) == {0: "task"}
    actors = Actors(most=1, retries=1)
    made = ray_executor.map_actors({0: tmp_path / "actor"}, lambda threads: dying_once, actors, **WORDS)
    assert dict(made) == {0: "actor"}


@pytest.mark.ray
def test_a_unit_that_kills_its_workers_ends_the_job(ray_executor: RayExecutor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    actors = Actors(most=1, retries=1, remedy="count less")
    with pytest.raises(
        UserError, match=r"^counting: processes died 2 times while they worked on one of the numbers .*: count less$"
    ):
        list(ray_executor.map_actors({0: 3}, partial(squares, log, 3, -1), actors, **WORDS))
    assert log.read_text().count("unit 3") == 2
    with pytest.raises(UserError, match=r"^counting: processes died 1 times"):
        list(ray_executor.map_actors({0: 3}, dying_in_preparation, Actors(most=1, retries=0), **WORDS))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("cluster", "actors", "message"),
    [
        ({}, Actors(cpus=99), "no node of this Ray has room for a process of 99 CPUs"),
        ({}, Actors(gpus=0.5), "no node of this Ray has room for a process of 1 CPU and 0.5 of a GPU"),
        ({"training_nodes": "pool=gpu"}, Actors(gpus=1), "no alive node labelled pool=gpu has room for a process of 1 CPU"),
        ({"data_nodes": "pool=cpu"}, Actors(), "no alive node labelled pool=cpu has room for a process of 1 CPU"),
    ],
)
def test_work_that_would_wait_for_ever_is_refused(
    ray_session: None, tmp_path: Path, cluster: dict[str, str], actors: Actors, message: str
) -> None:
    executor = RayExecutor(ClusterSettings(**cluster))
    with pytest.raises(UserError, match=message):
        list(executor.map_actors({0: 3}, partial(squares, tmp_path / "log", -1, -1), actors, **WORDS))


@pytest.mark.ray
def test_the_labels_of_nodes_hold_for_all_of_a_ray_data_job(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an autoscaler is asked for nodes with these labels. A job that labels only training nodes asks for none."""
    import ray

    asked = []
    function = "ray.data._internal.execution.streaming_executor.create_cluster_autoscaler"
    make = pkgutil.resolve_name(function)

    def spy(topology: Any, resource_manager: Any, data_context: Any, **options: Any) -> Any:
        asked.append(data_context.execution_options.label_selector)
        return make(topology, resource_manager, data_context, **options)

    monkeypatch.setattr(function, spy)
    here = f"ray.io/node-id={ray.get_runtime_context().get_node_id()}"
    selector = dict([here.split("=")])
    for labels, expected in (({"data_nodes": here}, selector), ({"training_nodes": here}, None)):
        executor = RayExecutor(ClusterSettings(**labels))
        assert dict(executor.map({0: 3}, doubled, **WORDS)) == {0: 6}
        assert asked.pop() == expected
    actors = RayExecutor(ClusterSettings(data_nodes=here)).map_actors
    assert [found[0] for _, found in actors({0: 3}, partial(squares, tmp_path / "log", 0, -1), Actors(), **WORDS)] == [9]
    assert asked.pop() == selector
    assert ray.data.DataContext.get_current().execution_options.label_selector is None
