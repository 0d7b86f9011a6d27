"""The random order of the examples in an epoch, and its division into batches and shares of the workers.

An example is one occurrence of a row of the table. A row may be repeated in an epoch to balance the classes; each repeat is an
example. The order of an epoch is a permutation that depends only on the seed and the epoch. The place of an example in this
order, counted from 0, is its *position*. These rules hold:

* Global batch b of an epoch has the positions from b·B to (b + 1)·B − 1, where B is the batch size. The number of workers
  doesn't matter.
* A global batch is divided into consecutive shares, one for each worker (rank), in the order of the ranks. The sizes of shares
  differ by at most one example.
* Every position lies in exactly one *window*, and each window covers consecutive positions. A worker that needs a position
  reads only the window around it.

The permutation has two levels, so that each Parquet file is read only once in an epoch. First the files' row groups are
permuted and divided into windows, whose size in bytes is limited by a worker's memory. Then the examples within each window are
permuted. If the table fits in one window, all examples are permuted together. This is the best case, because the repeats of a
row and the crops of an image are then spread over the whole epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.errors import UserError

WINDOW_BYTES = 256 * 2**20
"""Approximate size of a window in bytes. A worker holds two windows: it reads the next one while it uses the current one."""


@dataclass(frozen=True)
class Group:
    """A row group of a Parquet file of the table.

    Attributes:
        part: path of the file below the table's folder.
        index: index of the row group in the file, from 0.
        examples: number of examples that the row group has in an epoch. A row that is repeated counts repeatedly.
        nbytes: size of the row group in bytes.
    """

    part: str
    index: int
    examples: int
    nbytes: int = 0


@dataclass(frozen=True)
class Window:
    """A window of an epoch: row groups of the table whose examples are read and permuted together.

    Attributes:
        epoch: number of the epoch, from 0.
        index: index of the window in the epoch, from 0.
        start: position of the window's first example in the order of the epoch, from 0.
        examples: number of examples in the window.
        groups: the row groups.
    """

    epoch: int
    index: int
    start: int
    examples: int
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Batching:
    """The division of an epoch into global batches (one for each optimiser step), and of each batch into shares of the workers.

    If examples remain at the end of an epoch that don't fill a batch, they are not used. In each epoch, other examples are left
    out. If an epoch has fewer examples than a batch, its examples are repeated until they fill one batch.

    Attributes:
        examples: number of examples in an epoch.
        batch: number of examples in a global batch.
        workers: number of workers (training processes).
    """

    examples: int
    batch: int
    workers: int = 1

    def share(self, rank: int) -> range:
        """Return a worker's share of each global batch, as a range of indices into the batch (from 0).

        Args:
            rank: rank of the worker, from 0.
        """
        return even_ranges(self.batch, self.workers)[rank]

    @property
    def steps(self) -> int:
        """Return the number of global batches in an epoch; at least 1."""
        return max(1, self.examples // self.batch)

    def positions(self, window: Window, rank: int, first_step: int = 0, stop_step: int | None = None) -> np.ndarray:
        """Return the positions of the examples in a window that a worker sees in some steps of the epoch.

        A window is a group of examples that are read and permuted together. The position of an example is its index in the
        random order of the epoch.

        Args:
            window: a window of any epoch.
            rank: rank of the worker, from 0.
            first_step: index of the first step (global batch) in the epoch.
            stop_step: index of the step after the last one. None: up to the end of the epoch.

        Returns:
            int64 array of positions, ascending. If a batch has more examples than the epoch, examples are repeated. Then a
            position p beyond the last example stands for example p modulo the number of examples.
        """
        end = window.start + window.examples
        if self.examples < self.batch:  # there is only one window, repeated until it fills a batch
            end = self.batch
        stop = self.steps if stop_step is None else min(stop_step, self.steps)
        positions = np.arange(max(window.start, first_step * self.batch), min(end, stop * self.batch), dtype=np.int64)
        share, indices = self.share(rank), positions % self.batch
        return positions[(indices >= share.start) & (indices < share.stop)]


def even_ranges(count: int, parts: int) -> list[range]:
    """Divide the numbers from 0 to count − 1 into consecutive ranges whose lengths differ by at most one.

    Args:
        count: number of integers to divide.
        parts: number of ranges to make.

    Returns:
        The ranges in ascending order. Some are empty if `parts` exceeds `count`.
    """
    return [range(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


def micro_batch_count(batch: int, workers: int, micro_batch: int | None) -> int:
    """Return the number of micro-batches that each worker divides its share of a global batch into.

    A micro-batch contains the examples that a worker computes at once. The number is the same for all workers, because with
    synchronised batch norm they wait for each other at every micro-batch. No micro-batch is empty. So if `micro_batch` is 1 and
    the shares differ in size, some micro-batches have 2 examples.

    Args:
        batch: number of examples in a global batch.
        workers: number of workers.
        micro_batch: largest number of examples in a micro-batch. None: the whole share is one micro-batch.
    """
    return min(-(-batch // (workers * micro_batch)), batch // workers) if micro_batch else 1


def check_batching(batch: int, micro_batch: int | None, workers: int, min_workers: int | None = None, *, setting: str) -> None:
    """Check that a global batch can be divided among the workers.

    Args:
        batch: number of examples in a global batch.
        micro_batch: largest number of examples that a worker computes at once; None for no limit.
        workers: number of workers.
        min_workers: smallest number of workers that training may continue with after failures. None: always `workers`.
        setting: section of the settings that error messages name, such as "train.stage1".

    Raises:
        UserError: if a worker would get no example, `min_workers` exceeds `workers`, or `micro_batch` exceeds `batch`.
    """
    if min_workers is not None and min_workers > workers:
        raise UserError(
            f"compute.min_workers {min_workers} is more than compute.workers {workers}: lower the first or raise the second"
        )
    if batch < workers:
        raise UserError(
            f"{setting}.batch {batch} leaves some of {workers} workers without an example: "
            f"take at least {workers}, or lower compute.workers to {batch}"
        )
    if micro_batch is not None and micro_batch > batch:
        raise UserError(f"{setting}.micro_batch {micro_batch} is more than {setting}.batch {batch}: lower it, or leave it empty")


def window_count(groups: Sequence[Group], window_bytes: int = WINDOW_BYTES) -> int:
    """Return the number of windows (groups of examples that are read and permuted together) that every epoch is divided into.

    Args:
        groups: all row groups of the table that hold examples.
        window_bytes: approximate size of a window in bytes.

    Returns:
        A number from 1 to the number of row groups.
    """
    total = sum(g.nbytes for g in groups)
    return max(1, min(len(groups), -(-total // window_bytes)))


def windows(groups: Sequence[Group], seed: int, epoch: int, count: int) -> list[Window]:
    """Divide the row groups of a table, in a random order, into the windows of an epoch.

    A window is a set of row groups whose examples are read and permuted together.

    Args:
        groups: all row groups of the table that hold examples.
        seed: seed of the training.
        epoch: number of the epoch, from 0.
        count: number of windows. If it is 1, the row groups stay in order.

    Returns:
        The windows in the order in which they are used. Their numbers of row groups differ by at most one.
    """
    order = np.random.default_rng([seed, epoch, 0]).permutation(len(groups)) if count > 1 else np.arange(len(groups))
    found: list[Window] = []
    start = 0
    for index, chosen in enumerate(np.array_split(order, count)):
        members = tuple(groups[i] for i in chosen)
        examples = sum(g.examples for g in members)
        found.append(Window(epoch, index, start, examples, members))
        start += examples
    return found


def window_rows(window: Window, seed: int, weights: np.ndarray) -> np.ndarray:
    """Permute the examples of a window. The permutation depends only on the seed, the epoch and the window's index.

    Args:
        window: the window (row groups whose examples are read and permuted together).
        seed: seed of the training.
        weights: integer array of shape (rows,). It says how often each row of the window occurs. The rows are in the order of
            the window's row groups.

    Returns:
        int64 array of shape (window.examples,). Entry i is the index (into `weights`) of the row that is the window's example
        i.

    Raises:
        ValueError: if the sum of the weights is not `window.examples`.
    """
    rows = np.repeat(np.arange(len(weights), dtype=np.int64), weights)
    if len(rows) != window.examples:
        raise ValueError(f"window {window.index} holds {len(rows)} examples, its table promised {window.examples}")
    return np.random.default_rng([seed, window.epoch, 1, window.index]).permutation(rows)
