"""Read tables, and make parts a table by adding a version to its Delta Lake log.

The entry of a version in the log has three facts in its commit information, as the value of the key `deconvnet`: the table's
fingerprint, the version of its columns and files, and the name of the commit record, a JSON file with the summaries of its parts.
Delta Lake itself has no place for these summaries: of a file it stores the size, the number of rows and their range.

Arguments called `table` are the URI of a table's folder.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from infra import storage
from infra.errors import UserError
from infra.storage.tables import delta_log
from infra.storage.tables.delta_log import LOG, File
from infra.storage.tables.parts import Part, Reject

SCHEMA_VERSION = 4
"""Version of the tables' columns and files, increased when they change. Tables of other versions count as absent."""


@dataclass(frozen=True)
class Commit:
    """The commit record of a table's present version, which lists the parts that make up the table.

    Attributes:
        fingerprint: digest of what the table was made from: code version, settings and inputs.
        schema_version: version of the columns (SCHEMA_VERSION) when the table was written.
        rows: number of rows of the table.
        parts: summaries of the parts, in the order of their rows.
        extra: further facts about the table from the job that made it, as JSON values.
    """

    fingerprint: str
    schema_version: int
    rows: int
    parts: list[Part]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def rejects(self) -> list[Reject]:
        """Return the rejected inputs of all parts."""
        return [r for p in self.parts for r in p.rejects]


_COMMIT = TypeAdapter(Commit)  # converts JSON to this class, and back


def read_commit(table: str) -> Commit | None:
    """Return the commit record of a table; None if there is no table or its columns or files have another version."""
    while True:
        version = delta_log.latest_version(table)
        if version is None or version.facts.get("schema_version") != SCHEMA_VERSION:
            return None
        try:
            return _COMMIT.validate_json(storage.read_bytes(storage.join(table, version.facts["record"])))
        except FileNotFoundError:
            if delta_log.latest_version(table) == version:
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
    if delta_log.latest_version(table) or storage.exists(storage.join(table, "_commit.json")):
        raise UserError(
            f"the table {table} was written by another version of this program, or changed by another program: "
            "run the command that makes it again (workflows/train_pipeline.py for the tables of a workspace)"
        )
    raise FileNotFoundError(f"no complete table at {table}")


def fingerprint_of(table: str) -> str | None:
    """Return the fingerprint of a table, without reading its commit record; None if there is no table."""
    version = delta_log.latest_version(table)
    return version.facts.get("fingerprint") if version and version.facts.get("schema_version") == SCHEMA_VERSION else None


def commit(
    table: str,
    fingerprint: str,
    parts: Sequence[Part],
    extra: Mapping[str, Any] | None = None,
    check: Callable[[], None] | None = None,
) -> Commit:
    """Make a complete table of parts by adding a version to its log. The files of the version before are deleted.

    Nothing is written if the present version has the same content.

    Args:
        table: URI of the table's folder.
        fingerprint: digest of what the table was made from, with which the parts were written.
        parts: summaries of all parts, in any order.
        extra: further facts about the table to store in the commit record, as JSON values.
        check: function that raises an error if this run may no longer write, because another one has taken its lock. It is called
            immediately before the table is changed.

    Returns:
        The commit record.

    Raises:
        UserError: if another run changed the table or deleted the parts at the same time, or the storage can't be used. The table
            is then unchanged.
    """
    ordered = sorted(parts, key=lambda p: p.name)
    made = Commit(fingerprint, SCHEMA_VERSION, sum(p.rows for p in ordered), ordered, dict(extra or {}))
    content = _COMMIT.dump_json(made)
    # A leading underscore keeps Delta Lake's own clean-up (vacuum) from the file.
    record = f"_records/{fingerprint[:16]}-{hashlib.sha256(content).hexdigest()[:16]}.json"
    facts = {"schema_version": SCHEMA_VERSION, "fingerprint": fingerprint, "record": record}
    keep = {record, *(p.name for p in ordered)}
    files = [_file(p) for p in ordered]
    while True:
        if check:
            check()
        there = _write_record(table, record, content, keep)
        schema = _schema(table, ordered)
        before = delta_log.latest_version(table)
        if check:
            check()
        if before and before.facts == facts:
            break
        if delta_log.add_version(table, before, files, schema, facts):
            break
        if check is None:
            raise UserError(
                f"another run made the table {table} at the same time, and its rows count: "
                "let one run at a time write there, and run this one again"
            )
    if check:
        check()
    # Only files that were there before: those written since are of a run that began after this one.
    storage.remove_files(table, [name for name in there if name not in keep and not name.startswith(f"{LOG}/")])
    return made


def _write_record(table: str, record: str, content: bytes, keep: set[str]) -> list[str]:
    """Write a commit record unless it is there, and return the names of all files that were in the table's folder before.

    Args:
        table: URI of the table's folder.
        record: path of the record below it.
        content: content of the record, on which its name depends.
        keep: names of the record and of the parts that it lists.

    Raises:
        UserError: if a part is missing.
    """
    there = storage.list_files(table)
    if missing := keep - {record, *there}:
        raise UserError(
            f"another run deleted {min(missing)} of the table {table}: let one run at a time write there, and run this one again"
        )
    if record not in there:
        storage.write_bytes(storage.join(table, record), content)
    return there


def _file(part: Part) -> File:
    """Return what Delta Lake's log stores of a part."""
    return File(part.name, part.size, part.rows, {"image_id": (part.first, part.last)} if part.rows else {})


def _schema(table: str, parts: Sequence[Part]) -> pa.Schema:
    """Return the columns of a table that is made of parts. A table without any part has the column that all tables have."""
    if not parts:
        return pa.schema([pa.field("image_id", pa.string(), nullable=False)])
    fs, path = storage.filesystem(storage.join(table, parts[0].name))
    return pq.read_schema(path, filesystem=fs).remove_metadata()


def iter_rows(table: str, columns: Sequence[str] | None = None, part: Part | None = None) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a table or of one part. Only one row group is in memory at a time.

    Args:
        table: URI of the table's folder.
        columns: the columns to read; None for all.
        part: the part to read; None for all parts of the table.

    Yields:
        The rows as dicts, sorted by image_id.

    Raises:
        FileNotFoundError: if `part` is None and there is no complete table.
    """
    parts = [part] if part else require_commit(table).parts
    for each in parts:
        fs, path = storage.filesystem(storage.join(table, each.name))
        with pq.ParquetFile(path, filesystem=fs) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, columns=columns).to_pylist()


def rows_between(
    table: str, parts: Iterable[Part], first: str, last: str, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Iterate over the rows whose image_id is from `first` to `last`. Parts without such rows are not opened.

    Args:
        table: URI of the table's folder.
        parts: summaries of the parts to search, in order.
        first: the lowest image_id to include.
        last: the highest image_id to include.
        columns: the columns to read, which must include image_id; None for all.

    Yields:
        The rows as dicts, sorted by image_id.
    """
    for part in parts:
        if part.rows and part.first <= last and part.last >= first:
            yield from (row for row in iter_rows(table, columns, part) if first <= row["image_id"] <= last)


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
    fs, path = storage.filesystem(storage.join(table, part_file))
    with pq.ParquetFile(path, filesystem=fs, metadata=footer) as file:
        return file.read_row_group(group, columns=columns)


def read_footer(table: str, part_file: str) -> pq.FileMetaData:
    """Read the footer of a part, which says where its row groups are.

    Args:
        table: URI of the table's folder.
        part_file: name of the part (`Part.name`).
    """
    fs, path = storage.filesystem(storage.join(table, part_file))
    return pq.read_metadata(path, filesystem=fs)
