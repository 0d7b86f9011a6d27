"""Which boxes a pack keeps of those that were proposed."""

import numpy as np
import pytest

from deconvnet.packing import FIRST_BOXES, used_boxes
from deconvnet.settings import SegmentSettings
from infra import images
from proposals.examples import choose_stage2, find_objects
from proposals.settings import ExampleSettings


@pytest.mark.parametrize("limit", [None, 6])
def test_mining_chooses_the_same_of_the_boxes_that_are_kept(rng, limit):
    classes = np.zeros((100, 120), np.uint8)
    objects = np.zeros_like(classes)
    classes[20:60, 30:80], objects[20:60, 30:80] = 3, 1
    classes[70:95, 5:40], objects[70:95, 5:40] = 7, 2
    corners = rng.integers(0, 60, (2000, 2))
    boxes = np.hstack([corners, corners + rng.integers(10, 60, (2000, 2))]).astype(np.float32)
    masks = {"class_mask": images.encode_mask(classes), "object_mask": images.encode_mask(objects)}
    examples, segment = ExampleSettings(), SegmentSettings()
    used = used_boxes(boxes, {"split": "train", **masks}, examples, segment)
    assert FIRST_BOXES < used.sum() < 1000 and used[:FIRST_BOXES].all()
    found = find_objects(classes, objects)
    every, kept = (choose_stage2(found, b, max_per_image=limit, image_id="x") for b in (boxes, boxes[used]))
    assert every == kept and len(every) > 5
    assert used_boxes(boxes, {"split": "val", **masks}, examples, segment).sum() == FIRST_BOXES
    assert used_boxes(boxes, {"split": "val", **masks}, examples, SegmentSettings(min_side=112)).all()
