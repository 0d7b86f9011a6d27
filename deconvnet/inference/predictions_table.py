"""The `predictions` table of a folder of photographs: what stands of earlier runs, what is left to do, and what it comes to.

A row is kept while its photograph's stamp is the same, its mask is there, and both were made in the same *generation*: all that one
version of a model has written to an output since another did. What a killed run finished counts, committed or not.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from deconvnet.datasets.image_folder import ImageFile
from infra import storage
from infra.errors import UserError
from infra.runtime.stages import digest
from infra.storage import tables

VERSION = 1  # raise it when the same photographs and model come to give something else
STATE, TABLE, REJECTS, MASKS, OVERLAYS = "predict.json", "predictions", "rejects", "masks", "overlays"
_MOST_IN_A_PART = 32
_READERS = 16  # parts looked through at once: each waits for S3
_LEAST_PARTS = 32  # so that few photographs keep many actors busy too, and little is lost with a killed run

PREDICTIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # the photograph's path below the input
        pa.field("path", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # px, as displayed (EXIF orientation applied)
        pa.field("height", pa.int32(), nullable=False),
        pa.field("classes", pa.list_(pa.string()), nullable=False),  # those found, background too, by id
        pa.field("shares", pa.list_(pa.float32()), nullable=False),  # of the pixels, of each of `classes`
        pa.field("confidence", pa.float32(), nullable=False),  # mean over pixels of the chosen class's probability
        pa.field("mask", pa.string(), nullable=False),  # path below the output
        pa.field("overlay", pa.string()),  # likewise
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),  # the photograph's size and time of change
        pa.field("generation", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Item:
    """A photograph, and what is to be done with it.

    part: the part that holds its row; "" where it is to be labelled. overlay: its row names one. draw: it is to be drawn.
    """

    photograph: ImageFile
    part: str
    overlay: bool
    draw: bool

    @property
    def mask(self) -> str:
        return f"{MASKS}/{self.photograph.stem}.png"

    @property
    def picture(self) -> str:
        return f"{OVERLAYS}/{self.photograph.stem}.jpg"


@dataclass(frozen=True)
class State:
    """What an output belongs to: the photographs' folder, and the model (`id` tells a version from all others) of a generation."""

    input: str
    model: str
    model_version: str
    model_id: str
    generation: str


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    key: tells photographs, model and wishes from others. before: masks and overlays that earlier rows name. lost: those
    photographs of which one is gone. done: the table stands as it should, and nothing was planned.
    """

    state: State
    key: str
    items: list[Item]
    before: frozenset[str]
    lost: list[str]
    done: bool

    @property
    def fingerprint(self) -> str:
        """Of the table to be made."""
        return digest([self.key, self.lost])

    @property
    def units(self) -> list[list[Item]]:
        """The items in the parts of the table."""
        size = min(_MOST_IN_A_PART, max(1, len(self.items) // _LEAST_PARTS))
        return [[self.items[i] for i in piece] for piece in tables.chunks(len(self.items), size)]


def read_state(output: str) -> State | None:
    """What the output belongs to; None for one that nothing was written to yet.

    Raises UserError where something else's masks lie there.
    """
    try:
        return State(**storage.read_json(storage.join(output, STATE)))
    except FileNotFoundError:
        pass
    except (TypeError, ValueError):
        raise UserError(f"{storage.join(output, STATE)} is not of this program's making: name another output") from None
    for folder in (MASKS, OVERLAYS, TABLE):
        if storage.list_files(storage.join(output, folder)):
            raise UserError(
                f"{storage.join(output, folder)} holds files that this program didn't write, and it would write there: "
                "name another output"
            )
    return None


def make_plan(photographs: Sequence[ImageFile], output: str, state: State, overlays: bool, max_pixels: int | None) -> Plan:
    """What is left to do of `photographs` at `output`. Names, stamps and sizes are read, no photograph."""
    table = storage.join(output, TABLE)
    there = {f"{folder}/{n}" for folder in (MASKS, OVERLAYS) for n in storage.list_files(storage.join(output, folder))}
    key = digest([VERSION, state.generation, overlays, max_pixels, [(p.name, p.stamp, p.refused) for p in photographs]])
    commit = tables.read_commit(table)
    if commit and commit.extra["key"] == key:
        refused = {reject.image_id for reject in commit.rejects}
        items = [Item(p, "", overlays, overlays) for p in photographs if p.name not in refused]
        if all(item.mask in there and (item.picture in there or not overlays) for item in items):
            return Plan(state, key, [], frozenset(), [], done=True)

    stamps = {p.name: p.stamp for p in photographs if not p.refused}
    known: dict[str, tuple[str, bool]] = {}
    before: set[str] = set()
    lost: set[str] = set()
    for part, row in _rows_that_stand(table):
        name, files = row["image_id"], {row["mask"], row["overlay"]} - {None}
        before |= files
        small = max_pixels is None or row["width"] * row["height"] <= max_pixels
        if row["generation"] == state.generation and row["stamp"] == stamps.get(name) and small:
            if not files <= there:
                lost.add(name)
            if row["mask"] in there:
                known[name] = part, row["overlay"] in there
    items = []
    for each in photographs:
        part, drawn = known.get(each.name, ("", False))
        items.append(Item(each, part, overlays or drawn, overlays and not drawn))
    return Plan(state, key, items, frozenset(before), sorted(lost), done=False)


def new_generation() -> str:
    """A name for what a model is going to write."""
    return uuid.uuid4().hex[:12]


def _rows_that_stand(table: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row of a complete part, with the part's name: of the table, and of what killed runs finished."""
    columns = ["image_id", "stamp", "generation", "width", "height", "mask", "overlay"]
    names = [name for name in storage.list_files(table) if name.endswith(".json") and name != tables.COMMIT]
    parts = [f"{name.removesuffix('.json')}.parquet" for name in names]

    def read(part: str) -> list[dict[str, Any]]:
        return list(tables.iter_rows(table, columns, tables.Part(part, [])))

    with ThreadPoolExecutor(_READERS) as pool:
        for part, rows in zip(parts, pool.map(read, parts), strict=True):
            yield from ((part, row) for row in rows)


def finish(plan: Plan, output: str, parts: Sequence[tables.Part]) -> tables.Commit:
    """Make `parts` the table, after removing the masks and overlays of photographs that have no row any more."""
    table = storage.join(output, TABLE)
    named: set[str] = set()
    for part in parts:
        for row in tables.iter_rows(table, ["mask", "overlay"], part):
            named |= {name for name in row.values() if name}
    for name in sorted(plan.before - named):
        storage.remove(storage.join(output, name))
    extra = {"key": plan.key, "input": plan.state.input, "model": f"models:/{plan.state.model}/{plan.state.model_version}"}
    return tables.commit(table, plan.fingerprint, parts, extra)


def write_rejects(output: str, parts: Sequence[tables.Part]) -> int:
    """Make the `rejects` table of what was set aside; returns how many."""
    names = tables.REJECTS.names
    rows = [{name: getattr(reject, name) for name in names} for part in parts for reject in part.rejects]
    table, fingerprint = storage.join(output, REJECTS), digest(rows)
    tables.commit(table, fingerprint, [tables.write_part(table, fingerprint, 0, rows, tables.REJECTS)])
    return len(rows)


@dataclass(frozen=True)
class Found:
    """A class: in how many photographs it was found, and its share of the pixels of an average photograph."""

    name: str
    photographs: int
    share: float


def classes_found(output: str) -> list[Found]:
    """The classes of the committed table, the commonest first."""
    table = storage.join(output, TABLE)
    commit = tables.require_commit(table)
    counts: dict[str, list[float]] = {}
    for part in commit.parts:
        for group in range(len(part.row_groups)):
            rows = tables.read_row_group(table, part.name, group, ["classes", "shares"])
            flat = pa.table({name: pc.list_flatten(rows[name]) for name in ("classes", "shares")})
            summed = flat.group_by("classes").aggregate([("shares", "count"), ("shares", "sum")])
            for row in summed.to_pylist():
                total = counts.setdefault(row["classes"], [0, 0.0])
                total[0] += row["shares_count"]
                total[1] += row["shares_sum"]
    found = [Found(name, int(n), share / commit.rows) for name, (n, share) in counts.items()]
    return sorted(found, key=lambda f: (-f.photographs, -f.share, f.name))
