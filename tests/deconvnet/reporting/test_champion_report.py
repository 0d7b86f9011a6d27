"""The part of the report that compares a new model with the champion: which images and classes changed, and the figure."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from deconvnet.evaluation.comparison import DECISIVE_RESULT, IMAGE_CONFUSIONS, image_confusions_file
from deconvnet.evaluation.hold_out import HoldOut
from deconvnet.evaluation.image_measures import IMAGES_FILE, images_file
from deconvnet.evaluation.inputs import EvaluationInputs
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.inference.predictor import Predictor, PredictorOptions
from deconvnet.models.checkpoint import save_model
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.fcn8s import FCN8s
from deconvnet.reporting.champion_report import class_changes, compare_with_champion, summary_sentence
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from tests.deconvnet.png_pixels import area, pixels
from tests.image_tables import boxes_row, image_row, write_images_and_proposals

CLASSES = ("background", "cat", "dog", "unicorn")
IMAGES = "abcdefgh"


def matrix(hits: int) -> np.ndarray:
    """The confusion of an image of 100 pixels, of which `hits` are right. The errors are background called cat or dog."""
    made = np.zeros((4, 4), np.int32)
    made[0, 0], made[2, 2], made[0, 1], made[0, 2] = hits - 10, 10, 5, 95 - hits
    return made


def evaluated(folder: Path, confusions: dict[str, np.ndarray]) -> None:
    """Write the files of an evaluation that a comparison reads. The champion's boundaries are half as good."""
    folder.mkdir(exist_ok=True)
    total = ConfusionMatrix(4, sum(confusions.values()))
    iou = {name: None if np.isnan(value) else value for name, value in zip(CLASSES, total.iou.tolist(), strict=True)}
    row = {"mean_iou": total.mean_iou, "pixel_accuracy": total.pixel_accuracy, "iou": iou}
    (folder / "results.json").write_text(json.dumps({"classes": CLASSES, "rows": {DECISIVE_RESULT: row}}))
    (folder / IMAGE_CONFUSIONS).write_bytes(image_confusions_file(confusions))
    rows = []
    for number, (image_id, each) in enumerate(confusions.items()):
        mean_iou = ConfusionMatrix(4, each).mean_iou
        row = {"image_id": image_id, f"mean_iou.{DECISIVE_RESULT}": None if np.isnan(mean_iou) else mean_iou, "confidence": 0.5}
        boundary_f = number / (20 if folder.name == "champion" else 10)
        rows.append({**row, "boundary_f": boundary_f, "picture": f"images/{image_id}.jpg", "mask": ""})
    (folder / IMAGES_FILE).write_bytes(images_file(rows, (DECISIVE_RESULT,), CLASSES))


@pytest.fixture
def inputs(tmp_path: Path, rng: np.random.Generator) -> EvaluationInputs:
    """Tables of images that are red on the left, where their masks show a dog, and the folders of two networks."""
    rows = []
    for name in IMAGES:
        image, truth = rng.integers(0, 60, (40, 60, 3)).astype(np.uint8), np.zeros((40, 60), np.uint8)
        image[:, :30] = (250, 20, 20)
        truth[:, :30] = 2
        rows.append(image_row(name, image, truth, None, "val"))
    images, proposals = write_images_and_proposals(tmp_path, rows, [boxes_row(row, [[0, 0, 60, 40]]) for row in rows])
    uris = [str(tmp_path / f"models{number}" / name) for number in (0, 1) for name in ("deconvnet", "fcn8s")]
    for uri in uris:
        torch.manual_seed(2)
        network = DeconvNet(4, 0.0625, 32) if uri.endswith("deconvnet") else FCN8s(4, 0.0625, batch_norm=True)
        if uri.endswith("fcn8s"):  # predicts one class everywhere: the champion 1, the new model 3
            with torch.no_grad():
                network.score.bias[1 if "models0" in uri else 3] = 50.0
        save_model(network, uri, CLASSES)
    options = PredictorOptions(proposals=1, bf16=False, crf={"iterations": 1})
    return EvaluationInputs(uris[2], uris[3], images, proposals, "val", CLASSES, options)


def champion_of(inputs: EvaluationInputs) -> EvaluationInputs:
    deconvnet, fcn8s = (uri.replace("models1", "models0") for uri in (inputs.deconvnet_uri, inputs.fcn8s_uri))
    return replace(inputs, deconvnet_uri=deconvnet, fcn8s_uri=fcn8s)


def compared(folder: Path, inputs: EvaluationInputs, *images: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Compare two models on these images, or on all that have a row; two others are new."""
    with LocalExecutor(1) as executor:
        hold_out = HoldOut(list(images or IMAGES), 2, 0)
        files = compare_with_champion(inputs, champion_of(inputs), hold_out, str(folder), executor)
    return files, json.loads(files["against_champion.json"])


def test_the_images_and_classes_that_gained_and_lost_most_are_found_and_shown(tmp_path: Path, inputs: EvaluationInputs) -> None:
    before = {name: matrix(60 + i) for i, name in enumerate(IMAGES)}
    after = dict(before)
    for name, hits in (("b", 90), ("c", 69), ("e", 94), ("f", 78), ("a", 40), ("h", 50)):
        after[name] = matrix(hits)
    evaluated(tmp_path, after)
    evaluated(tmp_path / "champion", before)
    files, found = compared(tmp_path, inputs)
    assert list(files) == ["against_champion.png", "against_champion.parquet", "against_champion.json"]
    assert (found["images_gained"], found["images_lost"], found["images_equal"]) == (4, 2, 2)
    assert found["boundary_f"] == {"champion": pytest.approx(0.175), "challenger": pytest.approx(0.35)}
    rows = {row["image_id"]: row for row in pq.read_table(io.BytesIO(files["against_champion.parquet"])).to_pylist()}
    assert list(rows) == list(IMAGES) and rows["d"]["change"] == 0 and rows["h"]["change"] < -0.05 < 0.1 < rows["e"]["change"]
    assert rows["h"]["mean_iou.champion"] == ConfusionMatrix(4, before["h"]).mean_iou
    assert rows["h"]["mean_iou.challenger"] == ConfusionMatrix(4, after["h"]).mean_iou
    assert (rows["c"]["boundary_f.champion"], rows["c"]["boundary_f.challenger"]) == (0.1, 0.2)
    assert (rows["c"]["picture.champion"], rows["c"]["picture.challenger"]) == ("champion/images/c.jpg", "images/c.jpg")
    assert [name for name, _, _ in found["gained"]] == ["e", "b", "f"] and [name for name, _, _ in found["lost"]] == ["a", "h"]
    _, champion, challenger = found["lost"][0]
    assert champion == ConfusionMatrix(4, before["a"]).mean_iou and challenger == ConfusionMatrix(4, after["a"]).mean_iou
    assert found["images"] == 8 and found["lower"] < found["rise"] < found["upper"]
    assert found["rise"] == pytest.approx(found["mean_iou"]["challenger"] - found["mean_iou"]["champion"])
    assert [name for name, _, _ in found["classes"]][-1] == "unicorn", "it occurs nowhere"

    drawn = pixels(files["against_champion.png"])
    cell = 295 * 197  # px of a 3:2 image in a quarter of the width
    assert drawn.shape[1] == 1200 and drawn.shape[0] > 5 * 200
    columns = [drawn[:, 300 * i : 300 * (i + 1)] for i in range(4)]
    assert area(columns[1][:-60], (0, 128, 0)) == pytest.approx(5 * cell / 2, rel=0.05), "the truth, half a dog"
    assert area(columns[2][:-60], (128, 0, 0)) == pytest.approx(5 * cell, rel=0.05), "the champion's masks, all cat"
    assert area(columns[3][:-60], (128, 128, 0)) == pytest.approx(5 * cell, rel=0.05), "the new model's, all unicorn"


def test_models_with_equal_masks_have_no_figure(tmp_path: Path, inputs: EvaluationInputs) -> None:
    for folder in (tmp_path, tmp_path / "champion"):
        evaluated(folder, {name: matrix(60) for name in IMAGES} | {"void": np.zeros((4, 4), np.int32)})
    files, found = compared(tmp_path, inputs, *IMAGES, "void")
    assert list(files) == ["against_champion.parquet", "against_champion.json"] and found["images"] == 9
    assert (found["images_gained"], found["images_lost"], found["images_equal"]) == (0, 0, 9)
    assert (found["rise"], found["lower"], found["upper"], found["gained"], found["lost"]) == (0, 0, 0, [], [])


def test_each_model_predicts_the_figure_with_its_own_options(
    tmp_path: Path, inputs: EvaluationInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(tmp_path, {name: matrix(80 if name == "a" else 60) for name in IMAGES})
    evaluated(tmp_path / "champion", {name: matrix(60) for name in IMAGES})
    champion = replace(champion_of(inputs), options=replace(inputs.options, fcn_weight=0.25))
    loaded: list[tuple[object, ...]] = []
    nothing = SimpleNamespace(masks=lambda image, boxes, names: dict.fromkeys(names, np.zeros(image.shape[:2], np.uint8)))
    monkeypatch.setattr(Predictor, "load", lambda *given: loaded.append(given) or nothing)
    with LocalExecutor(1) as executor:
        compare_with_champion(inputs, champion, HoldOut(list(IMAGES), 0, 0), str(tmp_path), executor)
    expected = [(each.deconvnet_uri, each.fcn8s_uri, "cpu", each.options) for each in (champion, inputs)]
    assert loaded == expected


def test_only_images_by_which_both_may_be_judged_count(tmp_path: Path, inputs: EvaluationInputs) -> None:
    """The new model is better on the first two images, and worse on the others, which are new."""
    evaluated(tmp_path, {name: matrix(80 if name in "ab" else 30) for name in IMAGES})
    evaluated(tmp_path / "champion", {name: matrix(60) for name in IMAGES})
    files, found = compared(tmp_path, inputs, "a", "b")
    assert pq.read_table(io.BytesIO(files["against_champion.parquet"]))["image_id"].to_pylist() == ["a", "b"]
    assert found["rise"] > 0.1 and (found["images"], found["new_images"]) == (2, 2)
    assert found["rise"] == pytest.approx(found["mean_iou"]["challenger"] - found["mean_iou"]["champion"])
    assert {name for name, _, _ in found["gained"]} == {"a", "b"} and found["lost"] == []
    assert all(after >= before for _, before, after in found["classes"] if before is not None)


def test_evaluations_of_other_images_or_without_confusion_matrices_are_not_compared(
    tmp_path: Path, inputs: EvaluationInputs
) -> None:
    evaluated(tmp_path, {name: matrix(60) for name in IMAGES})
    evaluated(tmp_path / "champion", {name: matrix(60) for name in IMAGES[1:]})
    with pytest.raises(ValueError, match="different images: 1 of them, such as 'a'"):
        compared(tmp_path, inputs)
    evaluated(tmp_path / "champion", {name: matrix(60) for name in IMAGES})
    (tmp_path / "champion" / IMAGES_FILE).unlink()
    with pytest.raises(UserError, match=r"champion/images\.parquet does not exist"):
        compared(tmp_path, inputs)
    (tmp_path / "champion" / IMAGE_CONFUSIONS).unlink()
    with pytest.raises(UserError, match=r"champion/image_confusions\.npz does not exist"):
        compared(tmp_path, inputs)


def test_the_texts_name_the_interval_and_the_changes() -> None:
    comparison = {
        "rise": 0.0123,
        "lower": -0.004,
        "upper": 0.0287,
        "images": 1060,
        "mean_iou": {"champion": 0.5, "challenger": 0.5123},
        "classes": [["cat", 0.5, 0.75], ["dog", 0.5, 0.25], ["unicorn", None, 0.1]],
    }
    sentence = (
        "Mean IoU 51.2 % against the champion's 50.0 %: +1.2 points (90 % interval -0.4 to +2.9, by a paired bootstrap over "
    )
    assert summary_sentence(comparison) == sentence + "1,060 images)."
    left_out = " Left out are 1,200 val images that were added or changed since the champion was registered."
    assert summary_sentence(comparison | {"new_images": 1200}) == sentence + "1,060 images)." + left_out
    assert class_changes(comparison) == [
        ("cat", "50.0", "75.0", "+25.0"),
        ("dog", "50.0", "25.0", "-25.0"),
        ("unicorn", "–", "10.0", "–"),
    ]
