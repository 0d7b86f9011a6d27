"""The parts of tables: Parquet files with a summary of themselves in their footers. A part is complete or absent.

Arguments called `table` are the URI of a table's folder.
"""

import hashlib
import io
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from infra import storage
from infra.storage.row_groups import RowGroup, divide_rows, summarize

_KEY_LENGTH = 32  # hexadecimal digits of a key in the name of a part; numbers are shorter
_PART_FILE = re.compile(rf"(?:.*/)?part-(?:\d{{5,}}|[0-9a-f]{{{_KEY_LENGTH}}})\.parquet")
_SUMMARY = "deconvnet.part"  # key in a part's footer, under which its summary is stored as JSON
_READERS = 16  # number of footers read at once; each read mostly waits for S3

REJECTS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),  # "" where the input is a row of a table
        pa.field("stage", pa.string(), nullable=False),  # the stage that could not use the input
        pa.field("reason", pa.string(), nullable=False),  # one sentence
    ]
)
"""One row per input that could not be used."""

Key = int | str
"""Identifies a part within its table: its position, or a hexadecimal digest of its inputs."""


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Note:
    """A line of text that a job stores in the summary of a part, so that later jobs can use it without reading the rows."""

    text: str


@dataclass(frozen=True, slots=True)
class Part:
    """A summary of one part of a table. A part is a Parquet file.

    Attributes:
        name: path of the file below the table's folder.
        row_groups: summaries of its row groups, in order.
        rejects: the inputs of this part that could not be used.
        digest: SHA-256 of the file's row groups in hexadecimal, that is, of all but its footer.
        first: lowest image_id of its rows; "" if there are no rows.
        last: highest image_id of its rows; "" if there are no rows.
        size: size of the file in bytes.
        notes: the texts of its notes, one a line. They are one text because a large table has many, which few jobs read.
    """

    name: str
    row_groups: list[RowGroup]
    rejects: list[Reject] = field(default_factory=list)
    digest: str = ""
    first: str = ""
    last: str = ""
    size: int = 0
    notes: str = ""

    @property
    def rows(self) -> int:
        """Return the number of rows in the part."""
        return sum(g.rows for g in self.row_groups)


_PART = TypeAdapter(Part)  # converts JSON to this class, and back


def part_name(fingerprint: str, key: Key) -> str:
    """Return the path of a part below its table's folder. Paths with positions sort in the order of the parts.

    Args:
        fingerprint: digest of what the parts of a table have in common. Their subfolder is named after it.
        key: position of the part in the table, from 0, or a digest of the inputs of this part.
    """
    return f"{fingerprint[:16]}/part-{f'{key:05d}' if isinstance(key, int) else key[:_KEY_LENGTH]}.parquet"


def part_files(table: str) -> list[str]:
    """List the names of all complete parts in a table's folder (`Part.name`), whether or not they belong to the table."""
    return [name for name in storage.list_files(table) if is_part(name)]


def is_part(name: str) -> bool:
    """Return whether a file has the name of a part."""
    return _PART_FILE.fullmatch(name) is not None


def finished_parts(table: str, fingerprint: str, wanted: Collection[Key], known: Mapping[str, Part] = {}) -> dict[Key, Part]:
    """Return the summaries of the complete parts that were written with a fingerprint, whether or not they are in the table.

    Args:
        table: URI of the table's folder. Its subfolder with these parts is listed once, which is faster than looking for each.
        fingerprint: digest with which the parts were written. Other parts are ignored.
        wanted: keys of the parts to find.
        known: summaries of parts by name. Only the files of other parts are opened.

    Returns:
        The summaries by key.
    """
    existing = {
        f"{fingerprint[:16]}/{name}" for name in storage.list_files(storage.join(table, fingerprint[:16])) if is_part(name)
    }
    names = {key: name for key in wanted if (name := part_name(fingerprint, key)) in existing}
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda name: known.get(name) or _read_part(table, name), names.values())
        return {key: part for key, part in zip(names, read, strict=True) if part}


def _read_part(table: str, name: str) -> Part | None:
    """Read the summary of a part from the footer of its file. None if there is no such file, or an earlier version wrote it."""
    fs, path = storage.filesystem(storage.join(table, name))
    try:
        with fs.open_input_file(path) as file:
            summary = (pq.read_metadata(file).metadata or {}).get(_SUMMARY.encode())
            return replace(_PART.validate_json(summary), size=file.size()) if summary else None
    except FileNotFoundError:
        return None


def write_part(
    table: str,
    fingerprint: str,
    key: Key,
    rows: Iterable[Mapping[str, Any] | Reject | Note],
    schema: pa.Schema,
    rows_per_group: int = 64,
) -> Part:
    """Write one part of a table, unless it is already complete.

    If it is complete, `rows` is not iterated over, so no work is done twice if a task is retried or a job is resumed.

    Args:
        table: URI of the table's folder.
        fingerprint: first part of the name, see `part_name`.
        key: second part of the name.
        rows: rows as dicts, sorted by image_id, `Reject`s for inputs that can't be used, and `Note`s.
        schema: columns of the rows.
        rows_per_group: largest number of rows in a Parquet row group, which is what a reader loads at once. If their images and
            masks are large, it has fewer (`row_groups.GROUP_BYTES`).

    Returns:
        The summary of the part, which contains the rejects and the notes.
    """
    name = part_name(fingerprint, key)
    if found := _read_part(table, name):
        return found
    rejects: list[Reject] = []
    notes: list[str] = []
    groups: list[RowGroup] = []
    first = last = ""

    def accepted() -> Iterator[Mapping[str, Any]]:
        """Yield the elements of `rows` that are rows, and append the others to the lists `rejects` and `notes`."""
        for row in rows:
            if isinstance(row, Reject):
                rejects.append(row)
            elif isinstance(row, Note):
                notes.append(row.text)
            else:
                yield row

    # Jobs keep parts small, so a part is encoded in memory and stored by one write.
    sink = io.BytesIO()
    stream = accepted()
    compression = "none" if "image" in schema.names else "zstd"
    # no statistics of binary columns: the lowest and highest mask would take some kB each
    described = [name for name in schema.names if not pa.types.is_binary(schema.field(name).type)]
    with pq.ParquetWriter(sink, schema, compression=compression, write_statistics=described) as writer:
        for chunk in divide_rows(stream, rows_per_group):
            writer.write_table(pa.Table.from_pylist([dict(r) for r in chunk], schema=schema), row_group_size=rows_per_group)
            groups.append(summarize(chunk, schema))
            ids = [row["image_id"] for row in chunk]
            first, last = min(first or ids[0], *ids), max(last, *ids)
        content_digest = hashlib.sha256(sink.getbuffer()).hexdigest()
        part = Part(name, groups, rejects, content_digest, first, last, notes="\n".join(notes))
        writer.add_key_value_metadata({_SUMMARY: _PART.dump_json(part)})
    content = sink.getvalue()
    storage.write_bytes(storage.join(table, name), content)
    return replace(part, size=len(content))


def discard(table: str, parts: Iterable[Part]) -> None:
    """Delete parts that were written but are not needed. No version of the table may name them.

    Args:
        table: URI of the table's folder.
        parts: the parts.
    """
    storage.remove_files(table, [part.name for part in parts])


def chunks(count: int, size: int) -> list[range]:
    """Divide the numbers from 0 to `count` - 1 into consecutive ranges of nearly equal length, none longer than `size`.

    If `count` is 0, the result is a list with one empty range.
    """
    pieces = max(1, math.ceil(count / size))
    return [range(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]
