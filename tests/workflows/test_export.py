"""export.py: predictions that become labels, come back by import_data.py, or are refused; and networks as ONNX files."""

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
import pytest
import torch
from PIL import Image

from deconvnet.datasets.exporting import ExportRules
from deconvnet.datasets.exporting.outlines import find_objects
from deconvnet.inference.predictions_table import PREDICTIONS
from deconvnet.models.checkpoint import load_model
from deconvnet.tracking import registry
from infra import storage
from infra.storage import tables
from infra.storage.lock import hold_lock
from proposals.image_codec import decode_mask
from tests.conftest import ROOT
from tests.deconvnet.datasets.exporting.scenes import CLASSES, scene_mask, write_prediction
from tests.deconvnet.ensembles import CLASSES as NETWORK_CLASSES
from tests.deconvnet.ensembles import random_image, save_networks
from tests.workflows.commands import Done, call
from workflows import export, import_data
from workflows.operations import network_export

NAMES = [f"{folder}{name}.jpg" for folder in ("", "site/") for name in "abc"]


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """What predict.py has written for six images: masks, the table, predict.json and classes.json."""
    folder, photos = tmp_path / "predictions", tmp_path / "photos"
    rows = []
    for number, name in enumerate(NAMES):
        mask = scene_mask(number)
        made = write_prediction(folder, name, mask, 0.5 + number / 100)
        row: dict = {field.name: "" if field.type == pa.string() else [] if field.type.num_fields else 0 for field in PREDICTIONS}
        info = Path(made.image).stat()
        row |= {"image_id": name, "path": str(photos / name), "width": mask.shape[1], "height": mask.shape[0], "overlay": None}
        row |= {"classes": list(made.classes), "shares": [0.25] * 4, "generation": "g1"}
        row |= {"confidence_before_crf": made.score, "class_confidence_before_crf": list(made.class_scores)}
        row |= {"mask": f"masks/{name[:-4]}.png", "stamp": f"{info.st_size}@{info.st_mtime_ns}"}
        rows.append(row)
    (folder / "photos").rename(photos)
    table = str(folder / "predictions")
    part = tables.write_part(table, "f" * 64, 0, rows, PREDICTIONS)
    tables.commit(table, "f" * 64, [part], {"input": str(photos), "model": "models:/edeconvnet/3"})
    state = {"input": str(photos), "model": "edeconvnet", "model_version": "3", "model_id": "i", "generation": "g1"}
    storage.write_json(str(folder / "predict.json"), state)
    storage.write_json(str(folder / "classes.json"), {"classes": CLASSES, "background": True})
    return folder


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
    assert ("kept " in done.stdout) == (name == "cvat"), "masks keep all"
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
    assert "99.99%" not in done.stdout and "kept         the class of 100.00% of the pixels" in done.stdout


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
    (tmp_path / "names.txt").write_text("a.jpg\nz.jpg\n")
    assert "1 images have no prediction, the first is z.jpg" in run("coco", "--only", str(tmp_path / "names.txt")).stderr
    assert "shapes masks is not what yolo has" in run("yolo", "--shapes", "masks").stderr
    assert "shapes polygons is not what voc has" in run("voc", "--shapes", "polygons").stderr
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
    assert "classes background, ring, crate, ball" in done.stdout and "class of 100.00% of the pixels" in done.stdout
    categories = json.loads((tmp_path / "out/annotations/instances_default.json").read_text())["categories"]
    assert categories[0] == {"id": 0, "name": "background"}


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
    """DeconvNet is sure of red, and less sure of what is no red in the first square than it is in others."""
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
