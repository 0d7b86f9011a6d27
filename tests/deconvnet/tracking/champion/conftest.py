"""A workspace whose model is registered, for tests of who becomes champion."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from deconvnet.tracking.champion.workspace_model import WorkspaceModel
from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.promotion import Decision, promote
from infra.storage.lock import Lock, hold_lock


@dataclass
class Shop:
    """A workspace with a store of its own, its registered model "net" with two versions, and the lock of the workspace."""

    tracker: MlflowTracker
    model: WorkspaceModel
    lock: Lock

    @property
    def client(self) -> MlflowClient:
        return self.tracker.client

    def add_version(self, **tags: str) -> int:
        """Register a version of another origin; `workspace_id` stands for the tag workspace.id."""
        named = {key.replace("_", "."): value for key, value in tags.items()}
        return int(self.client.create_model_version("net", "file:///model", tags=named).version)

    def promote(self, challenger: int, champion: int | None, decision: Decision) -> int | None:
        with self.tracker.pipeline("p", {}) as run:
            return promote(run, self.model, challenger, champion, decision, self.lock)[0]


@pytest.fixture(scope="session")
def shop_database(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], str]) -> Path:
    """The file of a store with the registered model "net" and two versions, to be copied."""
    folder = tmp_path_factory.mktemp("shop")
    uri = make_store(folder)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("net")
    for _ in range(2):
        client.create_model_version("net", "file:///model", tags={"workspace.id": "ours"})
    return folder / "mlflow/mlflow.db"


@pytest.fixture
def shop(tmp_path: Path, shop_database: Path) -> Iterator[Shop]:
    (tmp_path / "w/mlflow").mkdir(parents=True)
    shutil.copy(shop_database, tmp_path / "w/mlflow")
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/w/mlflow/mlflow.db", "e")
    with hold_lock(str(tmp_path / "w/workspace.lock"), "retrain.py") as lock:
        yield Shop(tracker, WorkspaceModel(tracker.uri, "net", str(tmp_path / "w"), "ours"), lock)


@pytest.fixture
def shared(shop, tmp_path) -> Shop:
    """The same for a store that lies outside the workspace, as a server does."""
    shutil.copy(tmp_path / "w/mlflow/mlflow.db", tmp_path / "shared.db")
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/shared.db", "e")
    return replace(shop, tracker=tracker, model=replace(shop.model, store=tracker.uri))
