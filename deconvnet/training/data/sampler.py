"""The random order of the examples in an epoch.

It decides which example is where in which batch, and so which row groups a worker must read.

An example is one occurrence of a row of the table. A row may be repeated in an epoch to balance the classes; each repeat is an
example. A *batch index* is an index into a global batch (the examples of one optimiser step of all workers), from 0.

The order of an epoch is made in three steps, which depend on nothing but the seed, the epoch, the size of the global batch and
the table (`Order`):

1. The row groups of the table are permuted and laid end to end (`Layout`). The repeats of a row lie beside each other, and so do
   the crops of an image. The index of an example in this layout is its *position*.
2. The positions are cut into *slots* of equal length, one for each batch index. Each batch takes one example of
   each slot. So a slot lasts for the whole epoch. If a slot has one more example than the epoch has batches, one is not used.
3. The examples of a slot are shuffled in *windows*, runs of consecutive positions, one window after the other (`Window`).

**Any number of workers.** A worker takes consecutive batch indices, so it reads only the slots of these. The batches
are the same whatever the number of workers, and every step can be computed without those before it, so a training may be resumed
at any step by another number of workers.

**What is read.** A worker's slots are a run of consecutive row groups, so all workers together read the table once per epoch.
There is one exception: a row group on the border between two workers is read by both. So N workers read N − 1 row groups more
than the table has; with 8 workers and 70 row groups (of at most 1 MB each), this is a tenth of the table.
Within a worker, a row group on the border between two slots would be needed at the end of one slot and at the beginning of the
next. Therefore every second slot runs backwards through its positions: both slots then need the row group at the same time, and
it is read once. In a small table, a row group may span many slots. It is read once, too, and kept until all of them have used it.

**Memory.** A worker holds a window of each of its slots. A row leaves memory when it is drawn, so on average half of a window is
held, and half of the row group that the window's end cuts. Windows are read ahead by an eighth of their length. So with S slots,
windows of w bytes and row groups of g bytes, a single worker holds S · (5/8 w + g / 2) bytes. The window length w is chosen so
that this equals `buffer_bytes`. (With more workers each holds less, but the order must not depend on their number.) Windows of
different slots begin at different steps; otherwise all of them would be read, and be full, at the same time. Their starts are
spaced by the golden ratio, which spreads the starts of any consecutive slots evenly. If S row groups don't fit in memory, there
are fewer slots, and each fills several batch indices. If such a slot fills batch indices of two workers, both read it. None of
this grows with the table.

**Mixing.** Each batch takes one example from every slot, so it is a stratified sample of the table. The repeats of a row and the
crops of an image lie in one slot (or in two, if a border cuts them), so at most two of them are in the same batch.
If the table has at most `buffer_bytes`, each slot is a single window, which is shuffled as a whole. Then repeats are spread over
the whole epoch, and the class counts of the batches vary at most as much as with one permutation of all examples. In a larger
table, repeats are spread over one window only, which is the share w / (bytes of the table / S) of the epoch. More is not possible
with this memory if the table is read once. So the classes of consecutive batches are correlated; docs/experiments.md measures how
much. If slots fill several batch indices, a batch may contain two examples of one window.

**Short epochs.** An epoch with fewer examples than a batch has one batch, for which the layout is repeated until it fills it.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deconvnet.training.data.batching import even_ranges

BUFFER_BYTES = 96 * 2**20
"""Encoded bytes of examples that a single worker holds on average; with more workers, each holds its share of it."""

READ_AHEAD = 1 / 8
"""How long before its first step a window is read, as a share of the windows' length."""

ORDER_VERSION = 2
"""Version of the order of examples. It is increased when the same seed gives another order. Checkpoints record it."""

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Layout:
    """The row groups of the table, laid end to end in the random order of an epoch.

    Attributes:
        epoch: number of the epoch, from 0.
        groups: int64 array of shape (n,): the numbers of the row groups. If the epoch has fewer examples than a batch, a row
            group occurs several times.
        ends: int64 array of shape (n,): for each entry of `groups`, the position after its last example.
    """

    epoch: int
    groups: np.ndarray
    ends: np.ndarray

    def entries(self, positions: range) -> range:
        """Return the indices into `groups` of the row groups that hold some consecutive positions."""
        first, last = np.searchsorted(self.ends, [positions.start, positions.stop - 1], side="right")
        return range(int(first), int(last) + 1)

    def start(self, entry: int) -> int:
        """Return the position of the first example of a row group, given by its index into `groups`."""
        return int(self.ends[entry - 1]) if entry else 0


@dataclass(frozen=True)
class Slot:
    """A run of positions of an epoch that fills the same indices of every batch.

    Attributes:
        index: number of the slot, from 0. Slots with odd numbers run backwards.
        batch_indices: the indices into a global batch that it fills.
        positions: its positions in the layout of an epoch.
        phase: offset of the slot's windows: they begin at the steps s of an epoch with s % `Order.window` == phase.
    """

    index: int
    batch_indices: range
    positions: range
    phase: int


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive examples of a slot that are shuffled together.

    Attributes:
        layout: the layout of the epoch.
        slot: the slot.
        steps: the steps that take examples from the window, counted from 0 over all epochs.
        positions: the positions of its examples in the layout. The last window of an epoch may have more than its steps take.
    """

    layout: Layout
    slot: Slot
    steps: range
    positions: range


@dataclass(frozen=True, eq=False)
class Order:
    """The order of the examples in all epochs of a training. Steps are counted from 0 over all epochs.

    Attributes:
        examples: int64 array of shape (G,): the number of examples that each row group of the table has in an epoch.
        batch: number of examples in a global batch.
        seed: seed of the training.
        slots: the slots, in order of their batch indices.
        window: length of the windows, in steps.
    """

    examples: np.ndarray
    batch: int
    seed: int
    slots: tuple[Slot, ...]
    window: int

    @staticmethod
    def of(examples: np.ndarray, nbytes: np.ndarray, batch: int, seed: int, buffer_bytes: int = BUFFER_BYTES) -> "Order":
        """Choose the number of slots and the length of windows, by the sizes of the table's row groups.

        Args:
            examples: integer array of shape (G,): the number of examples that each row group has in an epoch, at least 1.
            nbytes: integer array of shape (G,): the size in bytes of each row group.
            batch: number of examples in a global batch.
            seed: seed of the training.
            buffer_bytes: encoded bytes that a single worker, which makes whole batches, may hold on average.
        """
        total, size = int(examples.sum()), float(nbytes.sum())
        # The mean size of the row group that a byte is in.
        group = float(np.square(nbytes, dtype=np.float64).sum()) / max(size, 1)
        count = batch
        while count > 1 and count * group > buffer_bytes:
            count = -(-count // 2)
        steps, positions = max(1, total // batch), max(total, batch)
        window, phases = steps, np.zeros(count)
        if size > buffer_bytes:
            window = max(1, int((buffer_bytes - count * group / 2) / (1 / 2 + READ_AHEAD) * total / (size * batch)))
            # Neighbours that meet at their ends (0 and 1, 2 and 3 …) begin their windows together, to share the row group there.
            phases = np.floor(np.arange(count) // 2 * _GOLDEN % 1 * window)
        slots = []
        for index, batch_indices in enumerate(even_ranges(batch, count)):
            held = range(positions * batch_indices.start // batch, positions * batch_indices.stop // batch)
            slots.append(Slot(index, batch_indices, held, int(phases[index])))
        return Order(np.asarray(examples, np.int64), batch, seed, tuple(slots), window)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Return the number of global batches in an epoch; at least 1."""
        return max(1, int(self.examples.sum()) // self.batch)

    def layout(self, epoch: int) -> Layout:
        """Lay the row groups end to end in the random order of an epoch.

        Args:
            epoch: number of the epoch, from 0.
        """
        groups = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.examples))
        missing = self.batch / int(self.examples.sum())
        if missing > 1:  # the epoch is repeated to fill a batch
            groups = np.tile(groups, int(np.ceil(missing)))
        return Layout(epoch, groups, np.cumsum(self.examples[groups]))

    def slots_of(self, batch_indices: range) -> list[Slot]:
        """Return the slots that fill some consecutive batch indices."""
        return [
            s for s in self.slots if s.batch_indices.start < batch_indices.stop and s.batch_indices.stop > batch_indices.start
        ]

    def windows(self, batch_indices: range, first_step: int, stop_step: int) -> Iterator[Window]:
        """Iterate over the windows whose examples are at some batch indices in consecutive steps.

        Args:
            batch_indices: consecutive indices into a global batch.
            first_step: number of the first step.
            stop_step: number of the step after the last one.

        Yields:
            The windows, sorted by their first step and then by slot. The first ones may begin before `first_step`.
        """
        slots, steps = self.slots_of(batch_indices), self.steps_per_epoch
        beginning = defaultdict(list)
        for slot in slots:
            beginning[slot.phase].append(slot)
        layout = self.layout(first_step // steps)
        for step in range(first_step, stop_step):
            epoch, within = divmod(step, steps)
            if layout.epoch != epoch:
                layout = self.layout(epoch)
            for slot in slots if step == first_step or within == 0 else beginning.get(within % self.window, ()):
                yield self._window(layout, slot, within)

    def _window(self, layout: Layout, slot: Slot, step: int) -> Window:
        """Return the window of a slot from which a step takes its examples.

        Args:
            layout: layout of the epoch.
            slot: the slot.
            step: number of the step in this epoch, from 0.
        """
        first, stop = self._window_steps(slot, step)
        past = layout.epoch * self.steps_per_epoch
        return Window(layout, slot, range(past + first, past + stop), self._positions(slot, first, stop))

    def remaining(self, slot: Slot, step: int) -> range:
        """Return the positions of a slot in the window of a step, and in all later windows of the epoch.

        Args:
            slot: the slot.
            step: number of the step in the epoch, from 0.
        """
        return self._positions(slot, self._window_steps(slot, step)[0], self.steps_per_epoch)

    def _window_steps(self, slot: Slot, step: int) -> tuple[int, int]:
        """Return the first step and the step after the last one of the window from which a step takes its examples.

        Args:
            slot: the slot.
            step: number of the step in the epoch, from 0. The result is counted likewise.
        """
        begin = step - (step - slot.phase) % self.window
        return max(0, begin), min(begin + self.window, self.steps_per_epoch)

    def _positions(self, slot: Slot, first: int, stop: int) -> range:
        """Return the positions that a slot gives to consecutive steps, which begin and end with windows.

        Args:
            slot: the slot.
            first: number of the first step in the epoch, from 0.
            stop: number of the step after the last one. If the epoch ends there, all positions up to the slot's end count.
        """
        taken = len(slot.batch_indices)
        start, end = first * taken, stop * taken if stop < self.steps_per_epoch else len(slot.positions)
        return slot.positions[::-1][start:end][::-1] if slot.index % 2 else slot.positions[start:end]

    def shuffled_positions(self, window: Window) -> np.ndarray:
        """Shuffle the examples of a window. The result depends only on the seed, the epoch, the slot and the window's first step.

        Args:
            window: the window.

        Returns:
            int64 array (steps of the window, batch indices of its slot): the positions that fill them at each step.
        """
        first = window.steps.start - window.layout.epoch * self.steps_per_epoch
        rng = np.random.default_rng([self.seed, window.layout.epoch, 1, window.slot.index, first])
        shape = len(window.steps), len(window.slot.batch_indices)
        return (window.positions.start + rng.permutation(len(window.positions))[: shape[0] * shape[1]]).reshape(shape)
