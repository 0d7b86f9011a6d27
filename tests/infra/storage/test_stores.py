"""What every object store does with failing requests, broken answers, a missing bucket and folders, and what its pickles contain.

What every store must be able to do is in test_files.py, test_conditional.py and test_delta.py.
"""

import os
import pickle
from types import SimpleNamespace

import pyarrow.fs as pafs
import pytest

from infra import storage
from infra.storage.objects import store
from tests.cloud_servers import AZURE_KEY
from tests.infra.storage.helpers import make_table, message_of
from tests.servers import SECRET_KEY


@pytest.mark.parametrize("pick", [min, max])
def test_the_pauses_grow_up_to_five_seconds(monkeypatch, pick):
    monkeypatch.setattr(store, "random", SimpleNamespace(uniform=lambda lowest, highest: pick(lowest, highest)))
    longest = [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert [store.backoff_seconds(n) for n in (1, 2, 3, 4, 5, 6, 1000)] == [pick(0.5, 1) * seconds for seconds in longest]


def test_occasional_failures_are_retried(store_folder, store_proxy):
    store_proxy.fail_one_in = 3
    for i in range(8):
        storage.write_bytes(f"{store_folder}/{i}", b"%d" % i)
    assert [storage.read_bytes(f"{store_folder}/{i}") for i in range(8)] == [b"%d" % i for i in range(8)]
    storage.remove(store_folder)
    assert storage.list_files(store_folder) == []
    assert store_proxy.refused > 0


def test_a_conditional_write_succeeds_though_its_answer_is_lost(store_folder, store_proxy):
    uri = f"{store_folder}/lock"
    for old, new in ((None, b"1"), (b"1", b"2")):
        store_proxy.lose_answers = 1
        assert storage.compare_and_swap(uri, old, new) and store_proxy.lose_answers == 0
    storage.write_bytes(uri, b"theirs")  # another writer's content is not mistaken for ours
    store_proxy.fail_one_in = 3
    assert not any(storage.compare_and_swap(uri, old, b"%d" % i) for i in range(4) for old in (None, b"2"))
    assert storage.read_bytes(uri) == b"theirs"


def test_a_truncated_answer_is_read_again(store_folder, store_proxy):
    content = os.urandom(2**20)
    storage.write_bytes(f"{store_folder}/x", content)
    store_proxy.cut_answers = 2
    assert storage.read_bytes(f"{store_folder}/x") == content and store_proxy.cut_answers == 0


def test_retries_end_after_retry_seconds(store_folder, store_proxy, monkeypatch):
    storage.write_bytes(f"{store_folder}/x", bytes(2**20))
    monkeypatch.setattr(store, "RETRY_SECONDS", 0.3)
    for fail in (
        lambda: setattr(store_proxy, "cut_answers", 30),
        store_proxy.away,
        lambda: (store_proxy.back(), setattr(store_proxy, "fail_one_in", 1)),
    ):
        fail()
        before = store_proxy.requests
        message = message_of(lambda: storage.read_bytes(f"{store_folder}/x"))
        assert store_proxy.url in message and f"{store_folder}/x" in message and "\n" not in message
    assert store_proxy.requests > before + 1


def test_the_check_at_the_start_of_a_run_gives_up_sooner(store_folder, store_proxy, monkeypatch):
    monkeypatch.setattr(store, "RETRY_SECONDS", 3600)  # longer than a test may take
    monkeypatch.setattr(store, "CHECK_SECONDS", 0.3)
    store_proxy.away()
    assert "does not answer" in message_of(lambda: storage.check_writable(store_folder))


def test_a_missing_bucket_gives_a_message(store_folder):
    uri = f"{store_folder.partition('://')[0]}://no-such-bucket/runs"
    storage.write_bytes(f"{store_folder}/a", b"")
    copies = (
        lambda: storage.copy_file(f"{store_folder}/a", f"{uri}/b"),
        lambda: storage.copy_file(f"{uri}/b", f"{store_folder}/a"),
    )
    for act in (
        lambda: storage.check_writable(uri, locks=True),
        lambda: storage.read_bytes(uri),
        lambda: storage.exists(uri),
        lambda: storage.list_files(uri),
        lambda: storage.remove(uri),
        lambda: storage.remove_files(uri, ["a"]),
        lambda: storage.write_bytes(uri, b""),
        lambda: storage.compare_and_swap(uri, None, b"1"),
        *(copies if not uri.startswith("s3") else ()),  # SeaweedFS calls it an internal error, which is retried for a minute
    ):
        message = message_of(act)
        assert " no-such-bucket at http://127.0.0.1:" in message and message.startswith("there is no ")
    assert "names no bucket" in message_of(lambda: storage.check_writable(f"{uri.partition('://')[0]}://"))


def test_folder_markers_are_not_listed_as_files(store_folder):
    fs, path = storage.filesystem(store_folder)
    fs.create_dir(f"{path}/empty", recursive=True)
    assert storage.exists(f"{store_folder}/empty") and storage.list_files(store_folder) == []
    storage.remove(store_folder)
    assert not storage.exists(store_folder)


def test_a_pickled_filesystem_contains_no_key_and_reads_the_same_files(store_folder):
    storage.write_bytes(f"{store_folder}/x", b"content")
    fs, path = storage.filesystem(f"{store_folder}/x")
    sent = pickle.dumps(fs)
    assert AZURE_KEY.encode() not in sent and SECRET_KEY.encode() not in sent
    with pickle.loads(sent).open_input_file(path) as file:
        assert file.read() == b"content"


def test_a_committed_table_is_read_back(store_folder):
    assert make_table(store_folder) == [f"{i:03d}" for i in range(200)]


def test_a_folder_is_copied_as_ray_train_copies_checkpoints(store_folder, tmp_path):
    for name in ("up", "down"):
        (tmp_path / name).mkdir()
    (tmp_path / "up" / "weights").write_bytes(content := os.urandom(2**20))
    fs, path = storage.filesystem(store_folder)
    pafs.copy_files(str(tmp_path / "up"), f"{path}/checkpoint", destination_filesystem=fs, use_threads=False)
    pafs.copy_files(f"{path}/checkpoint", str(tmp_path / "down"), source_filesystem=fs)
    assert (tmp_path / "down" / "weights").read_bytes() == content == storage.read_bytes(f"{store_folder}/checkpoint/weights")
