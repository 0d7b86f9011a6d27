"""Masks painted from regions: what lies on top, overlaps, void and many objects."""

import numpy as np

from deconvnet.datasets.importing.painting import paint_masks
from deconvnet.datasets.importing.regions import bitmap_region, polygon_region

HEIGHT, WIDTH = 30, 40


def test_small_objects_lie_over_large_ones_and_overlaps_are_counted():
    large = polygon_region(1, np.array([[0, 0], [20, 0], [20, 20], [0, 20]]), HEIGHT, WIDTH)
    small = polygon_region(2, np.array([[5, 5], [10, 5], [10, 10], [5, 10]]), HEIGHT, WIDTH)
    for order in ([large, small], [small, large]):
        painted = paint_masks(order, HEIGHT, WIDTH)
        assert (
            painted.class_mask[7, 7] == 2
            and painted.class_mask[2, 2] == 1
            and painted.overlap_pixels == 25
            and painted.hidden_objects == 0
        )
        assert painted.object_mask[7, 7] == order.index(small) + 1
    painted = paint_masks([small, large], HEIGHT, WIDTH, small_over_large=False)
    assert painted.class_mask[7, 7] == 1 and painted.hidden_objects == 1


def test_void_never_hides_an_object_and_is_void_in_both_masks():
    void = polygon_region(255, np.array([[0, 0], [20, 0], [20, 20], [0, 20]]), HEIGHT, WIDTH)
    thing = polygon_region(2, np.array([[5, 5], [10, 5], [10, 10], [5, 10]]), HEIGHT, WIDTH)
    painted = paint_masks([thing, void], HEIGHT, WIDTH)
    assert painted.class_mask[7, 7] == 2 and painted.object_mask[7, 7] == 1
    assert painted.class_mask[2, 2] == 255 and painted.object_mask[2, 2] == 255 and painted.overlap_pixels == 0


def test_background_painted_over_an_object_cuts_a_hole():
    thing = polygon_region(3, np.array([[0, 0], [20, 0], [20, 20], [0, 20]]), HEIGHT, WIDTH)
    hole = polygon_region(0, np.array([[5, 5], [10, 5], [10, 10], [5, 10]]), HEIGHT, WIDTH)
    painted = paint_masks([thing, hole], HEIGHT, WIDTH)
    assert painted.class_mask[7, 7] == 0 and painted.object_mask[7, 7] == 0 and painted.hidden_objects == 0


def test_more_than_254_objects_need_16_bits():
    dots = [bitmap_region(1, np.ones((1, 1), bool), i // WIDTH, i % WIDTH, HEIGHT, WIDTH) for i in range(300)]
    painted = paint_masks(
        [*dots, polygon_region(255, np.array([[0, 20], [WIDTH, 20], [WIDTH, 25], [0, 25]]), HEIGHT, WIDTH)], HEIGHT, WIDTH
    )
    assert painted.object_mask.dtype == np.uint16 and painted.object_mask[0, 0] == 1 and painted.object_mask[22, 5] == 65535
    assert len(np.unique(painted.object_mask)) == 302
