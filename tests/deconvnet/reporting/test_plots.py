"""Charts: their sizes, that they show what they are given, and what they refuse."""

import numpy as np
import pytest
from matplotlib.text import Text

from deconvnet.reporting import plots
from deconvnet.reporting.figure import RESULT_TITLES, image_grid
from deconvnet.reporting.plots import (
    confusion_matrix,
    draw_training_curves,
    iou_by_class,
    iou_by_proposals,
    iou_by_size,
    recall_curves,
    reliability_diagram,
)
from proposals.recall import Recall
from tests.deconvnet.png_pixels import area, pixels

CLASSES = ("background", "circle", "bar")


def results(iou):
    return {
        "dataset": "x",
        "images": 3,
        "classes": list(CLASSES),
        "rows": {name: {"mean_iou": 0.5, "pixel_accuracy": 0.9, "iou": iou} for name in RESULT_TITLES},
    }


def test_the_length_of_iou_bars_is_proportional_to_iou():
    colour = (0xD9, 0x48, 0x01)  # EDeconvNet+CRF
    full = pixels(iou_by_class(results({"background": 1.0, "circle": 1.0, "bar": 1.0})))
    half = pixels(iou_by_class(results({"background": 0.5, "circle": 0.5, "bar": 0.5})))
    assert full.shape[1] == 1200
    assert area(half, colour) == pytest.approx(area(full, colour) / 2, rel=0.1)


NO_FORMULAS = ("$x_{$", r"$\frac$ and $\alpha$", "a_1 $5")


def test_names_that_look_like_formulas_are_drawn_as_they_are():
    """The first two are no formulas for matplotlib, which would raise ValueError; a pair of "$" would vanish."""
    odd = {**results(dict.fromkeys(NO_FORMULAS, 0.5)), "classes": list(NO_FORMULAS), "dataset": "$x_{$"}
    plain, dollars = ({**odd, "classes": [name, "b"]} for name in ("x", "$x$"))
    assert pixels(iou_by_class(odd)).shape[1] == 1200
    assert (pixels(iou_by_class(plain)) != pixels(iou_by_class(dollars))).any()
    assert pixels(iou_by_proposals(odd, breakdowns())).shape[1] == 1200
    assert pixels(confusion_matrix(np.eye(3), NO_FORMULAS, NO_FORMULAS[0])).shape[1] == 1200
    image, mask = np.zeros((8, 8, 3), np.uint8), np.array([[0, 1, 2]], np.uint8)
    assert pixels(image_grid([[image, mask]], [[NO_FORMULAS[0], ""]], NO_FORMULAS, [NO_FORMULAS[1], ""])).shape[1] == 1200


def test_the_numbers_of_few_boxes_are_written_without_formulas():
    """matplotlib writes those between powers of ten as formulas by default, which would be drawn as they are."""
    recall = Recall.from_overlaps(np.full((4, 3), 0.97, np.float32), (2, 5, 8))
    texts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "to_png", lambda figure: texts.extend(drawn_texts(figure)) or b"")
        recall_curves({"x": recall})
    assert "4" in texts and not [text for text in texts if "$" in text]


def drawn_texts(figure):
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text)]


def test_a_class_without_iou_has_no_bar():
    colour = (0xD9, 0x48, 0x01)
    two = pixels(iou_by_class(results({"background": 1.0, "circle": None, "bar": 1.0})))
    three = pixels(iou_by_class(results({"background": 1.0, "circle": 1.0, "bar": 1.0})))
    assert area(two, colour) == pytest.approx(area(three, colour) * 2 / 3, rel=0.1)


def test_each_result_has_its_colour():
    drawn = pixels(iou_by_class(results({"background": 1.0, "circle": 1.0, "bar": 1.0})))
    colours = [tuple(bytes.fromhex(colour)) for colour in ("8a8f98", "9ecae1", "2171b5", "fdae6b", "d94801")]
    areas = [area(drawn, colour) for colour in colours]
    assert min(areas) > 0.9 * max(areas) > 3_000, "five bars a class, as long as each other, and their legend"


def test_the_height_of_recall_curves_is_the_recall():
    """A constant recall gives a horizontal line; each name has its colour."""
    counts = (1, 10, 100, 1000)

    def recall(found: float) -> Recall:
        overlaps = np.repeat([[0.97], [0.0]], [round(100 * found), 100 - round(100 * found)], axis=0)
        return Recall.from_overlaps(overlaps.repeat(len(counts), axis=1).astype(np.float32), counts)

    blue, orange = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    both = pixels(recall_curves({"low": recall(0.25), "high": recall(0.75)}))
    assert both.shape == (460, 1200, 3)
    left = both[:, 60:600]
    low, high = (np.median(np.argwhere((left == colour).all(axis=2))[:, 0]) for colour in (blue, orange))
    axis = 460 - 2 * 30  # px between recall 0 and 1, about
    assert low - high == pytest.approx(axis / 2, rel=0.1)
    assert area(pixels(recall_curves({"low": recall(0.25)})), orange) == 0
    # The curve over IoU is that of the largest number of boxes, not of the smallest.
    found_late = Recall.from_overlaps(np.array([[0.0, 0.0, 0.0, 0.97]] * 4, np.float32), counts)
    right = pixels(recall_curves({"late": found_late}))[:, 640:1000]
    assert np.median(np.argwhere((right == blue).all(axis=2))[:, 0]) < 40, "at the top"
    with pytest.raises(ValueError, match="no recall"):
        recall_curves({})


def breakdowns(steps=(0.1, 0.2, 0.4), by_size=(0.2, 0.4, None)):
    return {
        "proposals": {"counts": [1, 10, 50], "mean_iou": list(steps)},
        "sizes": {"edges": [0, 0.1, 0.5, 1], "objects": [3, 1, 0], "mean_iou": {name: list(by_size) for name in RESULT_TITLES}},
    }


def test_the_height_of_the_curve_over_proposals_is_the_mean_iou():
    blue = (0x21, 0x71, 0xB5)
    drawn = pixels(iou_by_proposals(results({}), breakdowns()))
    assert drawn.shape == (420, 1200, 3)
    line = (drawn[:, 60:900] == blue).all(axis=2)  # the legend is on the right
    heights = [np.argwhere(line[:, columns])[:, 0].mean() for columns in (slice(0, 200), slice(300, 500), slice(650, 840))]
    assert heights[0] > heights[1] > heights[2]
    assert pixels(iou_by_proposals(results({}), breakdowns((None, None, None)))).shape == (420, 1200, 3)
    with_windows = {"proposals": {"counts": [], "mean_iou": []}}
    assert area(pixels(iou_by_proposals(results({}), with_windows))[:, 60:900], blue) == 0


def test_bars_by_size_are_as_high_as_the_iou_and_absent_without_objects():
    colour = (0xD9, 0x48, 0x01)
    drawn = pixels(iou_by_size(breakdowns()))
    body = (drawn[60:] == colour).all(axis=2)  # below the legend
    thirds = [body[:, left : left + 370].sum() for left in (80, 450, 830)]
    assert thirds[1] == pytest.approx(2 * thirds[0], rel=0.1) and thirds[2] == 0


def test_the_confusion_matrix_shows_each_true_class_as_shares():
    """A class of ten pixels is as dark as one of a million."""
    counts = np.array([[10**6, 0, 0], [0, 0, 10], [0, 0, 0]])
    drawn = pixels(confusion_matrix(counts, CLASSES, "x"))
    dark = (8, 48, 107)  # of Blues, for 100 %
    points = np.argwhere((drawn[:, :1090] == dark).all(axis=2))  # the colour bar is on the right
    middle = (points[:, 0].min() + points[:, 0].max()) / 2
    upper, lower = points[points[:, 0] < middle], points[points[:, 0] > middle]
    assert len(upper) == pytest.approx(len(lower), rel=0.1)
    assert upper[:, 1].max() < lower[:, 1].min() - 30, "background on the diagonal, circle in bar's column"
    with pytest.raises(ValueError, match="3 classes, and counts of"):
        confusion_matrix(counts[:2, :2], CLASSES, "x")


def test_the_confusion_matrix_of_many_classes_is_not_taller_than_wide():
    drawn = pixels(confusion_matrix(np.eye(40), [f"class {i}" for i in range(40)], "x"))
    assert drawn.shape[1] == 1200 and drawn.shape[0] <= 1200


def test_each_stage_has_two_panels() -> None:
    line = ([1, 2], [1.0, 0.5])
    one = draw_training_curves({"fcn8s": {"loss": line, "dev_mean_iou": line}})
    two = draw_training_curves({"fcn8s": {"loss": line}, "stage1": {"loss": line}})
    one, two = (pixels(each["training_curves.png"]) for each in (one, two))
    assert one.shape == (340, 1200, 3) and two.shape == (680, 1200, 3)
    assert area(one, (0x00, 0x72, 0xB2)) > 300
    assert draw_training_curves({}) == {}


def test_the_bars_of_a_reliability_diagram_are_the_shares_of_right_pixels() -> None:
    """Two bins of which one is always right; bins without pixels have no bar."""

    def drawn(accuracy: list[float | None]) -> np.ndarray:
        calibration = {"edges": [0, 0.25, 0.5, 0.75, 1], "pixels": [0, 300, 0, 100], "accuracy": accuracy}
        return pixels(reliability_diagram({**calibration, "confidence": [None, 0.4, None, 0.9]}, 0.07, "cats"))

    colour = (0x9E, 0xCA, 0xE1)
    full, half, none = (area(drawn([None, share, None, 1.0]), colour) for share in (1.0, 0.5, 0.0))
    assert full - half == pytest.approx(half - none, rel=0.05) and none > 10_000
    assert pixels(reliability_diagram({"edges": [0, 1], "pixels": [0], "accuracy": [None], "confidence": [None]}, None, "")).any()
