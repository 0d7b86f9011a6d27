"""A workspace with two versions of a tiny ensemble, images of all kinds, and predict.py in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.register import register
from infra.errors import UserError
from tests.deconvnet.ensembles import RESULTS, ensemble_in, save_networks
from tests.workflows.commands import LOCAL
from tests.workflows.predict.predicting import Refused, Run, arguments, write_images, written
from workflows import predict


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], str]) -> Path:
    """A workspace whose MLflow has two versions of a tiny ensemble; @champion is 1, @challenger 2."""
    folder = tmp_path_factory.mktemp("predict") / "work"
    tracker = MlflowTracker(make_store(folder), "test")
    for seed, alias in ((1, "champion"), (5, "challenger")):
        save_networks(folder / f"networks-{seed}", seed=seed)
        with tracker.pipeline("p", {}) as run:
            register(run, tracker.uri, "edeconvnet", ensemble_in(folder / f"networks-{seed}"), RESULTS, alias=alias)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Images in several formats; among them damaged, hidden, clashing and other files."""
    write_images(tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def run(
    workspace: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the command in this process, without Ray; returns what it printed."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("infra.runtime.cluster.connected", lambda settings: pytest.fail("no Ray is needed"))

    def call(*more: str) -> str:
        capsys.readouterr()
        predict.main(arguments(workspace, image_folder, tmp_path / "out", *LOCAL, *more))
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(workspace: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """The message of a user error; nothing may have been written."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*more: str, source: Path = image_folder, output: Path = tmp_path / "out") -> str:
        before = written(tmp_path)
        with pytest.raises(UserError) as caught:
            predict.main(arguments(workspace, source, output, *more))
        assert written(tmp_path) == before
        return str(caught.value)

    return call
