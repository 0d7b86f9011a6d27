"""export.py: predictions that become labels, come back by import_data.py, or are refused."""

import json
import os
import shlex

import numpy as np
import pytest

from deconvnet.datasets.exporting import ExportOptions
from deconvnet.datasets.exporting.outlines import find_objects
from infra import storage
from infra.storage.lock import hold_lock
from proposals.image_codec import decode_mask
from tests.deconvnet.datasets.exporting.scenes import CLASSES, scene_mask
from tests.workflows.commands import call
from tests.workflows.export.exporting import NAMES, write_predictions
from workflows import export, import_data


@pytest.mark.parametrize("name", ["cvat", "voc"])
def test_the_printed_command_imports_the_export_with_the_ids_of_the_model(run, tmp_path, name):
    done = run(name)
    assert done.returncode == 0, done.stderr
    assert "exported     6 images with 48 objects" in done.stdout
    assert ("agreement " in done.stdout) == (name == "cvat"), "masks keep all"
    small = sum(each.region.area < 20 for n in range(6) for each in find_objects(scene_mask(n), ExportOptions(CLASSES)))
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


def test_the_image_whose_labels_fit_its_mask_least_is_named(tmp_path):
    """A quarter of its pixels are specks, which are left out."""
    masks = [np.zeros((40, 40), np.uint8) for _ in NAMES]
    masks[4][::2, ::2] = 1
    predictions = write_predictions(tmp_path, masks)
    given = ["--format", "coco", "--predictions", str(predictions), "--to", str(tmp_path / "out")]
    done = call(export.main, *given, "--tolerance", "0", "--min_area", "20")
    assert f"agreement    95.83% of the pixels keep their class (least: 75.00%, {NAMES[4]});" in done.stdout


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
    assert f"rejects      {tmp_path}/out/rejects.csv (2)" in done.stdout.splitlines()
    reasons = (tmp_path / "out/rejects.csv").read_text()
    assert "the image was changed after it was predicted: run predict.py again" in reasons and "the image is gone" in reasons
    assert sum(1 for _ in (tmp_path / "out/labels").rglob("*.txt")) == 4


def test_an_export_without_a_usable_image_is_refused_whatever_share_may_be_unusable(run, tmp_path):
    for name in NAMES:
        os.utime(tmp_path / "photos" / name, ns=(1, 1))
    done = run("yolo", "--max_rejects", "1")
    assert done.returncode == 2 and "6 of 6 images can't be exported" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("predictions", "has no finished table predictions: name the folder that predict.py wrote"),
        ("classes.json", "has no classes.json, because an earlier version"),
        ("predict.json", "holds files that this program didn't write"),
        ("photos", "does not exist: name a folder"),
    ],
)
def test_an_output_of_predict_that_is_not_whole_is_refused(run, predictions, tmp_path, lost, said):
    (tmp_path / lost if lost == "photos" else predictions / lost).rename(tmp_path / "lost")
    done = run("coco")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


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
