"""Decide which version of a model answers a request, and when another version takes over.

The champion is the version in use, and the challenger is a newer version that is tried out. With a canary, the challenger
answers a share of the requests. Nothing here needs Ray or MLflow.
"""

import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from deconvnet.evaluation.drift import PredictionStatistics
    from deconvnet.tracking.registry import Version


def is_canary(number: int, share: float) -> bool:
    """Decide whether a request goes to the challenger.

    Args:
        number: number of the request, counted from 0.
        share: share of the requests that go to the challenger, 0 to 1.

    Returns:
        True for `share` of all numbers, evenly spaced: for every tenth with a share of 0.1.
    """
    return math.floor((number + 1) * share) > math.floor(number * share)


@dataclass(frozen=True)
class LoadedModel:
    """A version that the replicas (the processes that predict) hold.

    Attributes:
        version: the version of the registered model.
        classes: class names in the order of their ids.
        background: whether class 0 is the background.
        statistics: statistics of its predictions on the val images, for measuring drift. None if it was registered without them.
    """

    version: "Version"
    classes: tuple[str, ...]
    background: bool
    statistics: "PredictionStatistics | None" = None


@dataclass(frozen=True)
class TargetVersions:
    """The versions that MLflow's registry names now.

    Attributes:
        champion: the version that answers.
        challenger: the version that is tried out. None if there is none, or there is neither canary nor shadow.
        problem: the error, if the registry could not be asked for the challenger; otherwise "".
    """

    champion: "Version"
    challenger: "Version | None" = None
    problem: str = ""

    @property
    def versions(self) -> "tuple[Version, ...]":
        """Return the versions that the replicas must hold, the champion first."""
        return (self.champion,) if self.challenger in (None, self.champion) else (self.champion, self.challenger)


@dataclass(frozen=True)
class Step:
    """A step towards serving the versions that the registry names.

    Attributes:
        load: versions to load into the replicas, in this order.
        champion: version to switch to. None to keep the present one, because it is the one that the registry names,
            or because that one is not loaded yet.
        challenger: version to try out from now on, or None.
        drop: versions that the replicas need no longer.
    """

    load: "tuple[Version, ...]" = ()
    champion: "Version | None" = None
    challenger: "Version | None" = None
    drop: "tuple[Version, ...]" = ()


def next_step(
    targets: TargetVersions, serving: "Version | None", loaded: "Iterable[Version]", broken: "Iterable[Version]" = ()
) -> Step:
    """Find the next step of a change of models. A version never answers before it is loaded.

    Args:
        targets: the versions that the registry names.
        serving: the version that answers now. None before the start.
        loaded: the versions that the replicas hold.
        broken: versions that failed to load, and whose next attempt is not due yet.

    Returns:
        The step. A version that still answers is never dropped, and never becomes the challenger.
    """
    loaded, broken = tuple(loaded), tuple(broken)
    load = tuple(version for version in targets.versions if version not in loaded and version not in broken)
    champion = targets.champion if targets.champion in loaded and targets.champion != serving else None
    challenger = targets.challenger if targets.challenger in loaded else None
    if challenger in (targets.champion, serving):
        challenger = None
    drop = tuple(version for version in loaded if version not in (*targets.versions, serving))
    return Step(load, champion, challenger, drop)


@dataclass
class AnswerTotals:
    """Totals over the answers of a version, from which averages are computed.

    Attributes:
        answers: number of predicted masks.
        confidence: sum of their confidences, 0 to 1 each.
        shares: sum of the shares of the pixels, by class.
    """

    answers: int = 0
    confidence: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)

    def add(self, confidence: float, shares: Mapping[str, float]) -> None:
        """Count an answer.

        Args:
            confidence: mean probability of the predicted class, 0 to 1.
            shares: share of the pixels of each class in the mask, by name.
        """
        self.answers += 1
        self.confidence += confidence
        for name, share in shares.items():
            self.shares[name] = self.shares.get(name, 0.0) + share

    def summary(self) -> dict[str, Any]:
        """Return the number of answers, their mean confidence, and the mean share of each class, for JSON."""
        if not self.answers:
            return {"answers": 0}
        largest_first = sorted(self.shares.items(), key=lambda item: -item[1])
        shares = {name: round(share / self.answers, 4) for name, share in largest_first}
        return {"answers": self.answers, "mean_confidence": round(self.confidence / self.answers, 4), "class_shares": shares}


@dataclass
class ShadowTotals:
    """How the masks of a challenger that works in the shadow differ from the champion's.

    Attributes:
        compared: number of images that both have predicted.
        skipped: number of images that the challenger did not predict, because all replicas were busy.
        failed: number of images that it could not predict.
        different: sum of the shares of pixels that differ, 0 to 1 each.
    """

    compared: int = 0
    skipped: int = 0
    failed: int = 0
    different: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Return the counts and the mean share of pixels that differ, for JSON."""
        mean = {"different_pixels": round(self.different / self.compared, 4)} if self.compared else {}
        return {"compared": self.compared, "skipped": self.skipped, "failed": self.failed, **mean}


def different_pixels(mask: np.ndarray, classes: Sequence[str], other: np.ndarray, other_classes: Sequence[str]) -> float:
    """Compare two masks of one image, by the names of the classes.

    Args:
        mask: class ids, uint8 (H, W).
        classes: class names by id of `mask`.
        other: class ids, uint8 (H, W).
        other_classes: class names by id of `other`. They may be others, or in another order.

    Returns:
        The share of the pixels whose classes differ, 0 to 1.
    """
    ids = {name: number for number, name in enumerate(classes)}
    table = np.full(256, -1, np.int16)
    table[: len(other_classes)] = [ids.get(name, -1) for name in other_classes]
    return float((table[other] != mask).mean())


class Routes:
    """Which version answers which request, and how many requests each version is answering. All methods may run in any thread.

    Attributes:
        champion: the version that answers.
        challenger: the version that is tried out, or None.
        since: time from which on the champion has answered, in UTC.
        share: share of the requests that the challenger answers.
    """

    def __init__(self, champion: "Version", share: float = 0.0) -> None:
        """Create the routes to a version.

        Args:
            champion: the version that answers.
            share: share of the requests that a challenger answers.
        """
        self.champion, self.share = champion, share
        self.challenger: Version | None = None
        self.since = datetime.now(UTC)
        self._requests = 0
        self._answering: Counter[Version] = Counter()
        self._changed = threading.Condition()

    @property
    def in_flight(self) -> int:
        """Return how many requests are being answered."""
        return self._answering.total()

    @contextmanager
    def route_request(self) -> "Iterator[Version]":
        """Provide the version that is to answer the next request. The request counts as unanswered until the block ends."""
        with self._changed:
            version = self.champion
            if self.challenger is not None:
                version = self.challenger if is_canary(self._requests, self.share) else version
                self._requests += 1
            self._answering[version] += 1
        try:
            yield version
        finally:
            with self._changed:
                self._answering[version] -= 1
                self._changed.notify_all()

    def change(self, champion: "Version", challenger: "Version | None", timeout: float | None = None) -> bool:
        """Send all further requests to these versions, and wait until no other version answers a request.

        Args:
            champion: the version that answers from now on.
            challenger: the version that is tried out from now on, or None.
            timeout: seconds to wait at most. None for no limit.

        Returns:
            True once no other version answers a request, False if the time was up.
        """
        with self._changed:
            if champion != self.champion:
                self.since = datetime.now(UTC)
            if challenger != self.challenger:
                self._requests = 0
            self.champion, self.challenger = champion, challenger
            return self._changed.wait_for(lambda: not self._others(), timeout)

    def _others(self) -> "set[Version]":
        """Return the versions other than the present ones that are still answering requests."""
        return {version for version, count in self._answering.items() if count} - {self.champion, self.challenger}
