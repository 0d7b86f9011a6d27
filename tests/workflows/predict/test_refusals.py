"""predict.py refuses what a user can't have meant, in a sentence, and shows its plan without writing."""

import json
import shutil
from pathlib import Path

import pytest

from deconvnet.tracking.mlflow_runs import MlflowTracker
from infra import storage
from infra.errors import UserError
from tests.workflows.predict.predicting import Run, arguments, caught
from workflows import predict
from workflows.cli import load, setting_fields
from workflows.operations import prediction
from workflows.settings import CONFIGS, PredictSettings

pytestmark = pytest.mark.xdist_group("predict")


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


@pytest.mark.parametrize("folder", ["masks", "overlays", "confidence", "ranking", "predictions"])
def test_an_output_with_somebody_s_files_where_this_program_would_write_is_refused(refused, tmp_path, folder) -> None:
    storage.write_bytes(f"{tmp_path}/truth/{folder}/a.png", b"somebody's labels")
    assert f"truth/{folder} holds files that this program didn't write" in refused(output=tmp_path / "truth")


@pytest.mark.parametrize(
    ("executor", "has_gpu", "grows", "wanted", "share"),
    [
        *((executor, has, False, None, 0.25 * has) for executor in ("local", "ray") for has in (False, True)),
        *((executor, has, False, False, 0) for executor in ("local", "ray") for has in (False, True)),
        *((executor, True, False, True, 0.25) for executor in ("local", "ray")),
        ("local", False, True, True, None),
        ("ray", False, False, True, None),
        ("ray", False, True, True, 0.25),
        ("ray", False, True, None, 0),
    ],
)
def test_actors_get_a_gpu_where_there_is_one_or_the_cluster_may_add_one(monkeypatch, executor, has_gpu, grows, wanted, share):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0} | ({"GPU": 1.0} if has_gpu else {}))
    monkeypatch.setattr("infra.runtime.cluster.can_autoscale", lambda _: grows)
    made = PredictSettings(input="i", output="o", executor=executor, compute={"gpu": wanted, "gpus_per_actor": 0.25})
    if share is None:
        where = {"local": "this machine", "ray": "Ray"}[executor]
        with pytest.raises(UserError, match=f"compute.gpu is true, and {where} has no GPU"):
            prediction._gpus_per_actor(made)
    else:
        assert prediction._gpus_per_actor(made) == share


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
