"""export.py: predictions that become labels, come back by import_data.py, or are refused; FiftyOne; and networks as ONNX files."""

import ast
import json
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from deconvnet.datasets.exporting import ExportRules
from deconvnet.datasets.exporting.outlines import find_objects
from deconvnet.evaluation.image_measures import images_file, read_images
from deconvnet.evaluation.metrics import ConfusionMatrix, none_if_nan
from deconvnet.inference.predictions_table import PREDICTIONS
from deconvnet.models.checkpoint import load_model
from deconvnet.tracking import registry
from infra import storage
from infra.storage import tables
from infra.storage.lock import hold_lock
from proposals.image_codec import decode_mask, encode_mask
from tests.conftest import ROOT
from tests.deconvnet.datasets.exporting.fiftyone_reader import read_dataset
from tests.deconvnet.datasets.exporting.scenes import CLASSES, scene_mask, write_prediction
from tests.deconvnet.ensembles import CLASSES as NETWORK_CLASSES
from tests.deconvnet.ensembles import random_image, save_networks
from tests.image_tables import image_row, write_images
from tests.workflows.commands import Done, call
from workflows import export, import_data
from workflows.operations import network_export

NAMES = [f"{folder}{name}.jpg" for folder in ("", "site/") for name in "abc"]


def write_predictions(
    tmp_path: Path, masks: list[np.ndarray], classes: tuple[str, ...] = CLASSES, background: bool = True
) -> Path:
    """What predict.py has written for six images: masks, the table, predict.json and classes.json."""
    folder, photos = tmp_path / "predictions", tmp_path / "photos"
    rows = []
    for number, (name, mask) in enumerate(zip(NAMES, masks, strict=True)):
        made = write_prediction(folder, name, mask, 0.5 + number / 100, classes)
        row: dict = {field.name: "" if field.type == pa.string() else [] if field.type.num_fields else 0 for field in PREDICTIONS}
        info = Path(made.image).stat()
        row |= {"image_id": name, "path": str(photos / name), "width": mask.shape[1], "height": mask.shape[0], "overlay": None}
        row |= {"classes": list(made.classes), "shares": [0.25] * 4, "generation": "g1"}
        row |= {"confidence_before_crf": made.score, "class_confidence_before_crf": list(made.class_scores)}
        row |= {"mask": f"masks/{name[:-4]}.png", "stamp": f"{info.st_size}@{info.st_mtime_ns}"}
        row |= {"entropy": number / 8, "boundary_doubt": None, "class_boundary_doubt": [0.5, None, 0.25, 0.125]}
        row |= {f"class_{each}": [number / 8, 0.5, 0.25, 0.0] for each in ("confidence", "entropy", "disagreement")}
        row["confidence_map"] = f"confidence/{name[:-4]}.png" if name.startswith("site/") else None
        if row["confidence_map"]:
            storage.write_bytes(str(folder / row["confidence_map"]), encode_mask(mask * 20))
        rows.append(row)
    (folder / "photos").rename(photos)
    table = str(folder / "predictions")
    part = tables.write_part(table, "f" * 64, 0, rows, PREDICTIONS)
    tables.commit(table, "f" * 64, [part], {"input": str(photos), "model": "models:/edeconvnet/3"})
    state = {"input": str(photos), "model": "edeconvnet", "model_version": "3", "model_id": "i", "generation": "g1"}
    storage.write_json(str(folder / "predict.json"), state)
    storage.write_json(str(folder / "classes.json"), {"classes": classes, "background": background})
    return folder


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """What predict.py has written for six images of scenes."""
    return write_predictions(tmp_path, [scene_mask(number) for number in range(len(NAMES))])


Run = Callable[..., Done]


@pytest.fixture
def run(predictions: Path, tmp_path: Path) -> Run:
    def call_export(name: str, *more: str) -> Done:
        return call(export.main, "--format", name, "--predictions", str(predictions), "--to", str(tmp_path / "out"), *more)

    return call_export


@pytest.mark.parametrize("name", ["cvat", "voc"])
def test_the_printed_command_imports_the_export_with_the_ids_of_the_model(run, tmp_path, name):
    done = run(name)
    assert done.returncode == 0, done.stderr
    assert "exported     6 images with 48 objects" in done.stdout
    assert ("agreement " in done.stdout) == (name == "cvat"), "masks keep all"
    small = sum(each.region.area < 20 for n in range(6) for each in find_objects(scene_mask(n), ExportRules(CLASSES)))
    assert f"specks       {small} objects have fewer than 20 px: --min_area 20 leaves them out" in done.stdout and 0 < small < 48
    command = shlex.split(done.stdout.strip().splitlines()[-1])
    assert command[:2] == ["python", "workflows/import_data.py"]
    imported = call(import_data.main, *command[2:])
    assert imported.returncode == 0, imported.stderr
    assert (tmp_path / "out-corrected/classes.txt").read_text().split() == list(CLASSES)
    for number, image in enumerate(NAMES):
        file = tmp_path / f"out-corrected/SegmentationClass/{image[:-4].replace('/', '_')}.png"
        assert (decode_mask(file.read_bytes()) == scene_mask(number)).mean() >= (0.99 if name == "cvat" else 1)


@pytest.mark.parametrize(("first", "background"), [("background", True), ("road: wet", False)])
def test_ids_of_voc_are_kept_also_if_labelmap_can_not_hold_the_names_and_a_class_does_not_occur(tmp_path, first, background):
    classes = (first, "type: 1", "crate", "ball #2, red")
    masks = [np.where(mask == 2, 0, mask) for mask in map(scene_mask, range(len(NAMES)))]
    predictions = write_predictions(tmp_path, masks, classes, background)
    done = call(export.main, "--format", "voc", "--predictions", str(predictions), "--to", str(tmp_path / "out"))
    assert done.returncode == 0 and not (tmp_path / "out/labelmap.txt").exists(), done.stderr
    imported = call(import_data.main, *shlex.split(done.stdout.strip().splitlines()[-1])[2:])
    assert imported.returncode == 0, imported.stderr
    names = (tmp_path / "out-corrected/classes.txt").read_text().splitlines()
    assert names == [*classes] if background else names == ["background", *classes]
    for name, mask in zip(NAMES, masks, strict=True):
        file = tmp_path / f"out-corrected/SegmentationClass/{name[:-4].replace('/', '_')}.png"
        assert np.array_equal(decode_mask(file.read_bytes()), mask + (not background))


def test_settings_reach_the_export(run, tmp_path):
    (tmp_path / "names.txt").write_text(f"site/c.jpg\n{tmp_path}/photos/b.jpg\n")  # predict.py --rank writes whole paths
    done = run("labelstudio", "--only", str(tmp_path / "names.txt"), "--shapes", "masks", "--min_area", "2", "--image_url", "u/")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/tasks.json").read_text()
    assert text.count('"image": "u/') == 2 and '"image": "u/site/c.jpg"' in text and "brushlabels" in text
    assert text.count('"id"') == 14 and "predictions by models:/edeconvnet/3, of the classes ring, crate, ball" in done.stdout
    scores = {}
    for (prediction,) in (task["predictions"] for task in json.loads(text)):
        for each in prediction["result"]:
            scores[prediction["score"], each["value"]["brushlabels"][0]] = each["score"]
    table = {(0.5 + n / 100, CLASSES[i]): 0.5 + n / 100 + i / 16 for n in (1, 5) for i in (1, 2, 3)}
    assert scores == pytest.approx(table, abs=1e-4), "those of the image and of each class in the table"
    assert "99.99%" not in done.stdout and "agreement    100.00% of the pixels keep their class" in done.stdout


def test_specks_are_not_mentioned_where_there_are_none(run):
    assert "fewer than 20 px" not in run("coco", "--min_area", "20").stdout


def test_a_dry_run_says_what_would_be_exported(run, tmp_path):
    done = run("coco", "--dry-run")
    assert "would export 6 images as polygons for coco" in done.stdout and not (tmp_path / "out").exists()


def test_images_that_are_gone_or_changed_are_not_exported_and_too_many_stop_the_export(run, predictions, tmp_path):
    os.utime(tmp_path / "photos/a.jpg", ns=(1, 1))
    (tmp_path / "photos/b.jpg").unlink()
    done = run("yolo")
    assert done.returncode == 2 and "2 of 6 images can't be exported, and max_rejects allows 5%" in done.stderr
    assert not (tmp_path / "out").exists()
    done = run("yolo", "--max_rejects", "0.4")
    assert done.returncode == 0 and "2 rejected" in done.stdout + done.stderr
    reasons = (tmp_path / "out/rejects.csv").read_text()
    assert "the image was changed after it was predicted: run predict.py again" in reasons and "the image is gone" in reasons
    assert sum(1 for _ in (tmp_path / "out/labels").rglob("*.txt")) == 4


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("predictions", "has no finished table predictions: name the folder that predict.py wrote"),
        ("classes.json", "has no classes.json, because an earlier version"),
        ("predict.json", "predict.json|holds files that this program didn't write"),
        ("photos", "does not exist: name a folder"),
    ],
)
def test_an_output_of_predict_that_is_not_whole_is_refused(run, predictions, tmp_path, lost, said):
    (tmp_path / lost if lost == "photos" else predictions / lost).rename(tmp_path / "lost")
    done = run("coco")
    assert done.returncode == 2 and any(each in done.stderr for each in said.split("|")) and "Traceback" not in done.stderr


def test_user_errors_are_sentences(run, predictions, tmp_path):
    (tmp_path / "none.txt").write_text("\n \n")
    for name in ("coco", "fiftyone"):
        done = run(name, "--only", str(tmp_path / "none.txt"))
        assert (
            done.returncode == 2 and f"only {tmp_path}/none.txt names no image" in done.stderr and not (tmp_path / "out").exists()
        )
    (tmp_path / "names.txt").write_text("a.jpg\nz.jpg\n")
    assert "1 images have no prediction, the first is z.jpg" in run("coco", "--only", str(tmp_path / "names.txt")).stderr
    assert "shapes masks is not possible for format yolo" in run("yolo", "--shapes", "masks").stderr
    assert "shapes polygons is not possible for format voc" in run("voc", "--shapes", "polygons").stderr
    state = storage.read_json(str(predictions / "predict.json"))
    storage.write_json(str(predictions / "predict.json"), {**state, "generation": "g2"})
    assert "are unfinished: predict.py was stopped" in run("coco").stderr
    storage.write_json(str(predictions / "predict.json"), state)
    with hold_lock(str(tmp_path / ".out.lock"), "export.py"):
        assert run("coco").returncode == 3
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("")
    assert "exists and is not empty" in run("coco").stderr
    assert (
        "is in a bucket"
        in call(export.main, "--format", "coco", "--predictions", str(predictions), "--to", "s3://bucket/out").stderr
    )


def test_the_class_0_of_a_scene_without_background_is_a_label(run, predictions, tmp_path):
    storage.write_json(str(predictions / "classes.json"), {"classes": CLASSES, "background": False})
    done = run("coco", "--tolerance", "0")
    assert "classes background, ring, crate, ball" in done.stdout and "100.00% of the pixels keep their class" in done.stdout
    categories = json.loads((tmp_path / "out/annotations/instances_default.json").read_text())["categories"]
    assert categories[0] == {"id": 0, "name": "background"}


def test_fiftyone_gets_the_predictions_with_how_sure_they_are(run, tmp_path):
    (tmp_path / "names.txt").write_text("b.jpg\nsite/c.jpg\n")
    done = run("fiftyone", "--only", str(tmp_path / "names.txt"))
    assert done.returncode == 0, done.stderr
    assert "exported     2 images" in done.stdout and f"from_dir('{tmp_path}/out', fo.types.FiftyOneDataset" in done.stdout
    metadata, samples = read_dataset(tmp_path / "out")
    assert list(samples) == ["b.jpg", "site/c.jpg"] and metadata["description"] == "predictions by models:/edeconvnet/3"
    for (name, sample), number in zip(samples.items(), (1, 5), strict=True):
        np.testing.assert_array_equal(sample["prediction"], scene_mask(number))
        assert sample["entropy"] == number / 8 and sample["boundary_doubt"] is None and "ground_truth" not in sample
        assert sample["confidence_before_crf"] == pytest.approx(0.5 + number / 100)
        assert [sample["class_boundary_doubt"][each] for each in CLASSES] == [0.5, None, 0.25, 0.125]
        assert ("confidence_map" in sample) == name.startswith("site/")
    np.testing.assert_array_equal(samples["site/c.jpg"]["confidence_map"], scene_mask(5) * 20)


def test_in_fiftyone_no_class_is_hidden_and_a_class_that_is_not_predicted_has_a_share_of_0(run, predictions, tmp_path):
    storage.write_json(str(predictions / "classes.json"), {"classes": [*CLASSES, "cone"], "background": False})
    (tmp_path / "names.txt").write_text("b.jpg\n")
    assert run("fiftyone", "--only", str(tmp_path / "names.txt")).returncode == 0
    metadata, samples = read_dataset(tmp_path / "out")
    np.testing.assert_array_equal(samples["b.jpg"]["prediction"], scene_mask(1) + 1)
    assert metadata["mask_targets"]["prediction"]["5"] == "cone"
    assert samples["b.jpg"]["shares"]["cone"] == 0.0 and samples["b.jpg"]["shares"]["ball"] == 0.25
    assert samples["b.jpg"]["class_entropy"]["cone"] is None


def test_fiftyone_gets_no_mask_that_the_table_does_not_describe_and_no_image_that_has_changed(run, predictions, tmp_path):
    (predictions / "masks/a.png").write_bytes(encode_mask(np.where(scene_mask() == 3, 1, scene_mask()).astype(np.uint8)))
    (predictions / "masks/b.png").unlink()
    os.utime(tmp_path / "photos/c.jpg", ns=(1, 1))
    done = run("fiftyone")
    assert done.returncode == 2 and "3 of 6 images can't be exported" in done.stderr and not (tmp_path / "out").exists()
    assert "would export 5 images for fiftyone" in run("fiftyone", "--max_rejects", "0.5", "--dry-run").stdout
    assert run("fiftyone", "--max_rejects", "0.5").returncode == 0
    assert set(read_dataset(tmp_path / "out")[1]) == {"site/a.jpg", "site/b.jpg", "site/c.jpg"}
    reasons = (tmp_path / "out/rejects.csv").read_text()
    assert "its mask has the classes background, ring, crate, but the table" in reasons and "there is no file" in reasons


EVALUATED = ("ring", "background", "ball", "cr.ate")
"""Class names by id, in an odd order, one with a dot."""


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """A workspace whose images p1, p3, p5 and p7 were evaluated; p3 is all void. Its networks and stages are left out."""
    folder, rows, measured = tmp_path / "workspace", [], []
    for number in range(8):
        truth, mask = scene_mask(number), scene_mask(number + 1)
        truth[:, 20:30] = 255
        truth[:] = 255 if number == 3 else truth
        image = np.full((*truth.shape, 3), 10 * number, np.uint8)
        rows.append(image_row(f"p{number}", image, truth, None, "val" if number % 2 else "train"))
        if number % 2:
            storage.write_bytes(str(folder / f"report/masks/p{number}.png"), encode_mask(mask))
            matrix = ConfusionMatrix(4).update(truth, mask)
            measures = {"image_id": f"p{number}", "pixel_accuracy": none_if_nan(matrix.pixel_accuracy), "boundary_f": number / 8}
            measures |= {f"iou.{name}": none_if_nan(iou) for name, iou in zip(EVALUATED, matrix.iou.tolist(), strict=True)}
            measured.append(measures | {"mean_iou.fcn8s": number / 16, "picture": "", "mask": f"masks/p{number}.png"})
    write_images(str(folder / "images"), rows, parts=2, rows_per_group=3)
    storage.write_bytes(str(folder / "report/images.parquet"), images_file(measured, ("fcn8s",), EVALUATED))
    storage.write_json(str(folder / "report/results.json"), {"classes": EVALUATED})
    storage.write_json(str(folder / "report/analysis.json"), {"segmenter": {"background": False}})
    return folder


def export_evaluated(folder: Path, *more: str) -> Done:
    to = folder.parent / "out"
    return call(export.main, "--format", "fiftyone", "--workspace", str(folder), "--to", str(to), *more)


def test_fiftyone_gets_the_evaluated_images_of_a_workspace_with_truth_and_measures(evaluated, tmp_path):
    assert "would export 4 images" in export_evaluated(evaluated, "--dry-run").stdout and not (tmp_path / "out").exists()
    done = export_evaluated(evaluated)
    assert done.returncode == 0, done.stderr
    metadata, samples = read_dataset(tmp_path / "out")
    assert list(samples) == [f"p{number}.jpg" for number in (1, 3, 5, 7)]
    assert metadata["mask_targets"]["prediction"] == {"1": "ring", "2": "background", "3": "ball", "4": "cr.ate"}
    table = {row["image_id"]: row for row in read_images(str(evaluated / "report/images.parquet"))}
    for number in (1, 3, 5, 7):
        sample, row = samples[f"p{number}.jpg"], table[f"p{number}"]
        np.testing.assert_array_equal(sample["prediction"], scene_mask(number + 1) + 1)
        truth = np.where(sample["ground_truth"] == 255, 255, sample["ground_truth"] - 1)
        expected = scene_mask(number)
        expected[:, 20:30] = 255
        np.testing.assert_array_equal(truth, np.full_like(expected, 255) if number == 3 else expected)
        assert sample["tags"] == ["val"] and sample["boundary_f"] == number / 8 and sample["mean_iou"]["fcn8s"] == number / 16
        assert sample["pixel_accuracy"] == row["pixel_accuracy"] and (row["pixel_accuracy"] is None) == (number == 3)
        assert [sample["iou"][key] for key in ("ring", "background", "ball", "cr_ate")] == [row[f"iou.{c}"] for c in EVALUATED]


def test_fiftyone_gets_no_annotation_other_than_the_one_that_was_evaluated(evaluated, tmp_path):
    """The annotation of p5 has changed since, p7 has none any more and p1 is gone."""
    rows = list(tables.iter_rows(str(evaluated / "images")))[2:]
    for row in rows:
        if row["image_id"] == "p5":
            row["class_mask"] = encode_mask(np.where(scene_mask(5) == 1, 2, scene_mask(5)).astype(np.uint8))
        if row["image_id"] == "p7":
            row["class_mask"] = None
    shutil.rmtree(evaluated / "images")
    write_images(str(evaluated / "images"), rows)
    done = export_evaluated(evaluated)
    assert done.returncode == 2 and "3 of 4 images can't be exported" in done.stderr
    assert export_evaluated(evaluated, "--max_rejects", "0.8").returncode == 0
    reasons = (tmp_path / "out/rejects.csv").read_text()
    assert "p1," in reasons and "not in the data set any more" in reasons and reasons.count("not the one that was evaluated") == 2
    assert list(read_dataset(tmp_path / "out")[1]) == ["p3.jpg"]


def test_user_errors_about_evaluations_are_sentences(evaluated, tmp_path, run):
    (tmp_path / "none.txt").write_text("")
    assert f"only {tmp_path}/none.txt names no image" in export_evaluated(evaluated, "--only", str(tmp_path / "none.txt")).stderr
    assert "has no evaluation in evaluations/dev" in export_evaluated(evaluated, "--evaluation", "evaluations/dev").stderr
    (tmp_path / "names.txt").write_text("p5\np4\n")
    assert (
        "1 images were not evaluated, the first is p4"
        in export_evaluated(evaluated, "--only", str(tmp_path / "names.txt")).stderr
    )
    (tmp_path / "names.txt").write_text("p5\n")
    assert "would export 1 images" in export_evaluated(evaluated, "--only", str(tmp_path / "names.txt"), "--dry-run").stdout
    storage.write_json(str(evaluated / "stages/prepare.json"), {})
    assert "a run there did not come to its end" in export_evaluated(evaluated).stderr
    shutil.rmtree(evaluated / "stages")
    old = pq.read_table(evaluated / "report/images.parquet").drop_columns("mask")
    pq.write_table(old, evaluated / "report/images.parquet")
    assert "made by an earlier version of this program, which kept no masks" in export_evaluated(evaluated).stderr
    assert "either new images or evaluated ones" in run("fiftyone", "--workspace", str(evaluated)).stderr
    assert "either new images or evaluated ones" in call(export.main, "--format", "fiftyone", "--to", "x").stderr
    assert "shapes polygons is not possible for format fiftyone" in run("fiftyone", "--shapes", "polygons").stderr
    assert "min_area is for labels" in run("fiftyone", "--min_area", "3").stderr


class TorchSession:
    """Stands in for onnxruntime's session: the network in torch."""

    def __init__(self, file: Path) -> None:
        self.network, _ = load_model(str(file.parents[1] / "model" / file.stem))

    def run(self, _: None, inputs: dict) -> list:
        with torch.no_grad():
            return [self.network(self.network.prepare(torch.from_numpy(inputs["images"].copy()))).numpy()]


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registered model, without MLflow: its folder."""
    folder = tmp_path / "model"
    save_networks(folder, seed=3, width=0.05)
    storage.write_json(
        str(folder / "options.json"), {"classes": NETWORK_CLASSES, "proposals": {}, "segment": {}, "max_pixels": 9}
    )
    monkeypatch.setattr(network_export, "model_store", lambda workspace, uri: "sqlite:///x")
    version = registry.Version("edeconvnet", "4", "id", str(folder))
    monkeypatch.setattr(network_export.registry, "find", lambda *_: version)
    monkeypatch.setattr(
        network_export.registry, "fetch", lambda found, store, to: shutil.copytree(folder, to, dirs_exist_ok=True)
    )
    return folder


EXAMPLE = ROOT / "examples/segment_onnx.py"


def run_example(folder: Path, patch: pytest.MonkeyPatch) -> np.ndarray:
    """Segment photo.png with the networks in out, in a folder. Returns the mask."""
    patch.setattr(sys, "argv", ["", *(str(folder / name) for name in ("out", "photo.png", "mask.png"))])
    runpy.run_path(str(EXAMPLE))
    return decode_mask((folder / "mask.png").read_bytes())


def test_the_example_puts_scores_back_where_their_pixels_are_and_adds_those_of_squares_that_overlap(tmp_path, monkeypatch):
    """DeconvNet is sure of red, and less sure of what is not red in the first square than it is in others."""
    image = np.zeros((50, 130, 3), np.uint8)
    image[5:20, 10:40] = image[30:45, 90:130] = (255, 0, 0)
    Image.fromarray(image).save(tmp_path / "photo.png")
    about = {"classes": ["background", "red", "first"], "input_size": {"deconvnet": 32, "fcn8s": 64}}
    storage.write_json(str(tmp_path / "out/networks.json"), about)
    calls = []

    def session(file: Path) -> SimpleNamespace:
        def run(_: None, inputs: dict) -> list:
            red = inputs["images"][:, 0].astype(np.float32) / 16 - 8
            assert inputs["images"].shape[2:] == ((32, 32) if file.stem == "deconvnet" else (25, 64))
            calls.append(file.stem)
            first = np.full_like(red, 4.0 if calls.count("deconvnet") == 1 and file.stem == "deconvnet" else -0.5)
            return [np.stack([np.zeros_like(red), red, first], axis=1)]

        return SimpleNamespace(run=run)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    mask = run_example(tmp_path, monkeypatch)
    expected = np.where(image[..., 0] > 0, 1, 0)
    expected[:, :20][expected[:, :20] == 0] = 2  # the first square alone covers these columns
    sure = np.s_[:, [*range(18), *range(44, 88), *range(93, 130)]]
    assert (mask[sure] == expected[sure]).mean() > 0.97
    assert mask[47, 30] == 2, "of two squares the surer one counts"
    assert calls.count("deconvnet") == 5 and calls.count("fcn8s") == 1


def test_the_example_segments_an_image_with_exported_networks(registered, tmp_path, monkeypatch, capsys):
    done = call(export.main, "--format", "onnx", "--to", str(tmp_path / "out"), "--dry-run")
    assert "would export deconvnet and fcn8s of edeconvnet version 4" in done.stdout and not (tmp_path / "out").exists()
    done = call(export.main, "--format", "onnx", "--to", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "exported edeconvnet version 4" in done.stdout and done.stdout.count("scores differ from torch's by") == 2
    about = storage.read_json(str(tmp_path / "out/networks.json"))
    assert about["classes"] == list(NETWORK_CLASSES) and about["model"] == "models:/edeconvnet/4" and about["background"]
    assert about["input_size"] == {"deconvnet": 32, "fcn8s": None}
    imports = {node.names[0].name for node in ast.walk(ast.parse(EXAMPLE.read_text())) if isinstance(node, ast.Import)}
    assert imports - sys.stdlib_module_names == {"cv2", "numpy", "onnxruntime"}
    Image.fromarray(random_image(5, 50, 130)).save(tmp_path / "photo.png")
    masks = []
    for session, sizes in ((onnxruntime.InferenceSession, (None, 64)), (TorchSession, (64,))):
        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        for longest in sizes:  # FCN-8s sees the image as it is, or scaled down
            storage.write_json(str(tmp_path / "out/networks.json"), {**about, "input_size": {"deconvnet": 32, "fcn8s": longest}})
            masks.append(run_example(tmp_path, monkeypatch))
    assert masks[0].shape == (50, 130) and len(np.unique(masks[0])) > 1 and (masks[0] != masks[1]).any()
    assert (masks[1] == masks[2]).mean() > 0.999
    assert capsys.readouterr().out.count("circle") == 3


def test_settings_of_labels_and_of_networks_are_not_mixed(run):
    assert "onnx exports the networks: leave predictions out" in run("onnx").stderr
    assert "predictions is not given" in call(export.main, "--format", "coco", "--to", "x").stderr
