"""A real S3 server, and a place to write on each kind of storage."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.deploy.local.servers import S3
from tests.servers import FlakyProxy, s3_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS, with an empty bucket `bucket`."""
    with s3_server(tmp_path_factory.mktemp("weed")) as server:
        server.bucket("bucket")
        yield server


def use(monkeypatch: pytest.MonkeyPatch, server: S3) -> None:
    """Make `server` the S3 of this process: nothing else of the environment's AWS settings holds."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty folder on S3."""
    use(monkeypatch, s3)
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """A proxy before the server that this process uses as its S3."""
    with FlakyProxy(s3.url) as flaky:
        use(monkeypatch, flaky)
        yield flaky


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, on each kind of storage in turn."""
    return str(tmp_path / "place") if request.param == "disk" else request.getfixturevalue("bucket")
