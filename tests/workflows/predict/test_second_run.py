"""predict.py again: after changes of images, masks, the model or the program."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from deconvnet.inference import batch, predictions_table
from infra import storage
from infra.errors import Interrupted, UserError
from infra.storage import tables
from proposals.image_codec import encode_mask
from tests.deconvnet.ensembles import random_image
from tests.workflows.predict.predicting import GOOD, REJECTS, Run, arguments, predicted_by_mlflow, rows, written
from workflows import predict

pytestmark = pytest.mark.xdist_group("predict")


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


def test_files_that_are_lost_again_and_again_are_made_each_time(run: Run, image_folder, tmp_path) -> None:
    out, options = tmp_path / "out", ("--overlays", "true", "--confidence", "maps")
    shutil.rmtree(image_folder / "nested")
    said = run(*options).splitlines()
    end = said.index("predicted    3 images, by models:/edeconvnet/1")
    assert said[end + 1 :] == [
        f"masks        {out}/masks",
        f"overlays     {out}/overlays",
        f"confidence   {out}/confidence",
        f"predictions  {out}/predictions",
        f"rejects      {out}/rejects (2)",
    ]
    there = {path for path in out.glob("*/*.*") if path.parent.name in ("masks", "overlays", "confidence")}
    assert len(there) == 9
    for lost in ("*/*.*", "masks/same.png", "overlays/a.jpg", "confidence/thin.png", "confidence/thin.png"):
        for path in there & set(out.glob(lost)):
            path.unlink()
        run(*options)
        assert all(path.exists() for path in there), lost
    assert "nothing to do: every prediction is by edeconvnet version 1; 2 images can't be used (table rejects)" in run(*options)


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let a file be one that this user may not read. (The tests may be run by a user who may read all.)"""
    read = storage.read_bytes

    def refuse(uri: str) -> bytes:
        if uri.endswith(name):
            raise PermissionError(13, "Permission denied", uri)
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", refuse)


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


def stopped_after_a_mask(run: Run) -> None:
    """Run the command until it has written its first mask."""
    begun, predict_image = [], batch._PartWriter._predict

    def predict_once(self: batch._PartWriter, task: predictions_table.Task) -> dict[str, object]:
        begun.append(task)
        if len(begun) > 1:
            raise Interrupted("stopped")
        return predict_image(self, task)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="stopped"):
        patch.setattr(batch._PartWriter, "_predict", predict_once)
        run()


def test_another_model_version_predicts_all_again_also_after_an_interrupted_switch(
    run: Run, workspace, image_folder, tmp_path
) -> None:
    out = tmp_path / "out"
    stopped_after_a_mask(run)
    assert len(written(out / "masks")) == 1
    run()
    files = {name: (image_folder / name).read_bytes() for name in GOOD}
    one, two = predicted_by_mlflow(workspace, 1, files), predicted_by_mlflow(workspace, 2, files)
    assert any((one[name] != two[name]).any() for name in files)
    said = run("--model", "models:/edeconvnet@challenger")
    assert "8 to predict by edeconvnet version 2, 0 up to date" in said
    for name, row in rows(out).items():
        assert row["model_version"] == "2"
        np.testing.assert_array_equal(np.asarray(Image.open(out / row["mask"])), two[name])

    stopped_after_a_mask(run)  # version 2's rows no longer vouch for what lies there
    assert "8 to predict by edeconvnet version 2, 0 up to date" in run("--model", "models:/edeconvnet/2", "--dry-run")


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


def test_an_output_below_the_input_is_not_listed_as_input(workspace, image_folder, capsys, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (image_folder / "out" / "masks").mkdir(parents=True)
    (image_folder / "out" / "predict.json").write_text(
        json.dumps({"input": str(image_folder), "model": "m", "model_version": "1", "model_id": "x", "generation": "g"})
    )
    shutil.copy(image_folder / "same.png", image_folder / "out" / "masks" / "old.png")
    predict.main(arguments(workspace, image_folder, image_folder / "out", "--dry-run"))
    assert "8 images: 8 to predict" in capsys.readouterr().out
