"""Figures: sizes, that what they are given is to be seen in them, and what they refuse."""

import io

import numpy as np
import pytest
from PIL import Image

from deconvnet.data.palette import VOC_PALETTE
from deconvnet.figures import TITLES, comparison, examples_sheet, iou_by_class, recall_curves, training_curves
from proposals.recall import Recall

CLASSES = ("background", "circle", "bar")


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def area(picture: np.ndarray, colour) -> int:
    return int((picture == np.asarray(colour)).all(axis=2).sum())


def mask(height: int, width: int, class_id: int) -> np.ndarray:
    made = np.zeros((height, width), np.uint8)
    made[height // 4 : height // 2, width // 4 : width // 2] = class_id
    return made


def row(height: int = 120, width: int = 160, **changes):
    made = {"image": np.full((height, width, 3), (200, 30, 90), np.uint8), "title": "img_1"}
    made |= {name: mask(height, width, 1) for name in ("truth", "fcn8s", "deconvnet", "edeconvnet_crf")}
    return made | changes


def test_comparison_shows_photograph_and_masks():
    picture = pixels(comparison([row(), row(fcn8s=mask(120, 160, 2))], CLASSES))
    assert picture.shape[1] == 1200
    cell = 235 * 176  # px of a 4:3 photograph in a fifth of the page
    assert area(picture, (200, 30, 90)) == pytest.approx(2 * cell, rel=0.05)
    assert area(picture, VOC_PALETTE[1]) == pytest.approx(7 * cell / 16, rel=0.1)
    assert area(picture, VOC_PALETTE[2]) == pytest.approx(cell / 16, rel=0.4)  # and its legend


def test_comparison_columns_stand_in_the_named_order():
    masks = {name: mask(120, 160, i + 1) for i, name in enumerate(("truth", "fcn8s", "deconvnet", "edeconvnet_crf"))}
    picture = pixels(comparison([row(**masks)], ("background", "a", "b", "c", "d")))
    body = picture[:200]  # above the legend
    centres = [np.flatnonzero((body == VOC_PALETTE[i]).all(axis=2).any(axis=0)).mean() for i in (1, 2, 3, 4)]
    assert [int(c // 240) for c in centres] == [1, 2, 3, 4]


def test_legend_names_present_classes_only():
    few = pixels(comparison([row()], CLASSES))
    assert area(few, VOC_PALETTE[2]) == 0
    void = pixels(comparison([row(truth=mask(120, 160, 255))], CLASSES))
    assert area(void, VOC_PALETTE[255]) > 0 and area(few, VOC_PALETTE[255]) == 0


def test_a_photograph_without_truth_and_odd_shapes():
    picture = pixels(comparison([row(truth=None), row(1, 1), row(3000, 200), row(40, 900)], CLASSES))
    assert picture.shape[1] == 1200 and picture.shape[0] < 1600


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no pictures"):
        comparison([], CLASSES)
    with pytest.raises(ValueError, match="no pictures"):
        examples_sheet([], CLASSES)
    with pytest.raises(ValueError, match="no curves"):
        training_curves({})


def test_examples_sheet_shows_every_crop():
    examples = [
        {"image": np.full((80, 80, 3), (10 * i + 50, 7, 9), np.uint8), "mask": mask(80, 80, 1), "title": f"e{i}"}
        for i in range(6)
    ]
    picture = pixels(examples_sheet(examples, CLASSES, columns=4))
    assert picture.shape[1] == 1200
    for i in range(6):
        assert area(picture, (10 * i + 50, 7, 9)) > 15_000


def results(iou):
    return {
        "dataset": "x",
        "images": 3,
        "classes": list(CLASSES),
        "rows": {name: {"mean_iou": 0.5, "pixel_accuracy": 0.9, "iou": iou} for name in TITLES},
    }


def test_iou_bars_are_as_long_as_the_figures():
    colour = (0xD9, 0x48, 0x01)  # EDeconvNet+CRF
    full = pixels(iou_by_class(results({"background": 1.0, "circle": 1.0, "bar": 1.0})))
    half = pixels(iou_by_class(results({"background": 0.5, "circle": 0.5, "bar": 0.5})))
    assert full.shape[1] == 1200
    assert area(half, colour) == pytest.approx(area(full, colour) / 2, rel=0.1)


def test_a_class_without_iou_is_left_empty():
    colour = (0xD9, 0x48, 0x01)
    two = pixels(iou_by_class(results({"background": 1.0, "circle": None, "bar": 1.0})))
    three = pixels(iou_by_class(results({"background": 1.0, "circle": 1.0, "bar": 1.0})))
    assert area(two, colour) == pytest.approx(area(three, colour) * 2 / 3, rel=0.1)


def test_training_curves_draw_each_line():
    one = pixels(training_curves({"loss": {"stage1": (range(50), np.linspace(1, 0, 50))}}))
    two = pixels(
        training_curves({"loss": {"stage1": ([1, 2], [1.0, 0.5])}, "iou": {"a": ([1], [0.1])}, "lr": {"a": ([1], [0.1])}})
    )
    assert one.shape == (340, 1200, 3) and two.shape == (680, 1200, 3)
    assert area(one, (0x1F, 0x77, 0xB4)) > 300


def test_recall_curves_are_as_high_as_the_recall():
    """A flat recall is a flat line; of two names, each has its colour."""
    counts = (1, 10, 100, 1000)

    def recall(found: float) -> Recall:
        overlaps = np.repeat([[0.97], [0.0]], [round(100 * found), 100 - round(100 * found)], axis=0)
        return Recall.of(overlaps.repeat(len(counts), axis=1).astype(np.float32), counts)

    blue, orange = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)
    both = pixels(recall_curves({"low": recall(0.25), "high": recall(0.75)}))
    assert both.shape == (460, 1200, 3)
    left = both[:, 60:600]
    low, high = (np.median(np.argwhere((left == colour).all(axis=2))[:, 0]) for colour in (blue, orange))
    axis = 460 - 2 * 30  # px between recall 0 and 1, about
    assert low - high == pytest.approx(axis / 2, rel=0.1)
    assert area(pixels(recall_curves({"low": recall(0.25)})), orange) == 0
    with pytest.raises(ValueError, match="no recall"):
        recall_curves({})
