"""Files on disk and on a real S3 server, which refuses, goes away and comes back."""

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
from infra.deploy.local.servers import S3, free_ports
from infra.errors import UserError
from infra.storage import s3 as s3_module
from infra.storage import tables
from tests.infra.conftest import use
from tests.servers import SECRET_KEY, FlakyProxy

SCHEMA = pa.schema([pa.field("image_id", pa.string()), pa.field("repeats", pa.int16())])


def make_table(uri: str) -> list[str]:
    rows = [{"image_id": f"{i:03d}", "repeats": 1} for i in range(200)]
    parts = [tables.write_part(uri, "f" * 64, i, rows[i * 50 : (i + 1) * 50], SCHEMA, rows_per_group=25) for i in range(4)]
    tables.commit(uri, "f" * 64, parts)
    return [row["image_id"] for row in tables.iter_rows(uri)]


# What holds on both


def test_a_file_is_written_whole_and_read(place):
    uri = storage.join(place, "a", "b.bin")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(uri)
    for content in (b"first", b"", b"second"):
        storage.write_bytes(uri, content)
        assert storage.read_bytes(uri) == content
    storage.write_json(storage.join(place, "c.json"), {"é": [1]})
    assert storage.read_json(storage.join(place, "c.json")) == {"é": [1]}
    assert storage.list_files(place) == ["a/b.bin", "c.json"]  # and nothing beside them


def test_a_folder_is_there_when_something_is_below_it(place):
    assert not storage.exists(place) and storage.list_files(place) == []
    storage.write_bytes(storage.join(place, "ab", "c"), b"1")
    assert storage.exists(place) and storage.exists(storage.join(place, "ab")) and storage.exists(storage.join(place, "ab", "c"))
    assert not storage.exists(storage.join(place, "a")) and storage.list_files(storage.join(place, "a")) == []


def test_removing_takes_what_is_below_and_nothing_else(place):
    for name in ("a/1", "a/b/2", "ab/3", "a.txt"):
        storage.write_bytes(storage.join(place, name), b"x")
    storage.remove(storage.join(place, "a"))
    assert storage.list_files(place) == ["a.txt", "ab/3"] and not storage.exists(storage.join(place, "a"))
    storage.remove(storage.join(place, "a.txt"))
    storage.remove(storage.join(place, "never"))
    assert storage.list_files(place) == ["ab/3"]


def test_a_stamp_changes_with_the_file(place):
    uri = storage.join(place, "weights")
    storage.write_bytes(uri, b"one")
    first = storage.stamp(uri)
    assert storage.stamp(uri) == first
    storage.write_bytes(uri, b"two")
    assert storage.stamp(uri) != first
    for wrong in (storage.join(place, "none"), place):
        with pytest.raises(UserError, match="there is no file"):
            storage.stamp(wrong)


@pytest.mark.parametrize("kinds", ["disk disk", "disk s3", "s3 disk", "s3 s3"])
def test_a_tree_is_copied_large_files_in_parts(kinds, tmp_path, bucket, monkeypatch):
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


def test_a_local_copy_is_there_for_the_block(place):
    uri = storage.join(place, "weights.pt")
    storage.write_bytes(uri, b"w")
    with storage.local_copy(uri) as path:
        assert path.read_bytes() == b"w" and path.name == "weights.pt"
    assert path.exists() == (not storage.is_s3(uri))
    with pytest.raises(UserError, match="there is no file"), storage.local_copy(storage.join(place, "none")):
        pass


def test_a_table_is_written_committed_and_read(place):
    assert make_table(place) == [f"{i:03d}" for i in range(200)]
    assert tables.require_commit(place).rows == 200


def test_a_run_can_be_kept_there(place):
    storage.check_writable(place)
    assert storage.list_files(place) == []


def test_writing_under_a_condition(place):
    uri = storage.join(place, "lock")
    assert not storage.replace_if_same(uri, b"1", b"0") and not storage.remove_if_same(uri, b"0")
    assert storage.put_if_absent(uri, b"1") and not storage.put_if_absent(uri, b"2") and storage.read_bytes(uri) == b"1"
    assert not storage.replace_if_same(uri, b"3", b"2") and storage.read_bytes(uri) == b"1"
    assert storage.replace_if_same(uri, b"3", b"1") and storage.read_bytes(uri) == b"3"
    assert not storage.remove_if_same(uri, b"1") and storage.read_bytes(uri) == b"3"
    assert storage.remove_if_same(uri, b"3") and storage.list_files(place) == []


@pytest.mark.parametrize("kind", ["put", "replace", "remove"])
def test_of_many_writers_one_wins(place, kind):
    uri = storage.join(place, "lock")
    act = {
        "put": lambda mine: storage.put_if_absent(uri, mine),
        "replace": lambda mine: storage.replace_if_same(uri, mine, b"old"),
        "remove": lambda mine: storage.remove_if_same(uri, b"old"),
    }[kind]
    for _ in range(2 if storage.is_s3(place) else 20):
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


# S3 alone


def test_listing_and_removing_go_on_after_a_page(bucket, monkeypatch):
    monkeypatch.setattr(s3_module, "PAGE", 20)
    for i in range(50):
        storage.write_bytes(f"{bucket}/many/{i:02d}", b"")
    assert storage.list_files(bucket) == [f"many/{i:02d}" for i in range(50)]
    storage.remove(bucket)
    assert storage.list_files(bucket) == [] and not storage.exists(bucket)


def test_markers_of_folders_are_no_files(bucket):
    fs, path = storage.filesystem(bucket)
    fs.create_dir(f"{path}/empty", recursive=True)
    assert storage.exists(f"{bucket}/empty") and storage.list_files(bucket) == []
    storage.remove(bucket)
    assert not storage.exists(bucket)


def test_refusals_now_and_then_are_not_seen(proxy, bucket, monkeypatch, tmp_path):
    use(monkeypatch, proxy)
    proxy.fail_one_in = 5
    assert make_table(bucket) == [f"{i:03d}" for i in range(200)]
    # As Ray Train keeps and fetches checkpoints.
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


def away_and_back(proxy: FlakyProxy, bucket: str, seconds: float) -> None:
    """Writing, reading and listing, by boto3 and by pyarrow (as it arrives in a worker), all begun while the server is away."""
    storage.write_bytes(f"{bucket}/there", b"content")
    fs, path = storage.filesystem(bucket)
    fs = pickle.loads(pickle.dumps(fs))

    def by_pyarrow() -> bytes:
        fs.create_dir(f"{path}/folder")
        with fs.open_output_stream(f"{path}/arrow") as stream:
            stream.write(b"arrow")
        with fs.open_input_file(f"{path}/there") as file:
            return file.read()

    begun = time.monotonic()
    proxy.away_for(seconds)
    with ThreadPoolExecutor(4) as pool:
        done = [
            pool.submit(storage.write_bytes, f"{bucket}/new", b"new"),
            pool.submit(storage.read_bytes, f"{bucket}/there"),
            pool.submit(storage.list_files, f"{bucket}/there"),
            pool.submit(by_pyarrow),
        ]
        assert [each.result() for each in done] == [None, b"content", [], b"content"]
    assert time.monotonic() - begun >= seconds
    assert storage.read_bytes(f"{bucket}/new") == b"new" and storage.read_bytes(f"{bucket}/arrow") == b"arrow"


def test_a_server_that_comes_back_is_waited_for(proxy, bucket, monkeypatch):
    use(monkeypatch, proxy)
    away_and_back(proxy, bucket, 5)


@pytest.mark.slow
def test_a_server_that_is_away_for_20_seconds_is_waited_for(proxy, bucket, monkeypatch):
    use(monkeypatch, proxy)
    away_and_back(proxy, bucket, 20)


@pytest.mark.slow
def test_refusals_for_a_long_time_are_not_seen(proxy, bucket, monkeypatch):
    use(monkeypatch, proxy)
    storage.write_bytes(f"{bucket}/x", b"x")
    fs, path = storage.filesystem(bucket)
    proxy.fail_one_in = 3
    for _ in range(400):  # clients that have a quota of retries have used it up by then
        assert fs.get_file_info(f"{path}/x").size == 1
        assert storage.stamp(f"{bucket}/x")
    assert proxy.refused > 200


def test_patience_ends(proxy, bucket, monkeypatch):
    use(monkeypatch, proxy)
    monkeypatch.setattr(s3_module, "PATIENCE_SECONDS", 1)
    proxy.away()
    with pytest.raises(UserError, match=f"does not answer at {proxy.url}"):
        storage.read_bytes(f"{bucket}/x")
    proxy.back()
    proxy.fail_one_in = 1
    with pytest.raises(UserError, match="SlowDown"):
        storage.read_bytes(f"{bucket}/x")


def test_a_body_cut_in_the_middle_is_fetched_again(proxy, bucket, monkeypatch):
    content = os.urandom(2**20)
    storage.write_bytes(f"{bucket}/x", content)
    use(monkeypatch, proxy)
    proxy.cut_answers = 2
    assert storage.read_bytes(f"{bucket}/x") == content and proxy.cut_answers == 0


def test_an_answer_that_was_lost_does_not_lose_the_win(proxy, bucket, monkeypatch):
    use(monkeypatch, proxy)
    for act in (
        lambda: storage.put_if_absent(f"{bucket}/lock", b"1"),
        lambda: storage.replace_if_same(f"{bucket}/lock", b"2", b"1"),
        lambda: storage.remove_if_same(f"{bucket}/lock", b"2"),
    ):
        proxy.lose_answers = 1
        assert act() and proxy.lose_answers == 0
    # Somebody else's stays theirs.
    storage.write_bytes(f"{bucket}/lock", b"theirs")
    proxy.fail_one_in = 2
    assert not any(storage.put_if_absent(f"{bucket}/lock", b"%d" % i) for i in range(10))


def refused(uri: str) -> str:
    """What is said of `uri` at the start of a run; within 15 s, and without keys."""
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        storage.check_writable(uri)
    assert time.monotonic() - begun < 15
    message = str(caught.value)
    assert SECRET_KEY not in message and "\n" not in message
    return message


def test_wrong_credentials_are_a_sentence(s3, bucket, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "wrong-and-secret")
        for said in (refused(bucket), _said(lambda: storage.exists(bucket)), _said(lambda: storage.list_files(bucket))):
            assert s3.url in said and "credentials" in said and "wrong-and-secret" not in said
        use(monkeypatch, s3)


def _said(act) -> str:
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)


def test_a_missing_bucket_is_a_sentence(s3, bucket, monkeypatch):
    uri = "s3://no-such-bucket/runs"
    assert refused(uri).startswith(f"there is no bucket no-such-bucket at {s3.url}")
    for act in (storage.read_bytes, storage.exists, storage.list_files, storage.remove, lambda u: storage.write_bytes(u, b"")):
        assert "there is no bucket no-such-bucket" in _said(lambda act=act: act(uri))
    assert "names no bucket" in refused("s3://")


def test_no_credentials_and_no_server_are_sentences(s3, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_module, "CHECK_SECONDS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET_KEY}@127.0.0.1:{free_ports(1)[0]}")
    assert "does not answer at http://127.0.0.1:" in refused(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://192.0.2.255:9")  # nobody's address: no answer at all
    assert "does not answer at http://192.0.2.255:9" in refused(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "seaweed:8333")
    assert "AWS_ENDPOINT_URL" in refused(bucket)
    use(monkeypatch, s3)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "credentials" in refused(bucket)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "set AWS_ACCESS_KEY_ID" in refused(bucket)


def test_the_filesystem_that_goes_to_workers_holds_no_key(bucket):
    fs, _ = storage.filesystem(bucket)
    sent = pickle.dumps(fs)
    assert SECRET_KEY.encode() not in sent
    assert pickle.loads(sent).get_file_info("bucket").type == pafs.FileType.Directory


def test_the_filesystem_has_the_clients_endpoint_and_region(s3, bucket, monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")  # custom servers need none
    make_table(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # the one for S3 goes before
    make_table(bucket + "2")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    from botocore.stub import Stubber

    with Stubber(s3_module.client()) as amazon:
        amazon.add_response("head_bucket", {"BucketRegion": "eu-west-1"}, {"Bucket": "elsewhere"})
        fs, _ = storage.filesystem("s3://elsewhere/x")
    assert fs.region == "eu-west-1"


# The disk alone


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MB."""
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a small file system can't be mounted here (that needs root)")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_a_sentence_and_leaves_no_halves(small_disk, bucket, tmp_path):
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
        said = _said(act)
        assert f"the disk of {uri} is full" in said and "of 1 MiB" in said
        assert storage.list_files(uri) == ["kept"] and storage.read_bytes(f"{uri}/kept") == b"kept" * 1000
    storage.check_writable(uri)
    with (small_disk / "filler").open("wb") as file, pytest.raises(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    assert f"the disk of {uri} is full" in refused(uri)
    assert storage.list_files(uri) == ["filler", "kept"]
    subprocess.run(["mount", "-o", "remount,ro", uri], check=True)
    assert f"{uri} can't be written to" in refused(uri)


def test_a_place_that_is_no_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert str(tmp_path / "file") in refused(str(tmp_path / "file"))
    assert str(tmp_path / "file") in refused(str(tmp_path / "file" / "below"))


def test_s3_from_many_threads(s3: S3, bucket):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: storage.write_json(f"{bucket}/{i}", i), range(64)))
        assert list(pool.map(lambda i: storage.read_json(f"{bucket}/{i}"), range(64))) == list(range(64))
