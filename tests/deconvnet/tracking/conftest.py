"""An MLflow tracker on a new SQLite store."""

import pytest

from deconvnet.tracking.mlflow_runs import MlflowTracker


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch):
    """Ignore a tracking server that the environment names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def tracker(tmp_path, monkeypatch, make_store) -> MlflowTracker:
    """A tracker of the experiment `test` in a workspace with a space in its name; the current directory is another one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return MlflowTracker(make_store(tmp_path / "my work"), "test", str(tmp_path / "spool"))
