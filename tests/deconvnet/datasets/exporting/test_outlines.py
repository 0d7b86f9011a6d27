"""The objects that are found in masks, and their polygons: exact without tolerance, near the edge with one."""

import numpy as np
import pytest

from deconvnet.datasets.exporting import ExportOptions
from deconvnet.datasets.exporting.outlines import find_objects, measure_agreement, run_lengths
from tests.deconvnet.datasets.exporting.scenes import CLASSES, HEIGHT, WIDTH, scene_mask

EXACT = ExportOptions(CLASSES, tolerance=0)


def random_masks():
    rng = np.random.default_rng(0)
    for number in range(60):
        height, width, size = *rng.integers(1, 25, 2).tolist(), number % 3 + 1
        yield np.kron(rng.integers(0, 4, (height, width)), np.ones((size, size), int)).astype(np.uint8)[:height, :width]


def test_without_tolerance_exactly_the_pixels_of_an_object_lie_inside_its_polygon():
    for mask in random_masks():
        objects = find_objects(mask, EXACT)
        assert measure_agreement(mask, objects, EXACT) == 1
        assert all((each.polygon == np.rint(each.polygon)).all() for each in objects)


def test_the_default_tolerance_needs_a_fifth_of_the_corners_and_keeps_99_percent_of_the_pixels():
    mask, rules = scene_mask(), ExportOptions(CLASSES)
    exact, simple = find_objects(mask, EXACT), find_objects(mask, rules)
    assert measure_agreement(mask, simple, rules) >= 0.995
    corners = [sum(len(each.polygon) for each in objects) for objects in (exact, simple)]
    assert corners[1] <= corners[0] / 4
    assert (
        measure_agreement(mask, find_objects(mask, ExportOptions(CLASSES, tolerance=6)), ExportOptions(CLASSES, tolerance=6))
        < 0.99
    )


def test_objects_are_connected_regions_largest_first_and_small_ones_may_be_left_out():
    mask = scene_mask()
    objects = [each.region for each in find_objects(mask, EXACT)]
    assert sorted(region.class_id for region in objects) == [1, 1, 2, 2, 2, 3, 3, 3]  # corners join the last ball
    areas = [region.area for region in objects]
    assert areas == sorted(areas, reverse=True) and areas[-1] == 1 and sum(areas) == (mask > 0).sum()
    large = ExportOptions(CLASSES, tolerance=0, min_area=2)
    assert len(find_objects(mask, large)) == 7
    assert measure_agreement(mask, find_objects(mask, large), large) == 1 - 1 / mask.size


def test_a_class_0_that_is_no_background_is_annotated_too():
    mask = scene_mask()
    scene = ExportOptions(CLASSES, background=False, tolerance=0)
    objects = find_objects(mask, scene)
    assert {each.region.class_id for each in objects} == {0, 1, 2, 3} and measure_agreement(mask, objects, scene) == 1
    assert sum(each.region.area for each in objects) == HEIGHT * WIDTH
    without = [each for each in objects if each.region.class_id]
    assert measure_agreement(mask, without, scene) == pytest.approx((mask > 0).mean())


def test_an_id_without_a_class_is_refused():
    mask = scene_mask()
    mask[0, 0] = 255
    with pytest.raises(ValueError, match="the id 255, and there are 4 classes"):
        find_objects(mask, EXACT)


@pytest.mark.parametrize(
    ("pixels", "lengths"), [([0, 0, 1, 1, 1, 0], [2, 3, 1]), ([1, 0, 1], [0, 1, 1, 1]), ([0, 0], [2]), ([1], [0, 1])]
)
def test_runs_begin_with_those_of_false(pixels, lengths):
    assert run_lengths(np.array(pixels, bool)) == lengths
