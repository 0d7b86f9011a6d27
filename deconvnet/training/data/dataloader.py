"""Training batches for one training process, read from a table.

The examples are read in the random order of the epoch, decoded and augmented. A global batch is the examples of one optimiser
step. It is divided among the training processes (ranks), and each rank makes only its own share, with threads of its own process
or, where it trains on a GPU, of another one.

A batch is a pair of uint8 arrays: RGB images of shape (n, 3, S, S), and masks of shape (n, S, S) with class ids and 255 for
void.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from deconvnet.training.data import transforms
from deconvnet.training.data.batching import even_ranges
from deconvnet.training.data.examples import Examples
from deconvnet.training.data.loader_process import from_process
from deconvnet.training.data.row_reader import Row, RowReader
from deconvnet.training.data.sampler import BUFFER_BYTES, Order
from deconvnet.training.interfaces import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class BatchPlan:
    """A plan of which examples each rank (training process) sees at each training step.

    Steps are counted over all epochs. So step s is batch s % steps_per_epoch of epoch s // steps_per_epoch.

    Attributes:
        examples: the examples to train on.
        order: the order of the examples in all epochs. It does not depend on the number of ranks.
        workers: number of ranks, each of which gets a share of every global batch.
    """

    examples: Examples
    order: Order
    workers: int = 1

    @staticmethod
    def of(examples: Examples, batch: int, workers: int, seed: int, buffer_bytes: int = BUFFER_BYTES) -> "BatchPlan":
        """Make a plan.

        Args:
            examples: the examples to train on.
            batch: number of examples in a global batch (over all training processes).
            workers: number of training processes that share a global batch.
            seed: seed of the order of examples and of their augmentation.
            buffer_bytes: encoded bytes of examples that a single training process may hold on average.
        """
        groups = examples.groups
        return BatchPlan(examples, Order.of(groups.examples, groups.nbytes, batch, seed, buffer_bytes), workers)

    def for_workers(self, workers: int) -> "BatchPlan":
        """Return a plan with the same global batches, divided among another number of training processes.

        Args:
            workers: number of training processes. Each gets a share of every global batch.
        """
        return replace(self, workers=workers)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of global batches in an epoch."""
        return self.order.steps_per_epoch

    def share(self, rank: int) -> range:
        """Return a rank's share of each global batch, as indices into the batch (from 0).

        Args:
            rank: rank of the training process, from 0.
        """
        return even_ranges(self.order.batch, self.workers)[rank]

    def reader(self, rank: int) -> RowReader:
        """Return the reader of the encoded examples of a rank.

        Args:
            rank: rank of the training process, from 0.
        """
        return RowReader(self.examples, self.order, self.share(rank))

    def batches(self, reader: RowReader, threads: int, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Read, decode and augment a rank's shares of consecutive global batches.

        Args:
            reader: the reader of the rank, made by `reader`. It counts what it reads.
            threads: number of threads that decode and augment.
            first_step: number of the first step, counted from 0 over all epochs.
            stop_step: number of the step after the last one.

        Yields:
            One batch for each step: uint8 RGB images of shape (n, 3, S, S), and uint8 masks of shape (n, S, S).

        Raises:
            UserError: if an example can't be decoded.
        """
        share, order = reader.batch_indices, self.order

        def transform(row: Row, epoch: int, index: int) -> transforms.Pair:
            """Decode and augment an example, whose index in the epoch is counted over all batches."""
            return self.examples.transform(*row, transforms.example_rng(order.seed, epoch, index))

        with ThreadPoolExecutor(threads) as pool:
            for step, rows in enumerate(reader.steps(first_step, stop_step), first_step):
                epoch, batch = divmod(step, order.steps_per_epoch)
                indices = range(batch * order.batch + share.start, batch * order.batch + share.stop)
                yield collate(list(pool.map(transform, rows, [epoch] * len(rows), indices)))


def collate(pairs: Sequence[transforms.Pair]) -> Batch:
    """Combine examples into a batch.

    Args:
        pairs: for each example, the image of shape (3, S, S) and the mask of shape (S, S), both uint8.

    Returns:
        The images, of shape (n, 3, S, S), and the masks, of shape (n, S, S).
    """
    return np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs])


def prefetched(batches: Iterator[T]) -> Iterator[T]:
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
class BatchLoader:
    """A source of training batches for one rank (training process).

    Every optimiser step uses a global batch, which is divided into one share per rank. The loader makes the share of its rank.

    Attributes:
        plan: the plan which says what examples each global batch contains, and how they are divided among the ranks.
        rank: rank of the process, from 0.
        threads: number of threads that decode and augment examples in parallel.
        own_process: whether these threads run in a process of their own. They would slow down a process that trains on a GPU,
            which starts many small operations from Python.
    """

    plan: BatchPlan
    rank: int = 0
    threads: int = 2
    own_process: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of global batches, and so of optimiser steps, in an epoch."""
        return self.plan.steps_per_epoch

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Iterate over this rank's shares of consecutive global batches. The next ones are made meanwhile.

        Args:
            first_step: number of the first step, counted from 0 over all epochs.
            stop_step: number of the step after the last one.

        Yields:
            One batch for each step: uint8 RGB images of shape (n, 3, S, S), and uint8 masks of shape (n, S, S) with class ids
            and 255 for void.

        Raises:
            UserError: if an example can't be decoded.
        """
        make = partial(self._made_here, first_step, stop_step)
        return from_process(make) if self.own_process else prefetched(make())

    def _made_here(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Make the batches in this process, each when it is asked for."""
        return self.plan.batches(self.plan.reader(self.rank), self.threads, first_step, stop_step)
