"""The pipeline by the local executor, in a Python that lacks Ray, MLflow and more; a workspace is resumed by either executor."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from deconvnet.datasets import synthetic
from deconvnet.models.checkpoint import load_model
from deconvnet.tracking.interface import Run
from infra.errors import Interrupted, UserError
from infra.storage import tables
from tests.conftest import ROOT
from tests.waiting import wait_until
from tests.workflows.commands import SMALL, STEPS, call
from workflows import train_pipeline
from workflows.pipelines.training import Pipeline
from workflows.settings import load

MISSING = ("ray", "mlflow", "boto3")


def arguments(workspace: Path, root: Path, *more: str) -> list[str]:
    return ["--workspace", str(workspace), "--data.root", str(root), *SMALL, *more]


def pipeline(workspace: Path, root: Path, *more: str, **options: object) -> Pipeline:
    config = str(ROOT / "workflows/configs/quickstart.yaml")
    return Pipeline(load(config, *arguments(workspace, root, *more)), **options)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A workspace whose images and proposals are complete, and the folder of its data."""
    folder = tmp_path_factory.mktemp("local")
    root, workspace = folder / "data", folder / "workspace"
    synthetic.write_dataset(str(root), 0, 16, 3, 64, 96)
    pipeline(workspace, root).run("small", lambda stage: stage.name != "proposals")
    return workspace, root


@pytest.fixture
def copied(prepared: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The workspace copied to another folder, and a data folder that does not exist."""
    shutil.copytree(prepared[0], tmp_path / "copy")
    return tmp_path / "copy", tmp_path / "not there"


@pytest.fixture
def bare_environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python in which `MISSING` and OpenCV's EdgeBox can't be imported."""
    lines = [
        "import sys",
        *(f"sys.modules[{name!r}] = None" for name in MISSING),
        "import cv2",
        "vars(cv2).pop('ximgproc', None)",
    ]
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}


def command(workspace: Path, root: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "workflows/train_pipeline.py"), *arguments(workspace, root, *more)]


def test_a_copied_workspace_is_trained_and_evaluated_without_ray_mlflow_and_its_data(
    copied: tuple[Path, Path], bare_environment: dict[str, str]
) -> None:
    workspace, root = copied
    limited = call(train_pipeline.main, *arguments(workspace, root, "--max-minutes", "0"))
    assert limited.returncode == 75, limited.stdout + limited.stderr
    assert "the same command resumes it" in limited.stderr and not (workspace / "models").exists()

    # Stopped in the middle of a training, at a step that has no checkpoint by itself.
    curve = workspace / "curves/fcn8s.jsonl"
    with pytest.raises(Interrupted):
        pipeline(workspace, root, should_stop=lambda: curve.exists() and curve.read_text().count('"loss"') == 2).run("small")
    assert [path.name for path in workspace.glob("train/fcn8s-*/*")] == ["step_000000002"]

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": bare_environment}
    integers = "--segment.int8", "true"
    process = subprocess.Popen(command(workspace, root, *integers), cwd="/", **pipes)
    while process.poll() is None and not json.loads((workspace / "workspace.lock").read_text())["expires"]:
        time.sleep(0.1)
    # Other settings, of which the results would be a mixture.
    beside = call(train_pipeline.main, *arguments(workspace, root, "--segment.proposals", "3"))
    said, errors = process.communicate()
    assert beside.returncode == 3 and "train_pipeline.py" in beside.stderr and f"process {process.pid} on" in beside.stderr
    assert process.returncode == 0, said + errors
    assert "prepare: complete, not run again" in said and "proposals: complete, not run again" in said
    assert said.count("step 1/3") == 2 and "resumed from the checkpoint of step 2" in said
    for name in ("fcn8s", "stage1", "stage2"):
        assert Run(str(workspace), name).history(("loss",))["loss"][0] == list(range(1, STEPS + 1)), name
        assert load_model(str(workspace / "models" / name))[1]["extra"]["steps"] == STEPS
    results = json.loads((workspace / "report/results.json").read_text())
    assert not (workspace / "train").exists(), "checkpoints, which are not needed any more"
    assert results["images"] == 3 and all(row["mean_iou"] is not None for row in results["rows"].values())
    assert "largest activations recorded on 13 training images" in said
    assert all([*workspace.glob(f"models/{name}/activation_ranges-*")] for name in ("fcn8s", "stage2"))
    for figure in ("comparison.png", "training_curves.png"):
        assert (workspace / "report" / figure).read_bytes().startswith(b"\x89PNG")
    assert "stage2" in (workspace / "report/index.html").read_text()

    again = call(train_pipeline.main, *arguments(workspace, root, *integers))
    assert again.returncode == 0 and "every stage is complete" in again.stdout


def test_ctrl_c_leaves_a_checkpoint_and_exit_code_75(copied: tuple[Path, Path]) -> None:
    workspace, root = copied
    more = ("--train.fcn8s.max_steps", "10000", "--train.fcn8s.epochs", "10000")
    curve = workspace / "curves/fcn8s.jsonl"

    def interrupt() -> None:
        wait_until(lambda: curve.exists() and '"loss"' in curve.read_text(), 200, description="a step was reported")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    done = call(train_pipeline.main, *arguments(workspace, root, *more))
    thread.join()
    assert done.returncode == 75, done.stderr
    assert "left a checkpoint" in done.stderr and len(list(workspace.glob("train/fcn8s-*/step_*"))) == 1


def test_a_workspace_without_its_data_is_refused_where_a_setting_of_the_data_differs(
    copied: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="there is no data folder"):
        pipeline(*copied, "--data.dev_fraction", "0.3")
    caplog.set_level("INFO", "workflows")
    assert pipeline(*copied).stages.plan()[0].complete
    assert "does not exist: the images of" in caplog.text


@pytest.mark.ray
def test_both_executors_make_the_same_tables_and_continue_each_others_workspace_and_ray_trains(
    prepared: tuple[Path, Path], tmp_path: Path, on_session_ray: None, make_store: Callable[[Path], str]
) -> None:
    workspaces = {name: tmp_path / name for name in ("ray", "local")}
    for name, workspace in workspaces.items():
        made = pipeline(workspace, prepared[1], "--executor", name)
        made.run("small", lambda stage: stage.name != "examples")
    for table in ("images", "proposals", "examples/stage1", "examples/stage2", "examples/stage1_dev"):
        ray, local = (list(tables.iter_rows(str(workspace / table))) for workspace in workspaces.values())
        assert ray == local, table
    for name, workspace in workspaces.items():
        other = pipeline(workspace, prepared[1], "--executor", "ray" if name == "local" else "local")
        assert [status.complete for status in other.stages.plan()[:3]] == [True] * 3

    ray, store = workspaces["ray"], make_store(workspaces["ray"])
    tracked = ("--tracking.enabled", "true", "--tracking.system_metrics", "false")
    on_ray = ("--executor", "ray", "--compute.workers", "2", *tracked)
    pipeline(ray, prepared[1], *on_ray).run("small", lambda stage: stage.name != "fcn8s")
    client = MlflowClient(store, store)
    experiment = client.get_experiment_by_name("deconvnet")
    (run,) = client.search_runs([experiment.experiment_id], "tags.stage = 'fcn8s'")
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in losses] == [1, 2, 3], "Ray Train's controller reports them"
    assert pipeline(ray, prepared[1], "--executor", "local", *tracked).stages.plan()[3].complete
