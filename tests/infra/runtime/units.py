"""Units of work for tests of executors. The workers import this module, so it imports nothing large."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from infra.errors import UserError

WORDS = {"title": "counting", "unit": "numbers"}


def doubled(index: int, unit: int) -> int:
    """Work whose result depends on the index and the unit. A negative unit is a user error."""
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
    """The numbers from 0; the number 3 is a user error."""
    for number in range(upto):
        if number == 3:
            raise UserError("3 is too many")
        yield number


def deadly(log: Path, index: int, unit: int) -> None:
    """Work that notes each attempt, and kills its process."""
    with log.open("a") as file:
        file.write("attempt\n")
    os._exit(1)


def refusing(threads: int) -> Callable[[int, int], None]:
    """Work that can't be prepared."""
    raise UserError("there is no model")


def waiting(index: int, files: tuple[Path, Path]) -> None:
    """Work that waits for a file. Another file, the first, tells whether it has begun or finished."""
    file, awaited = files
    file.write_text("begun")
    deadline = time.monotonic() + 60
    while not awaited.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    file.write_text("finished")


def napping(threads: int) -> Callable[[int, int], None]:
    """Work that takes a moment, after some preparation."""
    return lambda index, unit: time.sleep(0.3)
