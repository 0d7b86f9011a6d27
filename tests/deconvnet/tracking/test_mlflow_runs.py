"""MLflow runs: what they hold, how they are resumed, and what happens while the store is away."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from deconvnet.tracking import mlflow_runs
from deconvnet.tracking.interface import read_histories
from deconvnet.tracking.metric_spool import MetricSpool
from deconvnet.tracking.mlflow_runs import MlflowTracker, flat_params
from infra.errors import Interrupted, UserError


def test_nothing_is_written_to_the_current_directory(tracker, tmp_path):
    with tracker.pipeline("p", {}) as run:
        run.log_bytes(b"hello", "report/words.txt")
    assert list(Path.cwd().iterdir()) == []
    assert (tmp_path / "my work/mlflow/artifacts" / run.run_id / "artifacts/report/words.txt").read_text() == "hello"
    assert (tmp_path / "my work/mlflow/mlflow.db").is_file()


def test_a_deleted_experiment_is_a_user_error(tracker):
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(UserError, match="test was deleted"):
        MlflowTracker(tracker.uri, "test")


def test_no_secret_reaches_the_store(tracker, tmp_path):
    settings = {"data": {"root": "s3://u:hush1@b/x?sig=hush2"}, "aws_secret": "hush3", "list": ["http://u:hush4@h"]}
    with tracker.pipeline("p", settings, tags={"from": "http://u:hush5@h"}) as run:
        run.log_dataset("voc", "abc", "https://u:hush6@h/voc.tar?sig=hush7", {"train": 2})
        run.log_dict({"uri": "http://u:hush8@h", "token": "hush9"}, "x.json")
        with run.stage("s", settings=settings):
            pass
    assert tracker.client.get_run(run.run_id).data.params["data.root"] == "s3://b/x"
    for file in (tmp_path / "my work").rglob("*"):
        assert not file.is_file() or b"hush" not in file.read_bytes(), file


def test_settings_become_params_with_valid_names_and_lengths():
    params = flat_params({"a": {"b": 1, "none": None, "list": ["x", "y"]}, "long": "z" * 9000, "odd*key": 2})
    assert params["a.b"] == "1" and params["a.list"] == "x, y" and params["odd_key"] == "2" and "a.none" not in params
    assert len(params["long"]) == mlflow_runs.MAX_PARAM


def test_a_stage_is_a_child_run_with_params_metrics_tags_and_artifacts(tracker):
    with (
        tracker.pipeline("pipeline", {"seed": 3}, tags={"config": "quickstart"}) as parent,
        parent.stage("train", "f1", settings={"lr": 0.1}) as child,
    ):
        child.log_metrics({"iou/x+y": 0.5, "absent": None}, step=4)
        child.log_dataset("voc", "d" * 64, "/data/voc", {"train": 10, "val": 2})
        child.log_dataset("voc", "d" * 64, "/data/voc", {"train": 10, "val": 2})
        child.log_bytes(b"png", "figures/a.png")
    read = tracker.client.get_run(child.run_id)
    assert read.data.params == {"lr": "0.1"} and read.info.status == "FINISHED"
    assert read.data.metrics == {"iou/x_y": 0.5}
    assert read.data.tags["mlflow.parentRunId"] == parent.run_id and read.data.tags["stage"] == "train"
    assert read.data.tags["code"] and read.data.tags["data.digest"] == "d" * 64
    (seen,) = read.inputs.dataset_inputs
    assert json.loads(seen.dataset.profile) == {"splits": {"train": 10, "val": 2}, "images": 12}
    assert [a.path for a in tracker.client.list_artifacts(child.run_id, "figures")] == ["figures/a.png"]
    top = tracker.client.get_run(parent.run_id)
    assert top.data.tags["config"] == "quickstart" and top.data.params == {"seed": "3"}


def test_stages_have_titles_and_tags_and_runs_have_descriptions(tracker):
    with tracker.pipeline("p", {}) as parent:
        parent.describe("**bold**")
        with parent.stage("train", "f", title="3 train", tags={"config": "c", "stage": "not this"}) as child:
            pass
        with parent.stage("train", "f", title="3 train") as again:
            assert again.run_id == child.run_id
    read = tracker.client.get_run(child.run_id)
    assert read.info.run_name == "3 train" and read.data.tags["config"] == "c" and read.data.tags["stage"] == "train"
    assert tracker.client.get_run(parent.run_id).data.tags["mlflow.note.content"] == "**bold**"


def test_the_experiment_is_described_and_a_users_description_stays(tracker):
    made = tracker.client.get_experiment(tracker.experiment_id).tags
    assert "val.mean_iou" in made["mlflow.note.content"] and made["mlflow.experimentKind"] == "custom_model_development"
    theirs = tracker.client.create_experiment("theirs", tags={"mlflow.note.content": "Anna's"})
    assert MlflowTracker(tracker.uri, "theirs").experiment_id == theirs
    tags = tracker.client.get_experiment(theirs).tags
    assert tags["mlflow.note.content"] == "Anna's" and tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_resumed_pipeline_continues_its_runs(tracker):
    with pytest.raises(KeyboardInterrupt), tracker.pipeline("p", {"seed": 1}) as parent, parent.stage("s", "f"):
        raise KeyboardInterrupt
    children = tracker.client.search_runs([tracker.experiment_id], "tags.stage = 's'")
    assert [c.info.status for c in children] == ["KILLED"]
    assert tracker.client.get_run(parent.run_id).info.status == "KILLED"

    again = MlflowTracker(tracker.uri, "test")
    with again.pipeline("p", {"seed": 2}, resume_run_id=parent.run_id) as resumed:
        assert resumed.run_id == parent.run_id and again.client.get_run(parent.run_id).info.status == "RUNNING"
        with resumed.stage("s", "f") as child:
            assert child.run_id == children[0].info.run_id and again.client.get_run(child.run_id).info.status == "RUNNING"
        with resumed.stage("s", "other settings") as other:
            assert other.run_id != child.run_id
    read = tracker.client.get_run(parent.run_id)
    assert read.info.status == "FINISHED"
    assert read.data.params["seed"] == "1" and read.data.tags["changed.seed"] == "2"
    assert tracker.client.get_run(child.run_id).info.status == "FINISHED"


def test_a_pipeline_run_has_the_whole_settings_as_a_file_as_params_are_cut(tracker, tmp_path):
    settings = {"seed": 1, "classes": "z" * (mlflow_runs.MAX_PARAM + 1), "none": None}
    with tracker.pipeline("p", settings) as run:
        pass
    assert json.loads(Path(tracker.client.download_artifacts(run.run_id, "settings.json", str(tmp_path))).read_text()) == settings


def test_a_pipeline_run_that_was_deleted_is_replaced(tracker):
    with tracker.pipeline("p", {}, resume_run_id="0" * 32) as run:
        assert run.run_id != "0" * 32


@pytest.mark.parametrize("interruption", [Interrupted("SIGTERM"), KeyboardInterrupt(), SystemExit(75)])
def test_an_interrupted_run_is_killed_and_not_failed(tracker, interruption):
    with pytest.raises(type(interruption)), tracker.pipeline("p", {}) as run:
        raise interruption
    assert tracker.client.get_run(run.run_id).info.status == "KILLED"


def test_a_failed_stage_and_its_pipeline_are_marked_failed(tracker):
    with pytest.raises(ValueError, match="boom"), tracker.pipeline("p", {}) as parent, parent.stage("s") as child:
        raise ValueError("boom")
    assert {tracker.client.get_run(r.run_id).info.status for r in (parent, child)} == {"FAILED"}


def test_an_mlflow_that_is_away_at_the_end_of_a_run_hides_no_error_and_holds_up_no_run_that_failed(tracker, monkeypatch, caplog):
    """A run that succeeded waits for as long as MLflow's client does, so that its status becomes right."""
    timeouts = []

    def away(*given, **named):
        timeouts.append(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT"))
        raise ConnectionError("away")

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.setattr(tracker.client, "set_terminated", away)
    for error in (None, Interrupted("SIGTERM"), ValueError("boom")):
        with nullcontext() if error is None else pytest.raises(type(error)), tracker.pipeline("p", {}) as run:
            if error:
                raise error
        assert caplog.messages[-1] == f"MLflow still shows run {run.run_id} as running: away"
    assert timeouts == [None, "5", "5"]


def history(tracker: MlflowTracker, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in tracker.client.get_metric_history(run_id, key))


def test_training_metrics_arrive_and_repeated_steps_are_logged_once(tracker, tmp_path):
    with tracker.pipeline("p", {}) as parent:
        with parent.stage("train", "f") as run, run.training_metrics() as report:
            for step in range(5):
                report({"step": step, "loss": 1.0 / (step + 1), "note": "x", "ok": True})
        with parent.stage("train", "f") as run, run.training_metrics() as report:  # resumed from step 3
            for step in range(3, 8):
                report({"step": step, "loss": 0.0})
    assert [step for step, _ in history(tracker, run.run_id, "loss")] == list(range(8))
    assert history(tracker, run.run_id, "loss")[3] == (3, 0.25)
    assert set(tracker.client.get_run(run.run_id).data.metrics) == {"loss"}


def test_metrics_left_by_a_killed_driver_are_sent_by_the_resumed_run(tracker, tmp_path):
    with tracker.pipeline("p", {}) as parent:
        with parent.stage("train", "f") as run:
            MetricSpool(tmp_path / "spool" / f"{run.run_id}.jsonl")({"step": 1, "loss": 2.0})
        with parent.stage("train", "f") as run, run.training_metrics():
            pass
    assert history(tracker, run.run_id, "loss") == [(1, 2.0)]


@pytest.mark.parametrize("kept", [True, False])
def test_a_finished_training_waits_longer_for_mlflow_than_a_failed_one_and_what_is_left_is_kept_or_lost(
    tracker, tmp_path, monkeypatch, caplog, kept
):
    waited = []

    def close(self, timeout):
        self._abandoned.set()
        self._closing.set()
        waited.append(timeout)
        return False

    monkeypatch.setattr(mlflow_runs.SpoolDelivery, "close", close)
    tracker.spool_uri = tracker.spool_uri if kept else None
    with tracker.pipeline("p", {}) as run:
        with run.training_metrics():
            pass
        with pytest.raises(ZeroDivisionError), run.training_metrics():
            raise ZeroDivisionError
    assert waited == [120, 10]
    fate = f"kept in {tmp_path / 'spool'}" if kept else "lost"
    assert caplog.messages == [f"MLflow did not accept the last metrics of {run.run_id}; they are {fate}"] * 2


def test_a_data_set_has_the_source_by_which_mlflow_finds_it(tracker):
    expected = {
        "/data/voc": ("local", {"uri": "/data/voc"}),
        "s3://bucket/voc": ("s3", {"uri": "s3://bucket/voc"}),
        "gs://bucket/voc": ("gs", {"uri": "gs://bucket/voc"}),
        "https://host/voc.tar": ("http", {"url": "https://host/voc.tar"}),
    }
    with tracker.pipeline("p", {}) as run:
        for name in expected:
            run.log_dataset(name, "abc", name, {"train": 2})
    seen = [each.dataset for each in tracker.client.get_run(run.run_id).inputs.dataset_inputs]
    assert {each.name: (each.source_type, json.loads(each.source)) for each in seen} == expected


def test_the_history_of_stages_is_that_of_the_newest_finished_run(tracker, tmp_path):
    with tracker.pipeline("p", {}) as parent:
        for fingerprint, loss in (("old", 9.0), ("new", 0.5)):
            with parent.stage("stage1", fingerprint) as run:
                for step in (2, 1, 3):
                    run.log_metrics({"loss": loss / step, "lr": 0.1}, step)
                run.log_metrics({"dev_mean_iou": 0.25}, 3)
                expected = {"loss": ([1, 2, 3], [loss, loss / 2, loss / 3]), "dev_mean_iou": ([3], [0.25])}
                assert run.history(["loss", "dev_mean_iou", "absent"]) == expected
        with pytest.raises(ZeroDivisionError), parent.stage("stage1", "broken") as run:
            run.log_metrics({"loss": 77.0}, 1)
            raise ZeroDivisionError
        with parent.stage("evaluate", "e") as run:
            run.log_metrics({"loss": 1.0})
        histories = read_histories(str(tmp_path), tracker.uri, parent.run_id, ["stage1", "stage2"], ["loss"])
    assert histories == {"stage1": {"loss": ([1, 2, 3], [0.5, 0.25, 0.5 / 3])}}
