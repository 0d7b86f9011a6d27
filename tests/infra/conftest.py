"""A real S3 server, and an empty folder on each kind of storage."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.deploy.local.servers import S3
from tests.servers import FlakyProxy, s3_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A SeaweedFS server with an empty bucket named `bucket`."""
    with s3_server(tmp_path_factory.mktemp("weed")) as server:
        server.create_bucket("bucket")
        yield server


def use_s3(monkeypatch: pytest.MonkeyPatch, server: S3) -> None:
    """Make `server` this process's S3; other AWS variables of the environment are removed."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of an empty folder on S3."""
    use_s3(monkeypatch, s3)
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """A proxy in front of the S3 server, which this process uses as its S3."""
    with FlakyProxy(s3.url) as flaky:
        use_s3(monkeypatch, flaky)
        yield flaky


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of an empty folder; tests run once on disk and once on S3."""
    return str(tmp_path / "folder") if request.param == "disk" else request.getfixturevalue("bucket")
