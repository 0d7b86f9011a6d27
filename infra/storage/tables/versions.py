"""Read tables, and turn parts into a version of a table by adding an entry to its Delta Lake log.

The entry of a version has three facts in its commit information, under the key `deconvnet`: the table's fingerprint, the
version of its columns and files, and the name of the commit record. The commit record is a JSON file with the summaries of the
parts. Delta Lake's log itself has no place for these summaries: for each file it stores only the size, the number of rows and
their range.

An argument called `table` is the URI of a table's folder, which means the latest version, or the URI of a certain version:
FOLDER@NUMBER (`at_version`). Names of tables themselves never end in @NUMBER.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from infra import storage
from infra.errors import UserError
from infra.storage.disk import is_temporary
from infra.storage.tables import delta_log
from infra.storage.tables.delta_log import LOG, File, Version
from infra.storage.tables.parts import Part, Reject, is_part

SCHEMA_VERSION = 5
"""Version of the tables' columns and files, increased when they change. Tables of other versions are treated as absent."""

_RECORDS = "_records"  # subfolder of the commit records; Delta Lake's vacuum ignores names with a leading underscore
_RECORD = re.compile(rf"{_RECORDS}/(\d+)-([0-9a-f]{{16}})\.json")
_AT_VERSION = re.compile(r"(.+)@(\d+)")


@dataclass(frozen=True)
class Commit:
    """The commit record of a version of a table, which lists the parts that make up the table.

    Attributes:
        fingerprint: digest of what the table was made from: code version, settings and inputs.
        schema_version: version of the columns (SCHEMA_VERSION) when the table was written.
        rows: number of rows of the table.
        parts: summaries of the parts, in the order of their rows.
        extra: further facts about the table from the job that made it, as JSON values.
        version: number of the version in Delta Lake's log.
    """

    fingerprint: str
    schema_version: int
    rows: int
    parts: list[Part]
    extra: dict[str, Any] = field(default_factory=dict)
    version: int = 0

    @property
    def rejects(self) -> list[Reject]:
        """Return the rejected inputs of all parts."""
        return [r for p in self.parts for r in p.rejects]


_COMMIT = TypeAdapter(Commit)  # converts JSON to this class, and back


def at_version(table: str, version: int) -> str:
    """Return the URI of a version of a table, by the URI of the table's folder and the number of the version."""
    return f"{table}@{version}"


def folder_of(table: str) -> str:
    """Return the URI of a table's folder."""
    return _folder_and_version(table)[0]


def _folder_and_version(table: str) -> tuple[str, int | None]:
    """Return the URI of a table's folder, and the number of the version; None for the latest."""
    found = _AT_VERSION.fullmatch(table)
    return (found[1], int(found[2])) if found else (table, None)


def _find_version(table: str) -> Version | None:
    """Return the entry of a version in the log; None if there is none, or its `SCHEMA_VERSION` is another one."""
    folder, number = _folder_and_version(table)
    found = delta_log.latest_version(folder) if number is None else delta_log.read_version(folder, number)
    return found if found and found.facts.get("schema_version") == SCHEMA_VERSION else None


def read_commit(table: str) -> Commit | None:
    """Return the commit record of a table; None if there is no table, or its `SCHEMA_VERSION` is another one."""
    folder = folder_of(table)
    while True:
        version = _find_version(table)
        if version is None:
            return None
        try:
            found = _COMMIT.validate_json(storage.read_bytes(storage.join(folder, version.facts["record"])))
            return replace(found, version=version.number)
        except FileNotFoundError:
            if _find_version(table) == version:
                return None
            # else another run has just replaced the table, and deleted the files of the version that was found


def require_commit(table: str) -> Commit:
    """Return the commit record of a table.

    Raises:
        FileNotFoundError: if there is no table.
        UserError: if the table was written by another version of this program, or changed by another program.
    """
    if found := read_commit(table):
        return found
    folder, number = _folder_and_version(table)
    if number is None and (delta_log.latest_version(folder) or storage.exists(storage.join(folder, "_commit.json"))):
        raise UserError(
            f"the table {table} was written by another version of this program, or changed by another program: "
            "run the command that makes it again (workflows/train_pipeline.py for the tables of a workspace)"
        )
    raise FileNotFoundError(f"no complete table at {table}")


def fingerprint_of(table: str) -> str | None:
    """Return the fingerprint of a table without reading its commit record; None without a table, or if its record was deleted."""
    version = _find_version(table)
    has_record = version and storage.exists(storage.join(folder_of(table), version.facts["record"]))
    return version.facts.get("fingerprint") if version and has_record else None


def kept_versions(table: str) -> list[int]:
    """Return the numbers of a table's versions whose files were not deleted by `prune`, in ascending order."""
    records = storage.list_files(storage.join(table, _RECORDS))
    numbers = {int(found[1]) for name in records if (found := _RECORD.fullmatch(f"{_RECORDS}/{name}"))}
    return sorted(numbers & set(delta_log.version_numbers(table)))


def commit(
    table: str,
    fingerprint: str,
    parts: Sequence[Part],
    extra: Mapping[str, Any] | None = None,
    check: Callable[[], None] | None = None,
    keep_earlier: bool = False,
) -> Commit:
    """Add a version that consists of the given parts to a table. If the latest version has the same content, nothing is added.

    Args:
        table: URI of the table's folder.
        fingerprint: digest of what the table was made from.
        parts: summaries of all parts, in the order of the rows.
        extra: further facts about the table to store in the commit record, as JSON values.
        check: function that raises an error if this run may no longer write, because another one has taken its lock. It is called
            immediately before the table is changed.
        keep_earlier: True to keep the files of earlier versions, until `prune` deletes them. Otherwise they are deleted.

    Returns:
        The commit record.

    Raises:
        UserError: if another run changed the table or deleted the parts at the same time, or the storage can't be used. The table
            is then unchanged.
    """
    made = Commit(fingerprint, SCHEMA_VERSION, sum(p.rows for p in parts), list(parts), dict(extra or {}))
    content = _COMMIT.dump_json(made, exclude={"version"})
    content_digest = hashlib.sha256(content).hexdigest()[:16]
    while True:
        if check:
            check()
        files = storage.list_files(table)
        _check_parts(table, parts, files)
        schema = _schema(table, parts)
        before = delta_log.latest_version(table)
        same = before is not None and _is_record_of(before, fingerprint, content_digest)
        number = 0 if before is None else before.number + (not same)
        record = before.facts["record"] if before and same else f"{_RECORDS}/{number}-{content_digest}.json"
        if record not in files:
            storage.write_bytes(storage.join(table, record), content)
        facts = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "record": record}
        if check:
            check()
        if same or delta_log.add_version(table, before, [_file(p) for p in parts], schema, facts):
            break
        if check is None:
            raise UserError(
                f"another run made the table {table} at the same time, and its rows are kept: "
                "let one run at a time write there, and run this one again"
            )
    if check:
        check()
    if not keep_earlier:
        # Only files that were listed above are deleted. Files written since then belong to a run that began later.
        keep = {record, *(p.name for p in parts)}
        storage.remove_files(table, [name for name in files if name not in keep and not name.startswith(f"{LOG}/")])
    return replace(made, version=number)


def _check_parts(table: str, parts: Sequence[Part], files: Collection[str]) -> None:
    """Raise UserError if a part is not among the names of the files that are in the table's folder."""
    if missing := {p.name for p in parts}.difference(files):
        raise UserError(
            f"another run deleted {min(missing)} of the table {table}: let one run at a time write there, and run this one again"
        )


def _is_record_of(version: Version, fingerprint: str, content_digest: str) -> bool:
    """Return whether a version was made with a fingerprint, and its commit record has a content with this digest."""
    found = _RECORD.fullmatch(version.facts.get("record", ""))
    return found is not None and found[2] == content_digest and version.facts["fingerprint"] == fingerprint


def prune(table: str, keep: Collection[int]) -> int:
    """Delete the parts and commit records of a table that belong to none of the versions to keep.

    No other process may write to the table meanwhile, because parts that don't belong to a version yet, and temporary files, are
    deleted as well. If this process is killed, some of the files remain; the kept versions are complete in any case.

    Args:
        table: URI of the table's folder.
        keep: numbers of the versions to keep. The latest version is always kept. Numbers of versions that are gone have no
            effect.

    Returns:
        The number of deleted files. It is 0 if there is no table, or another program has changed it.
    """
    latest = read_commit(table)
    if latest is None:
        return 0
    named: set[str] = set()
    for number in {latest.version, *keep}:
        version, found = _find_version(at_version(table, number)), read_commit(at_version(table, number))
        if version and found:
            named |= {version.facts["record"], *(part.name for part in found.parts)}
    files = storage.list_files(table)
    records = [name for name in files if _RECORD.fullmatch(name) and name not in named]
    others = [name for name in files if is_temporary(name) or (is_part(name) and name not in named)]
    for names in (records, others):  # one after the other, so that a version with a record has all its parts
        storage.remove_files(table, names)
    return len(records) + len(others)


def _file(part: Part) -> File:
    """Return the facts about a part that Delta Lake's log stores."""
    return File(part.name, part.size, part.rows, {"image_id": (part.first, part.last)} if part.rows else {})


def _schema(table: str, parts: Sequence[Part]) -> pa.Schema:
    """Read the schema of a table from the file of its first part. A table without parts has only the column `image_id`."""
    if not parts:
        return pa.schema([pa.field("image_id", pa.string(), nullable=False)])
    fs, path = storage.filesystem(storage.join(table, parts[0].name))
    return pq.read_schema(path, filesystem=fs).remove_metadata()


def iter_rows(table: str, columns: Sequence[str] | None = None, part: Part | None = None) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a table or of one part. Only one row group is in memory at a time.

    Args:
        table: URI of the table's folder, or of a version of the table.
        columns: the columns to read; None for all.
        part: the part to read; None for all parts of the table.

    Yields:
        The rows as dicts, in the order of the parts, and sorted by image_id in each part.

    Raises:
        FileNotFoundError: if `part` is None and there is no complete table.
    """
    parts = [part] if part else require_commit(table).parts
    for each in parts:
        fs, path = storage.filesystem(storage.join(folder_of(table), each.name))
        with pq.ParquetFile(path, filesystem=fs) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, columns=columns).to_pylist()


def read_row_group(
    table: str, part_file: str, group: int, columns: Sequence[str] | None = None, footer: pq.FileMetaData | None = None
) -> pa.Table:
    """Read one row group of a part as a pyarrow table.

    Args:
        table: URI of the table's folder.
        part_file: name of the part (`Part.name`).
        group: index of the row group in the part, from 0.
        columns: the columns to read; None for all.
        footer: the part's footer, if `read_footer` has read it; None to read it, which takes 64 kB and a request.
    """
    fs, path = storage.filesystem(storage.join(folder_of(table), part_file))
    with pq.ParquetFile(path, filesystem=fs, metadata=footer) as file:
        return file.read_row_group(group, columns=columns)


def read_footer(table: str, part_file: str) -> pq.FileMetaData:
    """Read the footer of a part, which says where its row groups are.

    Args:
        table: URI of the table's folder.
        part_file: name of the part (`Part.name`).
    """
    fs, path = storage.filesystem(storage.join(folder_of(table), part_file))
    return pq.read_metadata(path, filesystem=fs)
