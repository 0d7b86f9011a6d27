"""Commands run in the tests' process print their log messages, as they do when they are run by themselves; and use its Ray."""

from contextlib import nullcontext

import pytest

from workflows.cli import configure_logging


@pytest.fixture(autouse=True)
def _logging() -> None:
    configure_logging()


@pytest.fixture
def on_session_ray(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands called in this process run on the session's Ray, and leave it there."""
    monkeypatch.setattr("infra.runtime.cluster.connected", lambda settings: nullcontext())
