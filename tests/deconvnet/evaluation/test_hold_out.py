"""The images on which two models are compared: val images that neither was trained on."""

import numpy as np
import pytest

from deconvnet.evaluation.comparison import DECISIVE_RESULT
from deconvnet.evaluation.hold_out import HoldOut, find_hold_out, results_of
from deconvnet.evaluation.metrics import ConfusionMatrix

BEFORE = {"a": "1", "b": "2", "c": "3"}


@pytest.mark.parametrize(
    ("present", "champion", "found"),
    [
        (BEFORE, BEFORE, HoldOut(["a", "b", "c"], 0, 0)),
        ({**BEFORE, "d": "4"}, BEFORE, HoldOut(["a", "b", "c"], 1, 0)),  # val has grown
        ({"a": "1", "b": "2"}, BEFORE, HoldOut(["a", "b"], 0, 1)),  # one became an image of train
        ({"a": "1", "b": "other", "c": "3"}, BEFORE, HoldOut(["a", "c"], 1, 1)),  # one has another mask
        ({"d": "1"}, BEFORE, HoldOut([], 1, 3)),
        (BEFORE, None, HoldOut(["a", "b", "c"], 0, 0)),  # the champion has no list
        (BEFORE, {}, HoldOut([], 3, 0)),
    ],
)
def test_only_val_images_that_both_have_with_the_same_content_count(present, champion, found) -> None:
    assert find_hold_out(present, champion) == found


@pytest.mark.parametrize(("images", "gone", "too_few"), [(0, 0, True), (1, 0, False), (2, 2, False), (2, 3, True), (0, 5, True)])
def test_fewer_than_half_of_the_champion_s_images_are_too_few(images: int, gone: int, too_few: bool) -> None:
    assert HoldOut([str(i) for i in range(images)], 0, gone).too_few is too_few


@pytest.mark.parametrize(
    ("hold_out", "text"),
    [
        (HoldOut(["a"], 0, 0), "val images of both models: 1"),
        (
            HoldOut(["a"], 1200, 0),
            "val images of both models: 1; left out, because added or changed since the champion's registration: 1,200",
        ),
        (HoldOut(["a"], 0, 2), "val images of both models: 1; changed or removed since the champion: 2"),
    ],
)
def test_what_is_left_out_is_said(hold_out: HoldOut, text: str) -> None:
    assert str(hold_out) == text


def test_results_are_those_of_the_given_images_alone() -> None:
    rng = np.random.default_rng(0)
    confusions = {image_id: rng.integers(0, 9, (2, 2)) for image_id in "abc"}
    found = results_of(HoldOut(["a", "c", "not measured"], 0, 0).select(confusions), ["background", "thing"])
    total = ConfusionMatrix(2, confusions["a"] + confusions["c"])
    row = found["rows"][DECISIVE_RESULT]
    assert row["mean_iou"] == total.mean_iou and list(row["iou"].values()) == total.iou.tolist()
    assert found["images"] == 2 and found["classes"] == ["background", "thing"]
