"""Training batches for one training process, read from a table.

The examples are read in the random order of the epoch, decoded and augmented. A global batch is the examples of one optimiser
step. It is divided among the training processes (ranks), and each rank makes only its own share. `ThreadedLoader` makes batches
with threads of its own process. `ray_dataloader.RayDataLoader` makes the same batches with Ray Data.

A batch is a pair of uint8 arrays: RGB images of shape (n, 3, S, S), and masks of shape (n, S, S) with class ids and 255 for
void.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from deconvnet.training.data import transforms
from deconvnet.training.data.examples import Examples
from deconvnet.training.data.sampler import WINDOW_BYTES, Batching, Window, window_count, window_rows, windows
from deconvnet.training.interfaces import Batch
from infra.errors import BadInput, UserError


@dataclass(frozen=True)
class BatchPlan:
    """A plan of which examples each rank (training process) sees at each training step.

    Steps are counted over all epochs. So step s is batch s % steps_per_epoch of epoch s // steps_per_epoch.

    The examples of an epoch are divided into windows. A window is a group of examples that are read and shuffled together.
    Windows are counted over all epochs, too. So window w is window w % windows_per_epoch of epoch w // windows_per_epoch.

    Attributes:
        examples: the examples to train on.
        batching: number of examples in an epoch and in a global batch (all ranks together), and the number of ranks.
        seed: seed of the order of examples and of their augmentation.
        windows_per_epoch: number of windows in an epoch.
    """

    examples: Examples
    batching: Batching
    seed: int
    windows_per_epoch: int = 1

    @staticmethod
    def of(examples: Examples, batch: int, workers: int, seed: int, window_bytes: int = WINDOW_BYTES) -> "BatchPlan":
        """Make a plan, with as many windows per epoch as the size of the table requires.

        Args:
            examples: the examples to train on.
            batch: number of examples in a global batch (over all training processes).
            workers: number of training processes that share a global batch.
            seed: seed of the order of examples and of their augmentation.
            window_bytes: approximate size in bytes of a window (a group of examples that are read and shuffled together).
        """
        count = window_count(examples.groups, window_bytes) if examples.total >= batch else 1
        return BatchPlan(examples, Batching(examples.total, batch, workers), seed, count)

    def for_workers(self, workers: int) -> "BatchPlan":
        """Return a plan with the same global batches, divided among another number of training processes.

        Args:
            workers: number of training processes. Each gets a share of every global batch.
        """
        return replace(self, batching=replace(self.batching, workers=workers))

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of global batches in an epoch."""
        return self.batching.steps

    def windows(self, epoch: int) -> list[Window]:
        """Return the windows (groups of examples shuffled together) of an epoch, in the order in which they are used.

        Args:
            epoch: number of the epoch, from 0.
        """
        return windows(self.examples.groups, self.seed, epoch, self.windows_per_epoch)

    def window_range(self, first_step: int, stop_step: int) -> range:
        """Find the windows (groups of examples that are read and shuffled together) that hold the examples of some steps.

        Args:
            first_step: number of the first step, counted from 0 over all epochs.
            stop_step: number of the step after the last one.

        Returns:
            Consecutive window numbers, counted over all epochs. The range is empty if there is no step.
        """

        def window_of(step: int) -> int:
            """Return the number, counted over all epochs, of the window that holds the first example of a step."""
            epoch, batch = divmod(step, self.steps_per_epoch)
            starts = [w.start for w in self.windows(epoch)]
            return epoch * self.windows_per_epoch + int(np.searchsorted(starts, batch * self.batching.batch, side="right")) - 1

        if first_step >= stop_step:
            return range(0)
        epoch, batch = divmod(stop_step - 1, self.steps_per_epoch)
        last = sum(w.start < (batch + 1) * self.batching.batch for w in self.windows(epoch))
        return range(window_of(first_step), epoch * self.windows_per_epoch + last)

    def pieces(self, number: int, rank: int, first_step: int, stop_step: int, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """Read, decode and augment the examples of one window that a rank sees in some steps.

        A window is a group of examples that are read and shuffled together. It is only read if the rank (training process)
        needs at least one of its examples.

        Args:
            number: number of the window, counted over all epochs.
            rank: rank of the training process, from 0. It gets a share of each global batch.
            first_step: number of the first step, counted from 0 over all epochs.
            stop_step: number of the step after the last one.
            pool: threads that read, decode and augment.

        Yields:
            The examples in order, in batches of at most the size of the rank's share. A step's examples may be spread over two
            windows, so these batches must be joined and divided again by `rebatched`.

        Raises:
            UserError: if an example can't be decoded.
        """
        epoch, index = divmod(number, self.windows_per_epoch)
        window = self.windows(epoch)[index]
        past = epoch * self.steps_per_epoch
        positions = self.batching.positions(window, rank, max(0, first_step - past), stop_step - past)
        if not len(positions):
            return
        rows = pa.concat_tables(list(pool.map(self.examples.read, window.groups)))
        order = window_rows(window, self.seed, rows["weight"].to_numpy())
        images, masks = rows["image"], rows["mask"]

        def view(position: int) -> transforms.Pair:
            """Decode and augment the example at a position in the random order of the epoch, counted from 0."""
            row = int(order[(position - window.start) % window.examples])
            image, mask = images[row].as_py(), masks[row].as_py()
            try:
                return self.examples.view(image, mask, transforms.example_rng(self.seed, epoch, position))
            except BadInput as error:
                raise UserError(f"{self.examples.table} is damaged (make it again): {error}") from None

        share = len(self.batching.share(rank))
        for start in range(0, len(positions), share):
            yield stacked(list(pool.map(view, positions[start : start + share].tolist())))


def stacked(pairs: Sequence[transforms.Pair]) -> Batch:
    """Combine examples into a batch.

    Args:
        pairs: for each example, the image of shape (3, S, S) and the mask of shape (S, S), both uint8.

    Returns:
        The images, of shape (n, 3, S, S), and the masks, of shape (n, S, S).
    """
    return np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs])


def rebatched(pieces: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Divide a stream of examples into batches of equal size, in the same order.

    Args:
        pieces: batches of any sizes.
        size: number of examples in each new batch.

    Yields:
        Batches of exactly `size` examples. Remaining examples at the end are dropped.
    """
    held: list[Batch] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece[0])
        while count >= size:
            images, masks = (np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in zip(*held, strict=True))
            yield images[:size], masks[:size]
            count -= size
            held = [(images[size:], masks[size:])] if count else []


def made_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Iterate over batches, and make the next batch in a thread while the caller uses the present one.

    Args:
        batches: iterator that makes the batches. It runs in the thread.

    Yields:
        The same batches in the same order.
    """
    with ThreadPoolExecutor(1) as maker:
        following = maker.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = maker.submit(next, batches, None)
            yield batch


@dataclass(frozen=True)
class BatchLoader(ABC):
    """A source of training batches for one rank (training process).

    Every optimiser step uses a global batch, which is divided into one share per rank. The loader makes the share of its rank.

    Attributes:
        plan: the plan which says what examples each global batch contains, and how they are divided among the ranks.
        rank: rank of the process, from 0.
        threads: number of threads that read, decode and augment examples in parallel.
    """

    plan: BatchPlan
    rank: int = 0
    threads: int = 2

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of global batches, and so of optimiser steps, in an epoch."""
        return self.plan.steps_per_epoch

    @abstractmethod
    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Iterate over this rank's shares of consecutive global batches.

        Args:
            first_step: number of the first step, counted from 0 over all epochs.
            stop_step: number of the step after the last one.

        Yields:
            One batch for each step: uint8 RGB images of shape (n, 3, S, S), and uint8 masks of shape (n, S, S) with class ids
            and 255 for void.

        Raises:
            UserError: if an example can't be decoded.
        """


class ThreadedLoader(BatchLoader):
    """A source of one rank's training batches, which are made by threads in the rank's own process."""

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Yield this rank's shares of consecutive global batches, as described in `BatchLoader.batches`."""

        def pieces() -> Iterator[Batch]:
            """Iterate over this rank's examples of all steps, in batches whose sizes may vary."""
            with ThreadPoolExecutor(self.threads) as pool:
                for window in self.plan.window_range(first_step, stop_step):
                    yield from self.plan.pieces(window, self.rank, first_step, stop_step, pool)

        return made_ahead(rebatched(pieces(), len(self.plan.batching.share(self.rank))))
