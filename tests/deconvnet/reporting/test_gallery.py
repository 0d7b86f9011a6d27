"""Which images the report shows, and what its figures of them contain."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from deconvnet.inference.predictor import RESULTS, Predictor, PredictorOptions
from deconvnet.reporting import gallery, panels
from infra.storage import tables
from proposals import schemas
from proposals.boxes import crop, enlarge, make_windows
from proposals.image_codec import encode_jpeg, encode_mask
from tests.deconvnet.ensembles import random_networks
from tests.image_tables import boxes_row, image_row, write_images_and_proposals


def row(value: float | None) -> dict[str, float | None]:
    return {"edeconvnet_crf": value}


def test_best_median_and_worst_are_chosen_among_measured_images() -> None:
    scores = {f"i{n:02}": row(n / 10) for n in range(11)} | {"void": row(None)}
    words = ("best", "best", "median", "median", "worst", "worst")
    ids = ("i10", "i09", "i06", "i05", "i01", "i00")
    assert gallery.best_median_worst(scores) == list(zip(words, ids, strict=True))
    assert gallery.best_median_worst(scores, 1) == [("best", "i10"), ("median", "i05"), ("worst", "i00")]
    three = {"b": row(0.5), "a": row(0.5), "c": row(0.1)}
    assert gallery.best_median_worst(three) == [("best", "a"), ("best", "b"), ("worst", "c")]
    assert gallery.best_median_worst({"void": row(None)}) == []


def test_the_images_with_the_largest_leads_are_chosen() -> None:
    def scores(fcn8s: float | None, deconvnet: float, edeconvnet: float) -> dict[str, float | None]:
        return {"fcn8s": fcn8s, "deconvnet": deconvnet, "edeconvnet": edeconvnet}

    mean_iou = {
        "a": scores(0.5, 0.9, 0.7),
        "b": scores(0.5, 0.6, 0.55),
        "c": scores(0.9, 0.2, 0.95),
        "d": scores(0.5, 0.5, 0.4),
        "e": scores(0.1, 0.8, 0.7),
        "void": scores(None, 1.0, 1.0),
    }
    assert gallery.largest_leads(mean_iou) == [
        ("DeconvNet over FCN-8s", "e"),
        ("DeconvNet over FCN-8s", "a"),
        ("FCN-8s over DeconvNet", "c"),
        ("EDeconvNet over both", "c"),
    ]
    assert gallery.largest_leads({"d": scores(0.5, 0.5, 0.4)}) == []


CLASSES = ["background", "thing", "other"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(*random_networks(), PredictorOptions(proposals=7, bf16=False, crf={"iterations": 1}))


@pytest.fixture
def uris(tmp_path: Path, rng: np.random.Generator) -> tuple[str, str]:
    """Tables of images a to f, 60×40 px; a and b are all background, f has no masks and no proposals."""
    rows, boxes = [], []
    for number, name in enumerate("abcdef"):
        truth = np.zeros((40, 60), np.uint8)
        if number > 1:
            truth[10:30, 10:40], truth[32:36, 2:8] = 1, 2
        image = rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)
        rows.append(image_row(name, image, truth if name != "f" else None, truth if name in "ace" else None, "val"))
        if name != "f":
            boxes.append(boxes_row(rows[-1], [[0, 0, 9 + 3 * k, 9 + 2 * k] for k in range(9)]))
    return write_images_and_proposals(tmp_path, rows, boxes, parts=2)


def test_samples_hold_masks_and_boxes_of_their_image(uris: tuple[str, str]) -> None:
    found = gallery.read_samples(*uris, ["e", "b", "f", "nobody"])
    assert sorted(found) == ["b", "e", "f"]
    assert found["e"].boxes.shape == (9, 4) and found["f"].boxes.shape == (0, 4) and found["f"].truth is None
    assert found["b"].objects is not None and not found["b"].objects.any()
    assert found["e"].truth is not None and sorted(np.unique(found["e"].truth)) == [0, 1, 2]
    assert not len(gallery.read_samples(uris[0], None, ["a"])["a"].boxes)


def test_the_gallery_has_every_figure_that_can_be_drawn(predictor: Predictor, uris: tuple[str, str]) -> None:
    scores = {name: dict.fromkeys(RESULTS, 1.0 - number / 10) for number, name in enumerate("abcde")}
    scores["b"]["deconvnet"] = 0.2
    drawn = gallery.draw_gallery(predictor, *uris, CLASSES, scores)
    assert list(drawn) == ["comparison", "wins", "instances", "unpooling"]
    for png in drawn.values():
        assert Image.open(io.BytesIO(png)).width == 1200
    void: dict[str, dict[str, float | None]] = {"c": dict.fromkeys(RESULTS)}
    assert gallery.draw_gallery(predictor, *uris, CLASSES, void) == {}


def test_a_sample_with_several_objects_is_preferred(uris: tuple[str, str]) -> None:
    found = gallery.read_samples(*uris, "abcdef")
    assert gallery.with_several_objects(found[name] for name in "abdc").image_id == "d"
    assert gallery.with_several_objects(found[name] for name in "fa").image_id == "f"
    one = replace(found["d"], objects=np.where(found["d"].objects == 1, found["d"].objects, 0))
    assert gallery.with_several_objects([found["a"], one, found["e"]]).image_id == "e", "two objects show more than one"
    assert gallery.with_several_objects([found["a"], one]).image_id == "d"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the panel of instances is given."""
    found: list[Any] = []
    monkeypatch.setattr("deconvnet.reporting.panels.instances", lambda *arguments: found.extend(arguments) or b"")
    return found


def test_instances_order_the_best_boxes_from_the_largest_to_the_smallest(
    predictor: Predictor, uris: tuple[str, str], calls: list[Any]
) -> None:
    shown = gallery.read_samples(*uris, ["c"])["c"]
    gallery.draw_instances(predictor, shown, CLASSES)
    image, truth, boxes, steps, *_ = calls
    assert image is shown.image and truth is shown.truth
    assert boxes.tolist() == shown.boxes[:7][::-1].tolist(), "the seven best, which grow in the table"
    assert list(steps) == [1, 5, 7]
    for count, mask in steps.items():
        np.testing.assert_array_equal(mask, predictor.masks(image, boxes[:count], ("deconvnet",))["deconvnet"])
    calls.clear()
    gallery.draw_instances(predictor, gallery.read_samples(*uris, ["f"])["f"], CLASSES)
    assert list(calls[3]) == [0] and not calls[3][0].any(), "no proposals: all background"


def test_instances_show_the_boxes_that_are_used_of_an_image_that_is_scaled_down(
    predictor: Predictor, uris: tuple[str, str], calls: list[Any]
) -> None:
    """`segment.min_side` is in pixels of the smaller image. The boxes of c have 9 px or more; 24 px are 12 px there."""
    options = replace(predictor.options, max_side=30, min_side=11.9 * predictor.options.context, window_sizes=(1.0,))
    sample = gallery.read_samples(*uris, ["c"])["c"]
    gallery.draw_instances(Predictor(predictor.deconvnet, predictor.fcn8s, options), sample, CLASSES)
    image, _, boxes, steps, *_ = calls
    assert image.shape == (20, 30, 3) and max(steps) == len(boxes)
    windows = make_windows(20, 30, (1.0,))
    expected = [box / 2 for box in sample.boxes if max(box[2:] - box[:2]) >= 24][:7]
    np.testing.assert_allclose(boxes, [*windows, *sorted(expected, key=lambda box: -np.prod(box[2:] - box[:2]))])
    assert 0 < len(expected) < 7 and all(mask.shape == (20, 30) for mask in steps.values())


def test_instances_show_masks_of_all_boxes_though_predictions_may_end_early(
    predictor: Predictor, uris: tuple[str, str], calls: list[Any]
) -> None:
    """`segment.early_exit` would end this image after twenty boxes. The predictor stays as it is, for the other figures."""
    shown = gallery.read_samples(*uris, ["c"])["c"]
    boxes = np.array([[k, k // 2, k + 25, k // 2 + 25 - k / 2] for k in range(30)], np.float32)  # from large to small
    options = replace(predictor.options, proposals=40, batch=10)
    early = Predictor(predictor.deconvnet, predictor.fcn8s, replace(options, early_exit=1.0))
    every = Predictor(predictor.deconvnet, predictor.fcn8s, options)
    gallery.draw_instances(early, replace(shown, boxes=boxes), CLASSES)
    assert list(calls[3]) == [1, 5, 10, 20, 30]
    found = [each.masks(shown.image, boxes, ("deconvnet",))["deconvnet"] for each in (every, early)]
    np.testing.assert_array_equal(calls[3][30], found[0])
    assert (found[0] != found[1]).any()


def test_unpooling_shows_the_crop_of_the_largest_object(
    predictor: Predictor, uris: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    regions: list[Any] = []
    maps_of = gallery.decoder_maps
    monkeypatch.setattr(gallery, "decoder_maps", lambda *given: regions.append(given[2]) or maps_of(*given))
    monkeypatch.setattr("deconvnet.reporting.panels.unpooling", lambda *arguments: calls.append(arguments) or b"")
    found = gallery.read_samples(*uris, "cf")
    gallery.draw_unpooling(predictor, found["c"], CLASSES)
    gallery.draw_unpooling(predictor, found["f"], CLASSES)
    (seen, maps, mask, _, title, _), (whole, _, _, _, bare_title, _) = calls
    assert title == "c, thing" and bare_title == "f"
    window = enlarge(np.array([[10, 10, 40, 30]]), 1.2, "square")[0]
    np.testing.assert_array_equal(seen, crop(found["c"].image, window, 32))
    assert found["c"].truth is not None and regions[1] is None
    np.testing.assert_array_equal(regions[0], crop(found["c"].truth, window, 32, 0, cv2.INTER_NEAREST) == 1)
    assert len(maps) == 10 and mask.shape == (32, 32) and whole.shape == (32, 32, 3)


def test_examples_are_drawn_from_the_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty crops in groups of four; two groups are drawn. The brightness of a crop is its number; 17 is of a window."""
    table = str(tmp_path / "t")
    rows = [
        {
            "image_id": f"{n}",
            "stage": 1,
            "box": [0.0, 0.0, 9.0, 9.0],
            "class_ids": [1, 2],
            "iou": 0.0 if n == 17 else 1.0,
            "image": encode_jpeg(np.full((36, 36, 3), 10 * n, np.uint8)),
            "mask": encode_mask(np.ones((36, 36), np.uint8)),
        }
        for n in range(20)
    ]
    part = tables.write_part(table, "f", 0, rows, schemas.EXAMPLES, rows_per_group=4)
    tables.commit(table, "f", [part], {"repeats_by_class": {"1": 2, "2": 3}})
    drawn: list[Any] = []
    monkeypatch.setattr("deconvnet.reporting.panels.example_crops", lambda *given: drawn.append(given) or b"")
    gallery.draw_examples(table, CLASSES, count=8, background=False)
    ((crops, classes, background),) = drawn
    assert [round(float(crop.mean()) / 10) for _, crop, _ in crops] == [0, 1, 2, 3, 16, 17, 18, 19]
    titles = ["other, IoU 1.00, ×3"] * 8
    titles[5] = "other, window, ×3"
    assert [title for title, _, _ in crops] == titles and all((mask == 1).all() for _, _, mask in crops)
    assert classes == CLASSES and background is False


def test_scenes_without_a_background_are_drawn_in_their_colours_and_compared_by_the_masks_of_the_predictor(
    predictor: Predictor, uris: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, bool] = {}
    rows: list[panels.ComparisonRow] = []
    monkeypatch.setattr(
        "deconvnet.reporting.panels.comparison",
        lambda given, *_, background: rows.extend(given) or found.update(comparison=background) or b"",
    )
    for name in ("instances", "unpooling"):
        monkeypatch.setattr(
            f"deconvnet.reporting.panels.{name}", lambda *given, name=name: found.update({name: given[-1]}) or b""
        )
    scenes = Predictor(predictor.deconvnet, predictor.fcn8s, replace(predictor.options, background=False))
    drawn = gallery.draw_gallery(scenes, *uris, CLASSES, {name: dict.fromkeys(RESULTS, 0.5) for name in "cd"})
    assert found == {"comparison": False, "instances": False, "unpooling": False}
    assert list(drawn) == ["comparison", "instances", "unpooling"], "there are no wins, as nobody is ahead"
    samples = gallery.read_samples(*uris, "cd", background=False)
    for row in rows:
        sample = samples[row.title[-1]]
        np.testing.assert_array_equal(row.image, sample.image)
        expected = scenes.masks(sample.image, sample.boxes, panels.COMPARED)
        assert row.truth is not None and set(row.masks) == set(expected)
        for name, mask in expected.items():
            np.testing.assert_array_equal(row.masks[name], mask)


def test_windows_come_first_where_predictions_are_shown_box_by_box(
    predictor: Predictor, uris: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("deconvnet.reporting.panels.instances", lambda *arguments: calls.append(arguments) or b"")
    options = replace(predictor.options, window_sizes=(1.0, 0.5), background=False)
    found = Predictor(predictor.deconvnet, predictor.fcn8s, options)
    sample = gallery.read_samples(*uris, ["c"], background=False)["c"]
    gallery.draw_instances(found, sample, CLASSES)
    ((_, _, boxes, steps, _, _, background),) = calls
    windows = found.windows(*sample.image.shape[:2])
    np.testing.assert_array_equal(boxes[: len(windows)], windows)
    assert len(boxes) == len(windows) + len(found.best_boxes(sample.boxes)) == max(steps) and background is False
