"""An MLflow tracker on a new SQLite store, and a running MLflow server."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deconvnet.tracking.mlflow_runs import MlflowTracker
from infra.deploy.local.servers import mlflow_server


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


@dataclass(frozen=True)
class RunningMlflow:
    """A running MLflow server: its URL, and the URI of its SQLite file, which is faster to write to."""

    url: str
    store: str


@pytest.fixture(scope="session")
def running_mlflow(tmp_path_factory: pytest.TempPathFactory, new_store: Path) -> Iterator[RunningMlflow]:
    """An MLflow server. Starting one takes seconds, so the files that use it are in the group "mlflow server" of pytest-xdist."""
    folder = tmp_path_factory.mktemp("mlflow server")
    shutil.copy(new_store, folder / "server.db")
    with mlflow_server(folder) as server:
        yield RunningMlflow(server.url, f"sqlite:///{folder}/server.db")
        server.kill()  # to stop it takes longer
