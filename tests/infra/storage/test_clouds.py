"""Google Cloud Storage and Azure Blob Storage (servers that stand in for them): failing requests, wrong configuration, secrets.

What every store must be able to do is in test_files.py, test_conditional.py and test_delta.py.
"""

import os
import pickle
import sys
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


def test_occasional_failures_are_retried(cloud_folder, cloud_proxy):
    cloud_proxy.fail_one_in = 4
    for i in range(8):
        storage.write_bytes(f"{cloud_folder}/{i}", b"%d" % i)
    assert [storage.read_bytes(f"{cloud_folder}/{i}") for i in range(8)] == [b"%d" % i for i in range(8)]
    storage.remove(cloud_folder)
    assert storage.list_files(cloud_folder) == []
    assert cloud_proxy.refused > 0


def test_a_conditional_write_succeeds_though_its_answer_is_lost(cloud_folder, cloud_proxy):
    uri = f"{cloud_folder}/lock"
    for old, new in ((None, b"1"), (b"1", b"2")):
        cloud_proxy.lose_answers = 1
        assert storage.exchange(uri, old, new) and cloud_proxy.lose_answers == 0
    storage.write_bytes(uri, b"theirs")  # another writer's content is not mistaken for ours
    cloud_proxy.fail_one_in = 3
    assert not any(storage.exchange(uri, old, b"%d" % i) for i in range(4) for old in (None, b"2"))
    assert storage.read_bytes(uri) == b"theirs"


def test_a_truncated_answer_is_read_again(cloud_folder, cloud_proxy):
    content = os.urandom(2**20)
    storage.write_bytes(f"{cloud_folder}/x", content)
    cloud_proxy.cut_answers = 1
    assert storage.read_bytes(f"{cloud_folder}/x") == content and cloud_proxy.cut_answers == 0


def test_retries_end_after_retry_seconds(cloud_folder, cloud_proxy, monkeypatch):
    monkeypatch.setattr(store, "RETRY_SECONDS", 1)
    for fail in (cloud_proxy.away, lambda: (cloud_proxy.back(), setattr(cloud_proxy, "fail_one_in", 1))):
        fail()
        message = message_of(lambda: storage.read_bytes(f"{cloud_folder}/x"))
        assert cloud_proxy.url in message and f"{cloud_folder}/x" in message and "\n" not in message


def test_the_check_at_the_start_of_a_run_gives_up_sooner(cloud_folder, cloud_proxy, monkeypatch):
    monkeypatch.setattr(store, "RETRY_SECONDS", 3600)  # longer than a test may take
    monkeypatch.setattr(store, "CHECK_SECONDS", 1)
    cloud_proxy.away()
    assert "does not answer" in message_of(lambda: storage.check_writable(cloud_folder))


def test_a_missing_bucket_gives_a_message(cloud_folder):
    uri = f"{cloud_folder.partition('://')[0]}://no-such-bucket/runs"
    storage.write_bytes(f"{cloud_folder}/a", b"")
    for act in (
        lambda: storage.check_writable(uri, locks=True),
        lambda: storage.read_bytes(uri),
        lambda: storage.exists(uri),
        lambda: storage.list_files(uri),
        lambda: storage.remove(uri),
        lambda: storage.remove_files(uri, ["a"]),
        lambda: storage.write_bytes(uri, b""),
        lambda: storage.exchange(uri, None, b"1"),
        lambda: storage.copy_file(f"{cloud_folder}/a", f"{uri}/b"),
        lambda: storage.copy_file(f"{uri}/b", f"{cloud_folder}/a"),
    ):
        message = message_of(act)
        assert " no-such-bucket at http://127.0.0.1:" in message and message.startswith("there is no ")
    assert "names no bucket" in message_of(lambda: storage.check_writable(f"{uri.partition('://')[0]}://"))


def test_folder_markers_are_not_listed_as_files(cloud_folder):
    fs, path = storage.filesystem(cloud_folder)
    fs.create_dir(f"{path}/empty", recursive=True)
    assert storage.exists(f"{cloud_folder}/empty") and storage.list_files(cloud_folder) == []
    storage.remove(cloud_folder)
    assert not storage.exists(cloud_folder)


def test_a_pickled_filesystem_contains_no_key_and_reads_the_same_files(cloud_folder):
    storage.write_bytes(f"{cloud_folder}/x", b"content")
    fs, path = storage.filesystem(f"{cloud_folder}/x")
    sent = pickle.dumps(fs)
    assert AZURE_KEY.encode() not in sent
    with pickle.loads(sent).open_input_file(path) as file:
        assert file.read() == b"content"


def test_a_folder_is_copied_as_ray_train_copies_checkpoints(cloud_folder, tmp_path):
    for name in ("up", "down"):
        (tmp_path / name).mkdir()
    (tmp_path / "up" / "weights").write_bytes(content := os.urandom(2**20))
    fs, path = storage.filesystem(cloud_folder)
    pafs.copy_files(str(tmp_path / "up"), f"{path}/checkpoint", destination_filesystem=fs, use_threads=False)
    pafs.copy_files(f"{path}/checkpoint", str(tmp_path / "down"), source_filesystem=fs)
    assert (tmp_path / "down" / "weights").read_bytes() == content == storage.read_bytes(f"{cloud_folder}/checkpoint/weights")


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
    monkeypatch.setattr(store, "RETRY_SECONDS", 1)
    new_folder(request, "gs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://user:hush@127.0.0.1:{free_port()}")
    message = message_of(lambda: storage.list_files("gs://bucket/x"))
    assert "does not answer" in message and "hush" not in message
