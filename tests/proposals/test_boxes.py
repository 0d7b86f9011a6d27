"""Enlarging boxes, rounding them to pixels, cropping, and overlap."""

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from proposals import boxes
from proposals.boxes import MEAN_RGB, crop, enlarge, iou, mirrored_boxes, window_pixels
from proposals.recall import best_overlaps

coordinate = st.floats(-300, 300, width=32)
side = st.floats(0.5, 300, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


def test_a_square_window_has_the_longer_side_times_the_scale():
    found = enlarge(np.array([[10, 20, 110, 60]]), 1.2, "square")
    np.testing.assert_allclose(found, [[0, -20, 120, 100]], atol=1e-5)
    assert found.dtype == np.float32


def test_a_stretched_window_scales_each_side():
    np.testing.assert_allclose(enlarge(np.array([[10, 20, 110, 60]]), 1.2, "stretched"), [[0, 16, 120, 64]], atol=1e-5)


def test_no_boxes_stay_no_boxes():
    assert enlarge(np.zeros((0, 4))).shape == (0, 4)
    assert iou(np.zeros((0, 4)), np.ones((3, 4))).shape == (0, 3)


@given(box, st.floats(1, 3), st.sampled_from(["square", "stretched"]))
def test_a_window_keeps_the_centre_and_contains_the_box(b, scale, window):
    x1, y1, x2, y2 = enlarge(np.array([b]), scale, window)[0].astype(float)
    assert x1 + x2 == pytest.approx(b[0] + b[2], abs=1e-2)
    assert y1 + y2 == pytest.approx(b[1] + b[3], abs=1e-2)
    assert x1 <= b[0] + 1e-2 and y1 <= b[1] + 1e-2 and x2 >= b[2] - 1e-2 and y2 >= b[3] - 1e-2
    longest = max(b[2] - b[0], b[3] - b[1])
    if window == "square":
        assert x2 - x1 == pytest.approx(scale * longest, abs=1e-2) == pytest.approx(y2 - y1, abs=1e-2)


@pytest.mark.parametrize(
    ("b", "pixels"),
    [
        ((0, 0, 10, 5), (0, 0, 10, 5)),
        ((-2.5, 1.4, 2.5, 6.4), (-2, 1, 3, 6)),  # a square stays square: 5 × 5
        ((3.2, 3.2, 3.3, 3.3), (3, 3, 4, 4)),  # at least one pixel
    ],
)
def test_window_pixels_rounds_the_corner_and_the_sides(b, pixels):
    assert window_pixels(b) == pixels


IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
PADDED = np.full((60 + 800, 80 + 800, 3), MEAN_RGB, np.uint8)
PADDED[400:460, 400:480] = IMAGE


@given(box)
def test_a_crop_of_its_own_size_keeps_the_pixels(b):
    x1, y1, _, _ = window_pixels(b)
    square = (x1, y1, x1 + 40, y1 + 40)
    np.testing.assert_array_equal(crop(IMAGE, square, 40), PADDED[y1 + 400 : y1 + 440, x1 + 400 : x1 + 440])


@pytest.mark.parametrize("b", [(-50, -50, -10, -10), (100, 0, 140, 40), (0, 90, 5, 95)])
def test_a_window_outside_the_image_is_all_fill(b):
    assert (crop(np.zeros((50, 60, 3), np.uint8), b, 8) == MEAN_RGB).all()
    assert (crop(np.zeros((50, 60), np.uint8), b, 8, 255, cv2.INTER_NEAREST) == 255).all()


@given(box, st.integers(1, 64))
def test_crops_of_any_box_have_the_requested_size_and_the_images_dtype(b, size):
    image = np.zeros((40, 50, 3), np.uint8)
    assert crop(image, b, size).shape == (size, size, 3)
    for dtype in (np.uint8, np.uint16):
        mask = crop(np.zeros((40, 50), dtype), b, size, 7, cv2.INTER_NEAREST)
        assert mask.shape == (size, size) and mask.dtype == dtype and set(np.unique(mask)) <= {0, 7}


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("left", [-60, 240])
def test_a_window_much_larger_than_the_image_takes_limited_memory_and_gives_nearly_the_same_crop(monkeypatch, left, upright):
    """As the square around a long object of a panorama. The window has 720 × 720 px, the image only 600 × 40 or 40 × 600."""
    y, x = np.mgrid[:40, :600]
    image = np.dstack([x * 255 // 599, y * 255 // 39, np.where((x // 60 + y // 20) % 2, 250, 10)]).astype(np.uint8)
    mask = np.where((x > 90) & (x < 500) & (y > 7), 3, 0).astype(np.uint16)
    window = (left, -340, left + 720, 380)
    if upright:
        image, mask, window = image.transpose(1, 0, 2).copy(), mask.T.copy(), (-340, left, 380, left + 720)
    whole, ids = crop(image, window, 48), crop(mask, window, 48, 9, cv2.INTER_NEAREST)
    monkeypatch.setattr(boxes, "_MAX_WINDOW_PIXELS", 2**18)
    tracemalloc.start()
    found = crop(image, window, 48)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 2**18 < 3 * 720**2
    seen = (whole != MEAN_RGB).any(axis=2)
    assert np.abs(found.astype(int) - whole)[seen].mean() < 4 and (found == MEAN_RGB).all(axis=2).mean() > 0.9
    found_ids = crop(mask, window, 48, 9, cv2.INTER_NEAREST)
    assert (found_ids == ids)[ids != 9].mean() > 0.98 and set(np.unique(found_ids)) == {0, 3, 9} and found_ids.dtype == np.uint16


def test_a_crop_is_never_a_view_of_the_image():
    image = np.zeros((20, 20, 3), np.uint8)
    crop(image, (0, 0, 20, 20), 20)[:] = 9
    assert not image.any()


@pytest.mark.parametrize("b", [(3.3, 4.7, 41.3, 42.7), (-12, -7, 50, 55), (10, 10, 25, 25), (-40, -40, 150, 150)])
@pytest.mark.parametrize("size", [24, 50, 111])
def test_crops_of_image_and_mask_are_aligned(b, size):
    """A disc cropped as a mask and as an image has the same centre to a quarter of a pixel."""
    y, x = np.mgrid[:60, :70]
    disc = ((x - 22) ** 2 + (y - 25) ** 2 < 15**2).astype(np.uint8)
    soft = crop(disc * 255, b, size, 0).astype(float)
    hard = crop(disc, b, size, 0, cv2.INTER_NEAREST).astype(float)
    assert abs((soft > 127.5) - hard).mean() < 0.03
    rows, columns = np.mgrid[:size, :size]
    for axis in (rows, columns):
        assert (axis * soft).sum() / soft.sum() == pytest.approx((axis * hard).sum() / hard.sum(), abs=0.25)


def test_shrinking_averages_pixels_by_area():
    """Thin stripes become grey; bilinear sampling would miss most of them."""
    stripes = np.tile(np.array([255, 0, 0, 0], np.uint8), (80, 20))
    assert (np.abs(crop(stripes, (0, 0, 80, 80), 20, 0).astype(int) - 64) <= 1).all()
    assert (np.abs(crop(stripes, (0, 0, 80, 10), 20, 0)[5:15].astype(int) - 64) <= 1).all()  # shrunk one way, enlarged the other
    assert (np.abs(crop(stripes.T, (0, 0, 10, 80), 20, 0).astype(int) - 64) <= 1).all()


def test_iou_by_hand():
    found = iou(np.array([[0, 0, 4, 4], [5, 5, 5, 9]]), np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [1, 1, 3, 3]]))
    np.testing.assert_allclose(found, [[1, 8 / 24, 0, 4 / 16], [0, 0, 0, 0]])


def test_iou_of_boxes_smaller_than_a_pixel():
    found = iou(np.array([[0, 0, 0.5, 0.5]]), np.array([[0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5], [0.5, 0, 1, 0.5]]))
    np.testing.assert_allclose(found, [[1, 1 / 3, 0]])


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(-50, 50)), hnp.arrays(np.float64, (2, 4), elements=st.floats(-50, 50)))
def test_iou_is_symmetric_and_from_0_to_1(a, b):
    a, b = (np.hstack([np.minimum(c[:, :2], c[:, 2:]), np.maximum(c[:, :2], c[:, 2:])]) for c in (a, b))
    found = iou(a, b)
    assert ((found >= 0) & (found <= 1 + 1e-9)).all()
    np.testing.assert_allclose(found, iou(b, a).T)


WRONG = [
    ([[10, 10, 5, 20]], r"box 0 is \[10.0, 10.0, 5.0, 20.0\]; expected x1, y1, x2, y2 .*x, y, width, height becomes"),
    ([[0, 0, 5, 5], [10, 30, 20, 10]], "box 1 is"),
    ([[0, 0, np.nan, 5]], "box 0 is"),
    ([[0, 0, np.inf, 5]], "box 0 is"),
    (np.zeros((4, 5)), r"shape \(4, 5\)"),  # with scores; four of them would be five boxes
    (np.zeros((4, 3)), r"shape \(4, 3\)"),
    (np.zeros((2, 2, 4)), r"shape \(2, 2, 4\)"),
    (np.zeros(8), r"shape \(8,\)"),
]
"""Boxes that are none, and what the message says."""


@pytest.mark.parametrize(("boxes", "message"), WRONG)
def test_boxes_of_another_kind_are_refused(boxes, message):
    good = [[0, 0, 4, 4]]
    functions = (enlarge, lambda b: iou(b, good), lambda b: iou(good, b), lambda b: best_overlaps(b, np.array(good)))
    for function in functions:
        with pytest.raises(ValueError, match=message):
            function(boxes)


@pytest.mark.parametrize(("boxes", "message"), WRONG[:1] + WRONG[2:4] + WRONG[-1:])
def test_a_box_of_another_kind_is_not_cut(boxes, message):
    with pytest.raises(ValueError, match=message):
        window_pixels(np.squeeze(boxes))
    with pytest.raises(ValueError, match=message):
        crop(np.zeros((9, 9, 3), np.uint8), np.squeeze(boxes), 4)


def test_options_of_windows_are_checked():
    for keywords in ({"scale": 0}, {"scale": np.nan}, {"window": "Square"}):
        with pytest.raises(ValueError, match="expected a number above 0, and square or stretched"):
            enlarge([[0, 0, 4, 4]], **keywords)
    with pytest.raises(ValueError, match="size is 0"):
        crop(np.zeros((9, 9, 3), np.uint8), (0, 0, 4, 4), 0)


def test_mirrored_boxes_cut_the_mirrored_image_as_the_boxes_cut_the_image():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    boxes = np.array([[3, 4, 13, 14], [-6, 2, 10, 18], [20, 0, 45, 25]], np.float32)
    mirrored = mirrored_boxes(boxes, 30)
    assert mirrored[0].tolist() == [17, 4, 27, 14] and mirrored.dtype == np.float32
    for box, other in zip(boxes, mirrored, strict=True):
        side = int(box[2] - box[0])
        np.testing.assert_array_equal(crop(image[:, ::-1].copy(), other, side), crop(image, box, side)[:, ::-1])
    np.testing.assert_array_equal(mirrored_boxes(mirrored, 30), boxes)
