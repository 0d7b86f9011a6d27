"""Which version answers: shares of a canary, plans of a change, and the change itself; and how two masks differ."""

import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from deconvnet.serving import routing
from deconvnet.serving.routing import (
    AnswerTotals,
    Routes,
    ShadowTotals,
    Step,
    TargetVersions,
    different_pixels,
    is_canary,
    next_step,
)
from deconvnet.tracking.registry import Version

V1, V2, V3 = (Version("net", str(i), f"id {i}", "nowhere") for i in (1, 2, 3))


@pytest.mark.parametrize("share", [0, 0.1, 0.29, 0.5, 0.999])
def test_a_canary_gets_exactly_its_share_evenly_spaced(share: float) -> None:
    chosen = [number for number in range(1000) if is_canary(number, share)]
    assert len(chosen) == pytest.approx(1000 * share, abs=1)
    if len(chosen) > 1:
        assert set(np.diff(chosen)) <= {int(1 / share), int(1 / share) + 1}


@pytest.mark.parametrize(
    ("targets", "serving", "loaded", "broken", "expected"),
    [
        (TargetVersions(V1), V1, [V1], [], Step()),
        (TargetVersions(V2), V1, [V1], [], Step(load=(V2,))),
        (TargetVersions(V2), V1, [V1, V2], [], Step(champion=V2)),
        (TargetVersions(V2), V2, [V1, V2], [], Step(drop=(V1,))),
        (TargetVersions(V2), V1, [V1], [V2], Step()),  # it could not be loaded
        (TargetVersions(V1, V2), V1, [V1], [], Step(load=(V2,))),
        (TargetVersions(V1, V2), V1, [V1, V2], [], Step(challenger=V2)),
        (TargetVersions(V1, V1), V1, [V1], [], Step()),
        (TargetVersions(V2, V2), V1, [V1, V2], [], Step(champion=V2)),  # the challenger is promoted
        (TargetVersions(V1, V3), V1, [V1, V2], [], Step(load=(V3,), drop=(V2,))),
        (TargetVersions(V3, V2), V1, [V1, V2], [], Step(load=(V3,), challenger=V2)),
        (TargetVersions(V2, V1), V1, [V1, V2], [], Step(champion=V2)),  # what answers is not tried out
        (TargetVersions(V2, V3), V1, [V1, V2], [V3], Step(champion=V2)),
    ],
)
def test_a_version_is_loaded_before_it_answers_and_dropped_after(targets, serving, loaded, broken, expected) -> None:
    assert next_step(targets, serving, loaded, broken) == expected


def test_every_request_goes_to_the_version_of_its_moment_and_a_change_waits_for_the_earlier_ones() -> None:
    routes = Routes(V1)
    with routes.route_request() as first, routes.route_request():
        assert first == V1 and routes.in_flight == 2
        assert not routes.change(V2, None, timeout=0)
        with routes.route_request() as second:
            assert second == V2
        assert not routes.change(V2, None, timeout=0)
    assert routes.change(V2, None, timeout=0) and routes.in_flight == 0


def test_a_change_ends_when_the_last_request_to_the_earlier_version_has_been_answered() -> None:
    routes, done = Routes(V1), []
    waiting = threading.Thread(target=lambda: done.append(routes.change(V2, None, timeout=30)))
    with routes.route_request():
        waiting.start()
    waiting.join(30)
    assert done == [True]


def test_the_time_since_which_the_champion_answers_changes_with_the_champion_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(routing, "datetime", SimpleNamespace(now=lambda zone: next(clock)))
    routes, since = Routes(V1), []
    for champion, challenger in ((V1, None), (V1, V2), (V2, None), (V2, V1)):
        routes.change(champion, challenger, timeout=0)
        since.append(routes.since)
    assert since == [0, 0, 1, 1]


def test_a_challenger_gets_its_share_of_the_requests() -> None:
    routes, found = Routes(V1, 0.25), []
    routes.change(V1, V2)
    for _ in range(8):
        with routes.route_request() as version:
            found.append(version)
    assert found == [V1, V1, V1, V2] * 2
    assert routes.change(V2, None, timeout=0)


def test_a_failed_request_is_no_longer_answered() -> None:
    routes = Routes(V1)
    with pytest.raises(KeyError), routes.route_request():
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
    totals = AnswerTotals()
    assert totals.summary() == {"answers": 0}
    totals.add(0.5, {"cat": 0.25, "background": 0.75})
    totals.add(1.0, {"background": 1.0})
    shares = {"background": 0.875, "cat": 0.125}
    assert totals.summary() == {"answers": 2, "mean_confidence": 0.75, "class_shares": shares}
    assert ShadowTotals(skipped=3).summary() == {"compared": 0, "skipped": 3, "failed": 0}
    assert ShadowTotals(2, 0, 1, 0.5).summary() == {"compared": 2, "skipped": 0, "failed": 1, "different_pixels": 0.25}
