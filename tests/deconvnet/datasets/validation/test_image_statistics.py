"""What is measured of the objects of an image."""

import numpy as np

from deconvnet.datasets.validation.image_statistics import ImageStatistics, count_overlapping, object_boxes
from proposals.edgebox import EdgeBoxOptions


def test_boxes_of_objects_and_how_many_overlap():
    classes, ids = np.zeros((2, 40, 60), np.uint8)
    ids[5:20, 5:25], ids[6:19, 6:24], ids[30:, 50:] = 1, 2, 7
    classes[ids > 0] = 2
    classes[ids == 7] = 3
    found = object_boxes(classes, ids)
    assert found.tolist() == [[2, 300 - 234, 5, 5, 25, 20], [2, 234, 6, 6, 24, 19], [3, 100, 50, 30, 60, 40]]
    assert count_overlapping(found) == 2
    ids16 = ids.astype(np.uint16)
    ids16[0] = 65535
    assert np.array_equal(object_boxes(classes, ids16), found)


def test_two_objects_overlap_if_both_have_10_px_or_more():
    objects = np.array([[1, 10, 0, 0, 10, 10], [2, 10, 0, 0, 10, 5]])  # IoU of their boxes: 0.5
    assert count_overlapping(objects) == 2
    objects[1, 1] = 9
    assert count_overlapping(objects) == 0


def test_boxes_of_a_large_image_are_compared_with_the_smallest_proposal_at_the_size_to_which_it_is_reduced():
    """Here to half its size. The first box has just enough pixels then, the second too few."""
    image = ImageStatistics("a", "train", 2048, 1024, objects=np.array([[1, 300, 0, 0, 20, 20], [1, 300, 0, 0, 19, 20]]))
    assert image.too_small_for_proposals(EdgeBoxOptions(min_box_area=100.0, max_side=1024)).tolist() == [False, True]
