"""The parts of tables: Parquet files with a summary of themselves in their footers. A part is complete or absent.

Arguments called `table` are the URI of a table's folder.
"""

import hashlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from infra import storage
from infra.storage.row_groups import RowGroup, divide_rows, summarize

_PART_FILE = re.compile(r"(?:.*/)?part-(\d{5,})\.parquet")
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
        digest: SHA-256 of the file's row groups in hexadecimal, that is, of all but its footer.
        first: lowest image_id of its rows; "" if there are no rows.
        last: highest image_id of its rows; "" if there are no rows.
        size: size of the file in bytes.
    """

    name: str
    row_groups: list[RowGroup]
    rejects: list[Reject] = field(default_factory=list)
    digest: str = ""
    first: str = ""
    last: str = ""
    size: int = 0

    @property
    def rows(self) -> int:
        """Return the number of rows in the part."""
        return sum(g.rows for g in self.row_groups)


_PART = TypeAdapter(Part)  # converts JSON to this class, and back


def part_name(fingerprint: str, index: int) -> str:
    """Return the path of a part below its table's folder. These paths sort in the order of the parts.

    Args:
        fingerprint: digest of what the table is made from.
        index: position of the part in the table, from 0.
    """
    return f"{fingerprint[:16]}/part-{index:05d}.parquet"


def part_files(table: str) -> list[str]:
    """List the names of all complete parts in a table's folder (`Part.name`), whether or not they belong to the table."""
    return [name for name in storage.list_files(table) if _PART_FILE.fullmatch(name)]


def finished_parts(table: str, fingerprint: str) -> dict[int, Part]:
    """Return the summaries of all complete parts of a table, by their position in it. The table itself need not be complete.

    Args:
        table: URI of the table's folder. It is listed once, which is faster than looking for each part.
        fingerprint: digest of what the table is made from. Parts with another fingerprint are ignored.
    """
    names = storage.list_files(storage.join(table, fingerprint[:16]))
    indices = [int(found[1]) for name in names if (found := _PART_FILE.fullmatch(name))]
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda index: _read_part(table, part_name(fingerprint, index)), indices)
        return {index: part for index, part in zip(indices, read, strict=True) if part}


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
    if found := _read_part(table, name):
        return found
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
    sink = io.BytesIO()
    stream = accepted()
    compression = "none" if "image" in schema.names else "zstd"
    described = [name for name in schema.names if not pa.types.is_binary(schema.field(name).type)]  # not masks, of some kB each
    with pq.ParquetWriter(sink, schema, compression=compression, write_statistics=described) as writer:
        for chunk in divide_rows(stream, rows_per_group):
            writer.write_table(pa.Table.from_pylist([dict(r) for r in chunk], schema=schema), row_group_size=rows_per_group)
            groups.append(summarize(chunk, schema))
            ids = [row["image_id"] for row in chunk]
            first, last = min(first or ids[0], *ids), max(last, *ids)
        part = Part(name, groups, rejects, hashlib.sha256(sink.getbuffer()).hexdigest(), first, last)
        writer.add_key_value_metadata({_SUMMARY: _PART.dump_json(part)})
    content = sink.getvalue()
    storage.write_bytes(storage.join(table, name), content)
    return replace(part, size=len(content))


def discard(table: str, fingerprint: str) -> None:
    """Delete all parts of a table that were written with a fingerprint. Do not call this for the parts of a complete table.

    Args:
        table: URI of the table's folder.
        fingerprint: digest of what the table was made from, with which the parts were written.
    """
    storage.remove(storage.join(table, fingerprint[:16]))


def chunks(count: int, size: int) -> list[range]:
    """Divide the numbers from 0 to `count` - 1 into consecutive ranges of nearly equal length, none longer than `size`.

    If `count` is 0, the result is a list with one empty range.
    """
    pieces = max(1, math.ceil(count / size))
    return [range(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]
