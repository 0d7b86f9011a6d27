"""export.py: predictions that become labels, come back by import_data.py, or are refused."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from deconvnet.inference.predictions_table import PREDICTIONS
from infra import storage
from infra.storage import tables
from infra.storage.lock import hold_lock
from proposals.image_codec import decode_mask
from tests.deconvnet.datasets.exporting.scenes import CLASSES, scene_mask, write_prediction
from tests.workflows.commands import Done, call
from workflows import export, import_data

NAMES = [f"{folder}{name}.jpg" for folder in ("", "site/") for name in "abc"]


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """What predict.py has written for six images: masks, the table, predict.json and classes.json."""
    folder, photos = tmp_path / "predictions", tmp_path / "photos"
    rows = []
    for number, name in enumerate(NAMES):
        mask = scene_mask(number)
        made = write_prediction(folder, name, mask, 0.5 + number / 100)
        row = dict.fromkeys(PREDICTIONS.names, "")
        info = Path(made.image).stat()
        row |= {"image_id": name, "path": str(photos / name), "width": mask.shape[1], "height": mask.shape[0], "overlay": None}
        row |= {"classes": list(made.classes), "shares": [0.25] * 4, "confidence": made.score, "generation": "g1"}
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
    command = shlex.split(done.stdout.strip().splitlines()[-1])
    assert command[:2] == ["python", "workflows/import_data.py"]
    imported = call(import_data.main, *command[2:])
    assert imported.returncode == 0, imported.stderr
    assert (tmp_path / "out-corrected/classes.txt").read_text().split() == list(CLASSES)
    for number, image in enumerate(NAMES):
        file = tmp_path / f"out-corrected/SegmentationClass/{image[:-4].replace('/', '_')}.png"
        assert (decode_mask(file.read_bytes()) == scene_mask(number)).mean() >= (0.99 if name == "cvat" else 1)


def test_settings_reach_the_export(run, tmp_path):
    (tmp_path / "names.txt").write_text("site/c.jpg\nb.jpg\n")
    done = run("labelstudio", "--only", str(tmp_path / "names.txt"), "--shapes", "masks", "--min_area", "2", "--image_url", "u/")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/tasks.json").read_text()
    assert text.count('"image": "u/') == 2 and '"image": "u/site/c.jpg"' in text and "brushlabels" in text
    assert text.count('"id"') == 14 and "predictions by models:/edeconvnet/3, of the classes ring, crate, ball" in done.stdout
    assert "99.99%" not in done.stdout and "kept         the class of 100.00% of the pixels" in done.stdout


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
