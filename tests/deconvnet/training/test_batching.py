"""The division of batches among workers and into micro-batches."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvnet.training.data.batching import check_batching, even_ranges, micro_batch_count
from infra.errors import UserError


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


@given(batch=st.integers(1, 40), workers=st.integers(1, 3), fewest=st.integers(1, 3), micro=st.none() | st.integers(1, 40))
def test_a_network_that_needs_two_examples_at_once_never_has_one_alone(batch, workers, fewest, micro):
    """On several workers, batch norm is synchronised. The size that the message names is enough."""
    workers, fewest = min(workers, batch), min(workers, fewest, batch)
    micro = micro and min(micro, batch)
    sizes = [len(piece) for piece in even_ranges(batch, micro_batch_count(batch, 1, micro))]
    options = {"setting": "train.stage1", "needs_two": True}
    if fewest > 1 or min(sizes) > 1:
        check_batching(batch, micro, workers, fewest, **options)
        return
    with pytest.raises(UserError, match="one example at once") as refused:
        check_batching(batch, micro, workers, fewest, **options)
    check_batching(batch, micro, workers, fewest, setting="train.fcn8s")
    if batch == 1:
        assert "batch 1 makes" in str(refused.value) and str(refused.value).endswith(": raise it")
    else:
        enough = int(re.search(r"take (\d+) or more", str(refused.value))[1])
        for each in range(enough, batch + 1):
            check_batching(batch, each, workers, fewest, **options)


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
