"""Unpacking of archives: unsafe, damaged, and where there is no room."""

import errno
import hashlib
import io
import shutil
import tarfile

import pytest

from deconvnet.datasets.fetch import unpack
from infra.errors import UserError


def archive(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_the_wanted_files_of_an_archive_are_unpacked(tmp_path):
    made = archive(tmp_path / "a.tgz", {"top/in/x.txt": b"x", "top/y.jpg": b"y", "other/z": b"z"})
    unpack(made, "top", tmp_path / "deep" / "out", wanted=lambda name: not name.endswith(".jpg"))
    assert sorted(p.relative_to(tmp_path / "deep").as_posix() for p in (tmp_path / "deep").rglob("*")) == [
        "out",
        "out/in",
        "out/in/x.txt",
    ]


@pytest.mark.parametrize(
    "members",
    [{"top/a": b"a", "../evil": b"e"}, {"top/a": b"a", "top/../../evil": b"e"}, {"top/a": b"a", "top/link": "/etc/passwd"}],
)
def test_members_that_would_be_written_outside_are_refused_and_nothing_is_kept(tmp_path, members):
    folder = tmp_path / "folder"
    folder.mkdir()
    made = archive(tmp_path / "a.tgz", members)
    with pytest.raises(UserError, match="not safe"):
        unpack(made, "top", folder / "out")
    assert not list(folder.iterdir()) and not (tmp_path / "evil").exists()


def test_damaged_archives_and_those_without_the_folder_are_refused(tmp_path):
    made = archive(tmp_path / "a.tgz", {"top/a": bytes(range(250)) * 20, "top/b": hashlib.sha512(b"").digest() * 500})
    data = made.read_bytes()
    for content in (data[: len(data) // 2], b"words", b""):
        made.write_bytes(content)
        with pytest.raises(UserError, match="can't be unpacked"):
            unpack(made, "top", tmp_path / "out")
    made.write_bytes(data)
    with pytest.raises(UserError, match="no folder elsewhere"):
        unpack(made, "elsewhere", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]


def test_a_target_that_is_not_empty_is_named_not_the_archive(tmp_path):
    made = archive(tmp_path / "a.tgz", {"top/a": b"a"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        with pytest.raises(UserError, match=rf"{name} exists and is not empty.*move it away") as caught:
            unpack(made, "top", tmp_path / name)
        assert "delete" not in str(caught.value)
    assert (tmp_path / "full/mine.txt").read_text() == (tmp_path / "file").read_text() == "kept"
    unpack(made, "top", tmp_path / "empty")
    assert (tmp_path / "empty/a").read_bytes() == b"a"


def test_a_disk_without_room_is_noticed_before_a_file_is_written(tmp_path, monkeypatch):
    made, usage = archive(tmp_path / "a.tgz", {"top/a": b"a"}), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"unpacking a\.tgz needs .*make room there"):
        unpack(made, "top", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path, monkeypatch):
    made = archive(tmp_path / "a.tgz", {"top/a": b"a"})

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(UserError, match="out can't be written: No space left") as caught:
        unpack(made, "top", tmp_path / "out")
    assert "download it again" not in str(caught.value)
