"""Tracking can be switched off: the same calls, no MLflow, and the curves of trainings are kept in the workspace."""

import subprocess
import sys

from deconvnet.tracking import open_tracker
from deconvnet.tracking.interface import Tracker, read_histories
from deconvnet.tracking.settings import TrackingSettings

OFF = """
import sys
from deconvnet.tracking.settings import TrackingSettings
from deconvnet.tracking import open_tracker
with open_tracker(TrackingSettings(enabled=False), sys.argv[1]).pipeline("p", {}) as parent, parent.stage("stage1", "f") as run:
    run.log_metrics({"loss": 1.0})
    with run.system_metrics(), run.training_metrics() as report:
        report({"step": 1, "loss": 2.0})
assert not {"mlflow", "ray", "torch"} & set(sys.modules), "imported without need"
"""


def test_tracking_that_is_switched_off_imports_no_mlflow(tmp_path):
    done = subprocess.run([sys.executable, "-c", OFF, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_histories(str(tmp_path), "", None, ["stage1"], ["loss"]) == {"stage1": {"loss": ([1], [2.0])}}


def test_a_run_that_is_not_tracked_keeps_the_metrics_of_a_resumed_training_and_forgets_those_of_other_settings(tmp_path):
    tracker = open_tracker(TrackingSettings(enabled=False), str(tmp_path))
    assert type(tracker) is Tracker
    with tracker.pipeline("p", {}, resume_run_id="abc") as parent:
        assert parent.run_id == "abc"
        for steps in ((1, 2), (2, 3)):
            with parent.stage("stage2", "f1") as run, run.training_metrics() as report:
                for step in steps:
                    report({"step": step, "loss": 1.0 / step})
        assert run.history(["loss", "absent"]) == {"loss": ([1, 2, 3], [1.0, 0.5, 1 / 3])}
        with parent.stage("stage2", "f2") as run, run.training_metrics() as report:
            report({"step": 1, "loss": 7.0})
        assert read_histories(str(tmp_path), "", "abc", ["stage1", "stage2"], ["loss"]) == {"stage2": {"loss": ([1], [7.0])}}


def test_metrics_that_mlflow_has_not_accepted_are_kept_in_the_workspace(tmp_path, make_store):
    """Where a run on another machine finds them when it resumes the training."""
    make_store(tmp_path)
    assert open_tracker(TrackingSettings(), str(tmp_path)).spool_uri == str(tmp_path / "mlflow" / "spool")


def test_histories_of_a_workspace_join_what_was_tracked_and_what_was_not(tracker, tmp_path):
    workspace = str(tmp_path / "my work")
    with tracker.pipeline("p", {}) as parent, parent.stage("stage1", "f") as run:
        run.log_metrics({"loss": 4.0}, 3)
    with (
        Tracker(workspace).pipeline("p", {}) as untracked,
        untracked.stage("stage2", "f") as run,
        run.training_metrics() as report,
    ):
        report({"step": 1, "loss": 2.0})
    found = read_histories(workspace, tracker.uri, parent.run_id, ["stage1", "stage2"], ["loss"])
    assert found == {"stage1": {"loss": ([3], [4.0])}, "stage2": {"loss": ([1], [2.0])}}
