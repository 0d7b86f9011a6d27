"""Figures of images: their sizes, that they show what they are given, and what they refuse."""

import numpy as np
import pytest

from deconvnet.datasets.palette import VOC_PALETTE, class_palette
from deconvnet.reporting import panels
from deconvnet.reporting.figure import add_legend, new_figure, thumbnail
from deconvnet.reporting.panels import COMPARED, ComparisonRow, comparison, example_crops, instances, unpooling
from tests.deconvnet.png_pixels import area, pixels

CLASSES = ("background", "circle", "bar")


def mask(height: int, width: int, class_id: int) -> np.ndarray:
    made = np.zeros((height, width), np.uint8)
    made[height // 4 : height // 2, width // 4 : width // 2] = class_id
    return made


def row(height: int = 120, width: int = 160, **changes) -> ComparisonRow:
    """A row whose masks all show class 1; keywords replace a field, or the mask of a result."""
    masks = {name: changes.pop(name, mask(height, width, 1)) for name in COMPARED}
    image = np.full((height, width, 3), (200, 30, 90), np.uint8)
    return ComparisonRow(image, changes.pop("truth", mask(height, width, 1)), masks, **({"title": "img_1"} | changes))


def test_comparison_shows_image_and_masks():
    drawn = pixels(comparison([row(), row(fcn8s=mask(120, 160, 2))], CLASSES))
    assert drawn.shape[1] == 1200
    cell = 195 * 146  # px of a 4:3 image in a sixth of the width
    assert area(drawn, (200, 30, 90)) == pytest.approx(2 * cell, rel=0.05)
    assert area(drawn, VOC_PALETTE[1]) == pytest.approx(9 * cell / 16, rel=0.1)
    assert area(drawn, VOC_PALETTE[2]) == pytest.approx(cell / 16, rel=0.4)  # and its legend


def test_comparison_columns_are_in_the_order_of_their_heads():
    masks = {name: mask(120, 160, i + 1) for i, name in enumerate(("truth", *COMPARED))}
    drawn = pixels(comparison([row(**masks)], ("background", *"abcde")))
    body = drawn[:200]  # above the legend
    centres = [np.flatnonzero((body == VOC_PALETTE[i]).all(axis=2).any(axis=0)).mean() for i in (1, 2, 3, 4, 5)]
    assert [int(c // 200) for c in centres] == [1, 2, 3, 4, 5]


def test_legend_names_present_classes_only():
    few = pixels(comparison([row()], CLASSES))
    assert area(few, VOC_PALETTE[2]) == 0
    void = pixels(comparison([row(truth=mask(120, 160, 255))], CLASSES))
    assert area(void, VOC_PALETTE[255]) > 0 and area(few, VOC_PALETTE[255]) == 0


def test_comparison_accepts_missing_truth_and_extreme_shapes():
    drawn = pixels(comparison([row(1, 1), row(800, 60), row(40, 900, truth=None)], CLASSES))
    assert drawn.shape[1] == 1200 and drawn.shape[0] < 1600


def test_an_empty_figure_is_refused():
    with pytest.raises(ValueError, match="no images"):
        comparison([], CLASSES)
    with pytest.raises(ValueError, match="no images"):
        example_crops([], CLASSES)


def test_every_example_crop_is_shown():
    examples = [(f"e{i}", np.full((80, 80, 3), (10 * i + 50, 7, 9), np.uint8), mask(80, 80, 1)) for i in range(6)]
    drawn = pixels(example_crops(examples, CLASSES))
    assert drawn.shape[1] == 1200
    for i in range(6):
        assert area(drawn, (10 * i + 50, 7, 9)) > 15_000


def test_masks_and_legend_of_scenes_without_a_background_have_their_own_colours():
    """Class 0 has VOC's colour of class 1 there, and nothing is black but texts."""
    drawn = pixels(example_crops([("", np.full((80, 80, 3), 200, np.uint8), mask(80, 80, 1))] * 4, CLASSES, background=False))
    first, second = class_palette(background=False)[:2]
    assert area(drawn[:-40], first) == pytest.approx(15 * area(drawn[:-40], second), rel=0.1)
    assert area(drawn[-40:], first) > 50 < area(drawn[-40:], second), "the legend"


def test_every_figure_has_the_colours_of_scenes_without_a_background(monkeypatch):
    found = []

    def grid(cells, titles, classes, heads=(), palette=VOC_PALETTE):
        found.append(palette)
        return b""

    monkeypatch.setattr(panels, "image_grid", grid)
    image, class_ids = np.zeros((8, 8, 3), np.uint8), mask(8, 8, 1)
    for background in (True, False):
        comparison([row(8, 8)], CLASSES, background=background)
        example_crops([("", image, class_ids)], CLASSES, background=background)
        instances(image, class_ids, np.zeros((0, 4)), {0: class_ids}, CLASSES, background=background)
        unpooling(image, {}, class_ids, CLASSES, background=background)
        assert len(found) == 4 and all(np.array_equal(each, class_palette(background)) for each in found)
        found.clear()


def test_scores_are_written_above_their_masks():
    """Ink above the mask of a result that has a score, and above no other."""
    named = pixels(comparison([row(title="", mean_iou={"deconvnet": 0.5, "edeconvnet": None})], CLASSES))
    above = (named[34:50] < 128).all(axis=2).any(axis=0)
    assert above[600:800].any() and not above[:600].any() and not above[800:].any()


@pytest.mark.parametrize(("height", "width", "high"), [(90, 120, 4), (120, 90, 2)])
def test_instances_show_each_step_with_its_new_boxes(height, width, high):
    image = np.full((height, width, 3), (9, 8, 7), np.uint8)
    boxes = np.array([[0, 0, 100, 80], [10, 10, 60, 60], [20, 20, 50, 50]], np.float32)
    steps = {1: mask(height, width, 1), 3: mask(height, width, 2)}
    drawn = pixels(instances(image, mask(height, width, 3), boxes, steps, ("background", *"abc"), "name"))
    columns = 3 if high == 4 else 6
    side = 1200 // columns
    assert drawn.shape[1] == 1200 and drawn.shape[0] == pytest.approx(2 * side * height / width, rel=0.3)
    body = drawn[: int(2 * side * height / width)]
    for column, class_id in enumerate((1, 2, 3)):
        seen = np.flatnonzero((body == VOC_PALETTE[class_id]).all(axis=2).any(axis=0))
        assert column * side <= seen.min() <= seen.max() < (column + 1) * side
    orange = (np.abs(body.astype(int) - (255, 176, 0)) < 40).all(axis=2).sum(axis=0)
    first, second, truth = (orange[i * side : (i + 1) * side].sum() for i in range(3))
    assert first > 0 and second > 0 and truth == 0
    whole = pixels(instances(image, None, boxes, {3: steps[3]}, CLASSES))
    assert (np.abs(whole.astype(int) - (255, 176, 0)) < 40).all(axis=2).sum() > second  # all three are new there


def test_unpooling_shows_more_active_units_brighter():
    crop = np.full((32, 32, 3), (200, 30, 90), np.uint8)
    maps = {"unpool1": np.eye(4, dtype=np.float32), "deconv1": np.zeros((8, 8), np.float32)}
    drawn = pixels(unpooling(crop, maps, mask(32, 32, 1), CLASSES))
    cell = 295 * 295
    assert drawn.shape[1] == 1200
    assert area(drawn, (200, 30, 90)) == pytest.approx(cell, rel=0.05)
    assert area(drawn, (252, 254, 164)) == pytest.approx(cell / 4, rel=0.05)  # inferno's brightest: the diagonal
    assert area(drawn, (0, 0, 3)) + area(drawn, (0, 0, 4)) == pytest.approx(1.75 * cell, rel=0.05)
    assert area(drawn, VOC_PALETTE[1]) == pytest.approx(cell / 16, rel=0.3)


def test_the_legend_names_classes_void_and_ids_without_a_name():
    figure = new_figure(1)
    add_legend(figure, [0, 2, 9, 255], CLASSES)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["background", "bar", "id 9", "void"]
    faces = [patch.get_facecolor()[:3] for patch in figure.legends[0].get_patches()]
    np.testing.assert_allclose(faces, VOC_PALETTE[[0, 2, 9, 255]] / 255)


def test_the_thumbnail_of_a_mask_has_no_colours_of_its_own():
    large = np.triu(np.full((900, 1200), 2, np.uint8))
    drawn = thumbnail(large)
    assert drawn.shape == (360, 480, 3)
    assert {tuple(colour) for colour in drawn.reshape(-1, 3).tolist()} == {tuple(VOC_PALETTE[i].tolist()) for i in (0, 2)}
