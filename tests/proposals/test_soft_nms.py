"""Soft-NMS ranks near-duplicates lower and keeps the order of all other boxes."""

import numpy as np
import pytest

from proposals.boxes import iou
from proposals.soft_nms import soft_nms

BOXES = np.array([[0, 0, 100, 100], [5, 0, 105, 100], [200, 200, 260, 260], [0, 50, 100, 150]], np.float32)
SCORES = np.array([0.9, 0.8, 0.3, 0.25], np.float32)  # the second overlaps the first by 0.905, the fourth by 1/3


def test_a_near_duplicate_ranks_below_boxes_that_overlap_less():
    order, scores = soft_nms(BOXES, SCORES, strength=1.0, power=2.0, first=4)
    assert order.tolist() == [0, 2, 3, 1]
    overlap = 95 / 105
    np.testing.assert_allclose(scores[0], 0.9)
    np.testing.assert_allclose(scores[3], 0.8 * (1 - overlap**2) * (1 - (95 * 50 / (20000 - 95 * 50)) ** 2), rtol=1e-5)
    assert (np.diff(scores) <= 0).all()


def test_a_high_power_spares_boxes_that_overlap_little():
    order, scores = soft_nms(BOXES, SCORES, strength=1.0, power=30.0, first=4)
    assert order.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(scores[2:], SCORES[2:], rtol=1e-6)


def test_only_the_first_boxes_lower_the_scores_of_others():
    order, scores = soft_nms(BOXES[::-1], SCORES[::-1], strength=1.0, power=2.0, first=1)
    assert order.tolist() == [3, 1, 0, 2]
    np.testing.assert_allclose(scores[2], 0.25 * (1 - 1 / 9), rtol=1e-5)


def test_no_box_is_dropped_and_ties_keep_their_order(rng):
    corner = rng.uniform(0, 100, (300, 2))
    boxes = np.hstack([corner, corner + rng.uniform(5, 60, (300, 2))]).astype(np.float32)
    order, scores = soft_nms(boxes, np.ones(300, np.float32), 0.9, 4.0, 50)
    assert sorted(order.tolist()) == list(range(300)) and order[0] == 0
    assert (np.diff(scores) <= 0).all()
    assert soft_nms(boxes, np.ones(300, np.float32), 0.0, 4.0, 50)[0].tolist() == list(range(300))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "empty", [[[7, 7, 7, 7]] * 2, [[5, 5, 5, 50], [5, 5, 5, 50]], [[0, 9, 60, 9], [5, 9, 90, 9], [7, 7, 7, 7]]]
)
def test_boxes_without_area_overlap_nothing(empty):
    boxes = np.concatenate([BOXES[:1], np.array(empty, np.float32), BOXES[2:3]])
    scores = np.linspace(0.9, 0.1, len(boxes)).astype(np.float32)
    order, lowered = soft_nms(boxes, scores, 0.9, 5.0, len(boxes))
    assert order.tolist() == [*range(len(boxes))] and lowered.tolist() == scores.tolist()


@pytest.mark.parametrize("first", [1, 40, 500])
def test_the_result_is_that_of_the_definition(first, rng):
    corner = rng.integers(0, 60, (300, 2))
    boxes = np.hstack([corner, corner + rng.integers(1, 60, (300, 2))]).astype(np.float32)
    scores = -np.sort(-rng.uniform(0, 1, 300)).astype(np.float32)
    left, expected = dict(enumerate(scores.astype(float))), []
    while left:
        best = max(left, key=lambda i: left[i])
        expected.append((best, left.pop(best)))
        if len(expected) <= first:
            for i, overlap in zip(left, iou(boxes[best : best + 1], boxes[list(left)])[0], strict=True):
                left[i] *= 1 - 0.9 * overlap**5.5
    order, lowered = soft_nms(boxes, scores, 0.9, 5.5, first)
    assert order.tolist() == [index for index, _ in expected]
    np.testing.assert_allclose(lowered, [score for _, score in expected], rtol=1e-5)


def test_identical_boxes_and_boxes_without_area_keep_finite_scores():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [3, 3, 3, 9], [3, 3, 3, 9]], np.float32)
    order, scores = soft_nms(boxes, SCORES, 1.0, 5.5, 4)
    assert order.tolist() == [0, 2, 3, 1]
    np.testing.assert_array_equal(scores, np.float32([0.9, 0.3, 0.25, 0]))


@pytest.mark.parametrize("count", [0, 1])
def test_no_box_or_one_box(count):
    order, scores = soft_nms(BOXES[:count], SCORES[:count], 0.9, 5.0, 200)
    assert len(order) == len(scores) == count


@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [
        (BOXES, SCORES[:-1], "expected a finite score for each of 4 boxes"),
        (BOXES, np.full(4, np.nan, np.float32), "finite score"),
        (BOXES[:, [2, 1, 0, 3]], SCORES, "x1 ≤ x2"),
        (np.hstack([BOXES, SCORES[:, None]]), SCORES, r"shape \(4, 5\)"),
    ],
)
def test_boxes_or_scores_of_another_kind_are_refused(boxes, scores, message):
    with pytest.raises(ValueError, match=message):
        soft_nms(boxes, scores, 0.9, 5.5, 200)
