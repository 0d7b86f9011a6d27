"""A process that writes and commits tables is killed at random moments. The table is the old version or the new one."""

import multiprocessing
import os
import random
import signal
import threading
from typing import Any

import pytest
from deltalake import DeltaTable

from infra import storage
from infra.storage import tables
from infra.storage.tables import delta_log
from tests.infra.storage.helpers import SCHEMA

MOMENTS = {"disk": 30, "s3": 30, "gs": 10, "abfs": 10}
"""How often a writer is killed, by the kind of storage."""


def make(table: str, number: int) -> None:
    """Make a table of four rows, all of which say `number`."""
    fingerprint = f"{number:016}"
    parts = [tables.write_part(table, fingerprint, i, [{"image_id": f"{i} {number}"}], SCHEMA) for i in range(4)]
    tables.commit(table, fingerprint, parts)


def made(table: str) -> int:
    """The number that all rows of a table say, here and for Delta Lake's own library. No file that it names is missing."""
    rows = [row["image_id"] for row in tables.iter_rows(table)]
    options = delta_log.location_for_deltalake(table)[1]
    delta = DeltaTable(table, storage_options=options)
    assert sorted(row["image_id"] for row in delta.to_pyarrow_table().to_pylist()) == rows
    assert set(tables.part_files(table)) >= {part.name for part in tables.require_commit(table).parts}
    number = int(rows[0].split()[1])
    assert rows == [f"{i} {number}" for i in range(4)], "the table is a mixture"
    return number


def add(table: str, number: int) -> None:
    """Add a version that contains its own number, with one part in four written anew; now and then, delete old versions."""
    parts = [
        tables.write_part(table, "c0de" * 4, f"{written + 4:016x}{i:016x}", [{"image_id": f"{i} {written}"}], SCHEMA)
        for i, written in content(number)
    ]
    assert tables.commit(table, f"{number:016}", parts, keep_earlier=True).version == number
    if number % 3 == 0:
        tables.prune(table, used(number))


def content(number: int) -> list[tuple[int, int]]:
    """For each part of a version, its position and the version with which it was written."""
    return [(i, number - (number - i) % 4) for i in range(4)]


def used(number: int) -> set[int]:
    """The versions to be kept besides the latest one, when that has this number."""
    return {each for each in range(max(0, number - 12), number) if each % 5 == 0}


def latest(table: str) -> int:
    """The number of the latest version. It and all versions to be kept are whole, here and for Delta Lake's own library."""
    number = tables.require_commit(table).version
    options = delta_log.location_for_deltalake(table)[1]
    for each in {number, *used(number)}:
        rows = [f"{i} {written}" for i, written in content(each)]
        assert [row["image_id"] for row in tables.iter_rows(tables.at_version(table, each))] == rows, (number, each)
        delta = DeltaTable(table, version=each, storage_options=options)
        assert sorted(row["image_id"] for row in delta.to_pyarrow_table().to_pylist()) == rows
    assert set(tables.kept_versions(table)) >= used(number)
    return number


KINDS = {"replaced": (make, made), "versions": (add, latest)}
"""How a table is written, and how what is there is checked."""


def write(table: str, kind: str, number: int, seconds: float, finished: Any) -> None:
    """Make one table after the other until this process kills itself, some seconds after the first one."""
    killer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    killer.daemon = True
    KINDS[kind][0](table, number)
    finished.value = number
    killer.start()
    while True:
        number += 1
        KINDS[kind][0](table, number)
        finished.value = number


def kind_of(folder: str) -> str:
    """The kind of storage of a folder, as in `MOMENTS`."""
    return folder.partition("://")[0] if storage.in_bucket(folder) else "disk"


def fork_writers(table: str, kind: str, moments: list[float], numbers: Any, finished: Any) -> None:
    """Let one writer after the other write and be killed, each in a fork of this process, which has loaded the libraries.

    This process must not have used them, as their threads would not live on in a fork. Nothing waits for the disk, which a killed
    process does not need.
    """
    os.fsync = lambda descriptor: None
    for seconds in moments:
        number = numbers.recv()
        if not (writer := os.fork()):
            write(table, kind, number, seconds, finished)
        numbers.send(os.waitpid(writer, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_the_old_or_the_new_version_whenever_its_writer_is_killed(folder: str, kind: str) -> None:
    chance, number, between = random.Random(0), 0, 0
    moments = [chance.uniform(0, 1.0 if storage.in_bucket(folder) else 0.3) for _ in range(MOMENTS[kind_of(folder)])]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    finished = context.RawValue("i", -1)
    forks = context.Process(target=fork_writers, args=(folder, kind, moments, theirs, finished), daemon=True)
    forks.start()
    for _ in moments:
        ours.send(number)
        assert ours.recv() == signal.SIGKILL, "the writer failed"
        number = KINDS[kind][1](folder)
        assert number in (finished.value, finished.value + 1), "a version that was committed is gone"
        between += number > finished.value or len(tables.part_files(folder)) > 4
        number += 1
    forks.join()
    assert between, "every writer was killed between two tables: nothing was tried"
    KINDS[kind][0](folder, number)
    assert KINDS[kind][1](folder) == number
    if kind == "replaced":
        assert len(tables.part_files(folder)) == 4 and len(storage.list_files(f"{folder}/_records")) == 1
    else:
        tables.prune(folder, [])
        assert len(tables.part_files(folder)) == 4 and tables.kept_versions(folder) == [number]
