"""Recall of a proposals table, by its job."""

import numpy as np

from proposals.image_codec import decode_mask
from proposals.job import iter_proposals, make_proposals
from proposals.recall import Recall, best_overlaps, object_boxes, sum_recalls
from proposals.recall_job import measure_recall
from proposals.settings import ProposalSettings

SEARCH = ProposalSettings(max_boxes=300, min_box_area=100)
COUNTS = (1, 50, 300)


def test_recall_counts_the_objects_of_the_split_in_any_number_of_parts(executor, images, rows, tmp_path):
    expected: dict[str, Recall] = {}
    for parts in (1, 4):
        images_uri, uri = images(rows, parts), str(tmp_path / f"p{parts}")
        commit = make_proposals(images_uri, uri, SEARCH, "p" * 16, executor)
        found = {image_id: boxes for part in commit.parts for image_id, boxes, _ in iter_proposals(uri, part)}
        for split in ("dev", "val"):
            if split not in expected:
                masks = {r["image_id"]: decode_mask(r["object_mask"]) for r in rows if r["split"] == split and r["object_mask"]}
                each = [best_overlaps(found[i], object_boxes(m, 1000), COUNTS) for i, m in masks.items()]
                expected[split] = sum_recalls([Recall.from_overlaps(overlaps, COUNTS) for overlaps in each], COUNTS)
            measured = measure_recall(images_uri, uri, split, executor, COUNTS, 1000)
            np.testing.assert_array_equal(measured.histogram, expected[split].histogram)
            assert measured.counts == COUNTS
    assert expected["dev"].num_objects == 4 and expected["val"].num_objects == 2 and expected["dev"].at_iou(0.5)[-1] > 0.5
    assert measure_recall(images_uri, uri, "dev", executor, COUNTS, 1e6).num_objects == 0
    assert measure_recall(images_uri, uri, "elsewhere", executor, COUNTS).num_objects == 0


def test_images_without_proposals_find_nothing_and_damaged_masks_are_left_out(executor, images, rows, tmp_path):
    chosen = [{**r, "split": "dev"} for r in rows[:4]]
    chosen[0]["image"] = chosen[0]["image"][:60]
    chosen[1]["object_mask"] = b"not a mask"
    chosen[2]["object_mask"] = None
    uri, images_uri = str(tmp_path / "p"), images(chosen, 1)
    assert [r.image_id for r in make_proposals(images_uri, uri, SEARCH, "p" * 16, executor).rejects] == ["000"]
    both = measure_recall(images_uri, uri, "dev", executor, COUNTS, 1000)
    others, other = images(chosen[3:], 2), str(tmp_path / "other")
    make_proposals(others, other, SEARCH, "p" * 16, executor)
    alone = measure_recall(others, other, "dev", executor, COUNTS, 1000)
    assert both.num_objects == 4 and alone.num_objects == 2
    np.testing.assert_allclose(both.at_iou(0.5), alone.at_iou(0.5) / 2)


def test_parts_that_are_known_are_left_out(executor, images, rows, tmp_path):
    images_uri, uri = images(rows, 4), str(tmp_path / "p")
    names = [part.name for part in make_proposals(images_uri, uri, SEARCH, "p" * 16, executor).parts]
    whole, first, others, none = (
        measure_recall(images_uri, uri, "train", executor, COUNTS, 1000, known) for known in ((), names[2:], names[:2], names)
    )
    assert min(first.num_objects, others.num_objects) > 0 == none.num_objects
    np.testing.assert_array_equal(first.histogram + others.histogram, whole.histogram)
    assert first.num_objects + others.num_objects == whole.num_objects and (first.histogram != others.histogram).any()
