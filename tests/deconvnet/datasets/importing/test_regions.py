"""Shapes as pixels, against matplotlib's point-in-polygon test, and malformed shapes."""

import numpy as np
import pytest
from matplotlib.path import Path

from deconvnet.datasets.importing.regions import Region, circle_region, merge_regions, parse_points, polygon_region
from infra.errors import BadInput

HEIGHT, WIDTH = 30, 40


def to_mask(region: Region, height=HEIGHT, width=WIDTH):
    """The region's pixels as a bool array (height, width)."""
    mask = np.zeros((height, width), bool)
    mask[region.window] = region.pixels
    return mask


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
    inside = to_mask(polygon_region(1, corners, HEIGHT, WIDTH)).ravel()
    assert np.array_equal(inside[unambiguous], path.contains_points(centres)[unambiguous])


def test_pixels_enclosed_twice_are_outside():
    ring = np.array([[2, 2], [20, 2], [20, 20], [2, 20], [2, 2], [6, 6], [16, 6], [16, 16], [6, 16], [6, 6]], float)
    mask = to_mask(polygon_region(1, ring, HEIGHT, WIDTH))
    assert mask.sum() == 18 * 18 - 10 * 10 and not mask[10, 10] and mask[3, 10]


@pytest.mark.parametrize("shift", [0.0, 1e6, -1e6, 1e300])
def test_an_outline_far_outside_the_image_has_no_pixels(shift):
    region = polygon_region(1, np.array([[0, 0], [10, 0], [10, 10], [0, 10]]) + shift, HEIGHT, WIDTH)
    assert region.area == (100 if shift == 0 else 0)


def test_an_outline_is_cut_at_the_edge_of_the_image():
    assert (
        to_mask(polygon_region(1, np.array([[-1e9, 10], [1e9, 10], [1e9, 1e9], [-1e9, 1e9]]), HEIGHT, WIDTH)).sum() == 20 * WIDTH
    )


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
    assert np.array_equal(to_mask(circle_region(1, (3.2, 8), 7, HEIGHT, WIDTH)), np.hypot(columns - 3.2, rows - 8) <= 7)
    assert circle_region(1, (-50, 5), 3, HEIGHT, WIDTH).area == 0


def test_pieces_are_merged_to_one_object():
    one = merge_regions(
        [
            circle_region(1, (5, 5), 3, HEIGHT, WIDTH),
            circle_region(1, (-50, 5), 3, HEIGHT, WIDTH),
            circle_region(1, (30, 20), 4, HEIGHT, WIDTH),
        ]
    )
    assert np.array_equal(
        to_mask(one), to_mask(circle_region(1, (5, 5), 3, HEIGHT, WIDTH)) | to_mask(circle_region(1, (30, 20), 4, HEIGHT, WIDTH))
    )
