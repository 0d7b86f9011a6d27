"""The order of examples: the same for any number of workers and from any step, well mixed, and each row group read once."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain

import numpy as np
import pytest

from deconvnet.training.data.batching import even_ranges
from deconvnet.training.data.sampler import Layout, Order

CASES = range(40)


@dataclass(frozen=True)
class Case:
    """A random table, and the order of its examples.

    Attributes:
        order: the order.
        nbytes: sizes of the row groups.
        workers: a number of workers that the batch is divided among.
    """

    order: Order
    nbytes: np.ndarray
    workers: int


@cache
def case(seed: int) -> Case:
    """Draw a table of 1 to 60 row groups of unequal sizes, a batch of 1 to 40, and the memory for a part of it or all."""
    rng = np.random.default_rng(seed)
    groups, batch = int(rng.integers(1, 60)), int(rng.integers(1, 40))
    examples, nbytes = rng.integers(1, 50, groups), rng.integers(1, 1000, groups)
    held = int(rng.choice([1, 0.1 * nbytes.sum(), 0.9 * nbytes.sum(), nbytes.sum()]))
    return Case(Order.of(examples, nbytes, batch, seed, max(1, held)), nbytes, int(rng.integers(1, batch + 1)))


def batches(order: Order, batch_indices: range, first: int, stop: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the examples at some batch indices in consecutive steps, as pairs of row group and index in it."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for window in order.windows(batch_indices, first, stop):
        for step, row in zip(window.steps, order.shuffled_positions(window).tolist(), strict=True):
            found |= {
                (step, batch_index): example(window.layout, p)
                for batch_index, p in zip(window.slot.batch_indices, row, strict=True)
            }
    for step in range(first, stop):
        yield [found[step, batch_index] for batch_index in batch_indices]


def example(layout: Layout, position: int) -> tuple[int, int]:
    (entry,) = layout.entries(range(position, position + 1))
    return int(layout.groups[entry]), position - layout.start(entry)


def epoch(order: Order, number: int = 0) -> list[list[tuple[int, int]]]:
    steps = order.steps_per_epoch
    return list(batches(order, range(order.batch), number * steps, (number + 1) * steps))


@pytest.mark.parametrize("seed", CASES)
def test_an_epoch_has_every_example_once_but_a_rest_that_differs_between_epochs(seed):
    order = case(seed).order
    every = {(g, i) for g, n in enumerate(order.examples.tolist()) for i in range(n)}
    seen: Counter[tuple[int, int]] = Counter()
    for number in range(12):
        found = Counter(each for batch in epoch(order, number) for each in batch)
        assert found.keys() <= every
        assert found.total() == max(1, len(every) // order.batch) * order.batch
        assert max(found.values()) - min(found.get(each, 0) for each in every) <= 1  # more than once only if the epoch is short
        seen += found
    if len(every) > 3 * order.batch:
        assert seen.keys() == every


@pytest.mark.parametrize("seed", CASES)
def test_batches_are_the_same_for_any_number_of_workers_and_from_any_step(seed):
    order, workers = case(seed).order, case(seed).workers
    stop = min(2 * order.steps_per_epoch + 3, 90)
    whole = list(batches(order, range(order.batch), 0, stop))
    for first in (0, stop // 3, stop - 1):
        shares = [list(batches(order, batch_indices, first, stop)) for batch_indices in even_ranges(order.batch, workers)]
        assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole[first:]


def test_windows_tell_which_row_groups_are_read_and_workers_share_at_most_one_at_each_border():
    """With a slot for each batch index. Where slots fill several of them, both workers at a border read the slot."""
    counted = 0
    for seed in CASES:
        order, workers = case(seed).order, case(seed).workers
        if len(order.slots) < order.batch or order.examples.sum() < order.batch:
            continue
        read = [
            {entry for w in order.windows(batch_indices, 0, order.steps_per_epoch) for entry in w.layout.entries(w.positions)}
            for batch_indices in even_ranges(order.batch, workers)
        ]
        assert set().union(*read) == set(range(len(order.examples))), seed
        assert sum(map(len, read)) <= len(order.examples) + workers - 1, seed
        counted += workers > 1
    assert counted > 10


def test_epochs_and_seeds_have_orders_of_their_own():
    order = Order.of(np.full(40, 8), np.full(40, 100), 10, 0, 500)
    orders = [epoch(order), epoch(order, 1), epoch(replace(order, seed=1))]
    assert all(a != b for a, b in zip(orders, [*orders[1:], orders[0]], strict=True))
    assert orders[0] == epoch(replace(order))
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("groups", [1, 8, 300])
def test_the_repeats_of_a_row_and_the_crops_of_an_image_in_a_small_table_are_spread_over_the_epoch(groups):
    """They lie beside each other in a row group. A slot that holds several takes one of them for a batch."""
    order = Order.of(np.full(groups, 2400 // groups), np.full(groups, 1000), 16, 3)
    drawn = epoch(order)
    for start in range(0, 2400 // groups - 8, 5):
        steps = [step for step, batch in enumerate(drawn) for g, i in batch if g == 0 and start <= i < start + 8]
        assert len(steps) == 8
        assert max(Counter(steps).values()) <= 2  # two only if the border of two slots lies among them
    spread = np.std([step for step, batch in enumerate(drawn) for g, i in batch if g == 0])
    assert spread > 0.2 * order.steps_per_epoch


def class_variance(order: Order, of_group: np.ndarray, run: int, epochs: int) -> float:
    """Return the variance of the class counts in runs of batches, as a multiple of that of a random permutation.

    Args:
        order: the order.
        of_group: the class of each row group's examples.
        run: number of consecutive batches that are counted together.
        epochs: number of epochs that are measured.
    """
    classes = int(of_group.max()) + 1
    total = int(order.examples.sum())
    share = np.bincount(of_group, order.examples, classes) / total
    drawn = run * order.batch
    chance = drawn * share * (1 - share) * (total - drawn) / (total - 1)  # hypergeometric
    found = []
    for number in range(epochs):
        labels = of_group[[[g for g, _ in batch] for batch in epoch(order, number)]]
        runs = labels[: len(labels) // run * run].reshape(-1, drawn)
        counts = np.stack([np.bincount(each, minlength=classes) for each in runs])
        found.append(((counts - drawn * share) ** 2).mean(axis=0))
    return float(np.mean(np.mean(found, axis=0) / chance))


def test_a_small_table_is_mixed_at_least_as_well_as_by_one_permutation():
    """By the class counts of batches and of runs of batches, where a row group is of one class, as the crops of an image are."""
    rng = np.random.default_rng(0)
    order = Order.of(rng.integers(20, 80, 60), np.full(60, 1000), 32, 0)
    classes = rng.choice(8, 60, p=[0.4, 0.3, 0.1, 0.05, 0.05, 0.04, 0.03, 0.03])
    assert order.window == order.steps_per_epoch
    for run in (1, 4, 16):
        assert class_variance(order, classes, run, 4) < 1.02


def test_the_batches_of_a_larger_table_are_as_varied_as_by_chance():
    rng = np.random.default_rng(0)
    order = Order.of(np.full(400, 16), np.full(400, 1000), 32, 0, 40_000)
    assert order.window < order.steps_per_epoch / 3
    assert class_variance(order, rng.integers(0, 6, 400), 1, 3) < 1.05


def test_slots_are_fewer_than_places_only_if_their_row_groups_do_not_fit():
    count = {
        size: len(Order.of(np.full(500, 64), np.full(500, size), 64, 0).slots) for size in (2**20, 2**21, 2**22, 2**26, 2**30)
    }
    assert count == {2**20: 64, 2**21: 32, 2**22: 16, 2**26: 1, 2**30: 1}


def test_the_windows_of_the_slots_begin_at_different_steps_except_for_neighbours_that_share_a_row_group():
    order = Order.of(np.full(2000, 64), np.full(2000, 2**20), 64, 0)
    begun = Counter(w.steps.start for w in order.windows(range(64), 100, 100 + order.window) if w.steps.start > 100)
    assert max(begun.values()) <= 4
    phases = [slot.phase for slot in order.slots]
    assert phases[::2] == phases[1::2]
    assert len(set(phases)) > 24
