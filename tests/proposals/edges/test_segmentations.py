"""Segments from masks, and where the boundary runs in a void line."""

import numpy as np

from proposals.edges.training.forest import UNKNOWN
from proposals.edges.training.segmentations import segments_from_masks


def masks() -> tuple[np.ndarray, np.ndarray]:
    """Two touching objects of class 3 left and right of column 20, on background from row 20 on."""
    classes, objects = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    classes[:20] = 3
    objects[:20, :20], objects[:20, 20:] = 1, 2
    return classes, objects


def test_touching_objects_and_background_are_three_segments():
    classes, objects = masks()
    segments = segments_from_masks(classes, objects)
    assert segments.dtype == np.uint16
    assert len({segments[0, 0], segments[0, 39], segments[39, 0]}) == 3 and UNKNOWN not in segments
    assert len(np.unique(segments_from_masks(classes, None))) == 2


def test_the_boundary_runs_along_the_middle_of_a_void_line():
    classes, objects = masks()
    classes[18:23] = objects[18:23] = 255
    segments = segments_from_masks(classes, objects)
    assert (segments[:20, :15] == segments[0, 0]).all()
    assert (segments[21:] == segments[39, 0]).all()


def test_void_far_from_known_pixels_is_unknown():
    classes, objects = masks()
    classes[20:] = 255
    segments = segments_from_masks(classes, objects)
    assert (segments[30:] == UNKNOWN).all() and (segments[:24] != UNKNOWN).all()
    assert (segments_from_masks(np.full((9, 9), 255, np.uint8), None) == UNKNOWN).all()


def test_void_of_16_bit_object_masks_is_65535():
    classes, objects = masks()
    wide = objects.astype(np.uint16)
    wide[0, 0] = 300
    assert len(np.unique(segments_from_masks(classes, wide))) == 4
    wide[:10] = 65535
    assert (segments_from_masks(classes, wide)[:3] == UNKNOWN).all()
