"""The boundary measures against distances between all pairs of pixels, and what they make of void."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deconvnet.evaluation.boundaries import BoundaryCounts, boundary_counts

CAT, DOG = 1, 2
CLASSES = 5


def blobs(rng: np.random.Generator, height: int, width: int, ids: list[int]) -> np.ndarray:
    """A mask of rectangular pieces, some of which are cut by single pixels."""
    small = rng.choice(ids, (rng.integers(2, 5), rng.integers(2, 6))).astype(np.uint8)
    mask = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    noise = rng.random(mask.shape) < 0.02
    mask[noise] = rng.choice(ids, noise.sum())
    return mask


def contour_of(mask: np.ndarray, class_id: int) -> set[tuple[int, int]]:
    """Pixels of a class with a neighbour above, below, left or right that is of another class."""
    height, width = mask.shape
    found = set()
    for y, x in np.argwhere(mask == class_id).tolist():
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        if any(0 <= r < height and 0 <= c < width and mask[r, c] != class_id for r, c in around):
            found.add((y, x))
    return found


def near(some: set[tuple[int, int]], others: set[tuple[int, int]], limit: float) -> int:
    if not some or not others:
        return 0
    a, b = np.array(sorted(some)), np.array(sorted(others))
    return int((np.hypot(*(a[:, None] - b).transpose(2, 0, 1)).min(1) <= limit).sum())


def band_of(mask: np.ndarray, class_id: int, width: int) -> np.ndarray:
    """The band as in the code of Boundary IoU's authors: the mask, without what is left of it after `width` erosions."""
    own = np.pad((mask == class_id).astype(np.uint8), 1)
    return (own - cv2.erode(own, np.ones((3, 3), np.uint8), iterations=width))[1:-1, 1:-1] > 0


@settings(max_examples=6)
@given(st.integers(0, 2**32 - 1), st.integers(9, 20), st.integers(120, 290))
def test_the_counts_equal_those_of_a_search_through_all_pairs_of_pixels(seed, height, width):
    """Of masks without void. Class 3 is in the prediction only, class 4 in neither."""
    rng = np.random.default_rng(seed)
    truth, prediction = blobs(rng, height, width, [DOG, 0, CAT]), blobs(rng, height, width, [CAT, 3, DOG, 0])
    counts = boundary_counts(truth, [prediction, truth], CLASSES)
    diagonal = math.hypot(height, width)
    for class_id in range(CLASSES):
        found, wanted = contour_of(prediction, class_id), contour_of(truth, class_id)
        limit = 0.0075 * diagonal
        expected = [near(found, wanted, limit), len(found), near(wanted, found, limit), len(wanted)]
        assert counts.contours[0, class_id].tolist() == expected
        assert counts.contours[1, class_id].tolist() == [len(wanted)] * 4
        own, other = (band_of(mask, class_id, round(0.02 * diagonal)) for mask in (truth, prediction))
        assert counts.bands[0, :, class_id].tolist() == [(own & other).sum(), own.sum(), other.sum()]


def ring_scene() -> np.ndarray:
    """A cat of 30 × 50 px in 90 × 120 px, with a ring of void of 4 px around it, and a dog at the lower edge."""
    truth = np.zeros((90, 120), np.uint8)
    truth[16:54, 26:84] = 255
    truth[20:50, 30:80] = CAT
    truth[80:, 10:40] = DOG
    return truth


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_what_is_predicted_on_void_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    truth = blobs(rng, 40, 70, [0, CAT, DOG, 255])
    truth[0, 0] = CAT  # not all void
    first = blobs(rng, 40, 70, [DOG, CAT, 0])
    second = np.where(truth == 255, blobs(rng, 40, 70, [3, CAT, 0]), first).astype(np.uint8)
    counts = boundary_counts(truth, [first, second], CLASSES)
    assert (counts.contours[0] == counts.contours[1]).all() and (counts.bands[0] == counts.bands[1]).all()


def test_a_prediction_that_is_right_wherever_the_annotation_is_not_void_is_perfect():
    truth = ring_scene()
    wide, narrow = np.where(truth == 255, CAT, truth), np.where(truth == 255, 0, truth)
    counts = boundary_counts(truth, [wide.astype(np.uint8), narrow.astype(np.uint8)], 4)
    for value in (counts.f_measure, counts.iou):
        assert (value[:, :3] == 1).all() and np.isnan(value[:, 3]).all(), "unicorns are nowhere"
    assert (counts.contours[:, CAT, 3] > 0).all(), "the cat has a contour, although void is around it"


def test_an_object_in_a_ring_of_void_that_is_not_found_costs_the_background_its_contour_too():
    """The ring itself is not a contour: otherwise, background alone would get half of it right."""
    truth = ring_scene()
    counts = boundary_counts(truth, [np.where(truth == DOG, DOG, 0).astype(np.uint8)], 3)
    assert counts.f_measure[0, CAT] == 0 and counts.f_measure[0, DOG] == 1
    matched, found, _, _ = counts.contours[0, 0].tolist()
    assert found == matched < 60, "only around the dog"
    assert counts.f_measure[0, 0] < 0.5


def test_no_contour_in_the_midst_of_a_large_void_area_is_counted():
    """A void area of 40 px between cat and dog: nobody knows where the contour is. One of 4 px: it is known well enough."""
    for gap, expected in ((40, 0), (4, 60)):
        truth = np.full((60, 200), CAT, np.uint8)
        truth[:, 100:] = DOG
        truth[:, 100 - gap // 2 : 100 + gap // 2] = 255
        counts = boundary_counts(truth, [np.full_like(truth, CAT)], 3)
        assert counts.contours[0, CAT].tolist() == [0, 0, 0, expected] and counts.contours[0, DOG, 3] == expected


def test_void_pixels_are_in_no_band():
    truth = ring_scene()
    whole = truth.copy()
    whole[truth == 255] = 0
    with_void, without = (boundary_counts(mask, [whole], 3).bands[0] for mask in (truth, whole))
    assert with_void[1, 0] < without[1, 0], "the band of the background is partly in the ring"
    assert boundary_counts(truth, [np.full_like(truth, CAT)], 3).bands[0, 2].sum() <= (truth != 255).sum()


def test_an_all_void_annotation_counts_nothing_and_classes_without_a_boundary_have_no_measure():
    counts = boundary_counts(np.full((9, 14), 255, np.uint8), [np.zeros((9, 14), np.uint8)], 3)
    assert counts.contours.sum() == counts.bands.sum() == 0
    assert np.isnan(counts.f_measure).all() and np.isnan(counts.iou).all()


def test_counts_of_several_images_add_up():
    rng = np.random.default_rng(3)
    total, parts = BoundaryCounts.zeros(2, 3), []
    for height, width in ((30, 60), (50, 20)):
        masks = [blobs(rng, height, width, [0, DOG, CAT]) for _ in range(3)]
        parts.append(boundary_counts(masks[0], masks[1:], 3))
        total += parts[-1]
    matched, found, recalled, wanted = (parts[0].contours + parts[1].contours)[1, DOG].tolist()
    precision, recall = matched / found, recalled / wanted
    assert total.f_measure[1, DOG] == pytest.approx(2 * precision * recall / (precision + recall))
    both, own, other = (parts[0].bands + parts[1].bands)[0, :, CAT].tolist()
    assert total.iou[0, CAT] == pytest.approx(both / (own + other - both))


def test_a_prediction_that_is_shifted_farther_than_the_tolerance_has_a_low_f_measure_though_its_iou_is_high():
    truth = np.zeros((375, 500), np.uint8)
    truth[80:300, 100:400] = DOG
    for shift, low, high in ((4, 0.99, 1), (6, 0, 0.3)):  # the tolerance is 4.7 px
        moved = np.roll(truth, (shift, shift), (0, 1))
        counts = boundary_counts(truth, [moved], 3)
        assert low <= counts.f_measure[0, DOG] <= high
        assert 0.3 < counts.iou[0, DOG] < 0.8 < ((truth & moved) > 0).sum() / ((truth | moved) > 0).sum()


@pytest.mark.parametrize(
    ("truth", "prediction"),
    [
        (np.full((4, 5), 3, np.uint8), np.zeros((4, 5), np.uint8)),
        (np.zeros((4, 5), np.uint8), np.full((4, 5), 255, np.uint8)),
        (np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8)),
        (np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.int64)),
    ],
)
def test_unknown_ids_and_unequal_shapes_are_refused(truth, prediction):
    with pytest.raises(ValueError, match=r"ids|height"):
        boundary_counts(truth, [prediction], 3)
