"""The order in which an epoch sees its examples, and how it is divided into batches and shares.

An example is one occurrence of a row: a row with repeats (class balance) occurs several times in an epoch. Examples are counted by
*position*, from 0, in the epoch's order, a permutation that depends on seed and epoch alone. Invariants:

* Global batch b of an epoch is positions [b·B, (b + 1)·B), whatever the number of workers.
* Rank r of w sees the r-th of the batch's w consecutive shares, which differ by one example at most.
* Every position is in exactly one *window*, and windows are consecutive. A worker that needs a position reads that window only.

The permutation has two levels so that each Parquet file is read once in an epoch: row groups are permuted and divided into windows of
as many bytes as a worker may hold, then the examples of a window are permuted. A table that fits in one window is permuted as a whole,
which is best: a row's repeats, and an image's crops, are then spread over the epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.errors import UserError

WINDOW_BYTES = 256 * 2**20
"""About the size of a window. A worker holds two: the next one is read while one is used."""


@dataclass(frozen=True)
class Group:
    """A row group of a Parquet file.

    Attributes:
        part: the file, relative to the table's folder.
        index: of the row group in the file.
        examples: examples that it has in an epoch.
        nbytes: its size, bytes.
    """

    part: str
    index: int
    examples: int
    nbytes: int = 0


@dataclass(frozen=True)
class Window:
    """Row groups whose examples are permuted together.

    Attributes:
        epoch: the epoch, from 0.
        index: of the window in its epoch, from 0.
        start: position of its first example.
        examples: how many examples it has.
        groups: its row groups.
    """

    epoch: int
    index: int
    start: int
    examples: int
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Batching:
    """How an epoch is divided into global batches, and those into the shares of the workers.

    A rest at the end of an epoch is dropped (other examples each epoch). An epoch with fewer examples than a batch is repeated from
    its start until it fills one.

    Attributes:
        examples: examples in an epoch.
        batch: examples in a global batch.
        workers: number of workers.
    """

    examples: int
    batch: int
    workers: int = 1

    def share(self, rank: int) -> range:
        """Return the indices within a global batch, from 0, that a rank sees."""
        return even_ranges(self.batch, self.workers)[rank]

    @property
    def steps(self) -> int:
        """Global batches in an epoch."""
        return max(1, self.examples // self.batch)

    def positions(self, window: Window, rank: int, first_step: int = 0, stop_step: int | None = None) -> np.ndarray:
        """Return the positions of a window that a rank sees.

        Args:
            window: of any epoch.
            rank: whose share.
            first_step: first global batch of the epoch.
            stop_step: global batch of the epoch to stop before; None for the epoch's end.

        Returns:
            int64 positions, ascending.
        """
        end = window.start + window.examples
        if self.examples < self.batch:  # the only window, repeated until the batch is full
            end = self.batch
        stop = self.steps if stop_step is None else min(stop_step, self.steps)
        positions = np.arange(max(window.start, first_step * self.batch), min(end, stop * self.batch), dtype=np.int64)
        share, indices = self.share(rank), positions % self.batch
        return positions[(indices >= share.start) & (indices < share.stop)]


def even_ranges(count: int, parts: int) -> list[range]:
    """Divide 0 … count − 1 into consecutive ranges whose lengths differ by one at most.

    Args:
        count: numbers to divide.
        parts: how many ranges.
    """
    return [range(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


def micro_batch_count(batch: int, workers: int, micro_batch: int | None) -> int:
    """Return the number of micro-batches that every worker divides its share of a global batch into.

    It is the same for all workers, because synchronised batch norm waits for all of them at each micro-batch; so none may be empty,
    and with a `micro_batch` of 1 and unequal shares some hold 2 examples.

    Args:
        batch: examples in a global batch.
        workers: number of workers.
        micro_batch: most examples in a micro-batch; None: the whole share.
    """
    return min(-(-batch // (workers * micro_batch)), batch // workers) if micro_batch else 1


def check_batching(batch: int, micro_batch: int | None, workers: int, min_workers: int | None = None, *, setting: str) -> None:
    """Check that a batch can be shared.

    Args:
        batch: examples in a global batch.
        micro_batch: most examples in a micro-batch; None for no limit.
        workers: number of workers.
        min_workers: fewest workers that training may continue with; None: always `workers`.
        setting: section of the settings that the error message names, as "train.stage1".

    Raises:
        UserError: if a worker would have no example, or the numbers contradict each other.
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
    """Compute the number of windows that every epoch is divided into.

    Args:
        groups: all row groups.
        window_bytes: about the size of a window.

    Returns:
        At least 1, at most the number of row groups.
    """
    total = sum(g.nbytes for g in groups)
    return max(1, min(len(groups), -(-total // window_bytes)))


def windows(groups: Sequence[Group], seed: int, epoch: int, count: int) -> list[Window]:
    """Divide the row groups, in the epoch's random order, into windows.

    Args:
        groups: all row groups.
        seed: of the training.
        epoch: from 0.
        count: number of windows.

    Returns:
        The windows in the order they are seen, each of about as many row groups.
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
    """Permute the examples of a window.

    Args:
        window: the window.
        seed: of the training.
        weights: integer (rows,): how often each row of the window occurs, in the order of its row groups.

    Returns:
        int64 (window.examples,): the row at each position of the window.

    Raises:
        ValueError: if the weights don't sum to `window.examples`.
    """
    rows = np.repeat(np.arange(len(weights), dtype=np.int64), weights)
    if len(rows) != window.examples:
        raise ValueError(f"window {window.index} holds {len(rows)} examples, its table promised {window.examples}")
    return np.random.default_rng([seed, window.epoch, 1, window.index]).permutation(rows)
