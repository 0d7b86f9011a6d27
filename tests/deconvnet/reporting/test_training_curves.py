"""Curves as MLflow and a bare run's files tell them."""

import io
from pathlib import Path

import pytest
from PIL import Image

from deconvnet.reporting import training_curves
from deconvnet.tracking.mlflow_runs import Tracker
from deconvnet.training.job import CurveFile


def test_the_newest_finished_run_of_each_stage_tells(tmp_path: Path) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "t")
    with tracker.pipeline("p", {}) as parent:
        for fingerprint, loss in (("old", 9.0), ("new", 0.5)):
            with parent.stage("stage1", fingerprint) as run:
                for step in (2, 1, 3):
                    run.log_metrics({"loss": loss / step, "lr": 0.1}, step)
                run.log_metrics({"dev_mean_iou": 0.25}, 3)
                assert training_curves.of_run(run) == {
                    "loss": ([1, 2, 3], [loss, loss / 2, loss / 3]), "dev_mean_iou": ([3], [0.25]),
                }  # fmt: skip
        with pytest.raises(ZeroDivisionError), parent.stage("stage1", "broken") as run:
            run.log_metrics({"loss": 77.0}, 1)
            raise ZeroDivisionError
        with parent.stage("evaluate", "e") as run:
            run.log_metrics({"loss": 1.0})
        found = training_curves.of_pipeline(parent)
    assert list(found) == ["stage1"] and found["stage1"]["loss"] == ([1, 2, 3], [0.5, 0.25, 0.5 / 3])
    assert found == training_curves.of_children(tracker.client, parent.run_id)


def test_a_bare_runs_files_tell_the_same(tmp_path: Path) -> None:
    curve = CurveFile(tmp_path / "stage2.jsonl", 0)
    curve.add({"step": 1, "epoch": 0.5, "loss": 2.0})
    curve.add({"step": 2, "epoch": 1.0, "loss": 1.0, "dev_mean_iou": 0.5})
    with (tmp_path / "stage2.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    found = training_curves.of_folder(str(tmp_path))
    assert found == {"stage2": {"loss": ([1, 2], [2.0, 1.0]), "dev_mean_iou": ([2], [0.5])}}
    assert training_curves.of_folder(str(tmp_path / "nothing")) == {}


def test_two_panels_a_stage() -> None:
    line = ([1, 2], [1.0, 0.5])
    one = training_curves.drawn({"fcn8s": {"loss": line, "dev_mean_iou": line}})
    two = training_curves.drawn({"fcn8s": {"loss": line}, "stage1": {"loss": line}})
    heights = [Image.open(io.BytesIO(each["training_curves.png"])).height for each in (one, two)]
    assert heights == [340, 680]
    assert training_curves.drawn({}) == {}
