"""Batches for a training process: read from a table in the epoch's order, decoded, augmented, in its share of each global batch.

`ThreadedLoader` makes them with threads of the process; `ray_dataloader.RayDataLoader` makes the same ones with Ray Data. A batch is
two uint8 arrays: images (n, 3, S, S), RGB, and masks (n, S, S), class ids with 255 = void.
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


@dataclass(frozen=True)
class Examples:
    """What a table offers to training: the crops of an `examples` table, or the images of one split of an `images` table.

    Attributes:
        table: URI of the table.
        size: side of the network's input, px.
        groups: the row groups that hold examples.
        split: None for an `examples` table, else the split of the `images` table.
        jitter: images are scaled by a random factor of 1 ± this.
    """

    table: str
    size: int
    groups: tuple[Group, ...]
    split: str | None = None
    jitter: float = 0.0

    @property
    def total(self) -> int:
        """Examples in an epoch, repeats counted."""
        return sum(g.examples for g in self.groups)

    def read(self, group: Group) -> pa.Table:
        """Read a row group.

        Args:
            group: one of `groups`.

        Returns:
            Table with the columns `image` and `mask` (encoded bytes) and `weight` (int64, how often an epoch sees the row).
        """
        names = ["image", "mask", "repeats"] if self.split is None else ["image", "class_mask", "split"]
        found = tables.read_row_group(self.table, group.part, group.index, names)
        image, mask, last = (found[name] for name in names)
        weight = last.cast(pa.int64()) if self.split is None else pa.array([int(s == self.split) for s in last.to_pylist()])
        return pa.table({"image": image, "mask": mask, "weight": weight})

    def decode(self, image: bytes, mask: bytes) -> transforms.Pair:
        """Decode an example as it is stored.

        Args:
            image: encoded image.
            mask: encoded mask.

        Returns:
            uint8 (H, W, 3), RGB, and uint8 (H, W). Raises BadInput if they are not an image and a mask of one size.
        """
        if self.split is None:
            return decode_example(image, mask)
        rgb, class_mask = decode_image(image), decode_mask(mask)
        if class_mask.shape != rgb.shape[:2] or class_mask.dtype != np.uint8:
            raise BadInput(f"a mask of {class_mask.shape} {class_mask.dtype} for an image of {rgb.shape[:2]}")
        return rgb, class_mask

    def train_view(self, image: bytes, mask: bytes, rng: np.random.Generator) -> transforms.Pair:
        """Decode an example and augment it for a training step.

        Args:
            image: encoded image.
            mask: encoded mask.
            rng: the example's random generator, see `transforms.example_rng`.

        Returns:
            uint8 (3, S, S), RGB, and uint8 (S, S).
        """
        if self.split is None:
            return transforms.random_crop(*self.decode(image, mask), self.size, rng)
        return transforms.random_canvas(*self.decode(image, mask), self.size, rng, self.jitter)

    def dev_view(self, image: bytes, mask: bytes) -> transforms.Pair:
        """Decode an example for evaluation, without randomness; arguments and result as for `train_view`."""
        if self.split is None:
            return transforms.centre_crop(*self.decode(image, mask), self.size)
        return transforms.centre_canvas(*self.decode(image, mask), self.size)


def open_examples(table: str, size: int, split: str | None = None, jitter: float = 0.0) -> Examples:
    """Open a complete table for training.

    Args:
        table: URI of an `examples` table (`split` None) or an `images` table.
        size: side of the network's input, px.
        split: split of the `images` table; None for an `examples` table.
        jitter: images are scaled by a random factor of 1 ± this.

    Raises:
        FileNotFoundError: if there is no complete table.
        UserError: if it holds no example.
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
    """Which examples each rank sees at each global step.

    Global step s is batch s % steps_per_epoch of epoch s // steps_per_epoch. An epoch's examples come in windows (see `sampler`);
    windows are numbered over all epochs: window w is window w % windows_per_epoch of epoch w // windows_per_epoch.

    Attributes:
        examples: the table.
        batching: sizes of the global batch and of the ranks' shares.
        seed: of the order and of augmentation.
        windows_per_epoch: number of windows an epoch is divided into.
    """

    examples: Examples
    batching: Batching
    seed: int
    windows_per_epoch: int = 1

    @staticmethod
    def of(examples: Examples, batch: int, workers: int, seed: int, window_bytes: int = WINDOW_BYTES) -> "BatchPlan":
        """Make the plan for a table.

        Args:
            examples: the table.
            batch: examples in a global batch.
            workers: number of workers.
            seed: of the order and of augmentation.
            window_bytes: about the size of a window.
        """
        count = window_count(examples.groups, window_bytes) if examples.total >= batch else 1
        return BatchPlan(examples, Batching(examples.total, batch, workers), seed, count)

    def for_workers(self, workers: int) -> "BatchPlan":
        """Return the plan with the same global batches for another number of workers."""
        return replace(self, batching=replace(self.batching, workers=workers))

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return self.batching.steps

    def windows(self, epoch: int) -> list[Window]:
        """Return the windows of an epoch (from 0) in the order they are seen."""
        return windows(self.examples.groups, self.seed, epoch, self.windows_per_epoch)

    def window_range(self, first_step: int, stop_step: int) -> range:
        """Find the windows that some steps need.

        Args:
            first_step: first global step.
            stop_step: global step to stop before.

        Returns:
            Consecutive window numbers, counted over all epochs.
        """

        def window_of(step: int) -> int:
            """Return the number of the window in which a step begins."""
            epoch, batch = divmod(step, self.steps_per_epoch)
            starts = [w.start for w in self.windows(epoch)]
            return epoch * self.windows_per_epoch + int(np.searchsorted(starts, batch * self.batching.batch, side="right")) - 1

        if first_step >= stop_step:
            return range(0)
        epoch, batch = divmod(stop_step - 1, self.steps_per_epoch)
        last = sum(w.start < (batch + 1) * self.batching.batch for w in self.windows(epoch))
        return range(window_of(first_step), epoch * self.windows_per_epoch + last)

    def pieces(self, number: int, rank: int, first_step: int, stop_step: int, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """Decode and augment the examples of one window that a rank sees in the global steps [first_step, stop_step).

        Args:
            number: of the window, counted over all epochs.
            rank: whose share of each global batch.
            first_step: first global step.
            stop_step: global step to stop before.
            pool: threads that read, decode and augment.

        Yields:
            Examples in order, at most a rank's share of a batch at a time.

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
            """Decode and augment the example at a position."""
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
    """Stack images (3, S, S) and masks (S, S) into a batch."""
    return np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs])


def rebatched(pieces: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Regroup examples, in order, into batches of exactly `size`; a rest at the end is dropped."""
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
    """Yield the same batches, each made by a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as maker:
        following = maker.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = maker.submit(next, batches, None)
            yield batch


@dataclass(frozen=True)
class ThreadedLoader:
    """A rank's share of the batches, made by threads of its own process.

    Attributes:
        plan: the global batches, for the number of workers there is.
        rank: whose share.
        threads: threads that read, decode and augment.
    """

    plan: BatchPlan
    rank: int = 0
    threads: int = 2

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return self.plan.steps_per_epoch

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Yield this rank's share of the global steps [first_step, stop_step), a batch for each step."""

        def pieces() -> Iterator[Batch]:
            with ThreadPoolExecutor(self.threads) as pool:
                for window in self.plan.window_range(first_step, stop_step):
                    yield from self.plan.pieces(window, self.rank, first_step, stop_step, pool)

        return made_ahead(rebatched(pieces(), len(self.plan.batching.share(self.rank))))


class DevSet:
    """A rank's share of the examples that a training is evaluated on after each epoch.

    At most `limit` examples over all ranks, spread evenly over the table. They are kept encoded in memory and decoded at each
    evaluation.
    """

    def __init__(self, examples: Examples, rank: int = 0, workers: int = 1, limit: int = DEV_LIMIT, threads: int = 2) -> None:
        """Read this rank's examples.

        Args:
            examples: the table.
            rank: whose share.
            workers: number of ranks.
            limit: most examples over all ranks.
            threads: threads that decode.
        """
        self.examples = examples
        self.threads = threads
        self._rows: list[tuple[bytes, bytes]] = []
        self._read(rank, workers, limit)

    def _read(self, rank: int, workers: int, limit: int) -> None:
        """Read every n-th row, and of those every `workers`-th. A row counts once, whatever its `repeats`."""
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
        """Yield the share in batches of at most `size` examples."""

        def made() -> Iterator[Batch]:
            with ThreadPoolExecutor(self.threads) as pool:
                for start in range(0, len(self._rows), size):
                    yield stacked(list(pool.map(lambda row: self.examples.dev_view(*row), self._rows[start : start + size])))

        return made_ahead(made())
