"""The calibration error against a loop over the pixels."""

import json
import math

import numpy as np
import pytest

from deconvnet.evaluation.calibration import BINS, calibration_as_dict, calibration_counts, expected_calibration_error


def test_the_error_equals_that_of_a_loop_over_the_pixels(rng: np.random.Generator) -> None:
    truth, prediction = rng.integers(0, 4, (2, 30, 40)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = 255
    confidence = (0.2 + 0.8 * rng.random(truth.shape)).astype(np.float32)
    confidence[0, :3] = 1.0
    binned: dict[int, list[tuple[bool, float]]] = {}
    for t, p, c in zip(truth.ravel().tolist(), prediction.ravel().tolist(), confidence.ravel().tolist(), strict=True):
        if t != 255:
            binned.setdefault(min(int(c * 15), 14), []).append((t == p, c))
    total = sum(map(len, binned.values()))
    expected = sum(
        len(each) / total * abs(np.mean([right for right, _ in each]) - np.mean([c for _, c in each])) for each in binned.values()
    )
    halves = [calibration_counts(truth[part], prediction[part], confidence[part]) for part in (np.s_[:11], np.s_[11:])]
    counts = sum(halves)
    assert expected_calibration_error(counts) == pytest.approx(expected, abs=1e-7) and expected > 0.1
    found = calibration_as_dict(counts)
    assert found["pixels"] == [len(binned.get(k, [])) for k in range(BINS)] and found["edges"] == [
        k / BINS for k in range(BINS + 1)
    ]
    for k in range(BINS):
        each = binned.get(k)
        assert found["accuracy"][k] == (pytest.approx(np.mean([right for right, _ in each])) if each else None)
        assert found["confidence"][k] == (pytest.approx(np.mean([c for _, c in each])) if each else None)
    assert json.loads(json.dumps(found, allow_nan=False)) == found and None in found["accuracy"]


def test_what_is_predicted_on_void_changes_nothing_and_all_void_has_no_error() -> None:
    truth = np.array([[1, 255, 0], [255, 2, 2]], np.uint8)
    confidence = np.array([[0.9, 0.1, 0.8], [1.0, 0.7, 0.6]])
    first, second = np.array([[1, 1, 1], [0, 2, 1]]), np.array([[1, 0, 1], [2, 2, 1]])
    assert (calibration_counts(truth, first, confidence) == calibration_counts(truth, second, 1 * confidence)).all()
    assert calibration_counts(truth, first, confidence)[0].sum() == 4
    assert math.isnan(expected_calibration_error(calibration_counts(np.full((2, 3), 255), first, confidence)))


def test_a_network_that_is_sure_and_always_right_has_no_error_and_one_that_is_always_wrong_the_largest() -> None:
    truth, sure = np.array([0, 1, 2, 1]), np.ones(4)
    assert expected_calibration_error(calibration_counts(truth, truth, sure + 1e-6)) == pytest.approx(0, abs=2e-6)
    assert expected_calibration_error(calibration_counts(truth, truth + 1, sure)) == 1


@pytest.mark.parametrize("confidence", [[0.5, -0.1], [0.5, 1.1], [0.5, np.nan], [0.5, 0.5, 0.5]])
def test_scores_that_are_no_probabilities_are_refused(confidence: list[float]) -> None:
    with pytest.raises(ValueError, match="confidence"):
        calibration_counts(np.array([0, 1]), np.array([0, 1]), np.array(confidence))
