"""The job of actors: each unit once, by workers that are made once each; a mistake, no room and a deadly unit are sentences."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.runtime.actors import Actors, for_each

Made = Callable[[int, int], tuple[int, int]]
WORDS = {"title": "counting", "kind": "numbers", "remedy": "count less"}


def squares(log: Path, deadly: int = -1, wrong: int = -1) -> Made:
    """Work that notes each time it is made, and each unit; the unit `deadly` kills its process, `wrong` is a person's mistake."""

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


@pytest.mark.ray
def test_every_unit_is_done_once_by_few_workers(ray_session: None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    units = {index: 10 + index for index in range(0, 14, 2)}
    found = dict(for_each(units, partial(squares, log), Actors(most=1), **WORDS))
    assert {index: square for index, (square, _) in found.items()} == {index: unit * unit for index, unit in units.items()}
    assert len({pid for _, pid in found.values()}) == 1
    said = log.read_text().splitlines()
    assert said.count("made") == 1 and sorted(said[1:]) == sorted(f"unit {unit}" for unit in units.values())
    assert list(for_each({}, partial(squares, log), Actors(), **WORDS)) == []


@pytest.mark.ray
def test_a_persons_mistake_arrives_as_it_was_said(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^7 can't be squared$"):
        list(for_each({0: 7}, partial(squares, tmp_path / "log", wrong=7), Actors(), **WORDS))


@pytest.mark.ray
def test_a_unit_that_kills_its_workers_ends_the_job(ray_session: None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(UserError, match=r"^counting: its processes died, 2 times over one of the numbers .*: count less$"):
        list(for_each({0: 3}, partial(squares, log, deadly=3), Actors(most=1, retries=1), **WORDS))
    assert log.read_text().count("unit 3") == 2


@pytest.mark.ray
@pytest.mark.parametrize(
    ("actors", "says"),
    [
        (Actors(cpus=99), "no node of this Ray has room for a process of 99 CPUs"),
        (Actors(gpus=0.5), "no node of this Ray has room for a process of 1 CPU and 0.5 of a GPU"),
        (Actors(nodes={"pool": "gpu"}), "no living node labelled pool=gpu has room for a process of 1 CPU"),
    ],
)
def test_work_that_would_wait_for_ever_is_refused(ray_session: None, tmp_path: Path, actors: Actors, says: str) -> None:
    with pytest.raises(UserError, match=says):
        list(for_each({0: 3}, partial(squares, tmp_path / "log"), actors, **WORDS))
