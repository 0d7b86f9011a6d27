"""What evaluation counts beside the table, against counts made pixel by pixel."""

import json

import cv2
import numpy as np
import pytest

from deconvnet.evaluation.breakdowns import SIZE_EDGES, Analysis, object_overlaps
from deconvnet.evaluation.metrics import ConfusionMatrix

CAT, DOG = 1, 2


@pytest.fixture
def scene():
    """Two cats and a dog on 20×40, void round the first cat's right side."""
    truth, objects = np.zeros((20, 40), np.uint8), np.zeros((20, 40), np.uint8)
    for number, (class_id, place) in enumerate(
        ((CAT, np.s_[2:12, 2:12]), (CAT, np.s_[2:12, 20:30]), (DOG, np.s_[14:18, 2:6])), start=1
    ):
        truth[place], objects[place] = class_id, number
    truth[2:12, 12:14] = objects[2:12, 12:14] = 255
    return truth, objects


def test_crumbs_of_a_mask_are_no_objects(scene):
    truth, objects = scene
    truth[0, 30], objects[0, 30] = CAT, 4
    truth[16:20, 20:40], objects[16:20, 20:40] = CAT, 5  # four px high
    shares, _ = object_overlaps(truth, objects, {"a": truth})
    assert shares.tolist() == [100 / 800, 100 / 800, 16 / 800, 80 / 800]


def test_an_object_is_measured_by_the_pieces_of_its_class_that_touch_it(scene):
    truth, objects = scene
    given = np.zeros_like(truth)
    given[2:12, 7:30] = CAT  # half of the first, over void and 6 columns of background, all of the second
    given[0:2, 36:40] = CAT  # far from any object
    shares, overlaps = object_overlaps(truth, objects, {"a": given, "b": truth * (truth != 255)})
    assert shares.tolist() == [100 / 800, 100 / 800, 16 / 800]
    between = 10 * 6
    assert overlaps[0].tolist() == [50 / (100 + between), 100 / (100 + between), 0]
    assert overlaps[1].tolist() == [1, 1, 1]


def test_a_piece_of_another_class_on_an_object_is_not_its_prediction(scene):
    truth, objects = scene
    _, overlaps = object_overlaps(truth, objects, {"a": np.full_like(truth, DOG)})
    background = (truth != 255).sum() - 16
    assert overlaps[0].tolist() == [0, 0, 16 / (16 + background)]


def test_overlaps_are_those_of_a_slow_count(rng):
    """Random blobs: each object's IoU counted by its own mask and the pieces that meet it."""
    small = rng.integers(0, 3, (6, 8)).astype(np.uint8)
    truth = cv2.resize(small, (80, 60), interpolation=cv2.INTER_NEAREST)
    _, objects = cv2.connectedComponents((truth == CAT).astype(np.uint8), connectivity=4)
    objects = np.where(truth == DOG, 200, objects).astype(np.uint8)
    truth[:, 40:43] = objects[:, 40:43] = 255
    given = cv2.resize(rng.integers(0, 3, (9, 9)).astype(np.uint8), (80, 60), interpolation=cv2.INTER_NEAREST)
    _, overlaps = object_overlaps(truth, objects, {"a": given})
    expected = []
    for number in sorted(set(np.unique(objects)) - {0, 255}):
        own = objects == number
        class_id = DOG if number == 200 else CAT
        _, pieces = cv2.connectedComponents((given == class_id).astype(np.uint8), connectivity=8)
        prediction = np.isin(pieces, np.unique(pieces[own & (pieces > 0)])) & (pieces > 0)
        prediction &= (truth != 255) & (own | (truth != class_id))
        expected.append((prediction & own).sum() / (prediction | own).sum())
    assert len(expected) > 3
    np.testing.assert_allclose(overlaps[0], expected)


def test_counts_add_up_however_they_are_divided(scene, rng):
    truth, objects = scene
    labels = [{name: rng.integers(0, 3, truth.shape).astype(np.uint8) for name in ("a", "b")} for _ in range(3)]
    after = [{1: each["a"], 5: each["b"]} for each in labels]
    whole, parts = Analysis.empty(("a", "b"), (1, 5), 3), Analysis.empty(("a", "b"), (1, 5), 3)
    for given, steps in zip(labels, after, strict=True):
        one = Analysis.empty(("a", "b"), (1, 5), 3)
        means = one.add(truth, objects, given, steps)
        assert means == whole.add(truth, objects, given, steps)
        assert means[0] == ConfusionMatrix(3).update(truth, given["a"]).mean_iou
        parts.merge(one.arrays())
    assert whole.as_dict() == parts.as_dict()
    found = whole.as_dict()
    expected = ConfusionMatrix(3)
    for given in labels:
        expected.update(truth, given["b"])
    assert found["confusion"]["b"] == expected.matrix.tolist()
    assert found["proposals"] == {"counts": [1, 5], "mean_iou": [pytest.approx(whole_iou(labels, truth, "a")), expected.mean_iou]}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def whole_iou(labels, truth, name):
    total = ConfusionMatrix(3)
    for given in labels:
        total.update(truth, given[name])
    return total.mean_iou


def test_objects_stand_in_the_size_they_belong_to(scene):
    truth, objects = scene
    found = Analysis.empty(("a",), (), 3)
    found.add(truth, objects, {"a": truth * (truth != 255)}, {})
    sizes = found.as_dict()["sizes"]
    assert sizes["edges"] == list(SIZE_EDGES)
    assert sizes["objects"] == [0, 1, 0, 2, 0]  # 2 % and twice 12.5 % of the photograph
    assert sizes["mean_iou"] == {"a": [None, 1.0, None, 1.0, None]}


def test_the_upper_edge_belongs_to_a_size():
    truth = np.zeros((40, 40), np.uint8)
    truth[:4, :4] = CAT  # 1 %, to the digit
    found = Analysis.empty(("a",), (), 3)
    found.add(truth, truth, {"a": truth}, {})
    assert found.objects.tolist() == [1, 0, 0, 0, 0]
