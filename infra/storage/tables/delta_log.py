"""The log of a table: the folder `_delta_log`, in which Delta Lake has a numbered JSON file for each version of the table.

A version's file lists the files that were added and removed since the previous version. It is written only if it does not exist,
so if two runs add the same version, one fails. The library `deltalake` adds versions. The latest version is found with the
functions of `infra.storage` alone, so processes that only read a table don't import `deltalake`.

Arguments called `table` are the URI of a table's folder.
"""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra import storage
from infra.errors import UserError
from infra.redaction import without_secrets
from infra.storage.disk import disk_user_error
from infra.storage.objects import store_of
from infra.storage.uri import in_bucket, local_path

if TYPE_CHECKING:
    from deltalake.transaction import AddAction

LOG = "_delta_log"
"""Name of the subfolder of a table that makes it a table. Its URI stands for the table among the outputs of a stage."""

_VERSION_FILE = re.compile(r"(\d{20})\.json")
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")  # deltalake 1.6 decodes it, and then does not find the folder
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FACTS = "deconvnet"  # key of our facts in the commit information of a version


@dataclass(frozen=True)
class File:
    """A file of a version, as Delta Lake's log describes it.

    Attributes:
        name: path of the file below the table's folder.
        size: size of the file in bytes.
        rows: number of rows.
        ranges: lowest and highest value of columns, by their names.
    """

    name: str
    size: int
    rows: int
    ranges: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Version:
    """A version of a table.

    Attributes:
        number: number of the version, from 0.
        facts: what `add_version` stored with the version; empty if another program changed the table.
    """

    number: int
    facts: dict[str, Any] = field(default_factory=dict)


def latest_version(table: str) -> Version | None:
    """Return the latest version of a table; None if there is no table.

    A version that neither adds nor removes files (Delta Lake's own clean-up, vacuum, makes such versions) is given the facts of
    the version before.
    """
    return _version_at(table, version_numbers(table))


def read_version(table: str, number: int) -> Version | None:
    """Return a version of a table by its number, as `latest_version` does. None if there is no such version."""
    numbers = version_numbers(table)
    return _version_at(table, [n for n in numbers if n <= number]) if number in numbers else None


def version_numbers(table: str) -> list[int]:
    """Return the numbers of all versions in the log of a table, in ascending order."""
    return [int(found[1]) for name in storage.list_files(storage.join(table, LOG)) if (found := _VERSION_FILE.fullmatch(name))]


def _version_at(table: str, numbers: Sequence[int]) -> Version | None:
    """Return the last of some versions. If that version changed no files, it gets the facts of the latest version that did."""
    for number in reversed(numbers):
        lines = storage.read_bytes(storage.join(table, LOG, f"{number:020}.json")).splitlines()
        infos = [line for line in lines if line.startswith(b'{"commitInfo":')]
        facts = json.loads(infos[0])["commitInfo"].get(_FACTS) if infos else None
        if facts or len(lines) > len(infos):
            return Version(numbers[-1], dict(facts or {}))
    return Version(numbers[-1]) if numbers else None


def add_version(table: str, before: Version | None, files: Sequence[File], schema: pa.Schema, facts: Mapping[str, Any]) -> bool:
    """Add a version to a table, which consists of exactly the given files.

    Args:
        table: URI of the table's folder.
        before: the latest version, as `latest_version` found it; None if there is no table yet.
        files: all files of the new version. They exist.
        schema: columns of the rows.
        facts: metadata of the version as JSON values by name, which `latest_version` returns. Two runs that write different files
            at the same time must pass different facts.

    Returns:
        True if the version was added. False if another run added a version since `before`: then nothing was changed.

    Raises:
        UserError: if the log can't be written, for example because the disk is full.
    """
    if _ESCAPE.search(table):
        raise UserError(
            f"{table} can't be the folder of a table: Delta Lake would read {_ESCAPE.findall(table)[0]} in it as another "
            "character"
        )
    try:
        _add(table, before, files, schema, facts)
    except Exception as error:  # deltalake raises DeltaError, OSError and others
        # In a bucket, the answer to a successful request may have been lost. Then a retry has found the file, and seemed to fail.
        after = latest_version(table)
        if after is None or (before is not None and after.number == before.number):
            raise _explained(table, error) from error
        return after.number == (before.number if before else -1) + 1 and after.facts == facts
    if not in_bucket(table):
        _sync(local_path(table) / LOG / f"{before.number + 1 if before else 0:020}.json")
    return True


def _add(table: str, before: Version | None, files: Sequence[File], schema: pa.Schema, facts: Mapping[str, Any]) -> None:
    """Add a version to a table, as `add_version` does. Raise any error of `deltalake` if that fails."""
    from deltalake import DeltaTable, Schema
    from deltalake.transaction import (
        CommitProperties,
        PostCommitHookProperties,
        RemoveAction,
        create_table_with_add_actions,
    )

    uri, options = location_for_deltalake(table)
    now = time.time_ns() // 10**6
    columns = Schema.from_arrow(schema)
    properties: dict[str, Any] = {
        # Without retries, a version that another run has added meanwhile makes this one fail, whatever it changed.
        "commit_properties": CommitProperties({_FACTS: dict(facts)}, max_commit_retries=0),
        "post_commithook_properties": PostCommitHookProperties(cleanup_expired_logs=False),
    }
    if before is None:
        added = [_add_action(file, now) for file in files]
        create_table_with_add_actions(uri, columns, added, storage_options=options, **properties)
        return
    found = DeltaTable(uri, version=before.number, storage_options=options)
    earlier = set(pa.table(found.get_add_actions()).column("path").to_pylist())
    names = {file.name for file in files}
    actions: list[AddAction | RemoveAction] = [_add_action(file, now) for file in files if file.name not in earlier]
    mode = "overwrite"  # removes all earlier files, and replaces the columns
    if names & earlier:
        mode = "append"
        actions += [RemoveAction(name, True, now) for name in sorted(earlier - names)]
    found.create_write_transaction(actions, mode, columns, **properties)


def location_for_deltalake(table: str) -> tuple[str, dict[str, str]]:
    """Return the URI of a table for the library `deltalake`, and its storage options, which may contain credentials."""
    if store := store_of(table):
        with store.location(table) as (bucket, key):
            return store.delta_location(bucket, key)
    return local_path(table).resolve().as_uri(), {}


def _add_action(file: File, now: int) -> "AddAction":
    """Return the entry of a file in the log.

    Args:
        file: the file.
        now: the current time in milliseconds since 1970.
    """
    from deltalake.transaction import AddAction

    statistics = {
        "numRecords": file.rows,
        "minValues": {name: low for name, (low, _) in file.ranges.items()},
        "maxValues": {name: high for name, (_, high) in file.ranges.items()},
        "nullCount": dict.fromkeys(file.ranges, 0),
    }
    return AddAction(file.name, file.size, {}, now, True, json.dumps(statistics))


def _sync(path: Path) -> None:
    """Wait until a local file and its entry in the folder are physically on the disk. `deltalake` does not wait for this."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _explained(table: str, error: Exception) -> UserError:
    """Convert an error of `deltalake` to a message for the user.

    Args:
        table: URI of the table's folder.
        error: the error. Its text may have several lines with terminal colours, and name the error number of the system.
    """
    text = without_secrets(" ".join(_COLOURS.sub("", str(error)).split()))
    if not in_bucket(table) and (found := _SYSTEM_ERROR.search(text)):
        number = int(found[1])
        if explained := disk_user_error(OSError(number, os.strerror(number), table), local_path(table) / LOG):
            return explained
    return UserError(f"Delta Lake can't add a version to the table {table}: {text[:500]}")
