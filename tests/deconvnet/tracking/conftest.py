"""An MLflow tracker on a new SQLite store."""

import shutil
from pathlib import Path

import pytest

from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.store import check_store, tracking_uri


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch):
    """Ignore a tracking server that the environment names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def new_store(tmp_path_factory) -> Path:
    """A new SQLite store; making one takes seconds, so tests copy it."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    check_store(f"sqlite:///{database}")
    return database


@pytest.fixture
def tracker(tmp_path, monkeypatch, new_store) -> MlflowTracker:
    """A tracker of the experiment `test` in a workspace with a space in its name; the current directory is another one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "my work" / "mlflow").mkdir(parents=True)
    shutil.copy(new_store, tmp_path / "my work" / "mlflow")
    return MlflowTracker(tracking_uri(str(tmp_path / "my work")), "test", str(tmp_path / "spool"))
