"""predict.py on a folder of images of all kinds: what it writes, on a real S3 and on Ray, and as labels for a tool."""

import io
import json
import shlex
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from deconvnet.datasets.image_folder import ImageFile
from deconvnet.datasets.palette import VOC_PALETTE, class_palette
from deconvnet.inference import batch, predictions_table
from infra import storage
from infra.errors import UserError
from infra.storage import tables
from infra.storage.guarded import LockGuard
from tests.deconvnet.ensembles import CLASSES, SEGMENT, prediction
from tests.servers import s3_server
from tests.workflows.commands import LOCAL, call
from tests.workflows.predict.predicting import (
    GOOD,
    REJECTS,
    Run,
    arguments,
    predicted_by_mlflow,
    rows,
    written,
)
from workflows import export, import_data, predict
from workflows.operations import prediction as prediction_operation

pytestmark = pytest.mark.xdist_group("predict")


def test_a_folder_gets_masks_rows_and_rejects_and_a_second_run_does_nothing(run: Run, workspace, image_folder, tmp_path) -> None:
    out = tmp_path / "out"
    said = run()
    assert "8 images: 8 to predict by edeconvnet version 1, 0 up to date" in said
    found = rows(out)
    assert set(found) == GOOD and list(found) == sorted(found)
    expected = predicted_by_mlflow(workspace, 1, {name: (image_folder / name).read_bytes() for name in GOOD})
    for name, row in found.items():
        mask = Image.open(out / row["mask"])
        assert mask.mode == "P" and mask.getpalette()[:9] == VOC_PALETTE[:3].ravel().tolist()
        labels = np.asarray(mask)
        np.testing.assert_array_equal(labels, expected[name], err_msg=name)
        assert (row["height"], row["width"]) == labels.shape
        ids, counts = np.unique(labels, return_counts=True)
        assert row["classes"] == [CLASSES[i] for i in ids]
        np.testing.assert_allclose(row["shares"], counts / labels.size, rtol=1e-6)
        assert 1 / 3 < row["confidence"] <= 1
        assert row["path"] == str(image_folder / name) and row["overlay"] is None
        assert (row["model"], row["model_version"]) == ("edeconvnet", "1")
    assert any(len(row["classes"]) > 1 for row in found.values()), "labels all of one class would prove nothing"
    assert (found["nested/deep/turned.JPEG"]["height"], found["nested/deep/turned.JPEG"]["width"]) == (90, 50)
    assert {p.relative_to(out / "masks").as_posix() for p in (out / "masks").rglob("*.png")} == {
        "a.png",
        "nested/deep/turned.png",
        "nested/grey.png",
        "same.png",
        "thin.png",
    }
    rejects = {row["image_id"]: row for row in tables.iter_rows(f"{out}/rejects")}
    assert set(rejects) == set(REJECTS)
    assert all(rejects[name]["reason"].startswith(reason) for name, reason in REJECTS.items())
    assert rejects["text.webp"]["path"] == str(image_folder / "text.webp")
    assert sorted(p.name for p in out.iterdir()) == ["_lock", "classes.json", "masks", "predict.json", "predictions", "rejects"]
    share = sum(s for r in found.values() for c, s in zip(r["classes"], r["shares"], strict=True) if c == "circle") / len(found)
    count = sum("circle" in r["classes"] for r in found.values())
    assert f"circle{count:>17}{100 * share:>13.1f} %" in said and f"rejects      {out}/rejects (3)" in said

    before = written(out)
    assert "nothing to do" in run()
    assert written(out) == before
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"compute\.gpu is true, and this machine has no GPU"):
            run("--compute.gpu", "true", "--overlays", "true")


def test_confidence_maps_are_written_on_request_and_every_row_says_how_sure_it_is(run: Run, image_folder, tmp_path) -> None:
    out = tmp_path / "out"
    run()
    before = rows(out)
    assert {row["confidence_map"] for row in before.values()} == {None} and not (out / "confidence").exists()
    assert "8 to predict by edeconvnet version 1, 0 up to date" in run("--confidence", "maps"), "a mask says not how sure it is"
    found = rows(out)
    for name, row in found.items():
        assert row["confidence_map"] == row["mask"].replace("masks/", "confidence/")
        assert {**row, "confidence_map": None} == before[name]
        confidence, mask = Image.open(out / row["confidence_map"]), np.asarray(Image.open(out / row["mask"]))
        assert confidence.mode == "L" and confidence.size == (row["width"], row["height"])
        assert confidence.info["Comment"] == f"models:/edeconvnet/1, {row['generation']}"
        levels = np.asarray(confidence) / 255
        assert levels.mean() == pytest.approx(row["confidence_before_crf"], abs=0.005)
        for class_name, level in zip(row["classes"], row["class_confidence_before_crf"], strict=True):
            assert levels[mask == CLASSES.index(class_name)].mean() == pytest.approx(level, abs=0.03)
        measures = ("confidence", "confidence_before_crf", "entropy", "disagreement", "boundary_doubt")
        assert all(len(row[f"class_{each}"]) == len(row["classes"]) for each in measures)
    assert len({row["disagreement"] for row in found.values()}) > 1 and len({row["fingerprint"] for row in found.values()}) == 5
    assert 0 < max(row["boxes"] for row in found.values()) == SEGMENT["proposals"]
    maps = written(out / "confidence")
    assert "nothing to do" in run("--confidence", "maps", "--dry-run")
    (out / "confidence/a.png").unlink()
    (image_folder / "same.jpg").unlink()
    assert "3 to predict by edeconvnet version 1, 4 up to date" in run(), "same.png, and 2 that are not images"
    kept = {"nested/deep/turned.png", "nested/grey.png", "thin.png"}
    assert written(out / "confidence") == {name: maps[name] for name in kept}, "maps that were made before stay"
    assert {row["confidence_map"] for row in rows(out).values()} == {None, *(f"confidence/{name}" for name in kept)}
    plan = run("--confidence", "maps", "--dry-run")
    assert "4 to predict by edeconvnet version 1, 3 up to date" in plan, "a.jpg, same.png, and 2 that are not images"


def test_input_and_output_on_s3(workspace, image_folder, tmp_path) -> None:
    with s3_server(tmp_path / "weed") as server:
        bucket, client = server.create_bucket("images"), server.client()
        for path in image_folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "images", f"holiday/{path.relative_to(image_folder)}")
        wanted = arguments(workspace, f"{bucket}/holiday", f"{bucket}/out", *LOCAL, "--overlays", "true")
        done = call(predict.main, *wanted, **server.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        keys = {o["Key"] for o in client.list_objects_v2(Bucket="images", Prefix="out/")["Contents"]}
        stems = {name.rsplit(".", 1)[0] for name in GOOD}
        assert {f"out/masks/{s}.png" for s in stems} | {f"out/overlays/{s}.jpg" for s in stems} <= keys
        assert not [key for key in keys if "_model" in key]
        expected = predicted_by_mlflow(workspace, 1, {"a.jpg": (image_folder / "a.jpg").read_bytes()})["a.jpg"]
        mask = client.get_object(Bucket="images", Key="out/masks/a.png")["Body"].read()
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), expected)
        again = call(predict.main, *wanted, **server.environment)
        assert again.returncode == 0 and "nothing to do" in again.stdout


def test_predictions_become_labels_that_are_imported_as_the_same_masks(run: Run, image_folder, tmp_path) -> None:
    """Grey, turned, BMP and nested images: the labels are of each image as it is displayed."""
    run("--max_rejects", "1")
    assert storage.read_json(str(tmp_path / "out/classes.json")) == {"classes": list(CLASSES), "background": True}
    given = ["--format", "cvat", "--predictions", str(tmp_path / "out"), "--to", str(tmp_path / "labels"), "--shapes", "masks"]
    exported = call(export.main, *given)
    assert exported.returncode == 0, exported.stderr
    imported = call(import_data.main, *shlex.split(exported.stdout.strip().splitlines()[-1])[2:])
    assert imported.returncode == 0, imported.stderr
    for name, row in rows(tmp_path / "out").items():
        file = tmp_path / f"labels-corrected/SegmentationClass/{Path(name).with_suffix('.png').as_posix().replace('/', '_')}"
        np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(tmp_path / "out" / row["mask"])))


def test_classes_are_counted_and_those_in_most_images_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two classes in as many images, first comes the one with more pixels, then the first by name."""
    masks = [{"a": 0.25, "c": 0.75}, {"c": 0.5, "b": 0.25, "d": 0.25}, {"c": 0.5, "d": 0.5}, {"a": 0.25, "b": 0.75}, {"c": 1.0}]
    table = [{"classes": list(mask), "shares": list(mask.values())} for mask in masks]
    monkeypatch.setattr(tables, "require_commit", lambda _: SimpleNamespace(rows=len(table)))
    monkeypatch.setattr(tables, "iter_rows", lambda *_: table)
    found = [(each.name, each.images, each.share) for each in prediction_operation.count_classes("out")]
    assert found == [("c", 4, 0.55), ("b", 2, 0.2), ("d", 2, 0.15), ("a", 2, 0.1)]


def part_writer(tmp_path: Path) -> batch._PartWriter:
    """A writer of parts for an output in a folder; its model does not exist."""
    state = predictions_table.OutputState("in", "net", "1", "id", "g")
    (tmp_path / "_lock").write_text('{"holder": "x", "host": "h", "pid": 1, "since": 0, "expires": 9e9, "token": "t"}')
    return batch._PartWriter(state, str(tmp_path), "nowhere", LockGuard(f"{tmp_path}/_lock", "t"), None, "cpu", "f" * 64, 1)


def test_the_threads_of_a_worker_load_the_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads ask for it at once. If both loaded it, they would meet in the loading."""
    meeting, loads = threading.Barrier(2), []

    def load_model(*given: object) -> object:
        loads.append(given)
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.3)
        return object()

    monkeypatch.setattr(batch, "SavedEnsemble", load_model)
    writer = part_writer(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: writer.ensemble, range(2))
    assert len(loads) == 1 and first is second


@pytest.mark.parametrize("background", [True, False])
def test_masks_and_overlays_are_in_the_colours_of_data_with_or_without_a_background(tmp_path: Path, background: bool) -> None:
    """The ensemble's folder says which data they are; the image is grey, and its mask of class 0."""
    writer, model = part_writer(tmp_path), tmp_path / "model"
    options = {"classes": CLASSES, "proposals": {}, "segment": {"background": background}, "max_pixels": 1}
    storage.write_bytes(f"{model}/options.json", json.dumps(options).encode())
    for name in ("deconvnet", "fcn8s"):
        storage.write_bytes(f"{model}/{name}/model.json", b"")
    assert prediction_operation._class_names(str(model)) == {"classes": list(CLASSES), "background": background}
    grey = prediction(np.full((60, 60, 3), 120, np.uint8), np.zeros((60, 60), np.uint8), 0.5)
    writer.__dict__ |= {"model": str(model), "_ensemble": SimpleNamespace(predict=lambda _: grey), "_read_image": lambda _: b""}
    writer._predict(predictions_table.Task(ImageFile("a.png", "stamp", ""), "", True, True, False))
    colour = class_palette(background)[0]
    assert Image.open(tmp_path / "masks/a.png").getpalette()[:3] == colour.tolist()
    painted = np.asarray(Image.open(tmp_path / "overlays/a.jpg"))[6, 6]
    np.testing.assert_allclose(painted, [120, 120, 120] if background else colour / 2 + 60, atol=9)


def test_an_overlay_that_is_longer_than_a_jpeg_can_be_is_scaled_down(tmp_path: Path) -> None:
    writer = part_writer(tmp_path)
    writer.__dict__ |= {"classes": CLASSES, "background": True}
    task = predictions_table.Task(ImageFile("long.png", "stamp", ""), "", True, True, False)
    writer._draw_overlay(task, np.zeros((2, 65_600, 3), np.uint8), np.ones((2, 65_600), np.uint8))
    assert Image.open(tmp_path / "overlays/long.jpg").size == (65_500, 2)
