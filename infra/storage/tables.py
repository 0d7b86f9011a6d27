"""Tables between the stages: one folder of Parquet each, sorted, complete or absent.

A table's parts lie in a folder named by its fingerprint and become the table when `_commit.json` names them: that one small
object is written last, so a reader never sees half a table, and a rebuilt table replaces the old one in one step.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage

SCHEMA_VERSION = 3
COMMIT = "_commit.json"

REJECTS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Reject:
    """An input that could not be used, and why."""

    image_id: str
    path: str
    stage: str
    reason: str


@dataclass(frozen=True)
class RowGroup:
    """Rows of one Parquet row group, the sum of their `repeats` (= rows where there is no such column), the bytes of their
    pictures (`binary` columns), and rows by `split`."""

    rows: int
    repeats: int
    nbytes: int
    splits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One Parquet file of a table: its name below the table's folder and its row groups.

    These summaries are what the driver of a job holds of a table.
    """

    name: str
    row_groups: list[RowGroup]
    rejects: list[Reject] = field(default_factory=list)
    digest: str = ""  # SHA-256 of the file
    first: str = ""  # image_id of the first and the last row; "" where there is none
    last: str = ""

    @property
    def rows(self) -> int:
        return sum(g.rows for g in self.row_groups)


@dataclass(frozen=True)
class Commit:
    """The object that makes a folder of parts a table."""

    fingerprint: str
    schema_version: int
    rows: int
    parts: list[Part]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def rejects(self) -> list[Reject]:
        return [r for p in self.parts for r in p.rejects]


def read_commit(table: str) -> Commit | None:
    """The table's commit, or None where there is no table (or one of another schema version)."""
    try:
        raw = storage.read_json(storage.join(table, COMMIT))
    except FileNotFoundError:
        return None
    if raw.get("schema_version") != SCHEMA_VERSION:
        return None
    parts = [_part(p) for p in raw["parts"]]
    return Commit(raw["fingerprint"], raw["schema_version"], raw["rows"], parts, raw["extra"])


def require_commit(table: str) -> Commit:
    """The table's commit. Raises FileNotFoundError where there is none."""
    if (found := read_commit(table)) is None:
        raise FileNotFoundError(f"no complete table at {table}")
    return found


def _part(raw: Mapping[str, Any]) -> Part:
    return Part(
        raw["name"],
        [RowGroup(**g) for g in raw["row_groups"]],
        [Reject(**r) for r in raw["rejects"]],
        raw["digest"],
        raw["first"],
        raw["last"],
    )


def part_name(fingerprint: str, index: int) -> str:
    """Name of the part `index` below its table's folder; names sort as the rows do."""
    return f"{fingerprint[:16]}/part-{index:05d}.parquet"


def _summary(table: str, fingerprint: str, index: int) -> str:
    """Where a part's own summary lies: written after the part, so it says that the part is complete."""
    return storage.join(table, part_name(fingerprint, index).removesuffix(".parquet") + ".json")


def parts_done(table: str, fingerprint: str) -> set[str]:
    """Names of the parts that stand complete, by one listing."""
    folder = fingerprint[:16]
    names = storage.list_files(storage.join(table, folder))
    return {f"{folder}/{name.removesuffix('.json')}.parquet" for name in names if name.endswith(".json")}


def read_part(table: str, fingerprint: str, index: int) -> Part:
    """A complete part's summary. Raises FileNotFoundError where it isn't."""
    return _part(storage.read_json(_summary(table, fingerprint, index)))


def write_part(
    table: str,
    fingerprint: str,
    index: int,
    rows: Iterable[Mapping[str, Any] | Reject],
    schema: pa.Schema,
    rows_per_group: int = 64,
) -> Part:
    """Write one part from `rows` (dicts by `schema`, and `Reject`s, which are kept aside), a row group at a time.

    The file appears whole. A part of this name that is already complete is kept and `rows` is not consumed, so a job that is
    run again, or a task that is tried again, does not redo it.
    """
    name = part_name(fingerprint, index)
    with suppress(FileNotFoundError):
        return read_part(table, fingerprint, index)
    rejects: list[Reject] = []
    groups: list[RowGroup] = []
    first = last = ""

    def good() -> Iterator[Mapping[str, Any]]:
        for row in rows:
            if isinstance(row, Reject):
                rejects.append(row)
            else:
                yield row

    # A part is bounded (its job sees to that), so it is composed in memory and stored by one whole write.
    sink = pa.BufferOutputStream()
    stream = good()
    with pq.ParquetWriter(sink, schema, compression="none" if "image" in schema.names else "zstd") as writer:
        while chunk := list(islice(stream, rows_per_group)):
            table_chunk = pa.Table.from_pylist([dict(r) for r in chunk], schema=schema)
            writer.write_table(table_chunk, row_group_size=rows_per_group)
            splits = Counter(r["split"] for r in chunk) if "split" in schema.names else {}
            repeats = sum(int(r.get("repeats", 1)) for r in chunk)
            nbytes = sum(len(value) for r in chunk for value in r.values() if isinstance(value, bytes))
            groups.append(RowGroup(len(chunk), repeats, nbytes, dict(splits)))
            first, last = first or chunk[0]["image_id"], chunk[-1]["image_id"]
    content = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(table, name), content)
    part = Part(name, groups, rejects, hashlib.sha256(content).hexdigest(), first, last)
    storage.write_json(_summary(table, fingerprint, index), asdict(part))
    return part


def discard(table: str, fingerprint: str) -> None:
    """Delete parts that no commit names: their rows, and the rejects in them, are made anew next time."""
    storage.remove(storage.join(table, fingerprint[:16]))


def commit(table: str, fingerprint: str, parts: Sequence[Part], extra: Mapping[str, Any] | None = None) -> Commit:
    """Make the parts the table, and delete what an earlier table of this name left behind."""
    ordered = sorted(parts, key=lambda p: p.name)
    made = Commit(fingerprint, SCHEMA_VERSION, sum(p.rows for p in ordered), ordered, dict(extra or {}))
    storage.write_json(storage.join(table, COMMIT), asdict(made))
    keep = fingerprint[:16] + "/"
    for name in storage.list_files(table):
        if name != COMMIT and not name.startswith(keep):
            storage.remove(storage.join(table, name))
    return made


def iter_rows(table: str, columns: Sequence[str] | None = None, part: Part | None = None) -> Iterator[dict[str, Any]]:
    """The table's rows in order (of one part, or all), a row group in memory at a time."""
    parts = [part] if part else require_commit(table).parts
    for each in parts:
        fs, path = storage.filesystem(storage.join(table, each.name))
        with pq.ParquetFile(path, filesystem=fs) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, columns=columns).to_pylist()


def rows_between(
    table: str, parts: Iterable[Part], first: str, last: str, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows, of `parts` of a sorted table, with first ≤ image_id ≤ last, in order; only parts that may have some are opened.

    `columns` must have image_id.
    """
    for part in parts:
        if part.rows and part.first <= last and part.last >= first:
            yield from (row for row in iter_rows(table, columns, part) if first <= row["image_id"] <= last)


def read_row_group(table: str, part_file: str, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group of the part named `part_file`."""
    fs, path = storage.filesystem(storage.join(table, part_file))
    with pq.ParquetFile(path, filesystem=fs) as file:
        return file.read_row_group(group, columns=columns)


def chunks(count: int, size: int) -> list[range]:
    """`range(count)` in near-equal consecutive pieces of at most `size`."""
    pieces = max(1, math.ceil(count / size))
    return [range(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]
