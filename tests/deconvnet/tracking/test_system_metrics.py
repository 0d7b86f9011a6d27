"""System metrics are logged by seconds, and neither a missing psutil nor a missing MLflow disturbs the run."""

import sys
import threading

import pytest

from deconvnet.tracking import system_metrics
from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.system_metrics import system_metrics_logged
from tests.waiting import wait_until


@pytest.fixture
def tracker(tmp_path, make_store) -> MlflowTracker:
    return MlflowTracker(make_store(tmp_path), "e")


def names(tracker: MlflowTracker, run_id: str) -> set[str]:
    return {name for name in tracker.client.get_run(run_id).data.metrics if name.startswith("system/")}


def samplers() -> list[threading.Thread]:
    """The threads that measure."""
    return [thread for thread in threading.enumerate() if thread.name == "system-metrics"]


def test_the_load_of_the_machine_is_logged_by_seconds(tracker) -> None:
    with tracker.pipeline("p", {}) as run:
        with system_metrics_logged(run, tracker.client, 0.5):
            cpu = "system/cpu_utilization_percentage"
            wait_until(lambda: len(tracker.client.get_metric_history(run.run_id, cpu)) >= 2, seconds=60)
        assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= names(tracker, run.run_id)
        history = tracker.client.get_metric_history(run.run_id, "system/cpu_utilization_percentage")
        began = tracker.client.get_run(run.run_id).info.start_time
        assert all(abs(point.step - (point.timestamp - began) / 1000) <= 2 for point in history)
        assert not samplers(), "it would go on measuring"
    assert tracker.client.get_run(run.run_id).info.status == "FINISHED"


def test_without_psutil_nothing_is_measured(tracker, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics")]:
        monkeypatch.delitem(sys.modules, name)
    with tracker.pipeline("p", {}) as run, system_metrics_logged(run, tracker.client, 0.1):
        assert not samplers()
    assert not names(tracker, run.run_id)


def test_the_end_of_a_run_does_not_wait_for_a_sample_that_mlflow_does_not_take(tracker, monkeypatch) -> None:
    sending, answer = threading.Event(), threading.Event()
    monkeypatch.setattr(system_metrics, "_STOP_SECONDS", 0.01)
    with tracker.pipeline("p", {}) as run:
        monkeypatch.setattr(run, "log_metrics", lambda *given: (sending.set(), answer.wait(10)))
        with system_metrics_logged(run, tracker.client, 0.01):
            assert sending.wait(60)
        assert samplers(), "the end waited for the answer"
        answer.set()
        for thread in samplers():
            thread.join(60)
        assert not samplers()


def test_an_exception_of_the_block_is_raised(tracker) -> None:
    with pytest.raises(KeyError), tracker.pipeline("p", {}) as run, system_metrics_logged(run, tracker.client, 0.1):
        raise KeyError("x")
