"""Conditional writes on disk and on every store."""

import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from infra import storage


def test_conditional_writes_happen_only_if_the_condition_holds(any_folder):
    folder = any_folder
    uri = storage.join(folder, "lock")
    assert not storage.compare_and_swap(uri, b"0", b"1") and not storage.exists(uri)
    assert storage.in_bucket(folder) or not Path(folder).exists(), "no folder is made for a file that is not there"
    assert (
        storage.compare_and_swap(uri, None, b"1")
        and not storage.compare_and_swap(uri, None, b"2")
        and storage.read_bytes(uri) == b"1"
    )
    assert not storage.compare_and_swap(uri, b"2", b"3") and storage.read_bytes(uri) == b"1"
    assert storage.compare_and_swap(uri, b"1", b"3") and storage.read_bytes(uri) == b"3"
    assert storage.list_files(folder) == ["lock"]


@pytest.mark.parametrize("kind", ["put", "replace"])
def test_one_of_several_conditional_writers_succeeds(any_folder, kind):
    folder = any_folder
    uri = storage.join(folder, "lock")
    act = {
        "put": lambda mine: storage.compare_and_swap(uri, None, mine),
        "replace": lambda mine: storage.compare_and_swap(uri, b"old", mine),
    }[kind]
    for _ in range(2 if storage.in_bucket(folder) else 20):
        storage.remove(uri) if kind == "put" else storage.write_bytes(uri, b"old")
        start = threading.Barrier(6)

        def one(number: int, start: threading.Barrier = start) -> bool:
            start.wait()
            return act(b"%d" % number)

        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(one, range(6)))
        assert sum(won) == 1
        assert storage.read_bytes(uri) == b"%d" % won.index(True)


@pytest.mark.parametrize(("name", "guard"), [("workspace.lock", ".workspace.lock.guard"), ("x" * 240, f".{'x' * 240}.guard")])
def test_versions_of_the_program_that_share_a_disk_use_the_same_guard_file(tmp_path, name, guard):
    with storage.one_process_at_a_time(tmp_path / name):
        assert [file.name for file in tmp_path.iterdir()] == [guard]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_guard_file_that_another_process_replaced_or_deleted_before_it_was_locked_is_locked_again(
    tmp_path, monkeypatch, replaced
):
    """Otherwise two processes would hold a lock, each of another file."""
    locked, flock = [], fcntl.flock

    def late(file: IO[bytes], kind: int) -> None:
        flock(file, kind)
        locked.append(os.fstat(file.fileno()).st_ino)
        if len(locked) == 1:
            storage.remove(file.name)
            if replaced:
                storage.write_bytes(file.name, b"")

    monkeypatch.setattr(fcntl, "flock", late)
    with storage.one_process_at_a_time(tmp_path / "file"):
        (guard,) = tmp_path.iterdir()
        assert guard.stat().st_ino == locked[1] and len(locked) == 2


def test_the_guard_file_of_a_change_may_be_deleted_meanwhile(tmp_path):
    with storage.one_process_at_a_time(tmp_path / "file"):
        (guard,) = tmp_path.iterdir()
        guard.unlink()
    assert not any(tmp_path.iterdir())
