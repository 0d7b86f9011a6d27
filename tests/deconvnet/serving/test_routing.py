"""Which version answers: shares of a canary, plans of a change, and the change itself; and how two masks differ."""

import threading

import numpy as np
import pytest

from deconvnet.serving.routing import Plan, Routes, ShadowTally, Tally, Wanted, different_pixels, is_canary, plan
from deconvnet.tracking.registry import Version

V1, V2, V3 = (Version("net", str(i), f"id {i}", "nowhere") for i in (1, 2, 3))


@pytest.mark.parametrize("share", [0, 0.1, 0.29, 0.5, 0.999])
def test_a_canary_gets_exactly_its_share_evenly_spaced(share: float) -> None:
    chosen = [number for number in range(1000) if is_canary(number, share)]
    assert len(chosen) == pytest.approx(1000 * share, abs=1)
    if len(chosen) > 1:
        assert set(np.diff(chosen)) <= {int(1 / share), int(1 / share) + 1}


@pytest.mark.parametrize(
    ("wanted", "serving", "loaded", "broken", "expected"),
    [
        (Wanted(V1), V1, [V1], [], Plan()),
        (Wanted(V2), V1, [V1], [], Plan(load=(V2,))),
        (Wanted(V2), V1, [V1, V2], [], Plan(champion=V2)),
        (Wanted(V2), V2, [V1, V2], [], Plan(drop=(V1,))),
        (Wanted(V2), V1, [V1], [V2], Plan()),  # it could not be loaded
        (Wanted(V1, V2), V1, [V1], [], Plan(load=(V2,))),
        (Wanted(V1, V2), V1, [V1, V2], [], Plan(challenger=V2)),
        (Wanted(V1, V1), V1, [V1], [], Plan()),
        (Wanted(V2, V2), V1, [V1, V2], [], Plan(champion=V2)),  # the challenger is promoted
        (Wanted(V1, V3), V1, [V1, V2], [], Plan(load=(V3,), drop=(V2,))),
        (Wanted(V3, V2), V1, [V1, V2], [], Plan(load=(V3,), challenger=V2)),
        (Wanted(V2, V1), V1, [V1, V2], [], Plan(champion=V2)),  # what answers is not tried out
        (Wanted(V2, V3), V1, [V1, V2], [V3], Plan(champion=V2)),
    ],
)
def test_a_version_is_loaded_before_it_answers_and_dropped_after(wanted, serving, loaded, broken, expected) -> None:
    assert plan(wanted, serving, loaded, broken) == expected


def test_every_request_goes_to_the_version_of_its_moment_and_a_change_waits_for_the_earlier_ones() -> None:
    routes = Routes(V1)
    with routes.answering() as first, routes.answering():
        assert first == V1 and routes.busy == 2
        assert not routes.change(V2, None, timeout=0)
        with routes.answering() as second:
            assert second == V2
        assert not routes.change(V2, None, timeout=0)
    assert routes.change(V2, None, timeout=0) and routes.busy == 0


def test_a_change_ends_when_the_last_request_to_the_earlier_version_has_been_answered() -> None:
    routes, done = Routes(V1), []
    waiting = threading.Thread(target=lambda: done.append(routes.change(V2, None, timeout=30)))
    with routes.answering():
        waiting.start()
    waiting.join(30)
    assert done == [True]


def test_a_challenger_gets_its_share_of_the_requests() -> None:
    routes, found = Routes(V1, 0.25), []
    routes.change(V1, V2)
    for _ in range(8):
        with routes.answering() as version:
            found.append(version)
    assert found == [V1, V1, V1, V2] * 2
    assert routes.change(V2, None, timeout=0)


def test_a_failed_request_is_no_longer_answered() -> None:
    routes = Routes(V1)
    with pytest.raises(KeyError), routes.answering():
        raise KeyError
    assert routes.change(V2, None, timeout=0)


def test_masks_are_compared_by_the_names_of_their_classes() -> None:
    mask = np.array([[0, 1], [2, 0]], np.uint8)
    classes = ("background", "cat", "dog")
    assert different_pixels(mask, classes, mask, classes) == 0
    assert different_pixels(mask, classes, np.array([[0, 2], [1, 0]], np.uint8), ("background", "dog", "cat")) == 0
    assert different_pixels(mask, classes, np.array([[0, 2], [1, 1]], np.uint8), ("background", "dog", "cat")) == 0.25
    assert different_pixels(mask, classes, mask, ("background", "cat", "cow")) == 0.25  # cow is not a class of the first


def test_tallies_are_means() -> None:
    tally = Tally()
    assert tally.summary() == {"answers": 0}
    tally.add(0.5, {"cat": 0.25, "background": 0.75})
    tally.add(1.0, {"background": 1.0})
    shares = {"background": 0.875, "cat": 0.125}
    assert tally.summary() == {"answers": 2, "mean_confidence": 0.75, "class_shares": shares}
    assert ShadowTally(skipped=3).summary() == {"compared": 0, "skipped": 3, "failed": 0}
    assert ShadowTally(2, 0, 1, 0.5).summary() == {"compared": 2, "skipped": 0, "failed": 1, "different_pixels": 0.25}
