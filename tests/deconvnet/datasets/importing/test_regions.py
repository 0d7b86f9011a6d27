"""Shapes as pixels, against matplotlib's point-in-polygon test; malformed shapes, and numbers that are written as text."""

import numpy as np
import pytest
from matplotlib.path import Path

from deconvnet.datasets.importing import regions
from deconvnet.datasets.importing.regions import (
    as_int,
    bitmap_region,
    circle_region,
    merge_regions,
    parse_points,
    polygon_region,
)
from infra.errors import BadInput

HEIGHT, WIDTH = 30, 40


@pytest.mark.parametrize("seed", range(30))
def test_a_pixel_is_inside_if_its_centre_is(seed):
    rng = np.random.default_rng(seed)
    radii = rng.uniform(3, 40, rng.integers(3, 12))
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii) + 0.1234
    corners = rng.uniform(0, 30, 2) + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    path = Path(np.vstack([corners, corners[:1]]))
    unambiguous = path.contains_points(centres, radius=1e-6) == path.contains_points(centres, radius=-1e-6)  # not on an edge
    inside = polygon_region(1, corners, HEIGHT, WIDTH).in_image(HEIGHT, WIDTH).ravel()
    assert np.array_equal(inside[unambiguous], path.contains_points(centres)[unambiguous])


def test_pixels_enclosed_twice_are_outside():
    ring = np.array([[2, 2], [20, 2], [20, 20], [2, 20], [2, 2], [6, 6], [16, 6], [16, 16], [6, 16], [6, 6]], float)
    mask = polygon_region(1, ring, HEIGHT, WIDTH).in_image(HEIGHT, WIDTH)
    assert mask.sum() == 18 * 18 - 10 * 10 and not mask[10, 10] and mask[3, 10]


@pytest.mark.parametrize("shift", [0.0, 1e6, -1e6, 1e300])
def test_an_outline_far_outside_the_image_has_no_pixels(shift):
    region = polygon_region(1, np.array([[0, 0], [10, 0], [10, 10], [0, 10]]) + shift, HEIGHT, WIDTH)
    assert region.area == (100 if shift == 0 else 0)


def test_an_outline_is_cut_at_the_edge_of_the_image():
    outline = np.array([[-1e9, 10], [1e9, 10], [1e9, 1e9], [-1e9, 1e9]])
    assert polygon_region(1, outline, HEIGHT, WIDTH).in_image(HEIGHT, WIDTH).sum() == 20 * WIDTH


def test_two_points_have_no_inside():
    assert polygon_region(1, np.array([[1.0, 1], [20, 20]]), HEIGHT, WIDTH).area == 0


@pytest.mark.parametrize(
    "malformed", [[[1, "x"]], [[1, None]], [[1, float("nan")]], [[1, 2, 3]], [1, 2, 3], {"a": 1}, [[1], [2, 3]]]
)
def test_malformed_points_are_refused(malformed):
    with pytest.raises(BadInput, match="its polygon"):
        parse_points(malformed, "its polygon")


def test_a_circle_has_the_pixels_near_its_centre():
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    mask = circle_region(1, (3.2, 8), 7, HEIGHT, WIDTH).in_image(HEIGHT, WIDTH)
    assert np.array_equal(mask, np.hypot(columns - 3.2, rows - 8) <= 7)
    assert circle_region(1, (-50, 5), 3, HEIGHT, WIDTH).area == 0


def test_pieces_are_merged_to_one_object():
    places = ((5, 5, 3), (-50, 5, 3), (30, 20, 4))
    pieces = [circle_region(1, (x, y), radius, HEIGHT, WIDTH) for x, y, radius in places]
    expected = np.any([piece.in_image(HEIGHT, WIDTH) for piece in pieces], axis=0)
    assert np.array_equal(merge_regions(pieces).in_image(HEIGHT, WIDTH), expected) and expected.sum() > 50


@pytest.mark.parametrize(("top", "left"), [(-1, -2), (28, 37), (-4, 0), (30, 3), (12, -2), (-3, 20)])
def test_a_bitmap_is_cut_at_the_edges_of_the_image(rng, top, left):
    bitmap, canvas = rng.random((4, 6)) < 0.5, np.zeros((HEIGHT + 20, WIDTH + 20), bool)
    canvas[top + 10 : top + 14, left + 10 : left + 16] = bitmap
    found = bitmap_region(1, bitmap, top, left, HEIGHT, WIDTH).in_image(HEIGHT, WIDTH)
    assert np.array_equal(found, canvas[10:-10, 10:-10])


def test_an_outline_that_crosses_the_image_too_often_is_refused(monkeypatch):
    """It would take a lot of memory. Each line of the zigzag crosses 20 rows."""
    monkeypatch.setattr(regions, "_MAX_CROSSINGS", 1000)
    zigzag = np.array([[x * WIDTH / 100, 5 + 20 * (x % 2)] for x in range(100)])
    assert polygon_region(1, zigzag[:40], HEIGHT, WIDTH).area > 0
    with pytest.raises(BadInput, match="a polygon of 100 points can't be filled: it crosses the image too often"):
        polygon_region(1, zigzag, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("value", "number"), [(7, 7), ("7", 7), (" -3 ", -3), (7.0, 7), ("7.0", 7), (True, 1), ("007", 7), (2**63, 2**63)]
)
def test_numbers_written_as_text_are_read(value, number):
    assert as_int(value, "its id") == number and type(as_int(value, "its id")) is int


@pytest.mark.parametrize("value", ["", "a", "1_0", "7.5", 7.5, None, [7], float("nan"), float("inf"), "1e3"])
def test_other_values_are_no_numbers(value):
    with pytest.raises(BadInput, match=r"its id is .*not a whole number"):
        as_int(value, "its id")
