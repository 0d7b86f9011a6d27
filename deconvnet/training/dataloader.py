"""Training batches for one training process, read from a table.

The examples are read in the random order of the epoch, decoded and augmented. A process (rank) makes only its share of each
global batch. `ThreadedLoader` makes batches with threads of its own process. `ray_dataloader.RayDataLoader` makes the same
batches with Ray Data.

A batch is a pair of uint8 arrays: RGB images of shape (n, 3, S, S), and masks of shape (n, S, S) with class ids and 255 for
void.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deconvnet.training import transforms
from deconvnet.training.interfaces import Batch
from deconvnet.training.sampler import WINDOW_BYTES, Batching, Group, Window, window_count, window_rows, windows
from infra.errors import BadInput, UserError
from infra.storage import tables
from proposals.image_codec import decode_example, decode_image, decode_mask

DEV_LIMIT = 2048
"""Largest number of dev examples over all ranks, unless the caller of `DevSet` sets another."""


@dataclass(frozen=True)
class Examples:
    """The examples that a table offers for training.

    An `examples` table holds crops, each of which is an example. An `images` table holds whole images, and the images of one
    split are the examples.

    Attributes:
        table: URI of the table.
        size: side of the network's square input in pixels.
        groups: the row groups of the table's Parquet files that hold examples.
        split: split of the `images` table to use; None for an `examples` table.
        jitter: range of the random scaling of whole images. They are scaled by a factor between 1 − jitter and 1 + jitter.
    """

    table: str
    size: int
    groups: tuple[Group, ...]
    split: str | None = None
    jitter: float = 0.0

    @property
    def total(self) -> int:
        """Return the number of examples in an epoch. A row that is repeated in the epoch counts repeatedly."""
        return sum(g.examples for g in self.groups)

    def read(self, group: Group) -> pa.Table:
        """Read a row group of the table.

        Args:
            group: one of `groups`.

        Returns:
            Table with the columns `image` and `mask` (encoded bytes) and `weight` (int64). The weight says how often the row
            occurs in an epoch; it is 0 for images of another split.
        """
        names = ["image", "mask", "repeats"] if self.split is None else ["image", "class_mask", "split"]
        found = tables.read_row_group(self.table, group.part, group.index, names)
        image, mask, last = (found[name] for name in names)
        weight = last.cast(pa.int64()) if self.split is None else pa.array([int(s == self.split) for s in last.to_pylist()])
        return pa.table({"image": image, "mask": mask, "weight": weight})

    def decode(self, image: bytes, mask: bytes) -> transforms.Pair:
        """Decode an example.

        Args:
            image: encoded image.
            mask: encoded mask.

        Returns:
            The image, uint8 RGB of shape (H, W, 3), and the mask, uint8 of shape (H, W).

        Raises:
            BadInput: if the bytes are not an image and a mask of the same size.
        """
        if self.split is None:
            return decode_example(image, mask)
        rgb, class_mask = decode_image(image), decode_mask(mask)
        if class_mask.shape != rgb.shape[:2] or class_mask.dtype != np.uint8:
            raise BadInput(f"a mask of {class_mask.shape} {class_mask.dtype} for an image of {rgb.shape[:2]}")
        return rgb, class_mask

    def train_view(self, image: bytes, mask: bytes, rng: np.random.Generator) -> transforms.Pair:
        """Decode an example and augment it for training.

        Args:
            image: encoded image.
            mask: encoded mask.
            rng: random generator for this example, made by `transforms.example_rng`.

        Returns:
            The image, uint8 RGB of shape (3, S, S), and the mask, uint8 of shape (S, S), where S is `size`.

        Raises:
            BadInput: if the bytes are not an image and a mask of the same size, or a crop is smaller than S×S.
        """
        if self.split is None:
            return transforms.random_crop(*self.decode(image, mask), self.size, rng)
        return transforms.random_canvas(*self.decode(image, mask), self.size, rng, self.jitter)

    def dev_view(self, image: bytes, mask: bytes) -> transforms.Pair:
        """Decode an example for evaluation, without random augmentation.

        Args:
            image: encoded image.
            mask: encoded mask.

        Returns:
            The image, uint8 RGB of shape (3, S, S), and the mask, uint8 of shape (S, S), where S is `size`.

        Raises:
            BadInput: if the bytes are not an image and a mask of the same size, or a crop is smaller than S×S.
        """
        if self.split is None:
            return transforms.centre_crop(*self.decode(image, mask), self.size)
        return transforms.centre_canvas(*self.decode(image, mask), self.size)


def open_examples(table: str, size: int, split: str | None = None, jitter: float = 0.0) -> Examples:
    """Open a table for training.

    Args:
        table: URI of an `examples` table (crops) or an `images` table (whole images).
        size: side of the network's square input in pixels.
        split: split of the `images` table to use; None for an `examples` table.
        jitter: range of the random scaling of whole images. They are scaled by a factor between 1 − jitter and 1 + jitter.

    Raises:
        FileNotFoundError: if there is no complete table at this URI.
        UserError: if the table holds no example.
    """
    commit = tables.require_commit(table)
    groups = []
    for part in commit.parts:
        for index, group in enumerate(part.row_groups):
            count = group.repeats if split is None else group.splits.get(split, 0)
            if count:
                groups.append(Group(part.name, index, count, group.nbytes))
    if not groups:
        raise UserError(f"{table} holds no example{f' of the split {split}' if split else ''}: there is nothing to train on")
    return Examples(table, size, tuple(groups), split, jitter)


@dataclass(frozen=True)
class BatchPlan:
    """A plan of which examples each rank sees at each training step.

    Steps are counted over all epochs. So step s is batch s % steps_per_epoch of epoch s // steps_per_epoch.

    The examples of an epoch are divided into windows, groups of examples that are read and shuffled together (see `sampler`).
    Windows are counted over all epochs, too. So window w is window w % windows_per_epoch of epoch w // windows_per_epoch.

    Attributes:
        examples: the examples to train on.
        batching: sizes of the global batch and of the ranks' shares.
        seed: seed of the order of examples and of their augmentation.
        windows_per_epoch: number of windows in an epoch.
    """

    examples: Examples
    batching: Batching
    seed: int
    windows_per_epoch: int = 1

    @staticmethod
    def of(examples: Examples, batch: int, workers: int, seed: int, window_bytes: int = WINDOW_BYTES) -> "BatchPlan":
        """Make a plan.

        Args:
            examples: the examples to train on.
            batch: number of examples in a global batch.
            workers: number of training processes.
            seed: seed of the order of examples and of their augmentation.
            window_bytes: approximate size of a window in bytes.
        """
        count = window_count(examples.groups, window_bytes) if examples.total >= batch else 1
        return BatchPlan(examples, Batching(examples.total, batch, workers), seed, count)

    def for_workers(self, workers: int) -> "BatchPlan":
        """Return a plan with the same global batches, divided among another number of training processes.

        Args:
            workers: number of training processes.
        """
        return replace(self, batching=replace(self.batching, workers=workers))

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of global batches in an epoch."""
        return self.batching.steps

    def windows(self, epoch: int) -> list[Window]:
        """Return the windows of an epoch in the order in which they are used.

        Args:
            epoch: number of the epoch, from 0.
        """
        return windows(self.examples.groups, self.seed, epoch, self.windows_per_epoch)

    def window_range(self, first_step: int, stop_step: int) -> range:
        """Find the windows that hold the examples of some steps.

        Args:
            first_step: number of the first step, counted over all epochs.
            stop_step: number of the step to stop before.

        Returns:
            Consecutive window numbers, counted over all epochs.
        """

        def window_of(step: int) -> int:
            """Return the number of the window that holds the first example of a step."""
            epoch, batch = divmod(step, self.steps_per_epoch)
            starts = [w.start for w in self.windows(epoch)]
            return epoch * self.windows_per_epoch + int(np.searchsorted(starts, batch * self.batching.batch, side="right")) - 1

        if first_step >= stop_step:
            return range(0)
        epoch, batch = divmod(stop_step - 1, self.steps_per_epoch)
        last = sum(w.start < (batch + 1) * self.batching.batch for w in self.windows(epoch))
        return range(window_of(first_step), epoch * self.windows_per_epoch + last)

    def pieces(self, number: int, rank: int, first_step: int, stop_step: int, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """Read, decode and augment the examples of one window that a rank needs for some steps.

        The window is only read if the rank needs at least one of its examples.

        Args:
            number: number of the window, counted over all epochs.
            rank: rank of the process whose share of each global batch is made.
            first_step: number of the first step, counted over all epochs.
            stop_step: number of the step to stop before.
            pool: threads that read, decode and augment.

        Yields:
            The examples in order, in batches of at most the size of the rank's share. The function `rebatched` turns them into
            batches of equal size for the steps.

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
            """Decode and augment the example at a position of the epoch's order."""
            row = int(order[(position - window.start) % window.examples])
            image, mask = images[row].as_py(), masks[row].as_py()
            try:
                return self.examples.train_view(image, mask, transforms.example_rng(self.seed, epoch, position))
            except BadInput as error:
                raise UserError(f"{self.examples.table} is damaged (make it again): {error}") from None

        share = len(self.batching.share(rank))
        for start in range(0, len(positions), share):
            yield stacked(list(pool.map(view, positions[start : start + share].tolist())))


def stacked(pairs: Sequence[transforms.Pair]) -> Batch:
    """Combine examples into a batch.

    Args:
        pairs: images of shape (3, S, S) and masks of shape (S, S).
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
    """Iterate over batches. While one is used, a thread makes the next one.

    Args:
        batches: iterator that makes the batches. It runs in the thread.

    Yields:
        The same batches.
    """
    with ThreadPoolExecutor(1) as maker:
        following = maker.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = maker.submit(next, batches, None)
            yield batch


@dataclass(frozen=True)
class ThreadedLoader:
    """A `BatchLoader` that makes a rank's batches with threads of its own process.

    Attributes:
        plan: the plan of the global batches, made for the current number of ranks.
        rank: rank of the process whose share of each global batch is made.
        threads: number of threads that read, decode and augment.
    """

    plan: BatchPlan
    rank: int = 0
    threads: int = 2

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of global batches in an epoch."""
        return self.plan.steps_per_epoch

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Iterate over this rank's shares of consecutive global batches.

        Args:
            first_step: number of the first step, counted over all epochs.
            stop_step: number of the step to stop before.

        Yields:
            One batch for each step.
        """

        def pieces() -> Iterator[Batch]:
            """Iterate over this rank's examples, in batches whose sizes may vary."""
            with ThreadPoolExecutor(self.threads) as pool:
                for window in self.plan.window_range(first_step, stop_step):
                    yield from self.plan.pieces(window, self.rank, first_step, stop_step, pool)

        return made_ahead(rebatched(pieces(), len(self.plan.batching.share(self.rank))))


class DevSet:
    """A rank's share of the dev examples, on which the network is evaluated after each epoch.

    The dev examples are spread evenly over the table. They are kept in memory in their encoded form and decoded for each
    evaluation.
    """

    def __init__(self, examples: Examples, rank: int = 0, workers: int = 1, limit: int = DEV_LIMIT, threads: int = 2) -> None:
        """Read this rank's examples from the table.

        Args:
            examples: the examples of the table.
            rank: rank of the process whose share is read.
            workers: number of ranks.
            limit: largest number of examples over all ranks.
            threads: number of threads that decode.
        """
        self.examples = examples
        self.threads = threads
        self._rows: list[tuple[bytes, bytes]] = []
        self._read(rank, workers, limit)

    def _read(self, rank: int, workers: int, limit: int) -> None:
        """Read this rank's encoded examples into memory. A row is used at most once, even if it is repeated in training epochs.

        Args:
            rank: rank of the process whose share is read.
            workers: number of ranks.
            limit: largest number of examples over all ranks.
        """
        commit = tables.require_commit(self.examples.table)
        rows = {(p.name, i): g.rows for p in commit.parts for i, g in enumerate(p.row_groups)}
        counts = [g.examples if self.examples.split else rows[g.part, g.index] for g in self.examples.groups]
        total = sum(counts)
        chosen = np.unique(np.linspace(0, total - 1, min(limit, total)).round().astype(np.int64))[rank::workers]
        start = 0
        for group, count in zip(self.examples.groups, counts, strict=True):
            here = chosen[(chosen >= start) & (chosen < start + count)] - start
            if len(here):
                found = self.examples.read(group)
                if self.examples.split is not None:
                    found = found.filter(pc.equal(found["weight"], 1))
                found = found.take(pa.array(here))
                self._rows += zip(found["image"].to_pylist(), found["mask"].to_pylist(), strict=True)
            start += count

    def __len__(self) -> int:
        """Return the number of examples in this rank's share."""
        return len(self._rows)

    def batches(self, size: int) -> Iterator[Batch]:
        """Iterate over this rank's examples.

        Args:
            size: largest number of examples in a batch.

        Yields:
            Batches that together hold each example once.
        """

        def made() -> Iterator[Batch]:
            """Decode the examples, one batch after the other."""
            with ThreadPoolExecutor(self.threads) as pool:
                for start in range(0, len(self._rows), size):
                    yield stacked(list(pool.map(lambda row: self.examples.dev_view(*row), self._rows[start : start + size])))

        return made_ahead(made())
