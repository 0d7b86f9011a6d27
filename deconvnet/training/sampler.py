"""The order in which an epoch sees its examples: a permutation of (seed, epoch), the same for any number of workers.

Every row of a table comes `weight` times an epoch (its class balance). The order is drawn in two levels so that Parquet is read
once: row groups are permuted and dealt into windows of so many bytes as a worker may hold, and a window's examples are permuted
among themselves. A table that fits in one window is permuted as a whole, which is best: a row's repeats, and a photograph's crops,
are then spread over the epoch. A position counts an epoch's examples from 0; the global batch
b holds positions [b·B, (b+1)·B), and rank r of `world` the r-th of its consecutive shares, which differ by one example at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.errors import UserError

WINDOW_BYTES = 256 * 2**20  # a worker holds two: the next is read while one is used


@dataclass(frozen=True)
class Group:
    """A row group: its file below the table's folder, its index there, the examples an epoch makes of it, and its bytes."""

    part: str
    index: int
    examples: int
    nbytes: int = 0


@dataclass(frozen=True)
class Window:
    """Row groups whose examples are permuted together; the first of them has the position `start` in its epoch."""

    epoch: int
    index: int
    start: int
    examples: int
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Batching:
    """How an epoch of `examples` is cut into global batches of `batch`, and those into the shares of `world` workers.

    What is left over at an epoch's end is dropped (another part each epoch); an epoch of less than one batch is repeated from its
    start until it fills one.
    """

    examples: int
    batch: int
    world: int = 1

    def share(self, rank: int) -> range:
        """The places in a global batch, from 0, that rank `rank` holds."""
        return nearly_equal(self.batch, self.world)[rank]

    @property
    def steps(self) -> int:
        """Global batches an epoch."""
        return max(1, self.examples // self.batch)

    def positions(self, window: Window, rank: int, first_step: int = 0, stop_step: int | None = None) -> np.ndarray:
        """The positions (int64, ascending) of `window` that rank `rank` sees in the epoch's global batches [first, stop)."""
        end = window.start + window.examples
        if self.examples < self.batch:  # the only window, gone through until the batch is full
            end = self.batch
        stop = self.steps if stop_step is None else min(stop_step, self.steps)
        positions = np.arange(max(window.start, first_step * self.batch), min(end, stop * self.batch), dtype=np.int64)
        share, places = self.share(rank), positions % self.batch
        return positions[(places >= share.start) & (places < share.stop)]


def nearly_equal(count: int, parts: int) -> list[range]:
    """0 … count − 1 cut into `parts` consecutive ranges whose lengths differ by one at most."""
    return [range(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


def micro_batches(batch: int, world: int, micro_batch: int | None) -> int:
    """Into how many pieces every worker cuts its share of a global batch, so that none holds more than `micro_batch` examples.

    All workers make as many, because synchronised batch norm waits for all of them at each; so none may be empty, and where shares
    are unequal a `micro_batch` of 1 may have to hold 2.
    """
    return min(-(-batch // (world * micro_batch)), batch // world) if micro_batch else 1


def check_batching(batch: int, micro_batch: int | None, workers: int, min_workers: int | None = None, *, setting: str) -> None:
    """Raise UserError where `workers` (or any number from `min_workers` on) can't share `batch`; `setting` names the section."""
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
    """Windows an epoch is dealt into: of about `window_bytes` each, the same number every epoch."""
    total = sum(g.nbytes for g in groups)
    return max(1, min(len(groups), -(-total // window_bytes)))


def windows(groups: Sequence[Group], seed: int, epoch: int, count: int) -> list[Window]:
    """The `count` windows of `epoch`, of about as many groups each, in the order they are seen."""
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
    """The row (index into the window's rows, in the order of its groups) at each of its positions: int64 (window.examples,).

    `weights` (integers, a row each) says how often each row comes. Raises ValueError where they don't sum to `window.examples`.
    """
    rows = np.repeat(np.arange(len(weights), dtype=np.int64), weights)
    if len(rows) != window.examples:
        raise ValueError(f"window {window.index} holds {len(rows)} examples, its table promised {window.examples}")
    return np.random.default_rng([seed, window.epoch, 1, window.index]).permutation(rows)
