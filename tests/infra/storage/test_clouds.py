"""Google Cloud Storage and Azure Blob Storage (servers that stand in for them): wrong configuration, secrets, conditions."""

import os
import sys
from types import SimpleNamespace
from urllib.parse import parse_qs, urlencode, urlsplit

import pyarrow.fs as pafs
import pytest

from infra import storage
from infra.deploy.local.process import free_port
from infra.errors import UserError
from infra.storage.objects import azure, gcs, store
from infra.storage.objects.store import check_conditions
from tests.cloud_servers import AZURE_KEY, GoogleProxy
from tests.infra.conftest import new_folder, use_cloud
from tests.infra.storage.helpers import message_of
from tests.servers import Answer

CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"


@pytest.mark.parametrize(
    "kind, library, extra", [("gs", "google.cloud.storage.exceptions", "gcs"), ("abfs", "azure.core.exceptions", "azure")]
)
def test_a_missing_library_is_one_sentence_that_names_the_extra(kind, library, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    for act in (storage.check_writable, storage.filesystem, storage.read_bytes):
        message = message_of(lambda act=act: act(f"{kind}://bucket/x"))
        assert message.startswith(f"{kind}:// needs a library that is not installed") and f"'.[{extra}]'" in message


class _Unconditional(GoogleProxy):
    """Google's store as a server that knows no conditions."""

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Forward a request without its condition."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items() if name != "ifGenerationMatch"}
        return super().forward(method, f"{urlsplit(path).path}?{urlencode(query)}", headers, body)


def test_a_server_without_conditional_writes_is_refused_for_locks(request, monkeypatch):
    folder = new_folder(request, "gs")
    storage.check_writable(folder, locks=True)
    with _Unconditional(request.getfixturevalue("google_session").url) as server:
        use_cloud(monkeypatch, server)
        assert "ignores the conditions of writes" in message_of(lambda: storage.check_writable(folder, locks=True))
        storage.check_writable(folder)  # enough for files without a lock
        assert storage.list_files(folder) == []


@pytest.mark.parametrize("ignored", [None, "wrong"])
def test_a_server_that_ignores_one_of_both_conditions_is_refused(ignored):
    tried = []
    with pytest.raises(UserError, match="ignores the conditions"):
        check_conditions(lambda tag: tried.append(tag) or tag == ignored, "wrong", "abfs://b/x")
    assert ignored in tried
    check_conditions(lambda tag: False, "wrong", "abfs://b/x")


def test_azure_needs_a_connection_string_with_a_key_and_shows_none(request, monkeypatch):
    folder = new_folder(request, "abfs")
    right = os.environ[CONNECTION]
    monkeypatch.setenv(CONNECTION, right.replace(AZURE_KEY, "d3Jvbmc="))
    message = message_of(lambda: storage.check_writable(folder))
    assert "refuses the key" in message and "d3Jvbmc=" not in message and "\n" not in message
    secret = "c2VjcmV0LXNlY3JldA=="
    for wrong in (secret, f"AccountName=a;SharedAccessSignature=sv={secret}", f"AccountKey={secret}", "AccountName=a"):
        monkeypatch.setenv(CONNECTION, wrong)
        message = message_of(lambda: storage.exists(folder))
        assert "is not a connection string with an account and its key" in message and secret not in message, wrong
    monkeypatch.delenv(CONNECTION)
    assert f"set {CONNECTION}" in message_of(lambda: storage.filesystem(folder))


def test_azure_takes_the_account_from_the_connection_string_alone(request):
    new_folder(request, "abfs")
    assert "names an account" in message_of(lambda: storage.exists("abfs://bucket@other.dfs.core.windows.net/x"))


def test_an_account_with_a_hierarchical_namespace_is_refused(request, monkeypatch):
    folder = new_folder(request, "abfs")
    monkeypatch.setattr(type(azure._service()), "get_account_information", lambda self: {"is_hns_enabled": True})
    azure._check_namespace.cache_clear()
    assert "hierarchical namespace" in message_of(lambda: storage.check_writable(folder))
    assert "hierarchical namespace" in message_of(lambda: storage.filesystem(folder))


def test_the_servers_of_an_account_are_those_of_its_connection_string(monkeypatch):
    monkeypatch.setattr(azure, "_check_namespace", lambda connection: None)
    made = {}
    monkeypatch.setattr(azure, "_AzureFileSystem", lambda **options: made.update(options) or pafs.LocalFileSystem())
    monkeypatch.setenv(
        CONNECTION, f"DefaultEndpointsProtocol=https;AccountName=mine;AccountKey={AZURE_KEY};EndpointSuffix=core.windows.net"
    )
    with pytest.raises(AttributeError):  # a LocalFileSystem has no attribute for the bucket
        azure.filesystem("runs")
    assert (made["blob_storage_authority"], made["dfs_storage_authority"]) == (".blob.core.windows.net", ".dfs.core.windows.net")
    uri, options = azure.delta_location("runs", "a b")
    assert uri == "abfs://runs/a%20b" and options["azure_storage_endpoint"] == "https://mine.blob.core.windows.net"


def test_google_is_asked_again_until_a_copy_is_complete(monkeypatch):
    """It copies large objects to a bucket in another place in steps, and tells how to go on."""
    asked, tokens = [], iter(["half", None])
    target = SimpleNamespace(rewrite=lambda source, token, **_: (asked.append(token), (next(tokens), 1, 2))[1])
    monkeypatch.setattr(gcs, "_bucket", lambda name: SimpleNamespace(blob=lambda key: target))
    assert gcs.copy(("here", "weights"), ("there", "weights")) and asked == [None, "half"]


def test_pyarrow_retries_for_as_long_as_google_s_own_client(monkeypatch):
    made = []
    monkeypatch.setattr(pafs, "GcsFileSystem", lambda **options: made.append(options["retry_time_limit"].total_seconds()))
    gcs.filesystem("runs")
    assert made == [store.retry_seconds()]


def test_google_without_credentials_or_permission_gives_a_message(tmp_path, monkeypatch):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert "set GOOGLE_APPLICATION_CREDENTIALS to the JSON file" in message_of(lambda: storage.exists("gs://bucket/x"))
    from google.api_core.exceptions import Forbidden, TooManyRequests

    for error, reason in (
        (Forbidden("no"), "forbids the use of gs://b/x (403)"),
        (TooManyRequests("slow"), "can't be used for gs://b/x: 429"),
    ):
        with pytest.raises(UserError) as caught, gcs.location("gs://b/x"):
            raise error
        assert reason in str(caught.value)


def test_google_that_is_away_when_the_bucket_is_looked_for_gives_a_message(request, monkeypatch):
    monkeypatch.setattr(store, "RETRY_SECONDS", 0.3)
    new_folder(request, "gs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://user:hush@127.0.0.1:{free_port()}")
    message = message_of(lambda: storage.list_files("gs://bucket/x"))
    assert "does not answer" in message and "hush" not in message
