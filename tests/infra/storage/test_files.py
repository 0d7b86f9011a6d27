"""Files on disk and on every store, and full disks."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pyarrow as pa
import pytest

from infra import storage
from infra.errors import UserError
from infra.storage import files, tables
from infra.storage.disk import replacing
from infra.storage.objects import s3, store_of
from infra.storage.objects import store as store_module
from infra.storage.tables import delta_log
from tests.infra.conftest import new_folder
from tests.infra.storage.helpers import message_of, message_of_check
from tests.servers import error_of_silence
from tests.small_disk import fill, small_disk


@pytest.fixture
def folder(any_folder: str) -> str:
    """Every store must be able to do what these tests do."""
    return any_folder


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


def test_remove_deletes_a_link_to_a_folder_and_not_what_is_in_the_folder(tmp_path):
    storage.write_bytes(f"{tmp_path}/data/image", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    storage.remove(f"{tmp_path}/link")
    assert storage.list_files(str(tmp_path)) == ["data/image"] and not (tmp_path / "link").is_symlink()


def test_remove_files_deletes_the_named_files_and_no_others(folder):
    for name in ("a/1", "a/2", "b", "c"):
        storage.write_bytes(storage.join(folder, name), b"x")
    storage.remove_files(folder, ["a/1", "b", "never"])
    assert storage.list_files(folder) == ["a/2", "c"]
    storage.remove_files(folder, [])
    assert storage.list_files(folder) == ["a/2", "c"]


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


@pytest.mark.parametrize(
    "kinds",
    ["disk disk", "disk s3", "s3 disk", "s3 s3", "disk gs", "gs gs", "gs abfs", "abfs disk"],
)
def test_copy_tree_copies_every_file_and_large_ones_in_parts(kinds, request, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 2**20)
    source, target = (storage.join(new_folder(request, kind), str(i)) for i, kind in enumerate(kinds.split()))
    content = {"small": b"1", "deep/large": os.urandom(12 * 2**20)}
    for name, data in content.items():
        storage.write_bytes(storage.join(source, name), data)
    storage.copy_tree(source, target)
    assert storage.list_files(target) == sorted(content)
    assert {name: storage.read_bytes(storage.join(target, name)) for name in content} == content
    with pytest.raises(FileNotFoundError):
        storage.copy_file(storage.join(source, "none"), storage.join(target, "none"))
    assert storage.list_files(target) == sorted(content)


class _Breaking(BytesIO):
    """A file that can't be read to its end."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Fail after nine million bytes."""
        found = super().read(size)
        if self.tell() > 9 * 10**6:
            raise OSError("broken")
        return found


@pytest.mark.parametrize("kind", ["s3", "gs", "abfs"])
def test_an_upload_that_fails_midway_leaves_the_old_file(kind, request, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 2**20)
    monkeypatch.setattr(store_module, "RETRY_SECONDS", 0.3)  # Azure's library takes it for a fault of the network
    uri = storage.join(new_folder(request, kind), "weights")
    storage.write_bytes(uri, b"old")
    store = store_of(uri)
    with pytest.raises((OSError, UserError)), store.location(uri) as (bucket, key):
        store.upload(bucket, key, _Breaking(bytes(12 * 10**6)))
    assert storage.read_bytes(uri) == b"old" and storage.list_files(uri.rpartition("/")[0]) == ["weights"]


def test_a_local_copy_exists_within_the_block(folder):
    uri = storage.join(folder, "weights.pt")
    storage.write_bytes(uri, b"w")
    with storage.local_copy(uri) as path:
        assert path.read_bytes() == b"w" and path.name == "weights.pt"
    assert path.exists() == (not storage.in_bucket(uri))
    with pytest.raises(UserError, match="there is no file"), storage.local_copy(storage.join(folder, "none")):
        pass


@pytest.mark.parametrize("url", ["http://host/a b?sig=hush", "http://host/caf\u00e9?sig=hush", "http://[::1/a?sig=hush"])
def test_a_url_that_is_none_is_refused_without_its_query(url):
    def fetch() -> None:
        with storage.local_copy(url):
            pytest.fail("fetched")

    message = message_of(fetch)
    assert message.startswith(f"{url.partition('?')[0]} is not a valid URL") and "hush" not in message


def test_a_download_that_ends_too_early_is_refused():
    """Without this, half a file of weights would be read, or kept."""

    class Short(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(bytes(400))

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Short) as server:
        Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}/w.pth"
        with (
            pytest.raises(UserError, match=rf"^{url} can't be downloaded: the connection ended after 400 of 1,000 bytes$"),
            storage.local_copy(url),
        ):
            pytest.fail("fetched")


def test_a_download_from_a_server_that_falls_silent_is_given_up(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(files, "_TIMEOUT", 0.05)
    assert str(error_of_silence(lambda url: storage.local_copy(url).__enter__())).endswith("/file can't be downloaded: timed out")


def test_the_home_folder_of_an_unknown_user_is_refused():
    message = message_of(lambda: storage.absolute("~no-such-user/photos"))
    assert message == "~no-such-user is not the home folder of a user: write ./~no-such-user for a folder of this name"
    assert storage.absolute("~/photos") == str(Path.home().resolve() / "photos")


def test_check_writable_leaves_no_file(folder):
    storage.check_writable(folder)
    assert storage.list_files(folder) == []


@pytest.mark.parametrize("forbidden", ["write", "read", "keys", "check_conditional_writes", "delete"])
def test_check_writable_notices_each_permission_that_is_missing(forbidden, monkeypatch):
    """A run would otherwise fail hours later. What the check has written is deleted again, if that is allowed."""
    objects = {}

    def forbid(*_: object) -> None:
        raise UserError(f"{forbidden} is forbidden")

    store = SimpleNamespace(
        location=lambda uri: nullcontext(("bucket", "runs")),
        write=lambda bucket, key, data: objects.update({key: data}),
        read=lambda bucket, key: (objects[key], ""),
        keys=lambda bucket, prefix: iter(objects),
        check_conditional_writes=lambda bucket, key: None,
        delete=lambda bucket, keys: [objects.pop(key) for key in keys],
    )
    monkeypatch.setattr(files, "store_of", lambda uri: store)
    storage.check_writable("s3://bucket/runs", locks=True)
    monkeypatch.setattr(store, forbidden, forbid)
    assert message_of(lambda: storage.check_writable("s3://bucket/runs", locks=True)) == f"{forbidden} is forbidden"
    assert bool(objects) is (forbidden == "delete")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_quota_that_is_used_up_give_the_same_message(number, tmp_path):
    def fill_up() -> None:
        with replacing(tmp_path / "file"):
            raise OSError(number, os.strerror(number))

    assert message_of(fill_up).startswith(f"the disk of {tmp_path} is full (")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    with small_disk(tmp_path, 1) as folder:
        yield folder


def test_a_table_that_does_not_fit_on_the_disk_is_not_committed(disk: Path) -> None:
    table, schema = str(disk / "t"), pa.schema([pa.field("image_id", pa.string())])

    def part(name: str) -> tables.Part:
        return tables.write_part(table, name * 64, 0, [{"image_id": name}], schema)

    old = tables.commit(table, "a" * 64, [part("a")])
    new, before = part("b"), delta_log.latest_version(table)
    ballast = fill(disk)
    for act in (
        lambda: tables.commit(table, "b" * 64, [new]),
        lambda: delta_log.add_version(table, before, [delta_log.File(new.name, new.size, 1, {})], schema, {}),
    ):
        assert f"the disk of {table}" in (message := message_of(act)) and "is full" in message
        assert tables.require_commit(table) == old and [row["image_id"] for row in tables.iter_rows(table)] == ["a"]
    ballast.unlink()
    tables.commit(table, "b" * 64, [new])
    assert [row["image_id"] for row in tables.iter_rows(table)] == ["b"]


def test_a_full_disk_gives_a_message_and_leaves_no_partial_file(disk, bucket, tmp_path):
    uri = str(disk)
    storage.write_bytes(f"{uri}/kept", b"kept" * 1000)
    large = bytes(2 * 2**20)
    storage.write_bytes(f"{bucket}/large", large)
    (tmp_path / "large").write_bytes(large)
    for act in (
        lambda: storage.write_bytes(f"{uri}/large", large),
        lambda: storage.write_bytes(f"{uri}/kept", large),
        lambda: storage.compare_and_swap(f"{uri}/large", None, large),
        lambda: storage.copy_file(f"{bucket}/large", f"{uri}/large"),
        lambda: storage.copy_file(str(tmp_path / "large"), f"{uri}/large"),
    ):
        message = message_of(act)
        assert f"the disk of {uri} is full" in message and "of 1 MiB" in message
        assert storage.list_files(uri) == ["kept"] and storage.read_bytes(f"{uri}/kept") == b"kept" * 1000
    storage.check_writable(uri)
    fill(disk)
    assert f"the disk of {uri} is full" in message_of_check(uri)
    assert storage.list_files(uri) == ["ballast", "kept"]
    subprocess.run(["mount", "-o", "remount,ro", uri], check=True)
    assert f"{uri} can't be written to" in message_of_check(uri)


def test_links_of_a_local_folder_are_followed_once_and_those_to_nothing_are_known(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("a", "d/b", "d/e/c"):
        storage.write_bytes(f"{tmp_path}/root/{name}", b"123")
    root = tmp_path / "root"
    for link, target in [
        ("linked", root / "a"),
        ("d/folder", tmp_path / "elsewhere"),
        ("d/twin", root / "d/e"),
        ("d/e/up", root),
        ("d/e/above", tmp_path),
        ("d/missing", tmp_path / "nothing"),
        ("itself", root / "itself"),
        ("d/e/folder", root / "d"),
    ]:
        (root / link).symlink_to(target)
    storage.write_bytes(f"{tmp_path}/elsewhere/f", b"4567")
    os.mkfifo(root / "pipe")
    files = ["a", "d/b", "d/e/above/elsewhere/f", "d/e/c", "d/folder/f", "d/twin/above/elsewhere/f", "d/twin/c", "linked"]
    assert storage.list_files(str(root)) == files
    sizes = {file.name: (file.size, file.dangling) for file in storage.list_sizes(str(root))}
    found = {name: (4 if name.endswith("/f") else 3, False) for name in files}
    assert sizes == found | {"d/missing": (0, True), "itself": (0, True)}
    assert sorted(storage.list_sizes(str(root), recursive=False)) == sorted(
        [("itself", 0, 0, True), *((name, 3, (root / "a").stat().st_mtime_ns, False) for name in ("a", "linked"))]
    )


def test_a_local_folder_that_cannot_be_listed_gives_a_message(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert message_of(lambda: storage.list_files(f"{tmp_path}/file")) == f"{tmp_path}/file can't be listed: Not a directory"
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    message = message_of(lambda: storage.list_files(str(tmp_path)))
    assert message == f"the name of b'd/caf\\xe9.jpg' in {tmp_path} is not in UTF-8: rename it"


@pytest.mark.parametrize("name", ["x" * 250 + ".jpeg", "測" * 83 + ".json"], ids=["letters", "characters of 3 bytes"])
def test_a_file_may_have_as_long_a_name_as_the_disk_allows(name, tmp_path):
    (tmp_path / "other").write_bytes(b"content")
    storage.write_bytes(f"{tmp_path}/a/{name}", b"first")
    storage.copy_file(f"{tmp_path}/other", f"{tmp_path}/a/{name}")
    assert storage.list_files(f"{tmp_path}/a") == [name] and storage.read_bytes(f"{tmp_path}/a/{name}") == b"content"
    assert storage.compare_and_swap(f"{tmp_path}/a/{name}", b"content", b"exchanged")
    assert storage.list_files(f"{tmp_path}/a") == [name] and storage.read_bytes(f"{tmp_path}/a/{name}") == b"exchanged"


@pytest.mark.parametrize("name", ["x" * 256, "x" * 256 + "/a"], ids=["file", "folder"])
def test_too_long_a_name_gives_a_message(name, tmp_path):
    message = message_of(lambda: storage.write_bytes(f"{tmp_path}/{name}", b"content"))
    assert message == f"the name of {tmp_path}/{'x' * 256} is too long: File name too long"
    assert storage.list_files(str(tmp_path)) == []


def test_a_path_that_cannot_be_a_folder_gives_a_message(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert str(tmp_path / "file") in message_of_check(str(tmp_path / "file"))
    assert str(tmp_path / "file") in message_of_check(str(tmp_path / "file" / "below"))
