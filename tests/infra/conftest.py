"""A real S3 server, servers that stand in for Google's and Azure's, and an empty folder on each kind of storage."""

import os
import uuid
from collections.abc import Iterator

import pytest

from infra.deploy.local.servers import S3
from tests.cloud_servers import azure_server, google_server
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


@pytest.fixture(scope="session")
def google_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlakyProxy]:
    """A server for gs:// with an empty bucket named `bucket`."""
    with google_server(tmp_path_factory.mktemp("google")) as server:
        yield server


@pytest.fixture(scope="session")
def azure_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlakyProxy]:
    """A server for abfs:// with an empty container named `bucket`."""
    with azure_server(tmp_path_factory.mktemp("azure")) as server:
        yield server


def use_cloud(monkeypatch: pytest.MonkeyPatch, server: FlakyProxy) -> None:
    """Make `server` this process's Google Cloud Storage or Azure."""
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # no test asks Google's cloud for credentials
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def new_folder(request: pytest.FixtureRequest, kind: str) -> str:
    """URI of an empty folder of a kind of storage: "disk", "s3", "gs" or "abfs". The test is skipped if it has no server."""
    if kind == "disk":
        return str(request.getfixturevalue("tmp_path") / "folder")
    if kind == "s3":
        return request.getfixturevalue("bucket")
    server = request.getfixturevalue({"gs": "google_session", "abfs": "azure_session"}[kind])
    use_cloud(request.getfixturevalue("monkeypatch"), server)
    return f"{kind}://bucket/{uuid.uuid4().hex}"


@pytest.fixture(params=["disk", "s3", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gs", "abfs"))])
def folder(request: pytest.FixtureRequest) -> str:
    """URI of an empty folder; tests run on disk and on S3, and in `make test-slow` on Google's and Azure's store."""
    return new_folder(request, request.param)


@pytest.fixture(params=["disk", "s3", "gs", "abfs"])
def any_folder(request: pytest.FixtureRequest) -> str:
    """URI of an empty folder; tests always run on disk and on all stores. They are those of what a store must be able to do."""
    return new_folder(request, request.param)


@pytest.fixture(params=["s3", "gs", "abfs"])
def store_folder(request: pytest.FixtureRequest) -> str:
    """URI of an empty folder on each store."""
    return new_folder(request, request.param)


@pytest.fixture
def store_proxy(store_folder: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """A proxy in front of the server of `store_folder`, which this process uses instead. Only for requests of the SDKs."""
    kind = store_folder.partition("://")[0]
    if kind == "s3":
        yield request.getfixturevalue("proxy")
        return
    server = request.getfixturevalue({"gs": "google_session", "abfs": "azure_session"}[kind])
    with type(server)(server.url) as flaky:
        use_cloud(monkeypatch, flaky)
        yield flaky
