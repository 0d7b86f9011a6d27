"""The evaluation job against the same measurements made in a loop."""

import io
import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.objects import make_object_mask
from deconvnet.datasets.overlay import side_by_side
from deconvnet.datasets.palette import class_palette
from deconvnet.evaluation import evaluator
from deconvnet.evaluation.boundaries import BoundaryCounts, boundary_counts
from deconvnet.evaluation.breakdowns import object_ious
from deconvnet.evaluation.calibration import calibration_counts, expected_calibration_error
from deconvnet.evaluation.comparison import DECISIVE_RESULT
from deconvnet.evaluation.drift import PredictionStatistics
from deconvnet.evaluation.evaluator import evaluate
from deconvnet.evaluation.inputs import EvaluationInputs, image_batches, read_images
from deconvnet.evaluation.measurements import BATCHES
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.inference.predictor import RESULTS, Predictor, PredictorOptions
from infra.errors import Interrupted, UserError
from infra.runtime.local_executor import LocalExecutor
from infra.storage import tables
from proposals.image_codec import decode_image, decode_mask, encode_mask
from tests.deconvnet.ensembles import save_networks
from tests.image_tables import boxes_row, image_row, write_images_and_proposals

CLASSES = ("background", "cat", "dog", "unicorn")
OPTIONS = PredictorOptions(proposals=2, batch=3)
UNPROPOSED = "p05"  # has no row in the table of proposals


@pytest.fixture
def models(tmp_path):
    save_networks(tmp_path, CLASSES)
    return [str(tmp_path / name) for name in ("deconvnet", "fcn8s")]


@pytest.fixture
def image_tables(tmp_path, rng):
    """Tables of images in two parts; every third image is of val. Of these p00 is all void and p21 has no mask.

    Every second image has a mask of objects that are not the connected regions of a class: halves of the image.
    """
    rows, boxes = [], []
    for i in range(24):
        name, height, width = f"p{i:02}", 30 + i, 40
        image = cv2.resize(rng.integers(0, 256, (3, 4, 3)).astype(np.uint8), (width, height))
        mask = cv2.resize(rng.integers(0, 3, (3, 4)).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        mask[:4] = 255
        if i == 0:
            mask[:] = 255
        split = "val" if i % 3 == 0 or name == UNPROPOSED else "train"
        halves = np.where(mask > 0, 1 + (np.arange(width) > width // 2), 0).astype(np.uint8)
        objects = make_object_mask(mask, halves) if i % 2 else None
        rows.append(image_row(name, image, *((None, None) if i == 21 else (mask, objects)), split))
        if name != UNPROPOSED:
            boxes.append(boxes_row(rows[-1], [[0, 0, 20, 20], [10, 5, 40, 30], [0, 0, 40, 30]], [3, 2, 1]))
    images, proposals = write_images_and_proposals(tmp_path, rows, boxes, parts=2, rows_per_group=5)
    return images, proposals, rows


class Pickling(LocalExecutor):
    """Passes units, the maker of workers and results through pickle, and gives the results in another order, as Ray may."""

    def map_actors(
        self, units: Mapping[int, Any], make: Callable[[int], Any], *args: Any, **names: Any
    ) -> Iterator[tuple[int, Any]]:
        units, make = pickle.loads(pickle.dumps((dict(units), make)))
        yield from reversed([pickle.loads(pickle.dumps(each)) for each in super().map_actors(units, make, *args, **names)])


def test_masks_are_not_measured_by_the_number_of_proposals_if_there_are_windows() -> None:
    """The predictor counts windows and proposals together, so the figures would be those of fewer proposals."""
    inputs = EvaluationInputs("", "", "", "", "val", CLASSES, replace(OPTIONS, proposals=7))
    assert inputs.counts == (1, 2, 5, 7)
    assert replace(inputs, options=replace(inputs.options, window_sizes=(1.0, 0.5))).counts == ()


def test_the_job_measures_what_a_loop_measures(models, image_tables, tmp_path, monkeypatch):
    confidences, of = [], PredictionStatistics.of
    monkeypatch.setattr(PredictionStatistics, "of", lambda given, *more: confidences.append(given) or of(given, *more))
    images, proposals, rows = image_tables
    inputs = EvaluationInputs(*models, images, proposals, "val", CLASSES, OPTIONS, str(tmp_path / "report"))
    found = evaluate(inputs, "made up", Pickling(1))

    predictor = Predictor.load(*models, options=OPTIONS)
    boxes = {row["image_id"]: row["boxes"] for row in tables.iter_rows(proposals)}
    totals = {name: ConfusionMatrix(4) for name in RESULTS}
    shares = []
    boundaries, calibration, measured = BoundaryCounts.zeros(5, 4), 0, {row["image_id"]: row for row in found.images}
    first_box, objects = ConfusionMatrix(4), []
    expected_ids = [r["image_id"] for r in rows if r["split"] == "val" and r["class_mask"]]
    for row in (r for r in rows if r["image_id"] in expected_ids):
        truth = cv2.imdecode(np.frombuffer(row["class_mask"], np.uint8), cv2.IMREAD_UNCHANGED)
        image, proposed = decode_image(row["image"]), np.array(boxes.get(row["image_id"], []), np.float32)
        masks, _, probabilities = predictor.predict_with_box_counts(image, proposed, ())
        shares.append(np.bincount(masks[DECISIVE_RESULT].ravel(), minlength=4) / truth.size)
        first_box.update(truth, predictor.masks(image, proposed[:1], ("deconvnet",))["deconvnet"])
        given = decode_mask(row["object_mask"]) if row["object_mask"] else make_object_mask(truth)
        objects.append(object_ious(truth, given, {"a": masks["edeconvnet"]})[1][0])
        own = boundary_counts(truth, [masks[name] for name in RESULTS], 4)
        boundaries += own
        calibration = calibration + calibration_counts(truth, masks[DECISIVE_RESULT], probabilities[DECISIVE_RESULT].max(axis=0))
        mine = measured[row["image_id"]]
        f, iou = np.nanmean(own.f_measure[4]) if row["image_id"] != "p00" else None, own.iou[4]
        assert mine["boundary_f"] == (None if row["image_id"] == "p00" else pytest.approx(f))
        assert mine["boundary_iou"] == (None if row["image_id"] == "p00" else pytest.approx(np.nanmean(iou)))
        sure = predictor.predict(image, proposed).uncertainty.image
        assert {name: mine[name] for name in asdict(sure)} == pytest.approx(asdict(sure), abs=1e-6)
        assert mine["picture"] == f"images/{row['image_id']}.jpg"
        picture = decode_image((tmp_path / "report" / mine["picture"]).read_bytes())
        expected = side_by_side(image, (truth, masks[DECISIVE_RESULT]), CLASSES)
        assert picture.shape == expected.shape and np.abs(picture.astype(int) - expected).mean() < 12, (
            "but for the losses of JPEG"
        )
        assert mine["mask"] == f"masks/{row['image_id']}.png"
        np.testing.assert_array_equal(decode_mask((tmp_path / "report" / mine["mask"]).read_bytes()), masks[DECISIVE_RESULT])
        for name in RESULTS:
            single = ConfusionMatrix(4).update(truth, masks[name])
            totals[name].update(truth, masks[name])
            mean_iou = mine[f"mean_iou.{name}"]
            assert mean_iou is None if row["image_id"] == "p00" else mean_iou == pytest.approx(single.mean_iou)
            if name == DECISIVE_RESULT:
                assert mine["pixel_accuracy"] == (None if row["image_id"] == "p00" else pytest.approx(single.pixel_accuracy))
                ious = [np.nan if mine[f"iou.{each}"] is None else mine[f"iou.{each}"] for each in CLASSES]
                np.testing.assert_allclose(ious, single.iou)
                np.testing.assert_array_equal(found.confusions[row["image_id"]], single.matrix)

    assert list(found.confusions) == list(measured) == expected_ids and UNPROPOSED in expected_ids
    assert found.results["images"] == 8 and found.results["classes"] == list(CLASSES)
    assert tuple(found.results["rows"]) == RESULTS
    for name in RESULTS:
        row = found.results["rows"][name]
        assert row["mean_iou"] == pytest.approx(totals[name].mean_iou)
        assert row["pixel_accuracy"] == pytest.approx(totals[name].pixel_accuracy)
        np.testing.assert_allclose([np.nan if v is None else v for v in row["iou"].values()], totals[name].iou)
        assert found.breakdowns["confusion"][name] == totals[name].matrix.tolist()
        number = RESULTS.index(name)
        for metric, values in (("boundary_f", boundaries.f_measure[number]), ("boundary_iou", boundaries.iou[number])):
            assert row[metric] == pytest.approx(np.nanmean(values))
            by_class = row[f"{metric}_by_class"]
            np.testing.assert_allclose([np.nan if by_class[each] is None else by_class[each] for each in CLASSES], values)
    assert found.results["expected_calibration_error"] == pytest.approx(expected_calibration_error(calibration), abs=1e-6)
    assert found.breakdowns["calibration"]["pixels"] == calibration[0].tolist() and calibration[0].sum() > 1000
    assert json.loads(json.dumps(found.results, allow_nan=False)) == found.results
    steps = found.breakdowns["proposals"]
    assert steps["counts"] == [1, 2]
    assert steps["mean_iou"] == pytest.approx([first_box.mean_iou, totals["deconvnet"].mean_iou])
    sizes = found.breakdowns["sizes"]
    assert sum(sizes["objects"]) == sum(map(len, objects)) > 5
    summed = sum(n * value for n, value in zip(sizes["objects"], sizes["mean_iou"]["edeconvnet"], strict=True) if n)
    assert summed == pytest.approx(np.concatenate(objects).sum())

    assert found.statistics.images == 8 and len(found.statistics.confidence_shares) == 1, "too few images for bins of confidence"
    assert confidences[0] == [row["confidence"] for row in found.images]
    assert list(found.statistics.class_shares) == list(CLASSES)
    np.testing.assert_allclose(list(found.statistics.class_shares.values()), np.mean(shares, axis=0))

    local = evaluate(replace(inputs, report_uri=""), "made up", LocalExecutor(2))
    for row, expected in zip(local.images, found.images, strict=True):
        assert row == pytest.approx(expected | {"picture": "", "mask": ""}), "but for the last digits of a mean"
    assert local.statistics == found.statistics
    assert local.results == found.results
    assert local.breakdowns["confusion"] == found.breakdowns["confusion"]
    assert local.breakdowns["proposals"] == found.breakdowns["proposals"]

    with pytest.raises(UserError, match=r"split 'test' of .* has no annotated image"):
        evaluate(replace(inputs, split="test"), "made up", Pickling(1))


@pytest.fixture
def predicted(monkeypatch):
    """The sizes of the images that were predicted, which differ from image to image."""
    sizes, predict = [], Predictor.predict_with_box_counts
    monkeypatch.setattr(
        Predictor,
        "predict_with_box_counts",
        lambda self, image, *args: sizes.append(image.shape[:2]) or predict(self, image, *args),
    )
    return sizes


@pytest.fixture
def interrupted(models, image_tables, tmp_path, predicted) -> EvaluationInputs:
    """The inputs of an evaluation with a report, which was stopped after two batches."""
    images, proposals, _ = image_tables
    inputs = EvaluationInputs(*models, images, proposals, "val", CLASSES, OPTIONS, str(tmp_path / "report"))
    stopped_after(2, inputs)
    assert 0 < len(predicted) < 8
    return inputs


def stopped_after(batches: int, inputs: EvaluationInputs) -> None:
    given: list[None] = []
    executor = LocalExecutor(1, should_stop=lambda: given.append(None) or len(given) >= batches)
    with pytest.raises(Interrupted):
        evaluate(inputs, "made up", executor)


def written(inputs: EvaluationInputs) -> dict[str, bytes]:
    """The pictures and masks in the report's folder."""
    folder = Path(inputs.report_uri)
    return {str(path.relative_to(folder)): path.read_bytes() for kind in ("images", "masks") for path in folder.glob(f"{kind}/*")}


def test_an_interrupted_evaluation_goes_on_where_it_ended(interrupted, tmp_path, predicted, caplog):
    with caplog.at_level("INFO"):
        resumed = evaluate(interrupted, "made up", LocalExecutor(1))
    assert re.search(r"2 of \d batches of images were evaluated before the interruption", caplog.text)
    in_all, predicted[:] = list(predicted), []

    again = replace(interrupted, report_uri=str(tmp_path / "again"))
    whole = evaluate(again, "made up", LocalExecutor(1))
    assert in_all == predicted and len(predicted) == 8, "each image was predicted once"
    assert json.dumps(resumed.results) == json.dumps(whole.results) and resumed.images == whole.images
    assert resumed.statistics == whole.statistics and resumed.breakdowns == whole.breakdowns
    assert written(interrupted) == written(again) and len(written(again)) == 16
    for image_id, confusion in whole.confusions.items():
        np.testing.assert_array_equal(resumed.confusions[image_id], confusion)

    predicted.clear()  # as if it had ended before the report was written
    assert evaluate(interrupted, "made up", LocalExecutor(1)).results == whole.results and predicted == []


def test_batches_of_one_row_group_share_no_image_and_no_file_of_measurements(tmp_path):
    """Else images would be counted twice, or an evaluation that goes on would take one batch's measurements for another's."""
    mask = np.ones((8, 8), np.uint8)
    rows = [image_row(f"p{i:02}", np.zeros((8, 8, 3), np.uint8), mask, mask, "train" if i % 4 else "val") for i in range(48)]
    of = write_images_and_proposals(tmp_path, rows, [boxes_row(row, []) for row in rows], rows_per_group=44)
    inputs = EvaluationInputs("", "", *of, "val", CLASSES, OPTIONS)
    batches = image_batches(inputs)
    read = [[image_id for image_id, *_ in read_images(inputs, batch)] for batch in batches]
    assert [len(ids) for ids in read] == [5, 6, 1], "at most 8"
    assert [each for ids in read for each in ids] == [row["image_id"] for row in rows if row["split"] == "val"]
    assert len({batch.file for batch in batches}) == 3


@pytest.mark.parametrize(
    "changed", ["options", "deconvnet", "fcn8s", "images", "proposals", "split", "classes", "version", "device", "ranges of int8"]
)
def test_what_other_inputs_have_left_is_measured_again(interrupted, image_tables, tmp_path, predicted, monkeypatch, changed):
    inputs, (_, proposals, rows) = interrupted, image_tables
    if changed == "options":
        inputs = replace(inputs, options=replace(OPTIONS, crf={"iterations": 1}))
    elif changed in ("deconvnet", "fcn8s"):
        save_networks(tmp_path / "others", CLASSES, seed=7)
        inputs = replace(inputs, **{f"{changed}_uri": str(tmp_path / "others" / changed)})
    elif changed in ("images", "proposals"):
        boxes = list(tables.iter_rows(proposals))
        for row in rows if changed == "images" else ():
            row["class_mask"] = row["class_mask"] and encode_mask(np.full_like(decode_mask(row["class_mask"]), 1))
        for row in boxes if changed == "proposals" else ():
            row["boxes"] = row["boxes"][:1]
            row["scores"] = row["scores"][:1]
        others = write_images_and_proposals(tmp_path / "others", rows, boxes, parts=2, rows_per_group=5)
        inputs = replace(inputs, images_uri=others[0], proposals_uri=others[1])
    elif changed == "split":
        inputs = replace(inputs, split="train")
    elif changed == "classes":
        inputs = replace(inputs, classes=("void", *CLASSES[1:]))
    elif changed == "version":
        monkeypatch.setattr(evaluator, "EVALUATION_VERSION", 0)
    elif changed == "ranges of int8":
        inputs = replace(inputs, options=replace(OPTIONS, int8=True))
        monkeypatch.setattr(evaluator, "_make_worker", partial(_in_floats, evaluator._make_worker))
        monkeypatch.setattr(evaluator, "ranges_file", lambda folder: "some")
        stopped_after(2, inputs)
        monkeypatch.setattr(evaluator, "ranges_file", lambda folder: "others")
    predicted.clear()
    if changed == "device":
        monkeypatch.setattr(evaluator, "_make_worker", partial(_on_cpu, evaluator._make_worker))
    found = evaluate(inputs, "made up", LocalExecutor(1), gpu=changed == "device")
    assert len(predicted) == found.results["images"] >= 8, "nothing that was kept is used"


def _in_floats(make: Callable[..., Any], inputs: EvaluationInputs, *args: Any) -> Any:
    return make(replace(inputs, options=replace(inputs.options, int8=False)), *args)


def _on_cpu(make: Callable[..., Any], inputs: EvaluationInputs, device: str, *args: Any) -> Any:
    assert device == "cuda"
    return make(inputs, "cpu", *args)


def test_an_evaluation_with_other_options_between_them_leaves_none_of_its_masks(interrupted, tmp_path, predicted):
    """Both write the masks of an image to the same file."""
    stopped_after(2, replace(interrupted, options=replace(OPTIONS, crf={"iterations": 1}, proposals=1)))
    predicted.clear()
    evaluate(interrupted, "made up", LocalExecutor(1))
    assert len(predicted) == 8
    again = replace(interrupted, report_uri=str(tmp_path / "again"))
    evaluate(again, "made up", LocalExecutor(1))
    assert written(interrupted) == written(again)


@pytest.mark.parametrize("lost", ["images", "masks"])
def test_images_whose_pictures_or_masks_were_deleted_are_predicted_again(interrupted, predicted, lost):
    for path in Path(interrupted.report_uri, lost).iterdir():
        path.unlink()
    predicted.clear()
    evaluate(interrupted, "made up", LocalExecutor(1))
    assert len(predicted) == 8 and len(written(interrupted)) == 16


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-100], lambda data: b"no zip file", lambda data: OLDER])
def test_kept_measurements_that_cannot_be_read_are_measured_again(interrupted, predicted, damage):
    for path in Path(interrupted.report_uri, BATCHES).rglob("*.npz"):
        path.write_bytes(damage(path.read_bytes()))
    predicted.clear()
    evaluate(interrupted, "made up", LocalExecutor(1))
    assert len(predicted) == 8


def test_a_model_folder_without_a_model_is_a_user_error_with_and_without_a_report(models, image_tables, tmp_path):
    images, proposals, _ = image_tables
    Path(models[1], "model.json").write_text("{")
    for report in ("", str(tmp_path / "report")):
        with pytest.raises(UserError, match="fcn8s"):
            evaluate(EvaluationInputs(*models, images, proposals, "val", CLASSES, OPTIONS, report), "made up", LocalExecutor(1))


def _older_file() -> bytes:
    """A file of an imagined earlier version, without most columns."""
    content = io.BytesIO()
    np.savez(content, image_ids=np.array(["p00"]))
    return content.getvalue()


OLDER = _older_file()


def test_a_batch_without_annotated_images_adds_nothing(tmp_path, models, rng):
    images = [rng.integers(0, 256, (32, 40, 3)).astype(np.uint8) for _ in range(4)]
    masks = [(np.ones((32, 40), np.uint8),) * 2 if i == 3 else (None, None) for i in range(4)]
    rows = [image_row(f"p{i}", image, *mask, "val") for i, (image, mask) in enumerate(zip(images, masks, strict=True))]
    boxes = [boxes_row(row, [[0, 0, 20, 20]]) for row in rows]
    of = write_images_and_proposals(tmp_path, rows, boxes, parts=2, rows_per_group=1)
    inputs = EvaluationInputs(*models, *of, "val", CLASSES, OPTIONS, str(tmp_path / "report"))
    found = evaluate(inputs, "made up", LocalExecutor(1))
    assert list(found.confusions) == ["p3"] and found.results["images"] == 1


@pytest.mark.parametrize("background", [True, False])
def test_without_a_background_class_0_has_objects_and_is_painted_in_colour(tmp_path, models, background):
    """In the breakdowns by size of object, the masks and the pictures."""
    halves = np.repeat([[0], [1]], 48, axis=0).astype(np.uint8).repeat(96, axis=1)
    row = image_row("p", np.full((96, 96, 3), 120, np.uint8), halves, halves + 1, "val")
    of = write_images_and_proposals(tmp_path, [row], [boxes_row(row, [])])
    options = replace(OPTIONS, background=background)
    found = evaluate(EvaluationInputs(*models, *of, "val", CLASSES, options, str(tmp_path / "report")), "m", LocalExecutor(1))
    assert sum(found.breakdowns["sizes"]["objects"]) == (1 if background else 2)
    mask = Image.open(tmp_path / "report/masks/p.png")
    assert mask.getpalette()[:9] == class_palette(background)[:3].ravel().tolist()
    truth = decode_image((tmp_path / "report/images/p.jpg").read_bytes())[6, 102]  # class 0 in the middle of three pictures
    np.testing.assert_allclose(truth, [120, 120, 120] if background else class_palette(False)[0] / 2 + 60, atol=20)
