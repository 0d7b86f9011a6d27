"""Files on disk and on a real S3 server, with failing requests and outages."""

import os
import pickle
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from infra import storage
from infra.deploy.local.process import free_ports
from infra.deploy.local.servers import S3
from infra.errors import UserError
from infra.storage import s3 as s3_module
from infra.storage import s3_client, tables
from tests.infra.conftest import use_s3
from tests.servers import SECRET_KEY, FlakyProxy

SCHEMA = pa.schema([pa.field("image_id", pa.string()), pa.field("repeats", pa.int16())])


def make_table(uri: str) -> list[str]:
    rows = [{"image_id": f"{i:03d}", "repeats": 1} for i in range(200)]
    parts = [tables.write_part(uri, "f" * 64, i, rows[i * 50 : (i + 1) * 50], SCHEMA, rows_per_group=25) for i in range(4)]
    tables.commit(uri, "f" * 64, parts)
    return [row["image_id"] for row in tables.iter_rows(uri)]


# On disk and on S3


def test_a_written_file_is_read_back_and_leaves_no_other_files(folder):
    uri = storage.join(folder, "a", "b.bin")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)
    for content in (b"first", b"", b"second"):
        storage.write_bytes(uri, content)
        assert storage.read_bytes(uri) == content
    storage.write_json(storage.join(folder, "c.json"), {"é": [1]})
    assert storage.read_json(storage.join(folder, "c.json")) == {"é": [1]}
    assert storage.list_files(folder) == ["a/b.bin", "c.json"]


def test_a_folder_exists_when_a_file_is_below_it(folder):
    assert not storage.exists(folder) and storage.list_files(folder) == []
    storage.write_bytes(storage.join(folder, "ab", "c"), b"1")
    assert (
        storage.exists(folder) and storage.exists(storage.join(folder, "ab")) and storage.exists(storage.join(folder, "ab", "c"))
    )
    assert not storage.exists(storage.join(folder, "a")) and storage.list_files(storage.join(folder, "a")) == []


def test_remove_deletes_a_folder_with_its_files_and_nothing_else(folder):
    for name in ("a/1", "a/b/2", "ab/3", "a.txt"):
        storage.write_bytes(storage.join(folder, name), b"x")
    storage.remove(storage.join(folder, "a"))
    assert storage.list_files(folder) == ["a.txt", "ab/3"] and not storage.exists(storage.join(folder, "a"))
    storage.remove(storage.join(folder, "a.txt"))
    storage.remove(storage.join(folder, "never"))
    assert storage.list_files(folder) == ["ab/3"]


def test_the_version_token_changes_with_the_file(folder):
    uri = storage.join(folder, "weights")
    storage.write_bytes(uri, b"one")
    first = storage.version_token(uri)
    assert storage.version_token(uri) == first
    storage.write_bytes(uri, b"two")
    assert storage.version_token(uri) != first
    for wrong in (storage.join(folder, "none"), folder):
        with pytest.raises(UserError, match="there is no file"):
            storage.version_token(wrong)


@pytest.mark.parametrize("kinds", ["disk disk", "disk s3", "s3 disk", "s3 s3"])
def test_copy_tree_copies_every_file_and_large_ones_in_parts(kinds, tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 * 2**20)
    source, target = (f"{bucket}/{i}" if kind == "s3" else str(tmp_path / str(i)) for i, kind in enumerate(kinds.split()))
    content = {"small": b"1", "deep/large": os.urandom(12 * 2**20)}
    for name, data in content.items():
        storage.write_bytes(storage.join(source, name), data)
    storage.copy_tree(source, target)
    assert storage.list_files(target) == sorted(content)
    assert {name: storage.read_bytes(storage.join(target, name)) for name in content} == content
    with pytest.raises(FileNotFoundError):
        storage.copy_file(storage.join(source, "none"), storage.join(target, "none"))
    assert storage.list_files(target) == sorted(content)


def test_a_local_copy_exists_within_the_block(folder):
    uri = storage.join(folder, "weights.pt")
    storage.write_bytes(uri, b"w")
    with storage.local_copy(uri) as path:
        assert path.read_bytes() == b"w" and path.name == "weights.pt"
    assert path.exists() == (not storage.is_s3(uri))
    with pytest.raises(UserError, match="there is no file"), storage.local_copy(storage.join(folder, "none")):
        pass


def test_a_committed_table_is_read_back(folder):
    assert make_table(folder) == [f"{i:03d}" for i in range(200)]
    assert tables.require_commit(folder).rows == 200


def test_check_writable_leaves_no_file(folder):
    storage.check_writable(folder)
    assert storage.list_files(folder) == []


def test_conditional_writes_happen_only_if_the_condition_holds(folder):
    uri = storage.join(folder, "lock")
    assert not storage.replace_if_same(uri, b"1", b"0") and not storage.remove_if_same(uri, b"0")
    assert storage.put_if_absent(uri, b"1") and not storage.put_if_absent(uri, b"2") and storage.read_bytes(uri) == b"1"
    assert not storage.replace_if_same(uri, b"3", b"2") and storage.read_bytes(uri) == b"1"
    assert storage.replace_if_same(uri, b"3", b"1") and storage.read_bytes(uri) == b"3"
    assert not storage.remove_if_same(uri, b"1") and storage.read_bytes(uri) == b"3"
    assert storage.remove_if_same(uri, b"3") and storage.list_files(folder) == []


@pytest.mark.parametrize("kind", ["put", "replace", "remove"])
def test_one_of_several_conditional_writers_succeeds(folder, kind):
    uri = storage.join(folder, "lock")
    act = {
        "put": lambda mine: storage.put_if_absent(uri, mine),
        "replace": lambda mine: storage.replace_if_same(uri, mine, b"old"),
        "remove": lambda mine: storage.remove_if_same(uri, b"old"),
    }[kind]
    for _ in range(2 if storage.is_s3(folder) else 20):
        storage.remove(uri) if kind == "put" else storage.write_bytes(uri, b"old")
        start = threading.Barrier(6)

        def one(number: int, start: threading.Barrier = start) -> bool:
            start.wait()
            return act(b"%d" % number)

        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(one, range(6)))
        assert sum(won) == 1
        if kind != "remove":
            assert storage.read_bytes(uri) == b"%d" % won.index(True)


# On S3 only


def test_listing_and_removing_work_beyond_one_page(bucket, monkeypatch):
    monkeypatch.setattr(s3_module, "PAGE", 20)
    for i in range(50):
        storage.write_bytes(f"{bucket}/many/{i:02d}", b"")
    assert storage.list_files(bucket) == [f"many/{i:02d}" for i in range(50)]
    storage.remove(bucket)
    assert storage.list_files(bucket) == [] and not storage.exists(bucket)


def test_folder_markers_are_not_listed_as_files(bucket):
    fs, path = storage.filesystem(bucket)
    fs.create_dir(f"{path}/empty", recursive=True)
    assert storage.exists(f"{bucket}/empty") and storage.list_files(bucket) == []
    storage.remove(bucket)
    assert not storage.exists(bucket)


def test_occasional_failures_are_retried(proxy, bucket, monkeypatch, tmp_path):
    use_s3(monkeypatch, proxy)
    proxy.fail_one_in = 5
    assert make_table(bucket) == [f"{i:03d}" for i in range(200)]
    # As Ray Train uploads and downloads checkpoints.
    fs, path = storage.filesystem(bucket)
    (tmp_path / "up").mkdir()
    for i in range(10):
        (tmp_path / "up" / str(i)).write_bytes(os.urandom(2**20))
    pafs.copy_files(str(tmp_path / "up"), f"{path}/checkpoint", destination_filesystem=fs, use_threads=False)
    (tmp_path / "down").mkdir()
    pafs.copy_files(f"{path}/checkpoint", str(tmp_path / "down"), source_filesystem=fs)
    for i in range(10):
        assert (tmp_path / "up" / str(i)).read_bytes() == (tmp_path / "down" / str(i)).read_bytes()
        assert storage.exists(f"{bucket}/checkpoint/{i}")
    storage.remove(bucket)
    assert storage.list_files(bucket) == []
    assert proxy.refused > 5


def use_during_outage(proxy: FlakyProxy, bucket: str, seconds: float) -> None:
    """Write, read and list by boto3 and by a pickled pyarrow filesystem, starting while the server is away."""
    storage.write_bytes(f"{bucket}/there", b"content")
    fs, path = storage.filesystem(bucket)
    fs = pickle.loads(pickle.dumps(fs))

    def by_pyarrow() -> bytes:
        fs.create_dir(f"{path}/folder")
        with fs.open_output_stream(f"{path}/arrow") as stream:
            stream.write(b"arrow")
        with fs.open_input_file(f"{path}/there") as file:
            return file.read()

    started = time.monotonic()
    proxy.away_for(seconds)
    with ThreadPoolExecutor(4) as pool:
        done = [
            pool.submit(storage.write_bytes, f"{bucket}/new", b"new"),
            pool.submit(storage.read_bytes, f"{bucket}/there"),
            pool.submit(storage.list_files, f"{bucket}/there"),
            pool.submit(by_pyarrow),
        ]
        assert [each.result() for each in done] == [None, b"content", [], b"content"]
    assert time.monotonic() - started >= seconds
    assert storage.read_bytes(f"{bucket}/new") == b"new" and storage.read_bytes(f"{bucket}/arrow") == b"arrow"


def test_an_outage_of_5_seconds_is_waited_for(proxy, bucket, monkeypatch):
    use_s3(monkeypatch, proxy)
    use_during_outage(proxy, bucket, 5)


@pytest.mark.slow
def test_an_outage_of_20_seconds_is_waited_for(proxy, bucket, monkeypatch):
    use_s3(monkeypatch, proxy)
    use_during_outage(proxy, bucket, 20)


@pytest.mark.slow
def test_retries_do_not_run_out_over_many_failing_requests(proxy, bucket, monkeypatch):
    use_s3(monkeypatch, proxy)
    storage.write_bytes(f"{bucket}/x", b"x")
    fs, path = storage.filesystem(bucket)
    proxy.fail_one_in = 3
    for _ in range(400):  # enough to exhaust a client with a quota of retries
        assert fs.get_file_info(f"{path}/x").size == 1
        assert storage.version_token(f"{bucket}/x")
    assert proxy.refused > 200


def test_retries_end_after_retry_seconds(proxy, bucket, monkeypatch):
    use_s3(monkeypatch, proxy)
    monkeypatch.setattr(s3_client, "RETRY_SECONDS", 1)
    proxy.away()
    with pytest.raises(UserError, match=f"does not answer at {proxy.url}"):
        storage.read_bytes(f"{bucket}/x")
    proxy.back()
    proxy.fail_one_in = 1
    with pytest.raises(UserError, match="SlowDown"):
        storage.read_bytes(f"{bucket}/x")


def test_a_truncated_answer_is_read_again(proxy, bucket, monkeypatch):
    content = os.urandom(2**20)
    storage.write_bytes(f"{bucket}/x", content)
    use_s3(monkeypatch, proxy)
    proxy.cut_answers = 2
    assert storage.read_bytes(f"{bucket}/x") == content and proxy.cut_answers == 0


def test_a_conditional_write_succeeds_though_its_answer_is_lost(proxy, bucket, monkeypatch):
    use_s3(monkeypatch, proxy)
    for act in (
        lambda: storage.put_if_absent(f"{bucket}/lock", b"1"),
        lambda: storage.replace_if_same(f"{bucket}/lock", b"2", b"1"),
        lambda: storage.remove_if_same(f"{bucket}/lock", b"2"),
    ):
        proxy.lose_answers = 1
        assert act() and proxy.lose_answers == 0
    # Another writer's content is not mistaken for ours.
    storage.write_bytes(f"{bucket}/lock", b"theirs")
    proxy.fail_one_in = 2
    assert not any(storage.put_if_absent(f"{bucket}/lock", b"%d" % i) for i in range(10))


def message_of_check(uri: str) -> str:
    """The UserError of check_writable: raised within 15 s, on one line, without keys."""
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        storage.check_writable(uri)
    assert time.monotonic() - started < 15
    message = str(caught.value)
    assert SECRET_KEY not in message and "\n" not in message
    return message


def test_wrong_credentials_give_a_message(s3, bucket, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "wrong-and-secret")
        for message in (
            message_of_check(bucket),
            message_of(lambda: storage.exists(bucket)),
            message_of(lambda: storage.list_files(bucket)),
        ):
            assert s3.url in message and "credentials" in message and "wrong-and-secret" not in message
        use_s3(monkeypatch, s3)


def message_of(act) -> str:
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


def test_a_missing_bucket_gives_a_message(s3, bucket, monkeypatch):
    uri = "s3://no-such-bucket/runs"
    assert message_of_check(uri).startswith(f"there is no bucket no-such-bucket at {s3.url}")
    for act in (storage.read_bytes, storage.exists, storage.list_files, storage.remove, lambda u: storage.write_bytes(u, b"")):
        assert "there is no bucket no-such-bucket" in message_of(lambda act=act: act(uri))
    assert "names no bucket" in message_of_check("s3://")


def test_missing_credentials_and_unreachable_servers_give_messages(s3, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_client, "CHECK_SECONDS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET_KEY}@127.0.0.1:{free_ports(1)[0]}")
    assert "does not answer at http://127.0.0.1:" in message_of_check(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://192.0.2.255:9")  # a reserved address that never answers
    assert "does not answer at http://192.0.2.255:9" in message_of_check(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "seaweed:8333")
    assert "AWS_ENDPOINT_URL" in message_of_check(bucket)
    use_s3(monkeypatch, s3)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "credentials" in message_of_check(bucket)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "set AWS_ACCESS_KEY_ID" in message_of_check(bucket)


def test_a_pickled_filesystem_contains_no_key(bucket):
    fs, _ = storage.filesystem(bucket)
    sent = pickle.dumps(fs)
    assert SECRET_KEY.encode() not in sent
    assert pickle.loads(sent).get_file_info("bucket").type == pafs.FileType.Directory


def test_the_filesystem_uses_the_clients_endpoint_and_region(s3, bucket, monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")  # servers other than Amazon's need none
    make_table(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # AWS_ENDPOINT_URL_S3 takes precedence
    make_table(bucket + "2")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    from botocore.stub import Stubber

    with Stubber(s3_client.client()) as amazon:
        amazon.add_response("head_bucket", {"BucketRegion": "eu-west-1"}, {"Bucket": "elsewhere"})
        fs, _ = storage.filesystem("s3://elsewhere/x")
    assert fs.region == "eu-west-1"


# On disk only


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MB."""
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a small file system can't be mounted here (that needs root)")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_gives_a_message_and_leaves_no_partial_file(small_disk, bucket, tmp_path):
    uri = str(small_disk)
    storage.write_bytes(f"{uri}/kept", b"kept" * 1000)
    large = bytes(2 * 2**20)
    storage.write_bytes(f"{bucket}/large", large)
    (tmp_path / "large").write_bytes(large)
    for act in (
        lambda: storage.write_bytes(f"{uri}/large", large),
        lambda: storage.write_bytes(f"{uri}/kept", large),
        lambda: storage.put_if_absent(f"{uri}/large", large),
        lambda: storage.copy_file(f"{bucket}/large", f"{uri}/large"),
        lambda: storage.copy_file(str(tmp_path / "large"), f"{uri}/large"),
    ):
        message = message_of(act)
        assert f"the disk of {uri} is full" in message and "of 1 MiB" in message
        assert storage.list_files(uri) == ["kept"] and storage.read_bytes(f"{uri}/kept") == b"kept" * 1000
    storage.check_writable(uri)
    with (small_disk / "filler").open("wb") as file, pytest.raises(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    assert f"the disk of {uri} is full" in message_of_check(uri)
    assert storage.list_files(uri) == ["filler", "kept"]
    subprocess.run(["mount", "-o", "remount,ro", uri], check=True)
    assert f"{uri} can't be written to" in message_of_check(uri)


def test_a_path_that_cannot_be_a_folder_gives_a_message(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert str(tmp_path / "file") in message_of_check(str(tmp_path / "file"))
    assert str(tmp_path / "file") in message_of_check(str(tmp_path / "file" / "below"))


def test_many_threads_can_use_s3(s3: S3, bucket):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: storage.write_json(f"{bucket}/{i}", i), range(64)))
        assert list(pool.map(lambda i: storage.read_json(f"{bucket}/{i}"), range(64))) == list(range(64))
