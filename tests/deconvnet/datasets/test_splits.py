"""The split into train, dev and val."""

import pytest

from deconvnet.datasets.splits import assign_splits
from infra.errors import UserError

TRAIN = [f"t{i}" for i in range(200)]
VAL = [f"v{i}" for i in range(30)]
TEST = [f"x{i}" for i in range(30)]


def members(splits, name):
    return {image_id for image_id, split in splits.items() if split == name}


def test_dev_is_drawn_from_train_by_seed_in_any_order_of_ids():
    splits = assign_splits(TRAIN, VAL, 0.05, seed=0)
    assert set(splits) == {*TRAIN, *VAL}
    assert len(members(splits, "dev")) == 10 and members(splits, "dev") < set(TRAIN)
    assert members(splits, "val") == set(VAL)
    assert assign_splits(TRAIN[::-1], VAL[::-1], 0.05, seed=0) == splits
    assert members(assign_splits(TRAIN, VAL, 0.05, seed=1), "dev") != members(splits, "dev")


def test_new_images_leave_most_of_dev_unchanged():
    before = members(assign_splits(TRAIN, VAL, 0.1, seed=0), "dev")
    after = members(assign_splits([*TRAIN, *(f"n{i}" for i in range(10))], VAL, 0.1, seed=0), "dev")
    assert len(before & after) >= len(before) - 4


def test_images_of_an_earlier_table_stay_where_they_are_and_dev_grows_from_the_new_ones():
    before = assign_splits(TRAIN, VAL, 0.1, seed=0)
    new = [f"n{i}" for i in range(10)]
    after = assign_splits([*TRAIN, *new], VAL, 0.1, seed=0, earlier_splits=before)
    assert {image_id: after[image_id] for image_id in before} == before
    assert len(members(after, "dev") & set(new)) == 1
    fewer = assign_splits(TRAIN[:100], [*VAL, *TRAIN[100:]], 0.1, seed=0, earlier_splits=before)
    assert {i: fewer[i] for i in TRAIN[:100]} == {i: before[i] for i in TRAIN[:100]}
    assert members(fewer, "val") == {*VAL, *TRAIN[100:]}, "the lists decide on val"
    moved = assign_splits([*TRAIN, *VAL], ["v"], 0.1, seed=0, earlier_splits=before)
    assert len(members(moved, "dev")) == 23 and members(moved, "dev") - set(VAL) == members(before, "dev")


def test_dev_is_drawn_anew_if_no_image_or_every_image_would_be_in_it():
    dev = members(assign_splits(TRAIN, VAL, 0.05, seed=0), "dev")
    for left in ([t for t in TRAIN if t not in dev], sorted(dev)):
        found = assign_splits(left, VAL, 0.05, seed=0, earlier_splits=assign_splits(TRAIN, VAL, 0.05, seed=0))
        assert 0 < len(members(found, "dev")) < len(left)


@pytest.mark.parametrize("dev", ["a", "b"])
def test_a_single_dev_image_of_an_earlier_table_stays_in_dev(dev):
    earlier = {image_id: "dev" if image_id == dev else "train" for image_id in "ab"}
    assert members(assign_splits("ab", ["v"], 0.5, seed=0, earlier_splits=earlier), "dev") == {dev}


@pytest.mark.parametrize("fraction, dev", [(0.001, 1), (0.5, 1), (0.9, 1)])
def test_dev_has_at_least_one_image_and_never_all(fraction, dev):
    assert len(members(assign_splits(["a", "b"], ["v"], fraction, seed=0), "dev")) == dev


def test_limit_draws_from_all_splits_and_a_smaller_draw_is_part_of_a_larger():
    small, large = (assign_splits(TRAIN, VAL, 0.1, seed=0, limit=n, test_ids=TEST) for n in (10, 20))
    assert len(members(small, "val")) == len(members(small, "test")) == 10
    assert len(members(small, "dev")) == 1 and len(members(small, "train")) == 9
    assert set(small) < set(large)


@pytest.mark.parametrize("train, limit, word", [(["a"], None, "at least 2"), (TRAIN, 1, "data.limit")])
def test_too_few_images_to_train_on_are_refused(train, limit, word):
    with pytest.raises(UserError, match=word):
        assign_splits(train, VAL, 0.05, seed=0, limit=limit)
