"""Batches: the same bits by threads and by Ray Data, for any number of workers, from any step."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from deconvnet.training.data import transforms
from deconvnet.training.data.dataloader import BatchPlan, ThreadedLoader, rebatched
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.data.examples import Examples, open_examples
from deconvnet.training.data.ray_dataloader import RayDataLoader, ray_data_config
from infra.errors import UserError
from proposals.image_codec import decode_example
from tests.deconvnet.training_tables import SIZE, examples_table, images_table


@pytest.fixture(scope="module")
def crops(tmp_path_factory) -> Examples:
    return open_examples(examples_table(str(tmp_path_factory.mktemp("examples")), 60), SIZE)


def third(crops: Examples) -> int:
    """Return the bytes of a window of which three make an epoch."""
    return -(-sum(g.nbytes for g in crops.groups) // 3)


def same(a, b) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize("windows", [1, 3])
def test_an_epoch_shows_each_row_as_often_as_its_repeats_say_in_an_order_of_its_own(crops, windows, monkeypatch):
    """Without augmentation, crops tell rows apart. With one window, only its examples are shuffled."""

    def order(seed: int, epoch: int) -> list[bytes]:
        plan = BatchPlan.of(crops, 10, 1, seed, window_bytes=3 * third(crops) // windows)
        assert plan.windows_per_epoch == windows
        batches = list(ThreadedLoader(plan, 0).batches(9 * epoch, 9 * epoch + 9))
        assert [b[0].shape for b in batches] == [(10, 3, SIZE, SIZE)] * 9 and crops.total == 90
        assert batches[0][0].dtype == batches[0][1].dtype == np.uint8
        return [image.tobytes() for images, _ in batches for image in images]

    monkeypatch.setattr(Examples, "view", lambda self, *row: transforms.square_crop(*self.decode(*row[:2]), self.size))
    orders = [order(*each) for each in ((0, 0), (0, 1), (1, 0))]
    for one in orders:
        assert Counter(Counter(one).values()) == {1: 30, 2: 30} and Counter(one) == Counter(orders[0])
    assert len(set(map(tuple, orders))) == 3 and order(0, 1) == orders[1]


def test_augmentation_differs_between_examples_epochs_and_seeds_and_repeats_for_the_same(tmp_path: Path):
    """Of a single row, which is repeated, so that nothing else is random."""
    row = open_examples(examples_table(str(tmp_path / "t"), 1, repeats=(12,)), SIZE)

    def views(seed: int, epoch: int) -> list[bytes]:
        plan = BatchPlan.of(row, 6, 1, seed)
        batches = list(ThreadedLoader(plan, 0).batches(2 * epoch, 2 * epoch + 2))
        return [image.tobytes() for images, _ in batches for image in images]

    found = [views(*each) for each in ((0, 0), (0, 1), (1, 0))]
    assert all(len(each) == 12 and len(set(each)) > 6 for each in found)
    assert len(set(map(tuple, found))) == 3 and views(0, 1) == found[1]


@pytest.mark.parametrize("workers", [2, 3])
def test_the_shares_of_workers_make_up_the_batches_of_one(crops, workers):
    one = BatchPlan.of(crops, 8, 1, 3, window_bytes=third(crops))
    batches = list(ThreadedLoader(one, 0).batches(0, 22))
    shares = [list(ThreadedLoader(one.for_workers(workers), rank).batches(0, 22)) for rank in range(workers)]
    assert [len(share[0][0]) for share in shares] == {2: [4, 4], 3: [2, 3, 3]}[workers]
    joined = [tuple(np.concatenate(arrays) for arrays in zip(*step, strict=True)) for step in zip(*shares, strict=True)]
    assert len(batches) == 22
    assert same(batches, joined)
    assert one.for_workers(workers) == BatchPlan.of(crops, 8, workers, 3, window_bytes=third(crops))


@pytest.mark.parametrize("first", [1, 5, 11, 13])
def test_batches_can_start_at_any_step(crops, first):
    plan = BatchPlan.of(crops, 8, 1, 3, window_bytes=third(crops))
    whole = list(ThreadedLoader(plan, 0).batches(0, 24))
    assert same(list(ThreadedLoader(plan, 0).batches(first, 24)), whole[first:])
    assert same(list(ThreadedLoader(plan, 0).batches(first, first + 3)), whole[first : first + 3])


def test_starting_late_reads_only_the_windows_needed(crops):
    plan = BatchPlan.of(crops, 8, 1, 3, window_bytes=third(crops))
    assert plan.windows_per_epoch == 3
    assert plan.window_range(0, 11) == range(3)
    assert plan.window_range(9, 11) == range(2, 3)
    assert plan.window_range(11, 12) == range(3, 4)
    assert plan.window_range(4, 4) == range(0)


def test_fewer_examples_than_a_batch_are_repeated(tmp_path: Path):
    examples = open_examples(examples_table(str(tmp_path / "t"), 6), SIZE)
    plan = BatchPlan.of(examples, 32, 2, 0, window_bytes=1)
    assert plan.steps_per_epoch == 1
    assert [len(b[0]) for b in ThreadedLoader(plan, 1).batches(0, 3)] == [16, 16, 16]


def test_only_the_images_of_one_split_are_used(tmp_path: Path):
    folder = images_table(str(tmp_path / "images"), 20)
    train, dev = open_examples(folder, 64, "train", jitter=0.2), open_examples(folder, 64, "dev")
    assert (train.total, dev.total) == (15, 5)
    images, masks = next(ThreadedLoader(BatchPlan.of(train, 15, 1, 0)).batches(0, 1))
    assert images.shape == (15, 3, 64, 64)
    assert (masks == 255).mean() > 0.3  # around the image
    assert sum(len(b[0]) for b in DevSet(dev).batches(2)) == 5
    with pytest.raises(UserError, match="no example of the split val"):
        open_examples(folder, 64, "val")


def test_a_damaged_example_is_named(crops, monkeypatch):
    monkeypatch.setattr(Examples, "decode", lambda self, image, mask: decode_example(image[:50], mask))
    with pytest.raises(UserError, match="is damaged"):
        list(ThreadedLoader(BatchPlan.of(crops, 8, 1, 0)).batches(0, 1))


def test_dev_sets_of_ranks_have_each_row_once(crops):
    shares = [DevSet(crops, rank, 2, limit=1000) for rank in (0, 1)]
    assert [len(s) for s in shares] == [30, 30]
    assert [len(DevSet(crops, rank, 7, limit=16)) for rank in range(7)] == [3, 3, 2, 2, 2, 2, 2]
    assert list(DevSet(crops, 2, 3, limit=2).batches(8)) == []
    assert len(DevSet(crops, limit=7)) == 7
    one = list(DevSet(crops).batches(60))
    assert same(one, list(DevSet(crops).batches(60)))
    two = [next(s.batches(60)) for s in shares]
    assert np.array_equal(one[0][1][1::2], two[1][1])


def test_rebatching_keeps_order_and_drops_the_rest():
    pieces = [(np.arange(a, b), np.arange(a, b)) for a, b in ((0, 3), (3, 4), (4, 11), (11, 13))]
    assert [x.tolist() for x, _ in rebatched(pieces, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.ray
def test_ray_data_makes_the_same_bits_as_threads(crops, ray_session):
    plan = BatchPlan.of(crops, 8, 3, 3, window_bytes=third(crops))
    for first, stop in ((0, 24), (13, 24)):
        assert same(list(RayDataLoader(plan, 1).batches(first, stop)), list(ThreadedLoader(plan, 1).batches(first, stop)))


def test_restarted_workers_share_the_batches_by_their_present_number(crops):
    shares = ray_data_config(1).configure({"train": BatchPlan.of(crops, 8, 4, 3)}, 3)
    assert [shard["train"].rank for shard in shares] == [0, 1, 2]
    assert {shard["train"].plan for shard in shares} == {BatchPlan.of(crops, 8, 3, 3)}
