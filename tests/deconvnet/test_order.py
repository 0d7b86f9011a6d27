"""The order of examples: a permutation of seed and epoch, in windows, cut equally for any number of workers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvnet.order import Batching, Group, check_batching, window_rows, windows
from infra.errors import UserError

GROUPS = [Group(f"part-{i // 7}", i % 7, 5 + i % 4) for i in range(40)]
TOTAL = sum(g.examples for g in GROUPS)


def epoch_order(seed: int, epoch: int, window_examples: int = 64) -> list[tuple[str, int, int]]:
    """(part, group, row) at every position; every row once."""
    found = []
    for window in windows(GROUPS, seed, epoch, window_examples):
        assert window.start == len(found)
        rows = [(g.part, g.index, row) for g in window.groups for row in range(g.examples)]
        found += [rows[i] for i in window_rows(window, seed, np.ones(len(rows), np.int64))]
    return found


def test_an_epoch_is_a_permutation_of_seed_and_epoch():
    order = epoch_order(0, 0)
    assert len(order) == TOTAL == len(set(order))
    assert order == epoch_order(0, 0)
    assert order != epoch_order(0, 1)
    assert order != epoch_order(1, 0)
    assert sorted(order) == sorted(epoch_order(0, 1))
    assert order != sorted(order)


def test_a_window_holds_whole_groups_and_every_epoch_has_as_many():
    for epoch in range(5):
        dealt = windows(GROUPS, 3, epoch, 64)
        assert len(dealt) == -(-TOTAL // 64)
        assert sorted((g.part, g.index) for w in dealt for g in w.groups) == sorted((g.part, g.index) for g in GROUPS)
        assert max(w.examples for w in dealt) < 100
    assert [g.groups for g in windows(GROUPS, 0, 0, 64)] != [g.groups for g in windows(GROUPS, 0, 1, 64)]


def test_a_small_table_is_permuted_as_a_whole():
    assert len(windows(GROUPS, 0, 0, TOTAL)) == 1
    # Rows of the first group are spread over the epoch.
    places = [i for i, row in enumerate(epoch_order(0, 0, TOTAL)) if row[:2] == ("part-0", 0)]
    assert max(places) - min(places) > TOTAL / 4


def test_rows_come_as_often_as_they_weigh():
    (window,) = windows([Group("a", 0, 7)], 0, 0)
    rows = window_rows(window, 0, np.array([1, 0, 4, 2]))
    assert np.bincount(rows, minlength=4).tolist() == [1, 0, 4, 2]
    with pytest.raises(ValueError, match="promised 7"):
        window_rows(window, 0, np.array([1, 1]))


@given(
    share=st.integers(1, 6),
    world=st.sampled_from([1, 2, 3, 4]),
    window=st.integers(20, 400),
    first=st.integers(0, 12),
    stop=st.integers(0, 40),
)
def test_ranks_share_the_global_batches(share, world, window, first, stop):
    batching = Batching(TOTAL, share * world, world)
    dealt = windows(GROUPS, 0, 2, window)
    by_rank = [np.concatenate([batching.positions(w, r, first, stop) for w in dealt]) for r in range(world)]
    steps = max(0, min(stop, batching.steps) - first)
    assert [len(p) for p in by_rank] == [steps * share] * world  # so every rank takes as many steps
    for step in range(steps):
        joined = np.concatenate([p[step * share : (step + 1) * share] for p in by_rank])
        assert joined.tolist() == list(range((first + step) * batching.batch, (first + step + 1) * batching.batch))


def test_leftovers_are_dropped_and_a_short_epoch_is_gone_through_again():
    assert Batching(100, 32).steps == 3
    short = Batching(10, 32, 2)
    (window,) = windows([Group("a", 0, 10)], 0, 0)
    assert short.steps == 1
    assert [short.positions(window, r).tolist() for r in (0, 1)] == [list(range(16)), list(range(16, 32))]


def test_a_batch_that_does_not_divide_is_refused():
    check_batching(64, 4, 8, setting="train.stage1")
    check_batching(64, 1, None, setting="train.stage1")
    with pytest.raises(UserError, match=r"train\.stage1\.batch is 64.*3 workers.*63 or 66"):
        check_batching(64, 3, None, setting="train.stage1")
    with pytest.raises(UserError, match=r"train\.fcn8s\.batch is 2.*take 4, or another"):
        check_batching(2, 4, None, setting="train.fcn8s")
    with pytest.raises(UserError, match=r"micro_batch is 7.*10 examples.*1, 2, 5, 10"):
        check_batching(20, 2, 7, setting="train.fcn8s")
    with pytest.raises(UserError, match=r"micro_batch is 32.*worker's 16"):
        check_batching(64, 4, 32, setting="train.stage2")
