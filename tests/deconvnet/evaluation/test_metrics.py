"""`ConfusionMatrix` against metrics computed from sets of pixels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deconvnet.evaluation.metrics import ConfusionMatrix


def metrics_by_sets(truth, prediction, classes):
    """IoU, mean IoU and pixel accuracy from sets of pixel positions, without a matrix."""
    valid = {i for i, t in enumerate(truth.ravel()) if t != 255}
    ious = []
    for c in range(classes):
        a = {i for i in valid if truth.ravel()[i] == c}
        b = {i for i in valid if prediction.ravel()[i] == c}
        ious.append(len(a & b) / len(a | b) if a | b else math.nan)
    defined = [x for x in ious if not math.isnan(x)]
    right = sum(truth.ravel()[i] == prediction.ravel()[i] for i in valid)
    return ious, sum(defined) / len(defined) if defined else math.nan, right / len(valid) if valid else math.nan


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 21), st.integers(0, 12), st.integers(1, 12), st.floats(0, 1))
def test_metrics_equal_those_computed_from_sets(seed, classes, height, width, void):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (height, width)).astype(np.uint8)
    truth[rng.random(truth.shape) < void] = 255
    prediction = rng.integers(0, rng.integers(1, classes + 1), (height, width)).astype(np.uint8)
    matrix = ConfusionMatrix(classes).update(truth, prediction)
    iou, mean, accuracy = metrics_by_sets(truth, prediction, classes)
    np.testing.assert_allclose(matrix.iou, iou, atol=1e-9, rtol=0)
    np.testing.assert_allclose([matrix.mean_iou, matrix.pixel_accuracy], [mean, accuracy], atol=1e-9, rtol=0)


def test_rows_are_true_classes_and_void_is_not_counted():
    matrix = ConfusionMatrix(3).update(np.array([[0, 1, 255]], np.uint8), np.array([[0, 2, 2]], np.uint8))
    assert matrix.matrix.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert matrix.matrix.dtype == np.int64
    assert matrix.iou.tolist() == [1.0, 0.0, 0.0]


def test_a_class_that_does_not_occur_is_left_out_of_the_mean():
    matrix = ConfusionMatrix(3).update(np.array([0, 0, 1]), np.array([0, 0, 0]))
    assert np.isnan(matrix.iou[2])
    assert matrix.mean_iou == pytest.approx((2 / 3 + 0) / 2, abs=1e-12)


def test_metrics_without_counted_pixels_are_nan():
    matrix = ConfusionMatrix(2).update(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert math.isnan(matrix.mean_iou) and math.isnan(matrix.pixel_accuracy)


def test_counts_of_several_images_add_up(rng):
    truth, prediction = rng.integers(0, 5, (2, 4, 50))
    by_image = ConfusionMatrix(5)
    for image in range(4):
        by_image.update(truth[image], prediction[image])
    assert (by_image.matrix == ConfusionMatrix(5).update(truth, prediction).matrix).all()


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([[0, 4]], [[0, 1]], "truth has ids 0–4, the classes are 0–3 and 255"),
        ([[0, -1]], [[0, 1]], "truth has ids -1–0"),
        ([[0, 1]], [[0, 255]], "prediction has ids 0–255"),
        ([[0]], [[4]], "prediction has ids 4–4"),
        ([[0]], [[-1]], "prediction has ids -1–-1"),
        ([[0, 1]], [[0.2, 0.9]], "prediction is float64 .*arg max"),
        ([[0.0, 1.5]], [[0, 1]], "truth is float64"),
        ([[0, 1]], [[0], [1]], "truth is"),
    ],
)
def test_labels_that_are_no_class_ids_are_refused_and_nothing_is_counted(truth, prediction, message):
    matrix = ConfusionMatrix(4)
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array(truth), np.array(prediction))
    assert not matrix.matrix.any()


def test_labels_of_any_integer_type_are_counted():
    for dtype in (np.uint8, np.int64, np.uint64, bool):
        counts = ConfusionMatrix(4).update(np.array([0, 1, 1], dtype), np.array([0, 1, 0], dtype)).matrix
        assert counts[:2, :2].tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("number", [-1, 0, 256])
def test_a_number_of_classes_that_leaves_none_or_takes_the_id_of_void_is_refused(number):
    with pytest.raises(ValueError, match=f"between 1 and 255, not {number}"):
        ConfusionMatrix(number)
    assert ConfusionMatrix(1).matrix.shape == (1, 1) and ConfusionMatrix(255).matrix.shape == (255, 255)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.25, 0.25], [0.25, 0.25]], "not whole numbers"),
        ([[1, 0], [0, 0.5]], "not whole numbers"),
        ([[1.0, np.nan], [0, 1]], "not whole numbers"),
        ([[-1, 0], [0, 1]], "counts"),
        ([[1, 2, 3]], "counts"),
    ],
)
def test_counts_that_are_no_numbers_of_pixels_are_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(2, np.array(matrix))
    assert ConfusionMatrix(2, np.array([[3.0, 0], [1, 2]])).matrix.tolist() == [[3, 0], [1, 2]]
