"""Both executors do every unit of work once, by workers made once; a user error and a stop end the job."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.errors import Interrupted, UserError
from infra.runtime.executor import Actors, Executor
from infra.runtime.local_executor import LocalExecutor
from infra.runtime.ray_executor import RayExecutor
from infra.settings import ClusterSettings
from tests.infra.runtime.units import WORDS, counting, doubled, squares

ON_RAY = (pytest.mark.ray, pytest.mark.xdist_group("ray"))  # they ask for the session's Ray only when they run


@pytest.fixture(params=["one process", "pool", pytest.param("ray", marks=ON_RAY)])
def any_executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "ray":
        request.getfixturevalue("ray_session")
        yield RayExecutor(ClusterSettings())
    else:
        with LocalExecutor(1 if request.param == "one process" else 2) as local:
            yield local


def test_every_unit_is_done_and_user_errors_are_raised(any_executor: Executor) -> None:
    assert dict(any_executor.map({3: 1, 5: 2}, doubled, title="doubling")) == {3: 32, 5: 54}
    assert list(any_executor.map({}, doubled, title="doubling")) == []
    with pytest.raises(UserError, match=r"^-1 is negative$"):
        list(any_executor.map({0: 4, 1: -1}, doubled, title="doubling"))


def test_an_actor_is_made_once_and_does_unit_after_unit(any_executor: Executor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    units = {index: 10 + index for index in range(0, 14, 2)}
    make = partial(squares, log, -1, -1)
    found = dict(any_executor.map_actors(units, make, Actors(max_workers=1), **WORDS))
    assert {index: square for index, (square, _) in found.items()} == {index: unit * unit for index, unit in units.items()}
    assert len({pid for _, pid in found.values()}) == 1
    lines = log.read_text().splitlines()
    assert lines.count("made") == 1 and sorted(lines[1:]) == sorted(f"unit {unit}" for unit in units.values())
    assert list(any_executor.map_actors({}, make, Actors(), **WORDS)) == []


def test_a_stream_passes_items_on_and_raises_user_errors(any_executor: Executor) -> None:
    assert list(any_executor.stream(partial(counting, 3))) == [0, 1, 2]
    assert list(any_executor.stream(partial(list, ("a", "b")))) == ["a", "b"]  # work that returns a list
    with pytest.raises(UserError, match=r"^3 is too many$"):
        list(any_executor.stream(partial(counting, 4), training=True))


JOBS: dict[str, Callable[[Executor], Iterator[Any]]] = {
    "map": lambda executor: executor.map({0: 1, 1: 1, 2: 1}, doubled, title="doubling"),
    "map_actors": lambda executor: executor.map_actors(
        {0: 1, 1: 1, 2: 1}, partial(squares, Path("/dev/null"), -1, -1), Actors(max_workers=1), **WORDS
    ),
    "stream": lambda executor: executor.stream(partial(counting, 3)),
}


@pytest.mark.parametrize(
    ("name", "job"),
    [
        *(("local", job) for job in JOBS),
        *(pytest.param("ray", job, marks=ON_RAY) for job in ("map", "stream")),  # map_actors is in test_ray_executor.py
    ],
)
def test_it_stops_after_a_result_once_told_to(name: str, job: str, request: pytest.FixtureRequest) -> None:
    if name == "ray":
        request.getfixturevalue("ray_session")
    executor = RayExecutor(ClusterSettings(), lambda: True) if name == "ray" else LocalExecutor(1, lambda: True)
    results = JOBS[job](executor)
    next(results)
    with pytest.raises(Interrupted, match="the same command resumes it"):
        next(results)
