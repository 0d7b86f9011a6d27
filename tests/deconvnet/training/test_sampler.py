"""The order of examples: a permutation that depends on seed and epoch, in windows, shared by any number of workers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvnet.training.data.sampler import (
    Batching,
    Group,
    check_batching,
    even_ranges,
    micro_batch_count,
    window_count,
    window_rows,
    windows,
)
from infra.errors import UserError

GROUPS = [Group(f"part-{i // 7}", i % 7, 5 + i % 4, 10 * (5 + i % 4)) for i in range(40)]
TOTAL = sum(g.examples for g in GROUPS)


def epoch_order(seed: int, epoch: int, count: int = 5) -> list[tuple[str, int, int]]:
    """Return (part, group, row) at every position of an epoch in which every row occurs once."""
    found = []
    for window in windows(GROUPS, seed, epoch, count):
        assert window.start == len(found)
        rows = [(g.part, g.index, row) for g in window.groups for row in range(g.examples)]
        found += [rows[i] for i in window_rows(window, seed, np.ones(len(rows), np.int64))]
    return found


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch():
    order = epoch_order(0, 0)
    assert len(order) == TOTAL == len(set(order))
    assert order == epoch_order(0, 0)
    assert order != epoch_order(0, 1)
    assert order != epoch_order(1, 0)
    assert sorted(order) == sorted(epoch_order(0, 1))
    assert order != sorted(order)


def test_windows_consist_of_whole_row_groups_and_are_as_many_in_every_epoch():
    for epoch in range(5):
        divided = windows(GROUPS, 3, epoch, 5)
        assert len(divided) == 5
        assert sorted((g.part, g.index) for w in divided for g in w.groups) == sorted((g.part, g.index) for g in GROUPS)
        assert max(w.examples for w in divided) < 100
    assert [g.groups for g in windows(GROUPS, 0, 0, 5)] != [g.groups for g in windows(GROUPS, 0, 1, 5)]


def test_the_number_of_windows_follows_their_size_in_bytes():
    assert window_count(GROUPS, 10 * TOTAL) == 1
    assert window_count(GROUPS, 10 * TOTAL - 1) == 2
    assert window_count(GROUPS, TOTAL) == 10
    assert window_count(GROUPS, 1) == len(GROUPS)
    assert window_count(GROUPS) == 1  # by default small tables fit in one window


def test_a_small_table_is_permuted_as_a_whole():
    # Rows of the first group are spread over the epoch.
    places = [i for i, row in enumerate(epoch_order(0, 0, 1)) if row[:2] == ("part-0", 0)]
    assert max(places) - min(places) > TOTAL / 4


def test_rows_occur_as_often_as_their_weights_say():
    (window,) = windows([Group("a", 0, 7)], 0, 0, 1)
    rows = window_rows(window, 0, np.array([1, 0, 4, 2]))
    assert np.bincount(rows, minlength=4).tolist() == [1, 0, 4, 2]
    with pytest.raises(ValueError, match="promised 7"):
        window_rows(window, 0, np.array([1, 1]))


@given(
    batch=st.integers(4, 24),
    workers=st.sampled_from([1, 2, 3, 4]),
    window=st.integers(1, 13),
    first=st.integers(0, 12),
    stop=st.integers(0, 40),
)
def test_the_ranks_shares_make_up_the_global_batches(batch, workers, window, first, stop):
    batching = Batching(TOTAL, batch, workers)
    divided = windows(GROUPS, 0, 2, window)
    by_rank = [np.concatenate([batching.positions(w, r, first, stop) for w in divided]) for r in range(workers)]
    steps = max(0, min(stop, batching.steps) - first)
    shares = [len(batching.share(rank)) for rank in range(workers)]
    assert batch // workers <= min(shares) and max(shares) <= -(-batch // workers)
    assert [len(p) for p in by_rank] == [steps * share for share in shares]  # every rank has as many steps
    for step in range(steps):
        joined = np.concatenate([p[step * n : (step + 1) * n] for p, n in zip(by_rank, shares, strict=True)])
        assert joined.tolist() == list(range((first + step) * batching.batch, (first + step + 1) * batching.batch))


def test_a_rest_is_dropped_and_a_short_epoch_is_repeated():
    assert Batching(100, 32).steps == 3
    short = Batching(10, 32, 2)
    (window,) = windows([Group("a", 0, 10)], 0, 0, 1)
    assert short.steps == 1
    assert [short.positions(window, r).tolist() for r in (0, 1)] == [list(range(16)), list(range(16, 32))]


def test_shares_differ_by_one_example_at_most():
    assert even_ranges(12, 3) == [range(4), range(4, 8), range(8, 12)]
    assert even_ranges(8, 3) == [range(2), range(2, 5), range(5, 8)]


@given(batch=st.integers(1, 300), workers=st.integers(1, 16), micro=st.integers(1, 40))
def test_every_worker_has_as_many_micro_batches_and_none_is_empty(batch, workers, micro):
    workers = min(workers, batch)
    pieces = micro_batch_count(batch, workers, micro)
    cuts = [even_ranges(len(share), pieces) for share in even_ranges(batch, workers)]
    sizes = [len(piece) for cut in cuts for piece in cut]
    assert sum(sizes) == batch
    assert min(sizes) >= 1
    assert max(sizes) <= max(micro, 2)
    if batch % (workers * micro) == 0:
        assert set(sizes) == {micro}
    assert pieces == 1 or micro_batch_count(batch, workers, micro + 1) <= pieces


def test_without_micro_batch_there_is_one_piece():
    assert micro_batch_count(64, 4, None) == 1
    assert micro_batch_count(64, 4, 5) == 4
    assert micro_batch_count(64, 4, 32) == 1


def test_a_batch_that_can_t_be_shared_is_refused():
    check_batching(64, 8, 4, setting="train.stage1")
    check_batching(64, 7, 3, 1, setting="train.stage1")
    check_batching(4, None, 4, 4, setting="train.stage1")
    with pytest.raises(
        UserError, match=r"train\.fcn8s\.batch 2 leaves some of 4 workers .*at least 4, or lower compute\.workers to 2"
    ):
        check_batching(2, None, 4, setting="train.fcn8s")
    with pytest.raises(UserError, match=r"train\.stage2\.micro_batch 65 is more than train\.stage2\.batch 64"):
        check_batching(64, 65, 4, setting="train.stage2")
    with pytest.raises(UserError, match=r"compute\.min_workers 3 is more than compute\.workers 2"):
        check_batching(64, None, 2, 3, setting="train.stage1")
