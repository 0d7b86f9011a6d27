"""The breakdowns of the evaluation against straightforward counts."""

import json

import cv2
import numpy as np
import pytest

from deconvnet.evaluation.breakdowns import SIZE_EDGES, Breakdowns, object_ious
from deconvnet.evaluation.metrics import ConfusionMatrix

CAT, DOG = 1, 2


@pytest.fixture(params=[np.uint8, np.uint16])
def scene(request):
    """Class mask and object mask, 20 × 40: two cats and a dog, with void right of the first cat."""
    truth, objects = np.zeros((20, 40), np.uint8), np.zeros((20, 40), request.param)
    for number, (class_id, region) in enumerate(
        ((CAT, np.s_[2:12, 2:12]), (CAT, np.s_[2:12, 20:30]), (DOG, np.s_[14:18, 2:6])), start=1
    ):
        truth[region], objects[region] = class_id, number
    truth[2:12, 12:14], objects[2:12, 12:14] = 255, np.iinfo(request.param).max
    return truth, objects


def test_very_small_components_of_a_mask_are_not_objects(scene):
    truth, objects = scene
    truth[0, 30], objects[0, 30] = CAT, 4
    truth[16:20, 20:40], objects[16:20, 20:40] = CAT, 5  # four px high
    shares, _ = object_ious(truth, objects, {"a": truth})
    assert shares.tolist() == [100 / 800, 100 / 800, 16 / 800, 80 / 800]


def test_an_objects_prediction_is_the_components_of_its_class_that_touch_it(scene):
    truth, objects = scene
    prediction = np.zeros_like(truth)
    prediction[2:12, 7:30] = CAT  # half of the first, over void and 6 columns of background, all of the second
    prediction[0:2, 36:40] = CAT  # far from any object
    shares, ious = object_ious(truth, objects, {"a": prediction, "b": truth * (truth != 255)})
    assert shares.tolist() == [100 / 800, 100 / 800, 16 / 800]
    between = 10 * 6
    assert ious[0].tolist() == [50 / (100 + between), 100 / (100 + between), 0]
    assert ious[1].tolist() == [1, 1, 1]


def test_a_component_of_another_class_is_not_an_objects_prediction(scene):
    truth, objects = scene
    _, ious = object_ious(truth, objects, {"a": np.full_like(truth, DOG)})
    background = (truth != 255).sum() - 16
    assert ious[0].tolist() == [0, 0, 16 / (16 + background)]


def test_object_ious_equal_a_straightforward_count(rng):
    """On random shapes, each object's IoU from its own mask and the components that touch it."""
    small = rng.integers(0, 3, (6, 8)).astype(np.uint8)
    truth = cv2.resize(small, (80, 60), interpolation=cv2.INTER_NEAREST)
    _, objects = cv2.connectedComponents((truth == CAT).astype(np.uint8), connectivity=4)
    objects = np.where(truth == DOG, 200, objects).astype(np.uint8)
    truth[:, 40:43] = objects[:, 40:43] = 255
    prediction = cv2.resize(rng.integers(0, 3, (9, 9)).astype(np.uint8), (80, 60), interpolation=cv2.INTER_NEAREST)
    _, ious = object_ious(truth, objects, {"a": prediction})
    expected = []
    for number in sorted(set(np.unique(objects)) - {0, 255}):
        own = objects == number
        class_id = DOG if number == 200 else CAT
        _, components = cv2.connectedComponents((prediction == class_id).astype(np.uint8), connectivity=8)
        touching = np.isin(components, np.unique(components[own & (components > 0)])) & (components > 0)
        touching &= (truth != 255) & (own | (truth != class_id))
        expected.append((touching & own).sum() / (touching | own).sum())
    assert len(expected) > 3
    np.testing.assert_allclose(ious[0], expected)


def test_merged_counts_equal_those_of_all_images(scene, rng):
    truth, objects = scene
    predictions = [{name: rng.integers(0, 3, truth.shape).astype(np.uint8) for name in ("a", "b")} for _ in range(3)]
    by_count = [{1: each["a"], 5: each["b"]} for each in predictions]
    whole, parts = Breakdowns(("a", "b"), (1, 5), 3), Breakdowns(("a", "b"), (1, 5), 3)
    for prediction, steps in zip(predictions, by_count, strict=True):
        one = Breakdowns(("a", "b"), (1, 5), 3)
        single = [each.matrix.tolist() for each in one.add(truth, objects, prediction, steps)]
        assert single == [each.matrix.tolist() for each in whole.add(truth, objects, prediction, steps)]
        assert single[0] == ConfusionMatrix(3).update(truth, prediction["a"]).matrix.tolist()
        parts.merge(one.arrays())
    assert whole.as_dict() == parts.as_dict()
    found = whole.as_dict()
    expected = ConfusionMatrix(3)
    for prediction in predictions:
        expected.update(truth, prediction["b"])
    assert found["confusion"]["b"] == expected.matrix.tolist()
    assert found["proposals"] == {
        "counts": [1, 5],
        "mean_iou": [pytest.approx(whole_iou(predictions, truth, "a")), expected.mean_iou],
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def whole_iou(predictions, truth, name):
    total = ConfusionMatrix(3)
    for prediction in predictions:
        total.update(truth, prediction[name])
    return total.mean_iou


def test_objects_are_counted_by_their_size(scene):
    truth, objects = scene
    found = Breakdowns(("a",), (), 3)
    found.add(truth, objects, {"a": truth * (truth != 255)}, {})
    sizes = found.as_dict()["sizes"]
    assert sizes["edges"] == list(SIZE_EDGES)
    assert sizes["objects"] == [0, 1, 0, 2, 0]  # 2 % and twice 12.5 % of the image
    assert sizes["mean_iou"] == {"a": [None, 1.0, None, 1.0, None]}


def test_class_0_has_objects_only_where_it_is_no_background():
    truth = np.zeros((20, 40), np.uint8)
    truth[:, 30:] = CAT
    objects = np.where(truth == 0, 7, 3).astype(np.uint8)
    for background, sizes in ((True, [0, 0, 0, 1, 0]), (False, [0, 0, 0, 1, 1])):
        found = Breakdowns(("a",), (), 2)
        found.add(truth, objects, {"a": truth}, {}, background)
        assert found.objects.tolist() == sizes


def test_a_size_includes_its_upper_edge():
    truth = np.zeros((40, 40), np.uint8)
    truth[:4, :4] = CAT  # 1 %, to the digit
    found = Breakdowns(("a",), (), 3)
    found.add(truth, truth, {"a": truth}, {})
    assert found.objects.tolist() == [1, 0, 0, 0, 0]
