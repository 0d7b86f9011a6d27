"""Recall of boxes, against values computed by hand, and its sums."""

import numpy as np
import pytest

from proposals.image_codec import decode_mask
from proposals.mining.rules import find_objects
from proposals.recall import COUNTS, Recall, best_overlaps, counts_up_to, object_boxes, recall_table, sum_recalls

OBJECT = np.array([[0, 0, 100, 100]], np.float32)


def test_objects_are_the_tight_boxes_of_large_enough_ids():
    mask = np.zeros((200, 300), np.uint8)
    mask[10:60, 20:60] = 1  # 50×40, just enough
    mask[100:149, 20:60] = 2  # 49×40
    mask[100:150, 100:160] = 5
    mask[120:130, 100:110] = 0  # a hole changes no box
    mask[0, :] = 255
    assert object_boxes(mask).tolist() == [[20, 10, 60, 60], [100, 100, 160, 150]]
    assert len(object_boxes(mask, 1960)) == 3 and object_boxes(mask, 1).dtype == np.float32
    wide = mask.astype(np.uint16)
    wide[wide == 255] = 65535
    assert object_boxes(wide).tolist() == object_boxes(mask).tolist()
    assert object_boxes(np.zeros((5, 5), np.uint8)).shape == (0, 4)


def test_best_overlaps_are_those_of_the_first_boxes():
    boxes = np.array([[0, 0, 50, 100], [200, 200, 300, 300], [0, 0, 80, 100], [0, 0, 60, 100]], np.float32)
    objects = np.vstack([OBJECT, [[200, 200, 300, 250]]]).astype(np.float32)
    found = best_overlaps(boxes, objects, (1, 2, 3, 50))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.8, 0.8], [0, 0.5, 0.5, 0.5]])
    assert best_overlaps(boxes[:0], objects, (1, 2)).tolist() == [[0, 0], [0, 0]]
    assert best_overlaps(boxes, objects[:0], (1, 2)).shape == (0, 2)


def test_rates_by_hand():
    """Best overlaps of 0.5, 0.7, 0.69 and 0 with 50 boxes; an overlap equal to the threshold counts as found."""
    overlaps = np.array([[0.5, 0.5], [0.7, 0.95], [0.69, 0.69], [0, 1]], np.float32)
    recall = Recall.from_overlaps(overlaps, (50, 100))
    assert recall.num_objects == 4
    assert recall.at_iou(0.5).tolist() == [0.75, 1] and recall.at_iou(0.7).tolist() == [0.25, 0.5]
    np.testing.assert_allclose(recall.average_best_overlap, [1.89 / 4, 3.14 / 4], rtol=1e-6)
    # 0.5: one threshold of ten; 0.69: four; 0.7: five; 0.95 and 1: ten
    np.testing.assert_allclose(recall.average_recall, [10 / 40, 25 / 40])
    assert recall.by_iou().shape == (2, 101) and (recall.by_iou()[:, 0] == 1).all()
    assert recall.metrics()["recall_50_iou70"] == 0.25 and recall.as_dict()["objects"] == 4
    assert recall.summary() == "50 boxes find 75% of 4 objects at IoU 0.5, 25% at 0.7"


def test_exact_overlaps_count_as_found():
    sides = np.arange(1, 101)
    boxes = np.stack([np.zeros(100), np.zeros(100), sides, np.full(100, 100)], axis=1)
    for side in sides:
        recall = Recall.from_overlaps(best_overlaps(boxes[side - 1 : side], OBJECT, (1,)), (1,))
        assert recall.at_iou(side / 100) == 1 and (side == 100 or recall.at_iou((side + 1) / 100) == 0)


def test_recalls_of_parts_add_up_to_that_of_the_whole(rng):
    overlaps = rng.random((30, len(COUNTS))).astype(np.float32)
    whole, parts = (
        Recall.from_overlaps(overlaps),
        sum_recalls(
            [Recall.from_overlaps(overlaps[:7]), Recall.from_overlaps(overlaps[7:7]), Recall.from_overlaps(overlaps[7:])]
        ),
    )
    np.testing.assert_array_equal(whole.histogram, parts.histogram)
    assert whole.metrics() == pytest.approx(parts.metrics())
    nothing = sum_recalls([])
    assert nothing.num_objects == 0 and np.isnan(nothing.at_iou(0.5)).all() and np.isnan(nothing.average_best_overlap).all()
    with pytest.raises(ValueError, match="cannot be added"):
        whole + Recall.from_overlaps(overlaps[:, :2], (50, 100))


def test_counts_end_at_the_number_of_boxes():
    assert counts_up_to(60) == (1, 2, 5, 10, 20, 50, 60) and counts_up_to(20) == (1, 2, 5, 10, 20)
    assert counts_up_to(5000)[-2:] == (2000, 5000)
    recall = Recall.from_overlaps(np.full((1, 7), 0.6, np.float32), counts_up_to(60))
    assert {*recall.metrics()} >= {"recall_50_iou50", "recall_60_iou50"} and "recall_20_iou50" not in recall.metrics()


def test_the_table_has_differences_from_the_first_row():
    first, second = (Recall.from_overlaps(np.array(v, np.float32).reshape(-1, 1), (50,)) for v in ([0.4, 0.8], [0.6, 0.6]))
    lines = recall_table({"gradient": first, "forest": second}).splitlines()
    assert lines[2] == "| gradient | 50 | 0.500 | 0.500 | 0.350 | 0.600 |"
    assert lines[3] == "| forest | 50 | 1.000 (+50.0) | 0.000 (-50.0) | 0.300 (-5.0) | 0.600 (+0.0) |"


@pytest.mark.parametrize("counts", [(10, 100), (10,), (10, 20, 50)])
def test_recalls_at_other_numbers_of_boxes_are_not_compared(counts):
    first, other = (Recall.from_overlaps(np.full((2, len(each)), 0.6, np.float32), each) for each in ((10, 50), counts))
    with pytest.raises(ValueError, match="forest was measured at"):
        recall_table({"gradient": first, "forest": other})


def test_the_objects_are_those_that_training_crops_are_cut_of(voc_rows):
    for row in voc_rows:
        classes, objects = decode_mask(row["class_mask"]), decode_mask(row["object_mask"])
        tight = [list(each.box) for each in find_objects(classes, objects)]
        assert tight and object_boxes(objects, 0).tolist() == tight


def test_more_boxes_and_a_lower_iou_find_no_fewer_objects(rng):
    recall = Recall.from_overlaps(np.maximum.accumulate(rng.random((30, 5)), axis=1).astype(np.float32))
    assert (np.diff(recall.at_iou(0.5)) >= 0).all() and (np.diff(recall.average_best_overlap) >= 0).all()
    assert (recall.at_iou(0.7) <= recall.at_iou(0.5)).all() and recall.at_iou(0.7)[0] < recall.at_iou(0.5)[-1]


@pytest.mark.parametrize("overlaps", [[[np.nan]], [[70.0]], [[-0.1]]])
def test_overlaps_that_are_no_ious_are_refused(overlaps):
    with pytest.raises(ValueError, match="expected IoUs from 0 to 1"):
        Recall.from_overlaps(np.array(overlaps, np.float32), [50])


def test_counts_and_thresholds_out_of_range_are_refused():
    box = np.array([[0, 0, 9, 9]])
    with pytest.raises(ValueError, match="counts are"):
        best_overlaps(box, box, (0, 50))
    with pytest.raises(ValueError, match="threshold is 70"):
        Recall.from_overlaps(np.ones((1, 1), np.float32), [50]).at_iou(70)
    with pytest.raises(ValueError, match=r"threshold is -0\.1"):
        Recall.from_overlaps(np.ones((1, 1), np.float32), [50]).at_iou(-0.1)
