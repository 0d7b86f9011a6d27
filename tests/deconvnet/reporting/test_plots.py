"""Charts: that they show what they are given, their sizes, and what they refuse.

Most tests look at the matplotlib figure, which is exact and quick; that each chart can be drawn as a PNG is tested once.
"""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
from tests.deconvnet.png_pixels import pixels

CLASSES = ("background", "circle", "bar")
COLOURS = {"FCN-8s": "#8a8f98", "DeconvNet": "#9ecae1", "DeconvNet+CRF": "#2171b5", "EDeconvNet": "#fdae6b"} | {
    "EDeconvNet+CRF": "#d94801"
}
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
"""The first colours of lines."""


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, in place of their PNGs."""
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "to_png", lambda figure: drawn.append(figure) or b"")
    return drawn


def results(*iou: dict[str, float | None]) -> dict[str, Any]:
    """Results of all five kinds, with these IoUs of the classes: one dict for all, or one for each."""
    of = dict(zip(RESULT_TITLES, iou * (5 // len(iou)), strict=True))
    rows = {name: {"mean_iou": 0.5, "pixel_accuracy": 0.9, "iou": each} for name, each in of.items()}
    return {"dataset": "x", "images": 3, "classes": list(CLASSES), "rows": rows}


def breakdowns(steps: tuple[float | None, ...] = (0.1, 0.2, 0.4), by_size: Any = None) -> dict[str, Any]:
    by_size = by_size or {name: [0.1 + number / 10, 0.2, None] for number, name in enumerate(RESULT_TITLES)}
    return {
        "proposals": {"counts": [1, 10, 50], "mean_iou": list(steps)},
        "sizes": {"edges": [0, 0.1, 0.5, 1], "objects": [3, 1, 0], "mean_iou": by_size},
    }


def constant_recall(found: float, counts: tuple[int, ...] = (1, 10, 100, 1000)) -> Recall:
    """The recall where a share of a hundred objects is found by the first box already, at IoU 0.97."""
    overlaps = np.repeat([[0.97], [0.0]], [round(100 * found), 100 - round(100 * found)], axis=0)
    return Recall.from_overlaps(overlaps.repeat(len(counts), axis=1).astype(np.float32), counts)


CALIBRATION = {"edges": [0, 0.25, 0.5, 0.75, 1], "pixels": [0, 300, 0, 100], "confidence": [None, 0.4, None, 0.9]} | {
    "accuracy": [None, 0.5, None, 1.0]
}


def lines(axes: Axes) -> dict[str, tuple[str, list[tuple[float, float]]]]:
    """The colour and the points of each line, by its text in the legend."""
    made = [line for line in axes.get_lines() if isinstance(line, Line2D)]
    return {str(line.get_label()): (to_hex(line.get_color()), [tuple(xy) for xy in line.get_xydata().tolist()]) for line in made}


def texts(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text)]


NO_FORMULAS = ("$x_{$", r"$\frac$ and $\alpha$", "a_1 $5")


def test_names_that_look_like_formulas_are_drawn_as_they_are() -> None:
    """The first two are no formulas for matplotlib, which would raise ValueError; a pair of "$" would vanish."""
    odd = {**results(dict.fromkeys(NO_FORMULAS, 0.5)), "classes": list(NO_FORMULAS), "dataset": "$x_{$"}
    plain, dollars = ({**odd, "classes": [name, "b"]} for name in ("x", "$x$"))
    assert pixels(iou_by_class(odd)).shape[1] == 1200
    assert (pixels(iou_by_class(plain)) != pixels(iou_by_class(dollars))).any()
    assert pixels(iou_by_proposals(odd, breakdowns())).shape == (420, 1200, 3)
    assert pixels(confusion_matrix(np.eye(3), NO_FORMULAS, NO_FORMULAS[0])).shape[1] == 1200
    image, mask = np.zeros((8, 8, 3), np.uint8), np.array([[0, 1, 2]], np.uint8)
    assert pixels(image_grid([[image, mask]], [[NO_FORMULAS[0], ""]], NO_FORMULAS, [NO_FORMULAS[1], ""])).shape[1] == 1200


def test_the_other_charts_can_be_drawn() -> None:
    assert pixels(recall_curves({"x": constant_recall(0.5)})).shape == (460, 1200, 3)
    assert pixels(iou_by_size(breakdowns())).shape == (460, 1200, 3)
    assert pixels(reliability_diagram(CALIBRATION, 0.07, "cats")).shape == (540, 1200, 3)
    (curves,) = draw_training_curves({"fcn8s": {"loss": ([1, 2], [1.0, 0.5])}}).values()
    assert pixels(curves).shape == (340, 1200, 3)


def test_the_numbers_of_few_boxes_are_written_without_formulas(figures: list[Figure]) -> None:
    """matplotlib writes those between powers of ten as formulas by default, which would be drawn as they are."""
    recall_curves({"x": constant_recall(0.5, (2, 5, 8))})
    found = texts(figures[0])
    assert "4" in found and not [text for text in found if "$" in text]


def test_each_result_has_bars_as_long_as_its_ious_in_its_colour(figures: list[Figure]) -> None:
    """Five results with other IoUs each; none has one of "circle"."""
    given = [{"background": 0.5 + number / 10, "circle": None, "bar": number / 10} for number in range(5)]
    iou_by_class(results(*given))
    (axes,) = figures[0].axes
    groups = {group.get_label().partition("  (")[0]: group.patches for group in axes.containers}
    assert list(groups) == list(RESULT_TITLES.values())
    for name, iou in zip(groups, given, strict=True):
        widths = [bar.get_width() for bar in groups[name]]
        assert widths[::2] == [iou["background"], iou["bar"]] and np.isnan(widths[1]), "no bar without an IoU"
        assert {to_hex(bar.get_facecolor()) for bar in groups[name]} == {COLOURS[name]}
    centres = np.array([[bar.get_y() + bar.get_height() / 2 for bar in bars] for bars in groups.values()])
    np.testing.assert_allclose(centres.mean(axis=0), [0, 1, 2], atol=1e-9)
    assert (np.diff(centres, axis=0) > 0).all() and axes.yaxis_inverted(), "the first result is the upper one"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(CLASSES)
    assert [text.get_text() for text in axes.texts] == ["not in these images"] and axes.texts[0].get_position()[1] == 1


def test_recall_curves_show_the_recall_at_each_number_of_boxes_and_over_the_iou(figures: list[Figure]) -> None:
    """The curve over the IoU is that of the largest number of boxes up to 1,000."""
    counts = (1, 10, 1000, 2000)
    late = Recall.from_overlaps(np.array([[0.0, 0.6, 0.8, 0.97], [0.0, 0.0, 0.6, 0.97]], np.float32), counts)
    recall_curves({"even": constant_recall(0.25), "late": late})
    by_count, by_iou = figures[0].axes
    found = lines(by_count)
    assert found["even, IoU 0.5"] == found["even, IoU 0.7"] == (BLUE, [(1, 0.25), (10, 0.25), (100, 0.25), (1000, 0.25)])
    assert found["late, IoU 0.5"] == (ORANGE, [(1, 0), (10, 0.5), (1000, 1), (2000, 1)])
    assert found["late, IoU 0.7"] == (ORANGE, [(1, 0), (10, 0), (1000, 0.5), (2000, 1)])
    assert by_count.get_ylim() == (0, 1) and len(found) == 4
    over_iou = lines(by_iou)
    assert list(over_iou) == ["even, 1,000 boxes", "late, 1,000 boxes"]
    colour, points = over_iou["late, 1,000 boxes"]
    values = {round(iou, 2): recall for iou, recall in points}
    assert colour == ORANGE and len(points) == 51
    assert [values[iou] for iou in (0.5, 0.59, 0.62, 0.79, 0.82, 1)] == [1, 1, 0.5, 0.5, 0, 0]
    with pytest.raises(ValueError, match="no recall"):
        recall_curves({})


def test_the_curve_over_proposals_is_the_mean_iou_beside_that_of_fcn8s(figures: list[Figure]) -> None:
    given = results({})
    given["rows"]["fcn8s"]["mean_iou"] = 0.3
    iou_by_proposals(given, breakdowns((0.1, None, 0.4)))
    (axes,) = figures[0].axes
    found = lines(axes)
    colour, points = found["DeconvNet"]
    assert colour == COLOURS["DeconvNet+CRF"] and points[::2] == [(1, 0.1), (50, 0.4)] and np.isnan(points[1][1])
    assert found["FCN-8s, no proposals  (0.300)"][1] == [(0, 0.3), (1, 0.3)], "from side to side"
    assert [text.get_text() for text in axes.texts] == ["0.100", "0.400"] and axes.get_ylim()[1] > 0.4
    iou_by_proposals(results({}), breakdowns((None, None, None)))
    iou_by_proposals(results({}), {"proposals": {"counts": [], "mean_iou": []}})  # with windows alone
    assert not lines(figures[2].axes[0])["DeconvNet"][1]


def test_bars_by_size_are_as_high_as_the_iou_and_absent_without_objects(figures: list[Figure]) -> None:
    iou_by_size(breakdowns())
    (axes,) = figures[0].axes
    groups = {group.get_label(): group.patches for group in axes.containers}
    assert list(groups) == list(RESULT_TITLES.values())
    for number, (name, bars) in enumerate(groups.items()):
        heights = [bar.get_height() for bar in bars]
        assert heights[:2] == [0.1 + number / 10, 0.2] and np.isnan(heights[2])
        assert {to_hex(bar.get_facecolor()) for bar in bars} == {COLOURS[name]}
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels == ["0–10 %\n3 objects", "10–50 %\n1 object", "50–100 %\n0 objects"] and axes.get_ylim() == (0, 1)


def test_the_confusion_matrix_shows_each_true_class_as_shares(figures: list[Figure]) -> None:
    """A class of ten pixels is as dark as one of a million."""
    counts = np.array([[10**6, 0, 0], [2, 0, 8], [0, 0, 0]])
    confusion_matrix(counts, CLASSES, "x")
    axes = figures[0].axes[0]
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), [[100, 0, 0], [20, 0, 80], [np.nan] * 3])
    assert image.get_cmap().name == "Blues" and (image.norm.vmin, image.norm.vmax) == (0, 100)
    shown = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "100", (0, 1): "20", (2, 1): "80", (-0.4, 2): "not in these images"}, "x is the predicted class"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    with pytest.raises(ValueError, match="3 classes, and counts of"):
        confusion_matrix(counts[:2, :2], CLASSES, "x")


def test_the_confusion_matrix_of_many_classes_has_no_numbers_and_is_not_taller_than_wide(figures: list[Figure]) -> None:
    confusion_matrix(np.eye(40), [f"class {i}" for i in range(40)], "x")
    width, height = figures[0].get_size_inches()
    assert height <= width == 12 and not figures[0].axes[0].texts


def test_each_stage_has_a_panel_of_its_loss_and_one_of_its_accuracies(figures: list[Figure]) -> None:
    first = {"loss": 0.0, "pixel_accuracy": 0.1, "dev_mean_iou": 0.2, "final_dev_mean_iou": 0.3}
    curves = {name: ([1, 2], [value, 0.5]) for name, value in first.items()}
    other = ([5], [0.75])
    draw_training_curves({"fcn8s": {**curves, "lr": other}, "stage1": {"loss": other}})
    assert tuple(figures[0].get_size_inches()) == (12, 6.8)
    found = {axes.get_title(loc="left"): lines(axes) for axes in figures[0].axes}
    assert found == {
        "FCN-8s: loss": {"loss": (BLUE, [(1, 0.0), (2, 0.5)])},
        "FCN-8s: accuracy": {
            "pixel accuracy on training batches": (BLUE, [(1, 0.1), (2, 0.5)]),
            "mean IoU on dev": (ORANGE, [(1, 0.2), (2, 0.5)]),
            "mean IoU on dev, final batch norms": (GREEN, [(1, 0.3), (2, 0.5)]),
        },
        "DeconvNet, stage 1: loss": {"loss": (BLUE, [(5, 0.75)])},
        "DeconvNet, stage 1: accuracy": {},
    }
    assert draw_training_curves({}) == {}


def test_a_reliability_diagram_shows_the_shares_of_right_pixels_and_how_many_pixels_there_are(figures: list[Figure]) -> None:
    """Bins without pixels have no bar."""
    reliability_diagram(CALIBRATION, 0.07, "cats")
    above, below = figures[0].axes
    heights = [bar.get_height() for bar in above.patches]
    assert heights[1::2] == [0.5, 1] and np.isnan(heights[::2]).all()
    assert [bar.get_height() for bar in below.patches] == [0, 75, 0, 25]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in above.patches]
    np.testing.assert_allclose(centres, [0.125, 0.375, 0.625, 0.875])
    points = lines(above)["mean probability of a bin's pixels"][1]
    assert points[1::2] == [(0.4, 0.5), (0.9, 1)] and np.isnan(points[::2]).all()
    assert above.get_title(loc="left") == "cats; expected calibration error 0.070"
    reliability_diagram({"edges": [0, 1], "pixels": [0], "accuracy": [None], "confidence": [None]}, None, "cats")
    above, below = figures[1].axes
    assert np.isnan(above.patches[0].get_height()) and below.patches[0].get_height() == 0
    assert above.get_title(loc="left") == "cats"
