"""The stage `register`: repeated if its version is gone, takes no alias of others, and the end of a run is not forgotten."""

import argparse
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.tracking import register as register_module
from deconvnet.tracking.mlflow_runs import MlflowRun
from deconvnet.tracking.registry import aliases
from infra import storage
from infra.errors import Interrupted, UserError
from infra.runtime.stages import Stage
from tests.deconvnet.example_run import example_results
from workflows.pipelines import run_log
from workflows.pipelines.training import Pipeline
from workflows.pipelines.workspace import LOCK
from workflows.settings import Settings

PLAN = argparse.Namespace(dry_run=False, config="mine.yaml")


class OnlyRegister(Pipeline):
    """A pipeline without the stages before `register`."""

    def _stages(self) -> list[Stage]:
        return [replace(self._register_stage(), inputs=())]

    def val_images(self) -> dict[str, str]:
        return {}


@pytest.fixture
def run(tmp_path: Path, make_store: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that runs the pipeline, as train_pipeline.py does, on an MLflow store that others use as well.

    It takes changes of the settings of tracking.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(register_module, "_upload", lambda *_: (None, "file:///m"))
    store, workspace = make_store(tmp_path / "shared"), str(tmp_path / "w")
    settings = Settings(
        workspace=workspace,
        executor="local",
        data={"classes": GENERATED_CLASSES, "root": "s3://carla:hush@bucket/voc?sig=hush"},
        tracking={"uri": store, "system_metrics": False},
        cluster={"num_cpus": 1},
    )
    storage.write_json(f"{workspace}/report/results.json", example_results())

    def run(**changes: object) -> None:
        tracking = settings.tracking.model_copy(update=changes)
        OnlyRegister(settings.model_copy(update={"tracking": tracking})).run_or_plan(PLAN)

    return run


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    store = f"sqlite:///{tmp_path}/shared/mlflow/mlflow.db"
    return MlflowClient(store, store)


def test_a_version_that_was_deleted_is_registered_again(
    run: Callable[..., None], client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    assert "edeconvnet version 1, alias challenger" in capsys.readouterr().out
    run()
    assert "Nothing to do" in capsys.readouterr().out
    client.delete_registered_model("edeconvnet")
    run()
    assert "Nothing to do" not in capsys.readouterr().out and aliases(client.tracking_uri, "edeconvnet") == {"challenger": 1}
    # Another database at the same URI may have a version of this number.
    client.set_model_version_tag("edeconvnet", "1", "fingerprint", "of another model")
    run()
    assert aliases(client.tracking_uri, "edeconvnet") == {"challenger": 2}


def test_a_run_writes_no_password_of_its_settings_to_the_workspace_or_the_store(run: Callable[..., None], tmp_path: Path) -> None:
    run()
    assert json.loads((tmp_path / "w" / run_log.RUN_FILE).read_text())["settings"]["data"]["root"] == "s3://bucket/voc"
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or not re.search(rb"carla|hush", file.read_bytes()), file


def test_the_load_of_the_machine_is_logged_if_the_settings_say_so(
    run: Callable[..., None], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(MlflowRun, "system_metrics", lambda run: logged.append(run.run_id) or nullcontext())
    run(system_metrics=False)
    assert not logged
    client.delete_registered_model("edeconvnet")
    run(system_metrics=True)
    assert len(logged) == 1


def test_a_run_that_lost_its_lock_does_not_note_that_another_came_to_its_end(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has slept for long. If the other run is killed before it logs its results, the next run has to do so."""
    end = Pipeline._end

    def sleep(self: Pipeline, *arguments: object) -> None:
        end(self, *arguments)
        storage.remove(f"{self.root}/{LOCK}")

    monkeypatch.setattr(Pipeline, "_end", sleep)
    with pytest.raises(Interrupted):
        run()
    assert json.loads((tmp_path / "w" / run_log.RUN_FILE).read_text())["finished"] is False


def test_a_complete_workspace_needs_no_registry_that_answers(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> bool:
        raise UserError("no answer within 12 s")

    run()
    monkeypatch.setattr(register_module, "is_registered", away)
    capsys.readouterr()
    run()
    said = capsys.readouterr().out
    assert (
        "whether edeconvnet version 1 is still registered, so this is assumed: no answer within 12 s" in said
        and "Nothing to do" in said
    )


def test_the_alias_of_another_workspace_s_version_is_not_taken(
    run: Callable[..., None], client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client.create_registered_model("edeconvnet")
    client.create_model_version("edeconvnet", "file:///m", tags={"workspace.id": "theirs", "workspace": "/runs/theirs"})
    client.set_registered_model_alias("edeconvnet", "challenger", "1")
    run()
    assert aliases(client.tracking_uri, "edeconvnet") == {"challenger": 1}
    said = capsys.readouterr().out
    assert "edeconvnet version 2, without an alias" in said and "set another --tracking.model_name" in said
    assert "the workspace /runs/theirs (version 1): its alias challenger was not moved, and retrain.py will not promote" in said
    client.delete_registered_model_alias("edeconvnet", "challenger")
    client.delete_model_version("edeconvnet", "2")
    run()
    assert list(aliases(client.tracking_uri, "edeconvnet")) == ["challenger"]
    said = capsys.readouterr().out
    assert (
        "alias challenger" in said and "was not moved" not in said and "retrain.py will not promote a model of this name" in said
    )


def test_a_run_that_was_killed_after_its_last_stage_is_completed_by_the_next(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The results would otherwise be missing in MLflow for good, since every stage is complete."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pipeline, "_end", killed)
        run()
    file = tmp_path / "w" / run_log.RUN_FILE
    assert json.loads(file.read_text())["finished"] is False
    capsys.readouterr()
    run()
    said = capsys.readouterr().out
    assert re.search(r"register: complete, not run again", said) and "Nothing to do" not in said
    assert json.loads(file.read_text())["finished"] is True
    run()
    assert "Nothing to do" in capsys.readouterr().out
    earlier = {key: value for key, value in json.loads(file.read_text()).items() if key != "finished"}
    file.write_text(json.dumps(earlier))  # of an earlier version of this program
    run()
    assert "Nothing to do" in capsys.readouterr().out
