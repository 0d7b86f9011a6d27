"""Batches for a worker: read from a table in the epoch's order, decoded, augmented, in its share of every global batch.

`plain_batches` makes them with threads and nothing else; `RayShard`, which `ray.train.get_dataset_shard` hands to a training
worker, has a Ray Data job make the same bits outside the worker's process. A batch is two uint8 arrays: images (n, 3, S, S), RGB,
and labels (n, S, S), class ids with 255 = void.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deconvnet.training import transforms
from deconvnet.training.sampler import WINDOW_BYTES, Batching, Group, Window, window_count, window_rows, windows
from infra.errors import BadInput, UserError
from infra.storage import tables
from proposals.image_codec import decode_image, decode_mask

Batch = tuple[np.ndarray, np.ndarray]
DEV_LIMIT = 2048
WINDOWS_A_JOB = 512
PAUSE_SECONDS = 0.1
_MiB = 2**20


@dataclass(frozen=True)
class Examples:
    """What there is to see in a table: crops (`examples` tables, `split` None), or the photographs of one split (`images`).

    `size` is the network's input, px; `jitter` the random scale of photographs.
    """

    table: str
    size: int
    groups: tuple[Group, ...]
    split: str | None = None
    jitter: float = 0.0

    @property
    def total(self) -> int:
        """Examples an epoch."""
        return sum(g.examples for g in self.groups)

    def read(self, group: Group) -> pa.Table:
        """The rows of a row group: `image`, `mask` (bytes) and `weight` (int64, how often an epoch sees the row)."""
        names = ["image", "mask", "repeats"] if self.split is None else ["image", "class_mask", "split"]
        found = tables.read_row_group(self.table, group.part, group.index, names)
        image, mask, last = (found[name] for name in names)
        weight = last.cast(pa.int64()) if self.split is None else pa.array([int(s == self.split) for s in last.to_pylist()])
        return pa.table({"image": image, "mask": mask, "weight": weight})

    def decode(self, image: bytes, mask: bytes) -> transforms.Pair:
        """An example as stored: uint8 H×W×3 and H×W. Raises BadInput."""
        if self.split is None:
            return transforms.decode_example(image, mask)
        rgb, label = decode_image(image), decode_mask(mask)
        if label.shape != rgb.shape[:2] or label.dtype != np.uint8:
            raise BadInput(f"a mask of {label.shape} {label.dtype} for a photograph of {rgb.shape[:2]}")
        return rgb, label

    def train_view(self, image: bytes, mask: bytes, rng: np.random.Generator) -> transforms.Pair:
        """The example as one step of training sees it: uint8 (3, S, S), (S, S)."""
        if self.split is None:
            return transforms.random_crop(*self.decode(image, mask), self.size, rng)
        return transforms.random_canvas(*self.decode(image, mask), self.size, rng, self.jitter)

    def dev_view(self, image: bytes, mask: bytes) -> transforms.Pair:
        """The example as it is evaluated, the same every time: uint8 (3, S, S), (S, S)."""
        if self.split is None:
            return transforms.centre_crop(*self.decode(image, mask), self.size)
        return transforms.centre_canvas(*self.decode(image, mask), self.size)


def open_examples(table: str, size: int, split: str | None = None, jitter: float = 0.0) -> Examples:
    """The examples of a complete table. Raises UserError where it has none, FileNotFoundError where there is no table."""
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
class Feed:
    """A training's batches, by global step: the epoch `step // steps_per_epoch`, its global batch `step % steps_per_epoch`.

    An epoch is dealt into `windows_per_epoch` windows.
    """

    examples: Examples
    batching: Batching
    seed: int
    windows_per_epoch: int = 1

    @staticmethod
    def of(examples: Examples, batch: int, world: int, seed: int, window_bytes: int = WINDOW_BYTES) -> "Feed":
        """Global batches of `batch` for `world` workers."""
        count = window_count(examples.groups, window_bytes) if examples.total >= batch else 1
        return Feed(examples, Batching(examples.total, batch, world), seed, count)

    def shared_by(self, world: int) -> "Feed":
        """The same global batches for another number of workers."""
        return replace(self, batching=replace(self.batching, world=world))

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch."""
        return self.batching.steps

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch."""
        return windows(self.examples.groups, self.seed, epoch, self.windows_per_epoch)

    def window_range(self, first_step: int, stop_step: int) -> range:
        """The windows, counted from the first epoch's first, that the global steps [first, stop) need."""

        def window_of(step: int) -> int:
            epoch, batch = divmod(step, self.steps_per_epoch)
            starts = [w.start for w in self.windows(epoch)]
            return epoch * self.windows_per_epoch + int(np.searchsorted(starts, batch * self.batching.batch, side="right")) - 1

        if first_step >= stop_step:
            return range(0)
        epoch, batch = divmod(stop_step - 1, self.steps_per_epoch)
        last = sum(w.start < (batch + 1) * self.batching.batch for w in self.windows(epoch))
        return range(window_of(first_step), epoch * self.windows_per_epoch + last)

    def pieces(self, number: int, rank: int, first_step: int, stop_step: int, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        """What rank `rank` sees of the window `number` in the global steps [first, stop), in order, at most a share at a time."""
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
    """Examples as one batch."""
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def rebatched(pieces: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same examples in batches of exactly `size`; what is left over at the end is dropped."""
    held: list[Batch] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece[0])
        while count >= size:
            images, labels = (np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in zip(*held, strict=True))
            yield images[:size], labels[:size]
            count -= size
            held = [(images[size:], labels[size:])] if count else []


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the next one being made while one is used."""
    with ThreadPoolExecutor(1) as maker:
        following = maker.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = maker.submit(next, batches, None)
            yield batch


def plain_batches(feed: Feed, rank: int, first_step: int, stop_step: int, threads: int = 2) -> Iterator[Batch]:
    """Rank `rank`'s share of the global steps [first, stop), a batch each, by threads of this process."""

    def pieces() -> Iterator[Batch]:
        with ThreadPoolExecutor(threads) as pool:
            for number in feed.window_range(first_step, stop_step):
                yield from feed.pieces(number, rank, first_step, stop_step, pool)

    return ahead(rebatched(pieces(), len(feed.batching.share(rank))))


@dataclass(frozen=True)
class PlainShard:
    """A worker's share of a feed, made by threads of its own process."""

    feed: Feed
    rank: int = 0
    threads: int = 2

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch."""
        return self.feed.steps_per_epoch

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """The share of the global steps [first, stop), a batch each."""
        return plain_batches(self.feed, self.rank, first_step, stop_step, self.threads)


@dataclass(frozen=True)
class RayShard:
    """A worker's share of a feed, made by a Ray Data job: a task a window, whose blocks come in order and are bounded.

    The job starts at the step it is asked for, which only the worker knows: it has loaded the checkpoint. Its tasks run on the
    worker's node and reserve no CPU of their own: they are part of what the worker reserves (`compute.cpus_per_worker`).
    """

    feed: Feed
    rank: int = 0
    threads: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch."""
        return self.feed.steps_per_epoch

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """The share of the global steps [first, stop), a batch each."""
        todo = self.feed.window_range(first_step, stop_step)
        jobs = (todo[start : start + WINDOWS_A_JOB] for start in range(0, len(todo), WINDOWS_A_JOB))
        pieces = (piece for job in jobs for piece in self._pieces(job, first_step, stop_step))
        return rebatched(pieces, len(self.feed.batching.share(self.rank)))

    def _pieces(self, numbers: range, first_step: int, stop_step: int) -> Iterator[Batch]:
        """What this rank sees of the windows `numbers`, by one Ray Data job."""
        import ray
        from ray.data import ExecutionOptions, ExecutionResources, TaskPoolStrategy
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        class Pause(ExecutionCallback):
            """The executor, a thread of the worker, never sleeps while it holds tasks back: it took half of the training's speed."""

            def on_execution_step(self, executor: Any) -> None:
                time.sleep(PAUSE_SECONDS)

        feed, rank, threads = self.feed, self.rank, self.threads

        def work(row: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
            with ThreadPoolExecutor(threads) as pool:
                for number in row["item"].tolist():
                    for images, labels in feed.pieces(number, rank, first_step, stop_step, pool):
                        yield {"image": images, "label": labels}

        share = len(feed.batching.share(rank))
        batch_bytes = 4 * share * feed.examples.size**2
        # Items are blocks that are there already: reading even a range would reserve a CPU, of which there may be none left.
        windows = ray.data.from_items(list(numbers), override_num_blocks=len(numbers))
        windows.context.enable_progress_bars = False
        windows.context.custom_execution_callback_classes = [Pause]
        windows.context.target_max_block_size = max(_MiB, batch_bytes)
        windows.context.execution_options = ExecutionOptions(
            preserve_order=True, resource_limits=ExecutionResources(object_store_memory=max(32 * _MiB, 8 * batch_bytes))
        )
        made = windows.map_batches(
            work,
            batch_size=None,  # a block, which is one window
            num_cpus=0,
            compute=TaskPoolStrategy(size=min(2, feed.windows_per_epoch)),  # the next window is read while one is used
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        )
        for batch in made.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=2):
            yield batch["image"], batch["label"]


def ray_data_config(threads: int) -> Any:
    """The `ray.train.DataConfig` under which the dataset of a trainer is a `Feed`, and each worker's shard its `RayShard`.

    Ray asks it for the shards whenever it starts workers, and says how many they are this time.
    """
    from ray.train import DataConfig

    class Shares(DataConfig):
        def configure(self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any) -> list[dict[str, Any]]:
            feeds = {name: feed.shared_by(world_size) for name, feed in datasets.items()}
            return [{name: RayShard(feed, rank, threads) for name, feed in feeds.items()} for rank in range(world_size)]

    return Shares(datasets_to_split=[])


class DevSet:
    """A worker's share of the examples that a training is judged by: at most `limit` over all workers, spread over the table.

    Kept encoded in memory and decoded at each evaluation.
    """

    def __init__(self, examples: Examples, rank: int = 0, world: int = 1, limit: int = DEV_LIMIT, threads: int = 2) -> None:
        self.examples = examples
        self.threads = threads
        self._rows: list[tuple[bytes, bytes]] = []
        self._read(rank, world, limit)

    def _read(self, rank: int, world: int, limit: int) -> None:
        """Rows are counted once, whatever their repeats: every n-th, and of those every `world`-th."""
        commit = tables.require_commit(self.examples.table)
        rows = {(p.name, i): g.rows for p in commit.parts for i, g in enumerate(p.row_groups)}
        counts = [g.examples if self.examples.split else rows[g.part, g.index] for g in self.examples.groups]
        total = sum(counts)
        chosen = np.unique(np.linspace(0, total - 1, min(limit, total)).round().astype(np.int64))[rank::world]
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
        return len(self._rows)

    def batches(self, size: int) -> Iterator[Batch]:
        """The share in batches of at most `size`."""

        def made() -> Iterator[Batch]:
            with ThreadPoolExecutor(self.threads) as pool:
                for start in range(0, len(self._rows), size):
                    yield stacked(list(pool.map(lambda row: self.examples.dev_view(*row), self._rows[start : start + size])))

        return ahead(made())
