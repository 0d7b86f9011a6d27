"""Read one worker's share of each batch from the table: every row group once, shortly before its rows are needed."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deconvnet.training.data.examples import Examples
from deconvnet.training.data.sampler import READ_AHEAD, Layout, Order, Window

READERS = 4
"""Number of threads that read row groups. They mostly wait for the storage."""

FOOTERS = 64
"""Number of footers of Parquet files that are remembered: each is read before a row group, and has some 10 kB."""

Row = tuple[bytes, bytes]
"""The encoded image and the encoded mask of a row of the table."""


@dataclass
class _Group:
    """A row group in memory, or being read. It is dropped when every window that needs it has taken its rows.

    Attributes:
        rows: its rows, each repeated as often as it occurs in the epoch. Rows that a window has taken are None.
        start: position of its first example in the layout of the epoch.
        num_pending: number of its examples that no window has taken yet.
    """

    rows: Future[list[Row | None]]
    start: int
    num_pending: int


class RowReader:
    """A reader of the encoded rows for one worker's share of the batches, step by step.

    Threads read row groups some steps before their rows are needed. A row stays in memory until its last example was used.

    Attributes:
        batch_indices: the share, as consecutive indices into each global batch (see `sampler`).
        groups_read: number of row groups read so far.
        bytes_read: their size in bytes.
    """

    def __init__(self, examples: Examples, order: Order, batch_indices: range) -> None:
        """Prepare, without reading anything.

        Args:
            examples: the examples of the table.
            order: their order in the epochs.
            batch_indices: consecutive indices into a global batch, such as the share of a rank.
        """
        self.groups_read = self.bytes_read = 0
        self.batch_indices, self._examples, self._order = batch_indices, examples, order
        self._footer = lru_cache(FOOTERS)(examples.footer)
        self._slots = order.slots_of(batch_indices)
        self._groups: dict[tuple[int, int], _Group] = {}  # by epoch and index in the layout

    def steps(self, first_step: int, stop_step: int) -> Iterator[list[Row]]:
        """Read the rows of consecutive steps.

        Args:
            first_step: number of the first step, counted from 0 over all epochs.
            stop_step: number of the step after the last one.

        Yields:
            For each step, the row for each of the batch indices.

        Raises:
            ValueError: if the table does not hold as many examples as its commit record says.
        """
        self._groups.clear()
        windows = self._order.windows(self.batch_indices, first_step, stop_step)
        next_window = next(windows, None)
        requested: deque[Window] = deque()  # whose row groups are being read
        rows_by_slot: dict[int, list[Row]] = {}  # of its window that were not used yet, the next ones last
        lead = 1 + int(READ_AHEAD * self._order.window)
        threads = ThreadPoolExecutor(READERS, "read-rows")
        try:
            for step in range(first_step, stop_step):
                while next_window is not None and next_window.steps.start <= step + lead:
                    self._request(next_window, first_step, threads)
                    requested.append(next_window)
                    next_window = next(windows, None)
                while requested and requested[0].steps.start <= step:
                    window = requested.popleft()
                    rows_by_slot[window.slot.index] = self._take(window, step)
                yield [rows_by_slot[slot.index].pop() for slot in self._slots for _ in self._columns(slot.batch_indices)]
        finally:
            threads.shutdown(cancel_futures=True)

    def _columns(self, batch_indices: range) -> range:
        """Return which of a slot's batch indices belong to this reader, as indices into the slot's."""
        first, stop = max(batch_indices.start, self.batch_indices.start), min(batch_indices.stop, self.batch_indices.stop)
        return range(first - batch_indices.start, stop - batch_indices.start)

    def _request(self, window: Window, first_step: int, threads: ThreadPoolExecutor) -> None:
        """Begin to read the row groups of a window that were not read for another window.

        Args:
            window: the window.
            first_step: number of the step at which reading began.
            threads: the threads that read.
        """
        layout = window.layout
        for entry in layout.entries(window.positions):
            if (layout.epoch, entry) not in self._groups:
                number = int(layout.groups[entry])
                self.groups_read += 1
                self.bytes_read += int(self._examples.groups.nbytes[number])
                pending = self._examples_pending(layout, entry, first_step)
                self._groups[layout.epoch, entry] = _Group(threads.submit(self._read, number), layout.start(entry), pending)

    def _examples_pending(self, layout: Layout, entry: int, first_step: int) -> int:
        """Count the examples of a row group in those windows of this reader's slots that are used from `first_step` on.

        Args:
            layout: layout of the epoch.
            entry: index of the row group in the layout.
            first_step: number of the step at which reading began.
        """
        step = max(0, first_step - layout.epoch * self._order.steps_per_epoch)
        start, end = layout.start(entry), int(layout.ends[entry])
        used = (self._order.remaining(slot, step) for slot in self._slots)
        return sum(max(0, min(end, positions.stop) - max(start, positions.start)) for positions in used)

    def _take(self, window: Window, step: int) -> list[Row]:
        """Take the rows of a window, and forget the row groups from which all rows were taken.

        Args:
            window: the window, whose row groups have been requested.
            step: number of the first step for which rows are needed.

        Returns:
            The rows for this reader's batch indices, in the opposite order of their use.
        """
        layout = window.layout
        columns = self._columns(window.slot.batch_indices)
        positions = self._order.shuffled_positions(window)[step - window.steps.start :, columns.start : columns.stop]
        positions = positions.ravel()[::-1]
        entries = layout.entries(window.positions)
        groups = {entry: self._groups[layout.epoch, entry] for entry in entries}
        of_position = entries.start + np.searchsorted(layout.ends[entries.start : entries.stop], positions, side="right")
        found = [
            groups[entry].rows.result()[position - groups[entry].start]
            for entry, position in zip(of_position.tolist(), positions.tolist(), strict=True)
        ]
        for entry, group in groups.items():
            first, stop = max(group.start, window.positions.start), min(int(layout.ends[entry]), window.positions.stop)
            group.rows.result()[first - group.start : stop - group.start] = [None] * (stop - first)
            group.num_pending -= stop - first
            if not group.num_pending:
                del self._groups[layout.epoch, entry]
        return [row for row in found if row is not None]

    def _read(self, number: int) -> list[Row | None]:
        """Read a row group.

        Args:
            number: number of the row group in the table.

        Returns:
            Its rows, each as often as it has examples in an epoch.

        Raises:
            ValueError: if these are not as many as the table's commit record says.
        """
        found = self._examples.read(number, self._footer(int(self._examples.groups.file[number])))
        found = found.filter(pc.greater(found["weight"], 0))
        rows = list(zip(found["image"].to_pylist(), found["mask"].to_pylist(), strict=True))
        repeated: list[Row | None] = [
            row for row, weight in zip(rows, found["weight"].to_pylist(), strict=True) for _ in range(weight)
        ]
        del found
        pa.default_memory_pool().release_unused()  # otherwise, each thread's pool keeps the memory of several row groups
        if len(repeated) != (promised := int(self._examples.groups.examples[number])):
            raise ValueError(f"row group {number} holds {len(repeated)} examples, but the table's commit record says {promised}")
        return repeated
