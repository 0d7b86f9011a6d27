"""The decision who becomes champion: by the interval of the rise, and by the largest fall of a class."""

import numpy as np
import pytest

from deconvnet.evaluation.comparison import RiseInterval, mean_iou_rise
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.tracking.promotion import compare

CLASSES = ["background", "cat", "dog"]


def results(mean_iou: float | None, images: int = 9, **iou: float | None) -> dict:
    row = {"mean_iou": mean_iou, "pixel_accuracy": 0.9, "iou": {"background": 0.9, "cat": 0.5, "dog": 0.5} | iou}
    return {"classes": CLASSES, "images": images, "rows": {"edeconvnet_crf": row, "fcn8s": row | {"mean_iou": 0.99}}}


def rise(lower: float, by: float = 0.05) -> RiseInterval:
    return RiseInterval(by, lower, 2 * by - lower, 60)


@pytest.mark.parametrize(
    ("champion", "challenger", "lower", "promoted", "text"),
    [
        (results(0.5), results(0.55), 0.02, True, "55.0 % against the champion's 50.0 %, a rise of +5.0 points"),
        (
            results(0.5),
            results(0.55),
            0.011,
            True,
            "(90 % interval +1.1 to +8.9 points, 60 images), no class falls by more than 0.0 points",
        ),
        (results(0.5), results(0.55), 0.01, False, "the lower end must be above 1.0 points (retrain.margin)"),
        (results(0.5), results(0.55), -0.01, False, "90 % interval -1.0 to +11.0 points"),
        (results(0.5), results(0.4), -0.2, False, "retrain.margin"),
        (results(0.5), results(0.6, cat=0.4), 0.02, True, "no class falls by more than 10.0 points"),
        (results(0.5), results(0.6, cat=0.39), 0.02, False, "cat falls by 11.0 points"),
        (results(0.5, cat=None), results(0.6, cat=0.1), 0.02, True, ""),  # it has no IoU to fall from
        (results(None), results(0.1), 0.02, True, "against the champion's – %"),
    ],
)
def test_the_challenger_is_promoted_by_the_interval_and_class_drop(champion, challenger, lower, promoted, text) -> None:
    decision = compare(champion, challenger, rise(lower), margin=0.01, max_class_drop=0.1)
    assert decision.promoted is promoted and text in decision.reason


@pytest.mark.parametrize(("better", "promoted"), [(0, False), (2, False), (60, True)])
def test_a_rise_that_a_few_images_make_is_chance_and_one_that_all_make_is_not(better, promoted) -> None:
    """Sixty images: the challenger has a higher pixel accuracy on some of them, or an equal one on all."""
    before = {str(i): np.array([[50, 10], [10, 30]]) for i in range(60)}
    after = before | {str(i): np.array([[54, 6], [8, 32]]) for i in range(better)}
    found = mean_iou_rise(before, after)
    old, new = (results(ConfusionMatrix(2, sum(each.values())).mean_iou) for each in (before, after))
    assert compare(old, new, found, 0, 1).promoted is promoted and (found.rise > 0) is (better > 0)


def test_an_equal_mean_iou_is_never_promoted() -> None:
    assert not compare(results(0.5), results(0.5), RiseInterval(0, 0, 0, 60), margin=0, max_class_drop=1).promoted
    assert compare(results(0.5), results(0.5001), RiseInterval(1e-4, 1e-5, 2e-4, 60), margin=0, max_class_drop=1).promoted


@pytest.mark.parametrize("other", [{"images": 10}, {"classes": ["background", "dog", "cat"]}])
def test_results_of_other_images_or_classes_are_not_compared(other) -> None:
    with pytest.raises(ValueError, match="different images or classes"):
        compare(results(0.5), results(0.6) | other, rise(0.1), 0, 1)
