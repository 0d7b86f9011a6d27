"""What is written is on the disk before it appears: a power failure leaves no file or table whose content is missing."""

import os
from pathlib import Path

import pytest

from infra import storage
from infra.storage.disk import is_temporary
from infra.storage.tables import delta_log
from tests.infra.storage.helpers import make_table


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, str]]:
    """The size and the name that each file and folder had when it was synced, by its inode."""
    found: dict[int, tuple[int, str]] = {}

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        found[status.st_ino] = (status.st_size, Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def test_a_file_is_synced_before_it_gets_its_name(tmp_path: Path, synced: dict[int, tuple[int, str]]) -> None:
    storage.write_bytes(f"{tmp_path}/weights", b"content")
    size, name = synced[(tmp_path / "weights").stat().st_ino]
    assert size == len(b"content") and is_temporary(name)


def test_a_table_is_synced_with_its_version_when_the_version_has_been_added(
    tmp_path: Path, synced: dict[int, tuple[int, str]]
) -> None:
    make_table(str(tmp_path))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path: synced.get(path.stat().st_ino, (0,))[0] for path in files} == {path: path.stat().st_size for path in files}
    assert (tmp_path / delta_log.LOG).stat().st_ino in synced, "the version's name in the folder"
