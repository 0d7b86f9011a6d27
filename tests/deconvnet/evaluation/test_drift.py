"""Drift: the population stability index, its bins, and how often chance alone exceeds the limit of the alert."""

import numpy as np
import pytest

from deconvnet.evaluation.drift import (
    MIN_ANSWERS,
    STATISTICS_FILE,
    Drift,
    PredictionStatistics,
    population_stability_index,
    read_statistics,
)
from infra import storage


def test_the_index_is_that_of_a_worked_example() -> None:
    """0.1 ln(0.6 / 0.5) + -0.1 ln(0.4 / 0.5) = 0.018232 + 0.022314."""
    assert population_stability_index([0.5, 0.5], [0.6, 0.4]) == pytest.approx(0.0405465)
    assert population_stability_index([0.6, 0.4], [0.5, 0.5]) == pytest.approx(0.0405465), "it is symmetric"
    assert population_stability_index([0.2, 0.8], [0.2, 0.8]) == 0


def test_a_share_of_zero_counts_as_a_small_one() -> None:
    expected = (0.5 - 0.0001) * np.log(0.5 / 0.0001) + (0.5 - 1) * np.log(0.5)
    assert population_stability_index([0, 1], [0.5, 0.5]) == pytest.approx(expected)
    assert population_stability_index([0, 1], [0, 1]) == 0


@pytest.mark.parametrize(("images", "bins"), [(1, 1), (29, 1), (30, 2), (60, 4), (149, 9), (150, 10), (2000, 10)])
def test_fewer_images_have_fewer_bins(images: int, bins: int) -> None:
    found = PredictionStatistics.of(np.linspace(0.5, 1, images).tolist(), np.full((images, 2), 0.5), ("a", "b"))
    assert len(found.confidence_shares) == bins == len(found.confidence_bounds) + 1
    assert found.confidence_shares == pytest.approx([1 / bins] * bins, abs=1 / images)
    assert found.images == images and found.class_shares == {"a": 0.5, "b": 0.5}


def test_images_of_equal_confidence_are_in_one_bin() -> None:
    found = PredictionStatistics.of([1.0] * 90 + [0.5] * 10, np.full((100, 1), 1.0), ("a",))
    assert sum(found.confidence_shares) == pytest.approx(1) and max(found.confidence_shares) == pytest.approx(0.9)


def test_class_shares_are_averaged_over_images() -> None:
    found = PredictionStatistics.of([0.5, 0.5], np.array([[1, 0, 0], [0.5, 0.5, 0]]), ("a", "b", "c"))
    assert found.class_shares == {"a": 0.75, "b": 0.25, "c": 0}


def drifted(statistics: PredictionStatistics, confidence: np.ndarray, share: float = 0.25) -> dict[str, float]:
    drift = Drift(statistics)
    for value in confidence:
        drift.add(float(value), {"a": 1 - share, "b": share})
    return drift.indices()


@pytest.mark.parametrize("images", [30, 60, 150, 1449])
def test_chance_alone_rarely_exceeds_the_limit_of_the_alert(images: int, rng: np.random.Generator) -> None:
    """Val and the answers, as few as allowed, are from one distribution: at most 2 % exceed 0.25. Then they drift."""
    exceeded = 0
    for _ in range(500):
        val = rng.beta(8, 2, images)
        statistics = PredictionStatistics.of(val.tolist(), np.tile([0.75, 0.25], (images, 1)), ("a", "b"))
        found = drifted(statistics, rng.beta(8, 2, MIN_ANSWERS))
        exceeded += found["confidence"] > 0.25
        assert found["classes"] == 0
    assert exceeded <= 10
    assert drifted(statistics, rng.beta(5, 3, MIN_ANSWERS))["confidence"] > 0.25
    assert drifted(statistics, rng.beta(8, 2, MIN_ANSWERS), share=0.6)["classes"] > 0.25


def test_nothing_is_measured_before_there_are_enough_answers_and_old_ones_are_forgotten() -> None:
    statistics = PredictionStatistics(60, {"a": 0.75, "b": 0.25}, [0.5], [0.5, 0.5])
    drift = Drift(statistics)
    for _ in range(MIN_ANSWERS - 1):
        drift.add(0.75, {"a": 1.0})
    assert drift.indices() == {}
    drift.add(0.75, {"a": 1.0})
    assert drift.indices()["confidence"] > 1 and drift.indices()["classes"] > 1
    for i in range(1000):
        drift.add(0.25 if i % 2 else 0.75, {"a": 0.75, "b": 0.25})
    assert drift.indices() == {"confidence": 0, "classes": 0}


def test_without_bins_only_classes_are_measured() -> None:
    statistics = PredictionStatistics(5, {"a": 0.75, "b": 0.25}, [], [1.0])
    assert drifted(statistics, np.full(MIN_ANSWERS, 0.5)) == {"classes": 0}


def test_statistics_are_read_if_there_are_some(tmp_path: object) -> None:
    statistics = PredictionStatistics(60, {"a": 0.75, "b": 0.25}, [0.5], [0.5, 0.5])
    assert read_statistics(str(tmp_path)) is None
    storage.write_json(f"{tmp_path}/{STATISTICS_FILE}", statistics.as_dict())
    assert read_statistics(str(tmp_path)) == statistics
