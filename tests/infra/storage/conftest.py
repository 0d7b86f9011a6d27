"""What the tests of storage share: the file of a lock, and servers whose failed requests are repeated sooner."""

from types import SimpleNamespace

import pytest

from infra import storage
from infra.storage.objects import gcs, store


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts of a request are a fiftieth of the real ones, which `test_the_pauses_grow…` has."""
    monkeypatch.setattr(store, "random", SimpleNamespace(uniform=lambda lowest, highest: 0.02))
    monkeypatch.setattr(gcs, "MAX_BACKOFF_SECONDS", 0.1)


@pytest.fixture
def uri(folder: str) -> str:
    """URI of a lock's file, which does not exist yet."""
    return storage.join(folder, "retrain.lock")
