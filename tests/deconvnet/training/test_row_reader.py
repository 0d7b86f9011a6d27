"""Reading rows: each row group once in an epoch, by all workers together, and no more in memory than is allowed."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from deconvnet.training.data import row_reader
from deconvnet.training.data.batching import even_ranges
from deconvnet.training.data.examples import Examples, RowGroups
from deconvnet.training.data.row_reader import RowReader
from deconvnet.training.data.sampler import BUFFER_BYTES, Order


class Live(bytes):
    """Bytes that are counted while they exist, in the counter that there was when they were made.

    So bytes that an earlier test has left, which may vanish at any time, are not counted in a later test.
    """

    counter: ClassVar[Counter[str]] = Counter()
    own: Counter[str]

    def __new__(cls, content: bytes) -> "Live":
        made = super().__new__(cls, content)
        made.own = cls.counter
        made.own["live"] += 1
        return made

    def __del__(self) -> None:
        self.own["live"] -= 1


class AtOnce(Executor):
    """A pool of threads whose work is done at once, so that what is held does not depend on the speed of threads."""

    def __init__(self, *_: Any) -> None:
        """Take the arguments of a `ThreadPoolExecutor`."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*args, **kwargs))
        return done


class Column(list):
    """A column whose cells are counted while they exist."""

    def to_pylist(self) -> list[bytes]:
        return [Live(each) for each in self]


class Table(dict):
    """A row group as `Examples.read` returns it, without the cost of making one."""

    def filter(self, _: Any) -> "Table":
        return self


class Made(Examples):
    """Examples whose rows say where they are: row group and index in it."""

    def footer(self, file: int) -> str:
        self.footers.append(file)
        return f"the footer of file {file}"

    @cached_property
    def footers(self) -> list[int]:
        """The files whose footers were read."""
        return []

    @cached_property
    def numbers(self) -> list[int]:
        """The row groups that were read."""
        return []

    def read(self, number: int, footer: Any = None) -> Any:
        assert footer == "the footer of file 0", "else each row group would cost another request"
        self.numbers.append(number)
        weights = self.weights(number)
        names = [f"{number}:{i}".encode() for i in range(len(weights))]
        return Table(image=Column(names), mask=pa.array([b""] * len(names)), weight=pa.array(weights))

    def weights(self, number: int) -> list[int]:
        """Return how often each row occurs: rows with 1, 2 and 3 repeats, as many examples as the commit record says."""
        left, found = int(self.groups.examples[number]), []
        while left:
            found.append(min(left, 1 + len(found) % 3))
            left -= found[-1]
        return found


def made(examples: np.ndarray, nbytes: np.ndarray) -> Made:
    count = len(examples)
    return Made("table", 32, RowGroups(("file",), np.zeros(count, np.int32), np.arange(count), examples, examples, nbytes))


@dataclass(frozen=True)
class Case:
    """A random table, the order of its examples, and a number of workers that its batches are divided among."""

    table: Made
    order: Order
    workers: int

    @classmethod
    def of(cls, seed: int) -> "Case":
        rng = np.random.default_rng(seed)
        groups, batch = int(rng.integers(1, 80)), int(rng.integers(1, 30))
        table = made(rng.integers(1, 40, groups), rng.integers(100, 1000, groups))
        total = int(table.groups.nbytes.sum())
        held = int(rng.choice([total, total // 2, total // 9, 1])) or 1
        order = Order.of(table.groups.examples, table.groups.nbytes, batch, seed, held)
        return cls(table, order, int(rng.integers(1, batch + 1)))

    def expected(self) -> list[list[bytes]]:
        """The images of the batches of the second epoch."""
        order, steps = self.order, self.order.steps_per_epoch
        found = np.empty((steps, order.batch), object)
        for window in order.windows(range(order.batch), steps, 2 * steps):
            for step, positions in zip(window.steps, order.shuffled_positions(window).tolist(), strict=True):
                for batch_index, position in zip(window.slot.batch_indices, positions, strict=True):
                    (entry,) = window.layout.entries(range(position, position + 1))
                    number = int(window.layout.groups[entry])
                    weights = self.table.weights(number)
                    row = np.repeat(np.arange(len(weights)), weights)[position - window.layout.start(entry)]
                    found[step - steps, batch_index] = f"{number}:{row}".encode()
        return found.tolist()


def test_rows_are_those_of_the_order_and_workers_read_a_row_group_once():
    once = alone = 0
    for seed in range(40):
        case = Case.of(seed)
        table, order = case.table, case.order
        groups, total = len(order.examples), int(table.groups.nbytes.sum())
        shares = even_ranges(order.batch, case.workers)
        tables = [replace(table) for _ in shares]
        readers = [RowReader(each, order, batch_indices) for each, batch_indices in zip(tables, shares, strict=True)]
        steps = order.steps_per_epoch
        rows = [list(reader.steps(steps, 2 * steps)) for reader in readers]  # the second epoch
        assert [[image for part in parts for image, _ in part] for parts in zip(*rows, strict=True)] == case.expected(), seed
        assert sum(reader.bytes_read for reader in readers) >= total, seed
        assert all(len(each.footers) <= row_reader.READERS for each in tables), "those of the first reads, by threads together"
        if len(order.slots) == order.batch and order.examples.sum() >= order.batch:
            assert sum(reader.groups_read for reader in readers) <= groups + case.workers - 1, seed
            for each, batch_indices in zip(
                tables, shares, strict=True
            ):  # its share, and the row groups that are cut at its two ends
                most = len(batch_indices) / order.batch * order.examples.sum() + 2 * order.examples.max()
                assert order.examples[each.numbers].sum() <= most, seed
            once += 1
        if case.workers == 1 and order.examples.sum() >= order.batch:
            assert readers[0].bytes_read == total, seed
            alone += 1
    assert once > 10 and alone > 2


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_together_read_at_most_a_tenth_more_than_the_table(workers):
    """From 80 row groups on, for up to 8 workers; and the less, the larger the table is."""
    for groups, limit in ((80, 1.1), (800, 1.01)):
        rng = np.random.default_rng(groups)
        table = made(rng.integers(30, 64, groups), rng.integers(900_000, 1_000_000, groups))
        order = Order.of(table.groups.examples, table.groups.nbytes, 64, 0)
        readers = [RowReader(table, order, batch_indices) for batch_indices in even_ranges(64, workers)]
        for reader in readers:
            for _ in reader.steps(0, order.steps_per_epoch):
                pass
        assert sum(reader.bytes_read for reader in readers) <= limit * table.groups.nbytes.sum()


@pytest.mark.parametrize(
    ("groups", "size", "batch"),
    [(60, 2**20, 64), (150, 2**20, 64), (600, 2**20, 64), (1_800, 2**20, 64), (500, 2**21, 20), (1_000, 2**20, 200)],
)
@pytest.mark.parametrize("workers", [1, 4])
def test_what_is_held_is_what_memory_allows_whatever_the_size_of_the_table(groups, size, batch, workers, monkeypatch):
    """Row groups of 15 rows and 30 examples. Over the end of an epoch, where the next one is read already."""
    monkeypatch.setattr(row_reader, "ThreadPoolExecutor", AtOnce)
    table = made(np.full(groups, 30), np.full(groups, size))
    order = Order.of(table.groups.examples, table.groups.nbytes, batch, 0)
    steps = order.steps_per_epoch
    held = []
    count = Live.counter = Counter()
    for rows in RowReader(table, order, even_ranges(batch, workers)[0]).steps(max(0, steps - 200), steps + 100):
        held.append(count["live"] - len({image for image, _ in rows}))
    bytes_held = np.array(held) * size / len(table.weights(0))
    assert bytes_held.mean() <= 1.13 * BUFFER_BYTES / workers
    assert bytes_held.max() <= 1.5 * BUFFER_BYTES / workers
    del rows
    assert count["live"] == 0


def test_a_row_group_with_other_rows_than_recorded_is_an_error(tmp_path: Path):
    table = made(np.array([5]), np.array([100]))
    table.groups.examples[0] = 6
    order = Order.of(table.groups.examples, table.groups.nbytes, 2, 0)
    table.weights = lambda number: [5]
    with pytest.raises(ValueError, match="holds 5 examples, but the table's commit record says 6"):
        list(RowReader(table, order, range(2)).steps(0, 1))
