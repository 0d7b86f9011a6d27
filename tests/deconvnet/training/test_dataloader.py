"""Batches: the same bits by threads and by a process, for any number of workers, from any step."""

import multiprocessing
import os
import signal
import threading
import weakref
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deconvnet.training.data import dev_set, loader_process, transforms
from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
from deconvnet.training.data.dev_set import DevSet, dev_counts
from deconvnet.training.data.examples import Examples, open_examples
from infra.errors import UserError
from infra.storage import tables
from tests.deconvnet.training_tables import SIZE, examples_table, images_table


def quarter(crops: Examples) -> int:
    """Return a quarter of the table's bytes, which make slots of several windows."""
    return int(crops.groups.nbytes.sum()) // 4


def damaged(plan: BatchPlan) -> BatchPlan:
    """Return the plan with images that can't be decoded."""
    examples = plan.examples
    return replace(plan, examples=DamagedExamples(**{field.name: getattr(examples, field.name) for field in fields(examples)}))


def same(a, b) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("share", [1, 4])
def test_an_epoch_shows_each_row_as_often_as_its_repeats_say_in_an_order_of_its_own(crops, share, monkeypatch):
    """Without augmentation, crops tell rows apart. With memory for the whole table or for a quarter of it."""

    def order(seed: int, epoch: int) -> list[bytes]:
        plan = BatchPlan.of(crops, 10, 1, seed, buffer_bytes=4 * quarter(crops) // share + 4)
        assert (plan.order.window < 9) == (share > 1)
        batches = list(BatchLoader(plan, 0).batches(9 * epoch, 9 * epoch + 9))
        assert [b[0].shape for b in batches] == [(10, 3, SIZE, SIZE)] * 9 and crops.total == 90
        assert batches[0][0].dtype == batches[0][1].dtype == np.uint8
        return [image.tobytes() for images, _ in batches for image in images]

    monkeypatch.setattr(Examples, "transform", lambda self, *row: transforms.square_crop(*self.decode(*row[:2]), self.size))
    orders = [order(*each) for each in ((0, 0), (0, 1), (1, 0))]
    for one in orders:
        assert Counter(Counter(one).values()) == {1: 30, 2: 30} and Counter(one) == Counter(orders[0])
    assert len(set(map(tuple, orders))) == 3 and order(0, 1) == orders[1]


def test_augmentation_differs_between_examples_epochs_and_seeds_and_repeats_for_the_same(tmp_path: Path):
    """Of a single row, which is repeated, so that nothing else is random."""
    row = open_examples(examples_table(str(tmp_path / "t"), 1, repeats=(12,)), SIZE)

    def views(seed: int, epoch: int) -> list[bytes]:
        plan = BatchPlan.of(row, 6, 1, seed)
        batches = list(BatchLoader(plan, 0).batches(2 * epoch, 2 * epoch + 2))
        return [image.tobytes() for images, _ in batches for image in images]

    found = [views(*each) for each in ((0, 0), (0, 1), (1, 0))]
    assert all(len(each) == 12 and len(set(each)) > 6 for each in found)
    assert len(set(map(tuple, found))) == 3 and views(0, 1) == found[1]


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_the_shares_of_workers_make_up_the_batches_of_one(crops, workers):
    """Also if training is resumed within an epoch."""
    one = BatchPlan.of(crops, 8, 1, 3, quarter(crops))
    batches = list(BatchLoader(one, 0).batches(0, 22))
    assert len(batches) == 22
    for first in (0, 5, 13):
        shares = [list(BatchLoader(one.for_workers(workers), rank).batches(first, 22)) for rank in range(workers)]
        assert [len(share[0][0]) for share in shares] == {2: [4, 4], 3: [2, 3, 3], 4: [2, 2, 2, 2]}[workers]
        joined = [tuple(np.concatenate(arrays) for arrays in zip(*step, strict=True)) for step in zip(*shares, strict=True)]
        assert same(batches[first:], joined)
    assert one.for_workers(workers).order is one.order


def test_batches_can_start_and_end_at_any_step(crops):
    first, plan = 5, BatchPlan.of(crops, 8, 1, 3, quarter(crops))
    whole = list(BatchLoader(plan, 0).batches(0, 24))
    assert same(list(BatchLoader(plan, 0).batches(first, 24)), whole[first:])
    assert same(list(BatchLoader(plan, 0).batches(first, first + 3)), whole[first : first + 3])
    assert list(BatchLoader(plan, 0).batches(first, first)) == []


def test_the_next_batch_is_made_while_the_present_one_is_used():
    begun = threading.Event()

    def made(*_):
        yield 1
        begun.set()
        yield 2

    batches = BatchLoader(SimpleNamespace(reader=lambda rank: None, batches=made)).batches(0, 2)
    assert next(batches) == 1 and begun.wait(60) and list(batches) == [2]


def test_fewer_examples_than_a_batch_are_repeated(tmp_path: Path):
    examples = open_examples(examples_table(str(tmp_path / "t"), 6), SIZE)
    plan = BatchPlan.of(examples, 32, 2, 0, 1)
    assert plan.steps_per_epoch == 1
    assert [len(b[0]) for b in BatchLoader(plan, 1).batches(0, 3)] == [16, 16, 16]


def test_a_rank_reads_the_row_groups_of_its_share(tmp_path: Path):
    """Of 16 row groups, each rank reads half. One of them may be cut by the border, and is then read by both."""
    examples = open_examples(examples_table(str(tmp_path / "t"), 60, rows_per_group=4), SIZE)
    plan = BatchPlan.of(examples, 10, 2, 0)
    readers = [plan.reader(rank) for rank in range(2)]
    for epoch in range(4):
        for reader in readers:
            assert len(list(plan.batches(reader, 1, 9 * epoch, 9 * epoch + 9))) == 9
    assert all(32 <= reader.groups_read <= 36 for reader in readers)
    assert 4 < sum(reader.bytes_read for reader in readers) / examples.groups.nbytes.sum() < 4.3


def test_only_the_images_of_one_split_are_used(tmp_path: Path):
    folder = images_table(str(tmp_path / "images"), 20)
    train, dev = open_examples(folder, 64, "train", jitter=0.2), open_examples(folder, 64, "dev")
    assert (train.total, dev.total) == (15, 5)
    images, masks = next(BatchLoader(BatchPlan.of(train, 15, 1, 0)).batches(0, 1))
    assert images.shape == (15, 3, 64, 64)
    assert (masks == 255).mean() > 0.3  # around the image
    of_dev = [dev.transform(row["image"], row["class_mask"]) for row in tables.iter_rows(folder) if row["split"] == "dev"]
    assert len(of_dev) == 5 and same([pair for batch in DevSet(dev).batches(2) for pair in zip(*batch, strict=True)], of_dev)
    with pytest.raises(UserError, match="no example of the split val"):
        open_examples(folder, 64, "val")


@dataclass(frozen=True)
class DamagedExamples(Examples):
    """Examples whose images end after 50 bytes."""

    def decode(self, image: bytes, mask: bytes) -> tuple[np.ndarray, np.ndarray]:
        return super().decode(image[:50], mask)


def test_dev_sets_of_ranks_have_each_row_once_and_a_limited_one_has_rows_of_the_whole_table(crops):
    shares = [DevSet(crops, rank, 2, limit=1000) for rank in (0, 1)]
    assert [len(s) for s in shares] == [30, 30]
    assert [len(DevSet(crops, rank, 7, limit=16)) for rank in range(7)] == [3, 3, 2, 2, 2, 2, 2]
    assert list(DevSet(crops, 2, 3, limit=2).batches(8)) == []
    one = list(DevSet(crops).batches(60))
    evenly = [0, 10, 20, 30, 39, 49, 59]
    assert same(list(DevSet(crops, limit=7).batches(60)), [tuple(each[evenly] for each in one[0])])
    assert same(one, list(DevSet(crops).batches(60)))
    for rank, (images, masks) in enumerate(next(s.batches(60)) for s in shares):
        assert np.array_equal(images, one[0][0][rank::2]) and np.array_equal(masks, one[0][1][rank::2])


def test_a_dev_set_holds_no_more_bytes_than_it_may(crops, monkeypatch):
    """As many examples for any number of ranks, by the mean size of the table's rows."""
    assert dev_counts(crops) == (60, 60) and dev_counts(crops, 16) == (16, 60)
    monkeypatch.setattr(dev_set, "DEV_BYTES", 7.5 * crops.groups.nbytes.sum() / 60)
    assert dev_counts(crops) == (7, 60) and dev_counts(crops, 5) == (5, 60)
    assert [sum(len(DevSet(crops, rank, ranks)) for rank in range(ranks)) for ranks in (1, 3)] == [7, 7]
    monkeypatch.setattr(dev_set, "DEV_BYTES", 1)
    assert len(DevSet(crops)) == 1


def test_a_process_makes_the_same_bits_as_threads_and_leaves_torch_s_random_numbers_alone(crops):
    """Ctrl-C, which a terminal sends to the process as well, doesn't end it: the training has yet to stop orderly."""
    plan, others = BatchPlan.of(crops, 8, 3, 3, quarter(crops)), set(multiprocessing.active_children())
    before = torch.get_rng_state()
    batches = BatchLoader(plan, 1, own_process=True).batches(13, 24)
    made = [next(batches)]
    (process,) = set(multiprocessing.active_children()) - others
    os.kill(process.pid, signal.SIGINT)
    made += batches
    assert torch.equal(torch.get_rng_state(), before)
    assert same(made, list(BatchLoader(plan, 1).batches(13, 24)))


def test_a_user_s_error_in_the_process_arrives_with_its_message_alone(tmp_path: Path):
    folder = tmp_path / "t"
    plan = BatchPlan.of(open_examples(examples_table(str(folder), 8), SIZE), 8, 1, 0)
    before = multiprocessing.active_children()
    with pytest.raises(UserError) as here:
        list(BatchLoader(damaged(plan)).batches(0, 1))
    with pytest.raises(UserError) as there:
        list(BatchLoader(damaged(plan), own_process=True).batches(0, 1))
    assert str(there.value) == str(here.value) and "is damaged" in str(here.value)
    with pytest.raises(UserError) as dev:
        list(DevSet(damaged(plan).examples).batches(3))
    assert str(dev.value) == str(here.value)
    assert multiprocessing.active_children() == before, "the error keeps the process, and torch's watch over it, alive"


def test_a_process_that_dies_ends_the_batches_with_an_error(crops):
    before = set(multiprocessing.active_children())
    batches = BatchLoader(BatchPlan.of(crops, 8, 1, 3), own_process=True).batches(0, 10_000)
    next(batches)
    (process,) = set(multiprocessing.active_children()) - before
    process.kill()
    with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed|exited)|the process that makes batches was killed"):
        for _ in batches:
            pass


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_a_process_that_dies_while_it_hands_over_a_batch_ends_the_batches_with_an_error(monkeypatch, error):
    """The error keeps nothing of torch's alive, which would raise a second error, anywhere, when it sees the death."""
    iterators = []

    class Iterator:
        def __init__(self):
            self.made = iter([(torch.zeros(1), torch.ones(1))])
            iterators.append(weakref.ref(self))

        def __iter__(self):
            return self

        def __next__(self):
            for each in self.made:
                return each
            raise type(error)(*error.args)

    class Loader:
        def __init__(self, *_, **__):
            pass

        def __iter__(self):
            return Iterator()

    monkeypatch.setattr(loader_process, "DataLoader", Loader)
    made = loader_process.from_process(lambda: iter(()))
    assert [each.tolist() for each in next(made)] == [[0], [1]]
    with pytest.raises(RuntimeError, match="the process that makes batches was killed, or lost a connection") as kept:
        next(made)
    assert [iterator() for iterator in iterators] == [None], kept
