"""Tables that pipeline stages pass to each other: sorted Parquet files in a folder, either complete or absent.

The Parquet files of a table are its parts. They lie in a subfolder that is named after the table's fingerprint, a digest of what
it was made from. The parts become the table when they are listed in the file `_commit.json`, the commit record. This file is
written last and in one step, so a reader never sees half a table, and a new table replaces an old one at once.

Every table has a column `image_id`, by which its rows are sorted. Arguments called `table` are the URI of a table's folder.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from infra import storage
from infra.storage.row_groups import RowGroup, divide_rows, summarize

SCHEMA_VERSION = 3
"""Version of the tables' columns, increased when they change. Tables of other versions count as absent."""

COMMIT = "_commit.json"
"""Name of the file that makes the parts in a folder a table."""

REJECTS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),  # "" where the input is a row of a table
        pa.field("stage", pa.string(), nullable=False),  # the stage that could not use the input
        pa.field("reason", pa.string(), nullable=False),  # one sentence
    ]
)
"""One row per input that could not be used."""


@dataclass(frozen=True)
class Reject:
    """An input that could not be used, such as a broken image, and the reason.

    Attributes:
        image_id: id of the image to which the input belongs.
        path: URI of the input file, or the setting that lists the input; "" if the input is a row of a table.
        stage: name of the pipeline stage that could not use the input.
        reason: the reason, in one sentence.
    """

    image_id: str
    path: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Part:
    """A summary of one part of a table. A part is a Parquet file.

    Attributes:
        name: path of the file below the table's folder.
        row_groups: summaries of its row groups, in order.
        rejects: the inputs of this part that could not be used.
        digest: SHA-256 of the file in hexadecimal.
        first: image_id of the first row; "" if there are no rows.
        last: image_id of the last row; "" if there are no rows.
    """

    name: str
    row_groups: list[RowGroup]
    rejects: list[Reject] = field(default_factory=list)
    digest: str = ""
    first: str = ""
    last: str = ""

    @property
    def rows(self) -> int:
        """Return the number of rows in the part."""
        return sum(g.rows for g in self.row_groups)


@dataclass(frozen=True)
class Commit:
    """The commit record of a table: the file `_commit.json`, which lists the parts that make up the table.

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


_PART, _COMMIT = TypeAdapter(Part), TypeAdapter(Commit)  # they convert JSON values to these classes


def read_commit(table: str) -> Commit | None:
    """Return the commit record of a table (`_commit.json`); None if there is no table or its columns have another version."""
    try:
        raw = storage.read_json(storage.join(table, COMMIT))
    except FileNotFoundError:
        return None
    if raw.get("schema_version") != SCHEMA_VERSION:
        return None
    return _COMMIT.validate_python(raw)


def require_commit(table: str) -> Commit:
    """Return the commit record of a table. Raise FileNotFoundError if there is none or its columns have another version."""
    if (found := read_commit(table)) is None:
        raise FileNotFoundError(f"no complete table at {table}")
    return found


def part_name(fingerprint: str, index: int) -> str:
    """Return the path of a part below its table's folder. These paths sort in the order of the parts.

    Args:
        fingerprint: digest of what the table is made from.
        index: position of the part in the table, from 0.
    """
    return f"{fingerprint[:16]}/part-{index:05d}.parquet"


def _summary_uri(table: str, fingerprint: str, index: int) -> str:
    """Return the URI of the JSON file that holds the summary of part number `index`. It is written after the part's Parquet file."""
    return storage.join(table, part_name(fingerprint, index).removesuffix(".parquet") + ".json")


def read_part(table: str, fingerprint: str, index: int) -> Part:
    """Read the summary of a complete part.

    Args:
        table: URI of the table's folder.
        fingerprint: digest of what the table is made from.
        index: position of the part in the table, from 0.

    Raises:
        FileNotFoundError: if the part is not complete.
    """
    return _PART.validate_python(storage.read_json(_summary_uri(table, fingerprint, index)))


def finished_parts(table: str, fingerprint: str) -> dict[int, Part]:
    """Return the summaries of all complete parts of a table, by their position in it. The table itself need not be complete.

    Args:
        table: URI of the table's folder. It is listed once, which is faster than looking for each part.
        fingerprint: digest of what the table is made from. Parts with another fingerprint are ignored.
    """
    names = storage.list_files(storage.join(table, fingerprint[:16]))
    indices = [int(name.removeprefix("part-").removesuffix(".json")) for name in names if name.endswith(".json")]
    return {index: read_part(table, fingerprint, index) for index in indices}


def write_part(
    table: str,
    fingerprint: str,
    index: int,
    rows: Iterable[Mapping[str, Any] | Reject],
    schema: pa.Schema,
    rows_per_group: int = 64,
) -> Part:
    """Write one part of a table, unless it is already complete.

    If it is complete, `rows` is not iterated over. So no work is done twice if a task is retried or a job is resumed.

    Args:
        table: URI of the table's folder.
        fingerprint: digest of what the table is made from.
        index: position of the part in the table, from 0.
        rows: rows as dicts, sorted by image_id, and `Reject`s for inputs that can't be used.
        schema: columns of the rows.
        rows_per_group: largest number of rows in a Parquet row group, which is what a reader loads at once. If their images and
            masks are large, it has fewer (`row_groups.GROUP_BYTES`).

    Returns:
        The summary of the part, which contains the rejects.
    """
    name = part_name(fingerprint, index)
    with suppress(FileNotFoundError):
        return read_part(table, fingerprint, index)
    rejects: list[Reject] = []
    groups: list[RowGroup] = []
    first = last = ""

    def accepted() -> Iterator[Mapping[str, Any]]:
        """Yield the elements of `rows` that are rows, and append the `Reject`s among them to the list `rejects`."""
        for row in rows:
            if isinstance(row, Reject):
                rejects.append(row)
            else:
                yield row

    # Jobs keep parts small, so a part is encoded in memory and stored by one write.
    sink = pa.BufferOutputStream()
    stream = accepted()
    compression = "none" if "image" in schema.names else "zstd"
    described = [name for name in schema.names if not pa.types.is_binary(schema.field(name).type)]  # not masks, of some kB each
    with pq.ParquetWriter(sink, schema, compression=compression, write_statistics=described) as writer:
        for chunk in divide_rows(stream, rows_per_group):
            writer.write_table(pa.Table.from_pylist([dict(r) for r in chunk], schema=schema), row_group_size=rows_per_group)
            groups.append(summarize(chunk, schema))
            first, last = first or chunk[0]["image_id"], chunk[-1]["image_id"]
    content = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(table, name), content)
    part = Part(name, groups, rejects, hashlib.sha256(content).hexdigest(), first, last)
    storage.write_json(_summary_uri(table, fingerprint, index), asdict(part))
    return part


def discard(table: str, fingerprint: str) -> None:
    """Delete all parts of a table that were written with a fingerprint. Do not call this for the parts of a complete table.

    Args:
        table: URI of the table's folder.
        fingerprint: digest of what the table was made from, with which the parts were written.
    """
    storage.remove(storage.join(table, fingerprint[:16]))


def commit(
    table: str,
    fingerprint: str,
    parts: Sequence[Part],
    extra: Mapping[str, Any] | None = None,
    write: Callable[[str, Any], None] | None = None,
) -> Commit:
    """Make a complete table of parts by writing its commit record. The files of an earlier table are deleted.

    Args:
        table: URI of the table's folder.
        fingerprint: digest of what the table was made from, with which the parts were written.
        parts: summaries of all parts, in any order.
        extra: further facts about the table to store in the commit record, as JSON values.
        write: function that writes the commit record, a JSON value, to a URI; None for `storage.write_json`.

    Returns:
        The commit record, which was written to `_commit.json`.
    """
    ordered = sorted(parts, key=lambda p: p.name)
    written = Commit(fingerprint, SCHEMA_VERSION, sum(p.rows for p in ordered), ordered, dict(extra or {}))
    keep, there = fingerprint[:16] + "/", storage.list_files(table)
    (write or storage.write_json)(storage.join(table, COMMIT), asdict(written))
    for name in there:
        if name != COMMIT and not name.startswith(keep):
            storage.remove(storage.join(table, name))
    return written


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


def chunks(count: int, size: int) -> list[range]:
    """Divide the numbers from 0 to `count` - 1 into consecutive ranges of nearly equal length, none longer than `size`.

    If `count` is 0, the result is a list with one empty range.
    """
    pieces = max(1, math.ceil(count / size))
    return [range(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]
