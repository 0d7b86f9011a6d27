"""Commands run in the tests' process print their log messages, as they do when they are run by themselves; and use its Ray.

What several files share is here, too: those with the same `xdist_group` are tested by one process.
"""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from deconvnet.datasets.synthetic import write_dataset
from tests.workflows.doubles import training_gives
from tests.workflows.retrainings import Retrainings
from workflows.cli import configure_logging


@pytest.fixture(autouse=True)
def _logging() -> None:
    configure_logging()


@pytest.fixture
def on_session_ray(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands called in this process run on the session's Ray, and leave it there."""
    monkeypatch.setattr("infra.runtime.cluster.connected", lambda settings: nullcontext())


@pytest.fixture(scope="session")
def retrainings(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], str]) -> Retrainings:
    """The state after the first retraining."""
    made = Retrainings(tmp_path_factory.mktemp("retrain"))
    write_dataset(str(made.data), 0, 24, 5, 64, 80)
    write_dataset(str(made.more), 0, 29, 5, 64, 80)
    assert make_store(made.workspace) == made.store
    with training_gives(quality=0.6):
        done = made()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "version 1 is promoted: there was no champion" in done.stdout
    return made


@pytest.fixture
def retrained(retrainings: Retrainings, tmp_path: Path) -> Retrainings:
    """The state after the first retraining, in a folder of the test's own."""
    return Retrainings(shutil.copytree(retrainings.data.parent, tmp_path / "copy"))
