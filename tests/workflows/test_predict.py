"""predict.py on a folder of images of all kinds: first, again, after changes, killed, with user errors, on a real S3, ranked."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from deconvnet.datasets.image_folder import ImageFile
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.inference import batch, predictions_table
from deconvnet.ranking.selection import MEASURES, doubtful_class, uncertainty_scores
from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.register import register
from infra import storage
from infra.errors import Interrupted, UserError
from infra.runtime.local_executor import LocalExecutor
from infra.storage import tables
from infra.storage.guarded import LockGuard
from infra.storage.lock import Locked, hold_lock
from infra.storage.tables import delta_log
from proposals.image_codec import encode_mask
from tests.deconvnet.ensembles import CLASSES, RESULTS, SEGMENT, ensemble_in, random_image, save_networks
from tests.servers import s3_server
from tests.workflows.commands import call
from workflows import export, import_data, predict
from workflows.cli import load, setting_fields
from workflows.operations import ranking
from workflows.settings import CONFIGS, PredictSettings

SCRIPT = Path(predict.__file__)
GOOD = {"a.jpg", "nested/deep/turned.JPEG", "nested/grey.png", "same.jpg", "thin.bmp"}
REJECTS = {
    "nested/cut.jpg": "truncated",
    "same.png": "its mask would have the same name as that of same.jpg",
    "text.webp": "not an image",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], str]) -> Path:
    """A workspace whose MLflow has two versions of a tiny ensemble; @champion is 1, @challenger 2."""
    folder = tmp_path_factory.mktemp("predict") / "work"
    tracker = MlflowTracker(make_store(folder), "test")
    for seed, alias in ((1, "champion"), (5, "challenger")):
        save_networks(folder / f"networks-{seed}", seed=seed)
        with tracker.pipeline("p", {}) as run:
            register(run, tracker.uri, "edeconvnet", ensemble_in(folder / f"networks-{seed}"), RESULTS, alias=alias)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Images in several formats, grey, rotated and in subfolders; among them damaged, hidden, clashing and other files."""
    folder = tmp_path / "in"
    (folder / "nested" / "deep").mkdir(parents=True)
    Image.fromarray(random_image(0, 60, 80)).save(folder / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_image(1, 50, 90)).save(folder / "nested/deep/turned.JPEG", exif=exif)
    Image.fromarray(random_image(2, 64, 64)[..., 0]).save(folder / "nested/grey.png")
    Image.fromarray(random_image(3, 48, 72)).save(folder / "same.jpg")
    Image.fromarray(random_image(3, 48, 72)).save(folder / "same.png")
    Image.fromarray(random_image(4, 130, 40)).save(folder / "thin.bmp")
    (folder / "nested/cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:900])
    (folder / "text.webp").write_text("this is text")
    (folder / "notes.txt").write_text("no photograph")
    (folder / "nested/._grey.png").write_bytes(b"macOS")
    return folder


Run = Callable[..., str]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predict in this process, without Ray."""
    monkeypatch.setattr("workflows.operations.prediction.open_executor", lambda *_: LocalExecutor(1))
    monkeypatch.setattr("workflows.operations.prediction._gpus_per_actor", lambda settings: 0)


@pytest.fixture
def run(
    workspace: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the command in this process; returns what it printed."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*more: str) -> str:
        capsys.readouterr()
        predict.main(arguments(workspace, image_folder, tmp_path / "out", *more))
        return capsys.readouterr().out

    return call


def arguments(workspace: Path, source: Path | str, output: Path | str, *more: str) -> list[str]:
    return ["--input", str(source), "--output", str(output), "--workspace", str(workspace), *more]


def start(*options: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")} | environment
    command = [sys.executable, str(SCRIPT), *options, "--cluster.num_cpus", "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean, cwd="/")


def rows(output: Path | str) -> dict[str, dict]:
    return {row["image_id"]: row for row in tables.iter_rows(f"{output}/predictions")}


def written(folder: Path) -> dict[str, int]:
    """The files below `folder`, with their time of change."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def serve(workspace: Path, number: int, files: dict[str, bytes]) -> dict[str, np.ndarray]:
    """The masks that the registered model, loaded by MLflow, predicts for the same files."""
    import mlflow.pyfunc
    from mlflow import MlflowClient

    store = f"sqlite:///{workspace}/mlflow/mlflow.db"
    version = MlflowClient(tracking_uri=store, registry_uri=store).get_model_version("edeconvnet", str(number))
    model = mlflow.pyfunc.load_model(version.source)  # by its place: MLflow's global store is left alone
    answer = model.predict(pd.DataFrame({"image": list(files.values())}))
    return {name: np.asarray(Image.open(io.BytesIO(mask))) for name, mask in zip(files, answer["mask"], strict=True)}


@pytest.mark.ray
def test_a_folder_gets_masks_rows_and_rejects_and_a_second_run_does_nothing(
    run: Run, workspace, image_folder, tmp_path, on_session_ray
) -> None:
    out = tmp_path / "out"
    said = run()
    assert "8 images: 8 to predict by edeconvnet version 1, 0 up to date" in said
    found = rows(out)
    assert set(found) == GOOD and list(found) == sorted(found)
    expected = serve(workspace, 1, {name: (image_folder / name).read_bytes() for name in GOOD})
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


@pytest.mark.usefixtures("here")
def test_only_new_changed_or_lost_images_are_predicted_and_removed_ones_are_deleted(run: Run, image_folder, tmp_path) -> None:
    out = tmp_path / "out"
    run()
    before, old = written(out / "masks"), rows(out)
    Image.fromarray(random_image(9, 40, 40)).save(image_folder / "new.webp")
    shutil.copy(image_folder / "nested/grey.png", image_folder / "thin.bmp")  # another picture of the same name
    (image_folder / "a.jpg").unlink()
    (out / "masks/same.png").unlink()
    assert "8 images: 6 to predict by edeconvnet version 1, 2 up to date" in run()
    after, new = written(out / "masks"), rows(out)
    assert set(after) == {"nested/deep/turned.png", "nested/grey.png", "same.png", "thin.png", "new.png"}
    assert {name for name in before if after.get(name) == before[name]} == {"nested/deep/turned.png", "nested/grey.png"}
    assert set(new) == {"nested/deep/turned.JPEG", "nested/grey.png", "same.jpg", "thin.bmp", "new.webp"}
    assert new["nested/grey.png"] == old["nested/grey.png"] and new["thin.bmp"]["width"] == 64
    assert "nothing to do" in run()

    # Overlays wanted later are drawn from the masks that stand.
    said = run("--overlays", "true")
    assert "5 of these to draw" in said and written(out / "masks") == after
    assert {row["overlay"] for row in rows(out).values()} == {f"overlays/{n.removesuffix('.png')}.jpg" for n in after}
    for row in rows(out).values():
        assert Image.open(out / row["overlay"]).size == (row["width"], row["height"])
    assert "nothing to do" in run("--overlays", "true")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("lost", ["*/*.*", "masks/same.png", "overlays/a.jpg", "confidence/thin.png"])
def test_files_that_are_lost_again_and_again_are_made_each_time(run: Run, image_folder, tmp_path, lost: str) -> None:
    out, options = tmp_path / "out", ("--overlays", "true", "--confidence", "maps")
    shutil.rmtree(image_folder / "nested")
    run(*options)
    there = {path for path in out.glob("*/*.*") if path.parent.name in ("masks", "overlays", "confidence")}
    assert len(there) == 9
    for _ in range(2):
        for path in there & set(out.glob(lost)):
            path.unlink()
        run(*options)
        assert all(path.exists() for path in there)
    assert "nothing to do: every prediction is by edeconvnet version 1; 2 images can't be used (table rejects)" in run(*options)


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let a file be one that this user may not read. (The tests may be run by a user who may read all.)"""
    read = storage.read_bytes

    def refuse(uri: str) -> bytes:
        if uri.endswith(name):
            raise PermissionError(13, "Permission denied", uri)
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", refuse)


@pytest.mark.usefixtures("here")
def test_an_image_that_could_not_be_read_is_tried_again(run: Run, image_folder, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        unreadable(patch, "in/a.jpg")
        run()
        before = written(out / "predictions")
        assert "nothing to do: every prediction is by edeconvnet version 1; 4 images can't be used" in run()
        assert written(out / "predictions") == before, "a file that can never be read costs no new table in each run"
    rejects = {row["image_id"]: row["reason"] for row in tables.iter_rows(f"{out}/rejects")}
    assert rejects.keys() == {*REJECTS, "a.jpg"} and rejects["a.jpg"] == "can't be read: Permission denied"
    run()
    assert set(rows(out)) == GOOD and len(list(tables.iter_rows(f"{out}/rejects"))) == 3 and "nothing to do" in run()


@pytest.mark.usefixtures("here")
def test_an_image_that_can_not_be_read_for_its_overlay_keeps_its_prediction(run: Run, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    run()
    before = written(out / "masks")
    with monkeypatch.context() as patch:
        unreadable(patch, "in/a.jpg")
        run("--overlays", "true")
    assert written(out / "masks") == before and rows(out)["a.jpg"]["overlay"] is None
    assert "can't be read: Permission denied" in {row["reason"] for row in tables.iter_rows(f"{out}/rejects")}
    assert "5 up to date, 1 of these to draw" in run("--overlays", "true")
    assert {row["overlay"] is not None for row in rows(out).values()} == {True} and written(out / "masks") == before


@pytest.mark.usefixtures("here")
def test_a_mask_that_a_user_has_edited_is_never_deleted(run: Run, tmp_path) -> None:
    """Overlays are drawn from it if it is still a mask of the image. If not, the run ends."""
    out = tmp_path / "out"
    run()
    with Image.open(out / "masks/a.png") as mask:
        edited = mask.convert("RGB"), mask.resize((40, 30)), Image.fromarray(np.asarray(mask).astype(np.uint16))
    for image in edited:
        image.save(out / "masks/a.png")
        before = (out / "masks/a.png").read_bytes()
        with pytest.raises(
            UserError, match=r"masks/a\.png was edited or removed after it was predicted, .*: move it to another folder"
        ):
            run("--overlays", "true")
        assert (out / "masks/a.png").read_bytes() == before and set(rows(out)) == GOOD
    corrected = encode_mask(np.full((60, 80), 2, np.uint8))
    (out / "masks/a.png").write_bytes(corrected)
    run("--overlays", "true")
    assert (out / "masks/a.png").read_bytes() == corrected and (out / "overlays/a.jpg").exists()


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


def test_an_overlay_that_is_longer_than_a_jpeg_can_be_is_scaled_down(tmp_path: Path) -> None:
    writer = part_writer(tmp_path)
    writer.__dict__ |= {"classes": CLASSES, "background": True}
    task = predictions_table.Task(ImageFile("long.png", "stamp", ""), "", True, True, False)
    writer._draw_overlay(task, np.zeros((2, 65_600, 3), np.uint8), np.ones((2, 65_600), np.uint8))
    assert Image.open(tmp_path / "overlays/long.jpg").size == (65_500, 2)


@pytest.mark.usefixtures("here")
def test_another_model_version_predicts_all_again_also_after_an_interrupted_switch(
    run: Run, workspace, image_folder, tmp_path
) -> None:
    out = tmp_path / "out"
    run()
    files = {name: (image_folder / name).read_bytes() for name in GOOD}
    one, two = serve(workspace, 1, files), serve(workspace, 2, files)
    assert any((one[name] != two[name]).any() for name in files)
    said = run("--model", "models:/edeconvnet@challenger")
    assert "8 to predict by edeconvnet version 2, 0 up to date" in said
    for name, row in rows(out).items():
        assert row["model_version"] == "2"
        np.testing.assert_array_equal(np.asarray(Image.open(out / row["mask"])), two[name])

    # A run of version 1 that died after a mask: version 2's rows no longer vouch for what lies there.
    state = json.loads((out / "predict.json").read_text())
    (out / "predict.json").write_text(json.dumps(state | {"model_version": "1", "generation": "cut short"}))
    assert "8 to predict by edeconvnet version 2, 0 up to date" in run("--model", "models:/edeconvnet/2", "--dry-run")


@pytest.mark.usefixtures("here")
def test_too_many_rejects_fail_the_run_and_predictions_so_far_are_kept(run: Run, image_folder, tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"3 of 8 images can't be used \(1× .*max_rejects allows 10%"):
        run("--max_rejects", "0.1")
    assert len(list(tables.iter_rows(f"{out}/rejects"))) == 3
    assert tables.read_commit(f"{out}/predictions") is None
    before = written(out / "masks")
    assert len(before) == 5 and "3 to predict by edeconvnet version 1, 5 up to date" in run("--max_rejects", "0.4")
    assert written(out / "masks") == before and set(rows(out)) == GOOD
    with pytest.raises(UserError, match="max_rejects"):
        run("--max_pixels", "4000", "--max_rejects", "0.5")


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_or_terminated_run_resumes(workspace, tmp_path, here, capsys, monkeypatch) -> None:
    source, out = tmp_path / "many", tmp_path / "out"
    source.mkdir()
    for i in range(40):
        Image.fromarray(random_image(i, 160, 200)).save(source / f"{i:02}.png")
    for how, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)):
        had = set(parts_of(out))
        process = start(*arguments(workspace, source, out), "--compute.actors", "1")
        deadline = time.monotonic() + 100
        # The parts of the first run are copied before others are made.
        while len(set(parts_of(out)) - had) < len(had) + 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(how)
        said, _ = process.communicate()
        assert process.returncode == code, said
        assert code != 75 or ("interrupted" in said and "Traceback" not in said and not (out / "_model").exists())
    (out / "_lock").unlink()  # the killed run's, which would have been waited out
    finished = {
        row["mask"] for part in parts_of(out) for row in tables.iter_rows(f"{out}/predictions", part=tables.Part(part, []))
    }
    assert 4 <= len(finished) < 40 and not (out / "predictions" / tables.LOG).exists()
    before = written(out)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    predict.main(arguments(workspace, source, out, "--overlays", "true"))
    plan = re.search(r"40 images: (\d+) to predict by edeconvnet version 1, (\d+) up to date", capsys.readouterr().out)
    # A dead driver's actor may have ended a part more.
    assert plan and len(finished) <= int(plan[2]) < 40 and int(plan[1]) + int(plan[2]) == 40
    after = written(out)
    assert len(rows(out)) == len(list((out / "overlays").iterdir())) == 40
    assert all(after[mask] == before[mask] for mask in finished)
    assert not (out / "_model").exists() and json.loads((out / "_lock").read_text())["expires"] == 0


def parts_of(output: Path) -> list[str]:
    """The complete parts below `output`, committed or not."""
    table = output / "predictions"
    return tables.part_files(str(table))


@pytest.mark.usefixtures("here")
def test_input_and_output_on_s3(workspace, image_folder, tmp_path) -> None:
    with s3_server(tmp_path / "weed") as server:
        bucket, client = server.create_bucket("images"), server.client()
        for path in image_folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "images", f"holiday/{path.relative_to(image_folder)}")
        wanted = arguments(workspace, f"{bucket}/holiday", f"{bucket}/out", "--overlays", "true")
        done = call(predict.main, *wanted, **server.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        keys = {o["Key"] for o in client.list_objects_v2(Bucket="images", Prefix="out/")["Contents"]}
        stems = {name.rsplit(".", 1)[0] for name in GOOD}
        assert {f"out/masks/{s}.png" for s in stems} | {f"out/overlays/{s}.jpg" for s in stems} <= keys
        assert not [key for key in keys if "_model" in key]
        expected = serve(workspace, 1, {"a.jpg": (image_folder / "a.jpg").read_bytes()})["a.jpg"]
        mask = client.get_object(Bucket="images", Key="out/masks/a.png")["Body"].read()
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), expected)
        again = call(predict.main, *wanted, **server.environment)
        assert again.returncode == 0 and "nothing to do" in again.stdout


@pytest.fixture
def refused(workspace: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """The message of a user error; nothing may have been written."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*more: str, source: Path = image_folder, output: Path = tmp_path / "out") -> str:
        before = written(tmp_path)
        with pytest.raises(UserError) as caught:
            predict.main(arguments(workspace, source, output, *more))
        assert written(tmp_path) == before
        return str(caught.value)

    return call


def test_user_errors_are_sentences(refused, workspace, image_folder, tmp_path) -> None:
    assert "input is not given" in str(caught(lambda: predict.main(["--output", "x"])))
    assert "where is the model registered?" in refused("--workspace", "")
    assert "there is no MLflow store" in refused("--workspace", str(tmp_path / "nothing"))
    assert "edeconvnet has challenger (version 2), champion (version 1)" in refused("--model", "models:/edeconvnet@best")
    assert "names no registered model" in refused("--model", "edeconvnet")
    assert "which has edeconvnet" in refused("--model", "models:/other@champion")
    assert "does not exist" in refused(source=tmp_path / "absent")
    assert "is a file" in refused(source=image_folder / "a.jpg")
    assert "unknown setting" in refused("--config", str(config(tmp_path, "modle: x")))
    assert "max_rejects: '2' is not allowed" in refused("--max_rejects", "2")
    assert "rank_labelled has no effect without --rank: give --rank the number of images" in refused("--rank_labelled", "x")
    assert "among the images of the input" in refused(output=image_folder)
    (image_folder / "masks").mkdir()
    (tmp_path / "truth" / "masks").mkdir(parents=True)
    (tmp_path / "truth" / "masks" / "a.png").write_bytes(b"somebody's labels")
    assert "holds files that this program didn't write" in refused(output=tmp_path / "truth")


def caught(call: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as error:
        call()
    return error.value


def config(folder: Path, text: str) -> Path:
    (folder / "config.yaml").write_text(text)
    return folder / "config.yaml"


def test_without_a_champion_the_error_names_the_challenger(tmp_path, monkeypatch, image_folder, make_store) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = MlflowTracker(make_store(tmp_path / "w"), "test")
    tracker.client.create_registered_model("edeconvnet")
    tracker.client.create_model_version("edeconvnet", str(tmp_path / "nowhere"))
    tracker.client.set_registered_model_alias("edeconvnet", "challenger", "1")
    said = str(caught(lambda: predict.main(arguments(tmp_path / "w", image_folder, tmp_path / "out"))))
    assert "models:/edeconvnet@champion is not in" in said and "use --model models:/edeconvnet@challenger" in said


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("ensemble", [True, False])
def test_a_model_of_another_program_is_refused_and_never_loaded(run: Run, workspace, tmp_path, ensemble: bool) -> None:
    tracker = MlflowTracker(f"sqlite:///{workspace}/mlflow/mlflow.db", "test")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "MLmodel").write_text("flavors: {python_function: {loader_module: mlflow.sklearn}}")
    if ensemble:
        (foreign / "artifacts" / "ensemble").mkdir(parents=True)
        (foreign / "artifacts" / "ensemble" / "options.json").write_text('{"classes": ["a"]}')
    tracker.client.create_registered_model(f"foreign-{ensemble}")
    tracker.client.create_model_version(f"foreign-{ensemble}", foreign.as_uri())
    with pytest.raises(UserError, match=f"models:/foreign-{ensemble}/1 .*was not registered by this project"):
        run("--model", f"models:/foreign-{ensemble}/1")
    assert not (tmp_path / "out" / "_model").exists()
    assert json.loads((tmp_path / "out" / "_lock").read_text())["expires"] == 0, "the lock was not released"


@pytest.mark.usefixtures("here")
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


@pytest.mark.usefixtures("here")
def test_an_output_belongs_to_one_input(run: Run, refused, image_folder, tmp_path) -> None:
    run()
    other = tmp_path / "other"
    shutil.copytree(image_folder / "nested", other)
    assert f"holds the predictions of {image_folder}" in refused(source=other)


def test_a_dry_run_prints_the_plan_and_writes_nothing(workspace, image_folder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    predict.main(arguments(workspace, image_folder, tmp_path / "out", "--dry-run"))
    said = capsys.readouterr().out
    assert "8 images: 8 to predict" in said and "max_rejects: 0.5" in said and not (tmp_path / "out").exists()
    assert "skipped 1 files whose suffix is not that of an image (1 .txt): notes.txt" in said


def test_an_output_below_the_input_is_not_listed_as_input(workspace, image_folder, capsys, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (image_folder / "out" / "masks").mkdir(parents=True)
    (image_folder / "out" / "predict.json").write_text(
        json.dumps({"input": str(image_folder), "model": "m", "model_version": "1", "model_id": "x", "generation": "g"})
    )
    shutil.copy(image_folder / "same.png", image_folder / "out" / "masks" / "old.png")
    predict.main(arguments(workspace, image_folder, image_folder / "out", "--dry-run"))
    assert "8 images: 8 to predict" in capsys.readouterr().out


def test_a_submitted_job_must_not_write_into_rays_copy(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "runtime_resources" / "x"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    said = str(caught(lambda: predict.main(["--input", "s3://b/in", "--output", "out"])))
    assert "output: 'out' is not allowed: it is relative" in said


def test_the_shipped_config_is_valid_and_every_setting_can_be_given() -> None:
    made = load(str(CONFIGS / "predict.yaml"), PredictSettings, ["--input", "s3://b/in", "--output", "out"])
    assert made.model == "models:/edeconvnet@champion" and made.input == "s3://b/in" and made.output == str(Path.cwd() / "out")
    names = {name for name, _ in setting_fields(PredictSettings)}
    assert {"input", "workspace", "compute.actors", "compute.gpus_per_actor", "tracking.uri", "cluster.data_nodes"} <= names


def test_the_local_executor_predicts_the_same_without_ray(
    run: Run, workspace: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.runtime.cluster.connected", lambda settings: pytest.fail("no Ray is needed"))
    assert "predicted    5 images" in run("--executor", "local", "--cluster.num_cpus", "1")
    expected = serve(workspace, 1, {name: (image_folder / name).read_bytes() for name in GOOD})
    for name, row in rows(tmp_path / "out").items():
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / row["mask"])), expected[name], err_msg=name)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"compute\.gpu is true, and this machine has no GPU"):
            run("--executor", "local", "--compute.gpu", "true", "--overlays", "true")


@pytest.mark.usefixtures("here")
def test_runs_exclude_each_other_and_the_lock_of_a_dead_run_expires(run: Run, tmp_path) -> None:
    lock = f"{tmp_path}/out/_lock"
    with hold_lock(lock, "the other"), pytest.raises(Locked, match=r"the other \(process .*\) has held the lock"):
        run()
    assert not (tmp_path / "out" / "predict.json").exists()
    (tmp_path / "out" / "_lock").write_text(
        json.dumps({"holder": "dead", "host": "h", "pid": 1, "since": 0.0, "expires": time.time() - 1, "token": "t"})
    )
    assert "8 to predict" in run()
    assert json.loads(Path(lock).read_text())["expires"] == 0, "the lock was not released"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("frozen_before", ["masks/a.png", "predictions", "rejects"])
def test_a_run_that_was_frozen_until_another_took_over_changes_nothing(run: Run, tmp_path, monkeypatch, frozen_before) -> None:
    """One run with version 1 stops before it writes a file, and a run with version 2 works from start to end meanwhile."""
    frozen: list[str] = []
    finished: dict[str, int] = {}

    def late(write: Callable[..., bool]) -> Callable[..., bool]:
        def call(uri: str, *given: object) -> bool:
            if uri.endswith(frozen_before) and not frozen:
                frozen.append(uri)
                lock = json.loads((tmp_path / "out/_lock").read_text())
                (tmp_path / "out/_lock").write_text(json.dumps({**lock, "expires": 0}))
                run("--model", "models:/edeconvnet/2", "--overlays", "true")
                finished.update(written(tmp_path / "out"))
            return write(uri, *given)

        return call

    monkeypatch.setattr(storage, "exchange", late(storage.exchange))
    monkeypatch.setattr(delta_log, "add_version", late(delta_log.add_version))
    with pytest.raises(Interrupted, match=r"predict\.py .* took the lock .*: only the results of that run are kept"):
        run("--overlays", "true")
    left = {name: changed for name, changed in written(tmp_path / "out").items() if name in finished}
    assert frozen and left == finished and {row["model_version"] for row in rows(tmp_path / "out").values()} == {"2"}
    for row in rows(tmp_path / "out").values():
        comment = Image.open(tmp_path / "out" / row["mask"]).info["Comment"]
        assert comment == f"models:/edeconvnet/2, {row['generation']}"
    assert "nothing to do" in run("--model", "models:/edeconvnet/2", "--overlays", "true")


@pytest.mark.usefixtures("here")
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


@pytest.mark.usefixtures("here")
def test_predictions_of_an_earlier_version_of_this_program_are_made_again(run: Run, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    names = [
        "image_id",
        "path",
        "width",
        "height",
        "classes",
        "shares",
        "confidence",
        "mask",
        "overlay",
        "model",
        "model_version",
        "stamp",
        "generation",
    ]
    with monkeypatch.context() as earlier:
        earlier.setattr(batch, "PREDICTIONS", pa.schema([predictions_table.PREDICTIONS.field(name) for name in names]))
        earlier.setattr(predictions_table, "VERSION", 1)
        run()
    state = json.loads((out / "predict.json").read_text())
    del state["code_version"]  # which it didn't write
    (out / "predict.json").write_text(json.dumps(state))
    assert sorted(next(iter(rows(out).values()))) == sorted(names)
    said = run("--rank", "2")
    assert "8 to predict by edeconvnet version 1, 0 up to date" in said
    assert all(len(row["fingerprint"]) == 16 for row in rows(out).values()) and "nothing to do" in run()

    assert "images.png outlines uncertain regions only with --confidence maps" in said
    sheet = np.asarray(Image.open(out / "ranking/images.png").convert("RGB"))
    assert not (sheet == (230, 0, 230)).all(axis=2).any()


@pytest.mark.usefixtures("here")
def test_images_to_label_are_listed_with_a_contact_sheet(run: Run, image_folder, tmp_path, caplog, monkeypatch) -> None:
    out, labelled = tmp_path / "out", tmp_path / "labelled"
    (labelled / "JPEGImages").mkdir(parents=True)
    (labelled / "SegmentationClass").mkdir()
    shutil.copy(image_folder / "nested/grey.png", labelled / "JPEGImages/other name.png")
    shutil.copy(image_folder / "thin.bmp", labelled / "SegmentationClass/thin.png")  # a mask is not a labelled image
    (labelled / "JPEGImages/broken.jpg").write_bytes(b"text")
    Image.open(image_folder / "thin.bmp").resize((30, 100)).save(image_folder / "nested/thin copy.jpg")
    said = run("--rank", "3", "--rank_labelled", str(labelled), "--confidence", "maps", "--rank_class_share", "1")
    assert f"to label     {out}/ranking (3 images: images.txt, .csv, .parquet and .png)" in said
    assert "near-duplicates were passed over (also of 1 labelled images)" in said
    assert "1 labelled images can't be read, so near-duplicates of them are not found: broken.jpg" in caplog.text
    chosen = pd.read_parquet(out / "ranking/images.parquet")
    everything = rows(out)
    assert chosen["place"].tolist() == [1, 2, 3] and chosen["score"].is_monotonic_decreasing
    left = set(everything) - set(chosen["image_id"]) - {"nested/grey.png"}
    assert "nested/grey.png" not in set(chosen["image_id"]) and len(left) == 2
    assert len(set(chosen["image_id"]) & {"thin.bmp", "nested/thin copy.jpg"}) <= 1
    measures = np.array([[row[name] or 0 for name in MEASURES] for _, row in sorted(everything.items())])
    scores = dict(zip(sorted(everything), uncertainty_scores(measures), strict=True))
    for row in chosen.to_dict("records"):
        assert row["score"] == pytest.approx(scores[row["image_id"]]) and row["path"] == str(image_folder / row["image_id"])
        assert row["class"] == doubtful_class(everything[row["image_id"]], "background")
        assert row["confidence_map"] == everything[row["image_id"]]["confidence_map"]
    assert (out / "ranking/images.txt").read_text().splitlines() == chosen["path"].tolist()
    assert pd.read_csv(out / "ranking/images.csv")["image_id"].tolist() == chosen["image_id"].tolist()
    sheet = np.asarray(Image.open(out / "ranking/images.png").convert("RGB"))
    assert sheet.shape[1] == 1200 and (sheet == (230, 0, 230)).all(axis=2).sum() > 100, "doubtful regions have an outline"

    again = {path.name: path.read_bytes() for path in (out / "ranking").iterdir()}
    assert "nothing to do" in run(
        "--rank", "3", "--rank_labelled", str(labelled), "--confidence", "maps", "--rank_class_share", "1"
    )
    assert {path.name: path.read_bytes() for path in (out / "ranking").iterdir()} == again
    said = run("--rank", "50", "--rank_min_distance", "0", "--rank_class_share", "0.01")
    assert "6 images" in said and "0 near-duplicates" in said and "only 6 of 50 images could be chosen" in said
    assert re.search(r"[1-9] images are above the quota of their class, because no others were left", said)

    said = run("--rank", "2", "--rank_labelled", str(image_folder))
    assert "(0 images: " in said and "6 near-duplicates were passed over (also of 7 labelled images)" in said
    assert (out / "ranking/images.txt").read_text() == "" and pd.read_csv(out / "ranking/images.csv").empty
    assert not (out / "ranking/images.png").exists(), "it would show images that were chosen before"

    run("--rank", "2", "--confidence", "maps")
    first, second = pd.read_parquet(out / "ranking/images.parquet")[["mask", "confidence_map"]].to_dict("records")
    whole = {name: (out / name).read_bytes() for name in (first["mask"], second["mask"], second["confidence_map"])}
    ids = np.array(Image.open(out / first["mask"]))
    for name, content in {
        first["mask"]: encode_mask(np.where(ids == ids.max(), 77, ids).astype(np.uint8)),  # a label that no class has
        second["mask"]: b"text",
        second["confidence_map"]: encode_mask(np.zeros((5, 7), np.uint8)),
    }.items():
        caplog.clear()
        (out / name).write_bytes(content)
        run("--rank", "2", "--confidence", "maps")
        (out / name).write_bytes(whole[name])
        assert "images.png leaves out" in caplog.text and (out / "ranking/images.png").exists()

    (out / "classes.json").write_text(json.dumps({"classes": CLASSES, "background": False}))
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr(ranking, "draw_contact_sheet", lambda cells, *given: drawn.extend(given) or b"")
        run("--rank", "2", "--confidence", "maps")
    assert drawn[0] == list(CLASSES) and drawn[2] is False, "data without a background"
    chosen = pd.read_parquet(out / "ranking/images.parquet")
    assert [doubtful_class(everything[row["image_id"]], None) for row in chosen.to_dict("records")] == chosen["class"].tolist()

    with pytest.raises(UserError, match="nowhere does not exist"):
        run("--rank", "2", "--rank_labelled", str(tmp_path / "nowhere"))
    first, read = (out / "ranking/images.txt").read_text().splitlines()[0], storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: read(f"{uri} is gone" if uri == first else uri))
    with pytest.raises(UserError, match=r"was changed or removed after it was predicted: run predict\.py again"):
        run("--rank", "2")
