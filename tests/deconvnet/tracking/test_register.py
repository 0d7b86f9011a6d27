"""The registered ensemble: what it contains, and that it predicts the pipeline's masks in a process without this project."""

import base64
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from deconvnet.evaluation.drift import read_statistics
from deconvnet.inference.predictor import Predictor, PredictorOptions
from deconvnet.tracking import register as register_module
from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.register import read_val_images, register, requirements
from infra import storage
from infra.errors import UserError
from proposals import edge_boxes
from proposals.image_codec import decode_image, encode_jpeg
from tests.deconvnet.ensembles import (
    CARD,
    CLASSES,
    EDGES,
    RESULTS,
    SEGMENT,
    ensemble_in,
    random_image,
    register_ensemble,
    save_networks,
)

ROOT = Path(__file__).resolve().parents[3]
# In another folder, with this project on no path and Ray not importable.
OTHER_PROCESS = """
import base64, json, pathlib, sys
root, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path[:] = [p for p in sys.path if p and pathlib.Path(p).resolve() != root]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.modules["ray"] = None
try:
    import deconvnet
    raise SystemExit("the project is still importable")
except ModuleNotFoundError:
    pass
import mlflow.pyfunc, pandas, torch
torch.set_num_threads(1)
from mlflow.pyfunc.scoring_server import invocations
model = mlflow.pyfunc.load_model("models:/shapes@challenger")
data = sorted(out.glob("input*"))
frame = pandas.DataFrame({"image": [p.read_bytes() for p in data]}, index=[p.name for p in data])
answer = model.predict(frame)
for name, mask in answer["mask"].items():
    if mask is not None:
        (out / f"mask-{name}.png").write_bytes(mask)
text = [base64.b64encode(p.read_bytes()).decode() for p in data]
as_text = model.predict(pandas.DataFrame({"image": text[:1]}))
unsure = model.predict(pandas.DataFrame({"image": text}), params={"uncertainty": True}).drop(columns="mask").to_dict("records")
unsure = [{k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in row.items()} for row in unsure]
body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[t] for t in text]}})
rest = invocations(body, "application/json", model, model.metadata.get_input_schema())
import deconvnet.inference.predictor
(out / "answer.json").write_text(json.dumps({
    "columns": list(answer.columns), "uncertainty": unsure,
    "index": list(answer.index), "errors": list(answer["error"]),
    "same_as_text": as_text["mask"][0] == answer["mask"].iloc[0],
    "not_base64": model.predict(pandas.DataFrame({"image": ["a photo!"]}))["error"][0],
    "nothing": model.predict({"image": [b""]})["error"][0],
    "rest": rest.status, "rest_body": json.loads(rest.response),
    "code": deconvnet.inference.predictor.__file__,
    "settings": [m for m in sys.modules if m.endswith("settings") and m.split(".")[0] == "deconvnet"],
    "classes": model.metadata.metadata["classes"],
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("registered")


@pytest.fixture(scope="module")
def networks(folder):
    return save_networks(folder)


@pytest.fixture(scope="module")
def tracker(folder, networks, make_store) -> MlflowTracker:
    before = os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        return MlflowTracker(make_store(folder / "work"), "test")
    finally:
        if before:
            os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="module")
def registered(tracker, folder) -> tuple[str, int]:
    return register_ensemble(tracker, folder)


@pytest.mark.parametrize(("content", "found"), [({"a": "1 2"}, {"a": "1 2"}), ({}, None), (None, None)])
def test_a_model_says_which_val_images_it_was_judged_by_unless_an_earlier_program_registered_it(tmp_path, content, found) -> None:
    if content is not None:
        storage.write_json(str(tmp_path / "val_images.json"), content)
    assert read_val_images(str(tmp_path / "deconvnet")) == found


def test_a_version_has_its_results_and_alias(tracker, registered):
    run_id, number = registered
    version = tracker.client.get_model_version_by_alias("shapes", "challenger")
    assert int(version.version) == number and version.run_id == run_id
    models = tracker.client.search_logged_models([tracker.experiment_id])
    assert [model.status for model in models if model.source_run_id == run_id] == ["READY"], "MLflow would show it as unfinished"
    measured = {"mean_iou.fcn8s": "0.6221", "pixel_accuracy.fcn8s": "0.9000", "mean_iou.edeconvnet_crf": "0.7250"}
    assert version.tags == measured | {"fingerprint": ""}
    assert (
        "| FCN-8s | 62.2 | 90.0 | – | – |" in version.description
        and "| EDeconvNet+CRF | 72.5 | – | – | – |" in version.description
    )
    tags = tracker.client.get_run(run_id).data.tags
    assert tags["mean_iou.edeconvnet_crf"] == "0.7250" and tags["model.version"] == str(number)


def test_a_model_contains_no_pickle_and_all_it_needs(tracker, registered, folder):
    version = tracker.client.get_model_version_by_alias("shapes", "challenger")
    inside = Path(version.source.removeprefix("file://"))
    files = {str(p.relative_to(inside)) for p in inside.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert not [f for f in files if f.endswith((".pkl", ".pickle", ".pt", ".pth"))]
    assert {
        "MLmodel",
        "pyfunc_model.py",
        "requirements.txt",
        "code/deconvnet/inference/predictor.py",
        "code/proposals/edgebox.py",
    } <= files
    assert {f"artifacts/ensemble/{n}/model.{e}" for n in ("deconvnet", "fcn8s") for e in ("safetensors", "json")} <= files
    assert "artifacts/ensemble/val_images.json" in files
    assert (inside / "model_card.md").read_text("utf-8") == CARD
    assert f"[Model card](ajax-api/2.0/mlflow/logged-models/{inside.parent.name}/artifacts/files" in version.description
    kept = read_statistics(str(inside / "artifacts/ensemble"))
    assert kept is not None and kept.as_dict() == json.loads(json.dumps(ensemble_in(folder).statistics.as_dict()))
    assert not [f for f in files if f.startswith("code/") and not f.endswith(".py")]
    assert "torch==2.13.*" in (inside / "requirements.txt").read_text()
    assert "ray" not in (inside / "requirements.txt").read_text()
    assert not (folder / "mlruns").exists()


def give_machine_code(model: Path) -> None:
    """Give the code in a model what numba has compiled of the same sources here. numba would compile them anew for 20 s."""
    for package in ("proposals", "deconvnet"):
        for compiled in (ROOT / package).rglob("__pycache__/*.nb[ic]"):
            target = model / "code" / compiled.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(compiled, target)


def test_the_model_predicts_the_pipelines_masks_in_a_process_without_this_project(tracker, registered, networks, tmp_path):
    images = {"input0.jpg": random_image(0, 60, 80), "input1.jpg": random_image(1, 130, 90)}
    for name, image in images.items():
        (tmp_path / name).write_bytes(encode_jpeg(image))
    (tmp_path / "input2.jpg").write_text("this is text")
    (tmp_path / "input3.jpg").write_bytes((tmp_path / "input0.jpg").read_bytes()[:900])
    predictor = Predictor(*networks, PredictorOptions(**SEGMENT))
    predicted = {}
    for name in images:
        image = decode_image((tmp_path / name).read_bytes())
        predicted[name] = predictor.predict(image, edge_boxes(image, **EDGES)[0])
    give_machine_code(Path(tracker.client.get_model_version_by_alias("shapes", "challenger").source.removeprefix("file://")))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"MLFLOW_TRACKING_URI": tracker.uri}
    command = [sys.executable, "-c", OTHER_PROCESS, str(ROOT), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())

    seen = set()
    for name, expected in predicted.items():
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"mask-{name}.png")), expected.mask)
        seen |= set(np.unique(expected.mask).tolist())
        row = answer["uncertainty"].pop(0)
        assert row["classes"] == [CLASSES[i] for i in expected.uncertainty.classes]
        assert {key: row[key] for key in expected.uncertainty.columns()} == expected.uncertainty.columns()
        confidence_map = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["confidence_map"]))))
        np.testing.assert_array_equal(confidence_map, expected.confidence_map)
    assert answer["uncertainty"][0]["error"] == "not an image"
    assert {value for key, value in answer["uncertainty"][0].items() if key != "error"} == {None}
    assert answer["columns"] == ["mask", "error"], "the signature's, for those who don't ask for more"
    assert len(seen) > 1, "masks of one class would prove nothing"

    assert answer["index"] == ["input0.jpg", "input1.jpg", "input2.jpg", "input3.jpg"]
    assert answer["errors"][:2] == [None, None]
    assert answer["errors"][2] == "not an image" and answer["errors"][3].startswith("truncated")
    assert answer["same_as_text"]
    assert "base64" in answer["not_base64"] and answer["nothing"] == "the file is empty"
    assert not answer["code"].startswith(str(ROOT)) and answer["code"].endswith("code/deconvnet/inference/predictor.py")
    assert answer["settings"] == [], "the settings types (pydantic) are not the model's business"
    assert answer["classes"] == list(CLASSES)
    assert answer["rest"] == 200
    first, _, bad, _ = answer["rest_body"]["predictions"]
    served = np.asarray(Image.open(io.BytesIO(base64.decodebytes(first["mask"].encode()))))
    np.testing.assert_array_equal(served, np.asarray(Image.open(tmp_path / "mask-input0.jpg.png")))
    assert bad == {"mask": None, "error": "not an image"}


def test_a_second_version_takes_the_alias_and_contains_its_edge_model_and_its_limit_of_pixels(
    tracker, registered, folder, tmp_path
):
    forest = tmp_path / "forest.yml.gz"
    forest.write_bytes(b"trees")
    _, number = register_ensemble(tracker, folder, proposals=EDGES | {"edge_model": str(forest)}, max_pixels=5000)
    version = tracker.client.get_model_version_by_alias("shapes", "challenger")
    assert int(version.version) == number == registered[1] + 1
    inside = Path(version.source.removeprefix("file://"))
    options = json.loads((inside / "artifacts/ensemble/options.json").read_text())
    assert (inside / "artifacts/ensemble" / options["proposals"]["edge_model"]).read_bytes() == b"trees" and options[
        "max_pixels"
    ] == 5000
    tracker.client.set_registered_model_alias("shapes", "challenger", str(registered[1]))


def test_a_missing_edge_model_is_a_user_error_and_nothing_is_registered(tracker, registered, folder):
    before = len(tracker.client.search_model_versions("name = 'shapes'"))
    with pytest.raises(UserError, match=r"absent\.yml"):
        register_ensemble(tracker, folder, proposals=EDGES | {"edge_model": str(folder / "absent.yml")})
    assert len(tracker.client.search_model_versions("name = 'shapes'")) == before


@pytest.mark.parametrize("failure", [OSError("no space"), KeyboardInterrupt()])
def test_a_model_whose_upload_fails_is_marked_failed_and_not_registered(tracker, folder, monkeypatch, failure):
    def fail(*_):
        raise failure

    monkeypatch.setattr(register_module, "_copy_code", fail)
    with pytest.raises((UserError, KeyboardInterrupt)), tracker.pipeline("p", {}) as run:
        register(run, tracker.uri, "broken", ensemble_in(folder), RESULTS)
    models = tracker.client.search_logged_models([tracker.experiment_id])
    assert [model.status for model in models if model.source_run_id == run.run_id] == ["FAILED"]
    assert not tracker.client.search_registered_models("name = 'broken'")


@pytest.fixture
def quick_upload(monkeypatch):
    """Models are registered without being written; returns the runs whose models were."""
    uploaded: list[str] = []
    monkeypatch.setattr(register_module, "_upload", lambda client, run, *rest: uploaded.append(run.run_id) or (None, "file:///m"))
    return uploaded


@pytest.mark.parametrize("killed_in", ["set_registered_model_alias", "update_registered_model", "log_batch"])
def test_a_run_that_was_killed_after_registering_finds_its_version(tracker, folder, quick_upload, monkeypatch, killed_in):
    ensemble, name = ensemble_in(folder), f"net {killed_in}"
    again = (tracker.uri, name, ensemble, RESULTS, "f1")
    with tracker.pipeline("p", {}) as run:
        with monkeypatch.context() as patched:
            patched.setattr(tracker.client.__class__, killed_in, killed)
            with pytest.raises(KeyboardInterrupt):
                register(run, *again)
        assert register(run, *again) == register(run, *again) == 1 and len(quick_upload) == 1
        assert tracker.client.get_model_version_by_alias(name, "challenger").version == 1
        assert register(run, *again[:-1], "f2") == 2, "other networks are another version"
    with tracker.pipeline("p", {}) as other:
        assert register(other, *again) == 3, "so are those of another run"
    assert len(tracker.client.search_model_versions(f"name = '{name}'")) == 3


def killed(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_request_that_was_sent_twice_leaves_one_version(tracker, folder, quick_upload, monkeypatch):
    """MLflow's client repeats a request if the answer was lost."""
    create = tracker.client.__class__.create_model_version

    def twice(self, *args, **kwargs):
        create(self, *args, **kwargs)
        return create(self, *args, **kwargs)

    monkeypatch.setattr(tracker.client.__class__, "create_model_version", twice)
    with tracker.pipeline("p", {}) as run:
        assert register(run, tracker.uri, "net sent twice", ensemble_in(folder), RESULTS, "f1", {"workspace.id": "w"}) == 1
    (version,) = tracker.client.search_model_versions("name = 'net sent twice'")
    assert int(version.version) == 1 and version.tags["workspace.id"] == "w"


def test_a_name_that_mlflow_refuses_is_a_user_error(tracker, folder, networks):
    with tracker.pipeline("p", {}) as run, pytest.raises(UserError, match="can't be used for a/b:c"):
        register(run, tracker.uri, "a/b:c", ensemble_in(folder), RESULTS)


def test_the_requirements_are_version_ranges_without_ray():
    wanted = requirements()
    assert any(w.startswith("torch==2.13") for w in wanted) and any(w.startswith("mlflow") and ">=3" in w for w in wanted)
    assert not any(w.startswith("ray") for w in wanted)


def test_the_requirements_are_the_same_if_the_project_is_not_installed(monkeypatch):
    installed = requirements()

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    assert [Requirement(each) for each in requirements()] == [Requirement(each) for each in installed]
