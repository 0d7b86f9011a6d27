"""The one Ray Data job that makes a table: a part for each unit of work, wherever there is a CPU (or on the nodes it is told).

The parts are fixed before the job starts, so their content does not depend on the number of workers; a part that a killed run
finished is not made again. The driver holds names and counts, never rows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from infra.errors import UserError
from infra.runtime.progress import progress
from infra.storage import tables

Result = TypeVar("Result")
MakeRows = Callable[[Any], Iterable[Mapping[str, Any] | tables.Reject]]
Each = Callable[..., Iterator[tuple[int, Any]]]
"""What does the work on every unit: `for_each`, or something that is called as it is."""


def make_parts(
    table: str,
    fingerprint: str,
    schema: pa.Schema,
    units: Sequence[Any],
    make_rows: MakeRows,
    *,
    title: str,
    rows_per_group: int = 64,
    nodes: Mapping[str, str] | None = None,
    each: Each | None = None,
) -> list[tables.Part]:
    """Write a part for each of `units` (picklable) with `make_rows(unit)`; rows must come sorted. Returns the parts in order.

    nodes: Ray label selector of the nodes that do it; None for any. each: what does it, `for_each` where None.
    """
    work = partial(_write, table, fingerprint, schema, rows_per_group, make_rows)
    done = tables.parts_done(table, fingerprint)
    stands = [i for i in range(len(units)) if tables.part_name(fingerprint, i) in done]
    made = {i: tables.read_part(table, fingerprint, i) for i in stands}
    todo = {i: unit for i, unit in enumerate(units) if i not in made}
    made |= dict((each or for_each)(todo, work, title=title, nodes=nodes))
    return [made[i] for i in range(len(units))]


def _write(
    table: str, fingerprint: str, schema: pa.Schema, rows_per_group: int, make_rows: MakeRows, index: int, unit: Any
) -> tables.Part:
    return tables.write_part(table, fingerprint, index, make_rows(unit), schema, rows_per_group)


def for_each(
    units: Mapping[int, Any],
    work: Callable[[int, Any], Result],
    *,
    title: str,
    kind: str = "parts",
    nodes: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, Result]]:
    """`work(index, unit)` of every unit, a Ray Data task and a CPU each, with their indices as they come.

    title, kind: what progress calls the work and the units. A UserError that `work` raises is raised here.
    """
    if not units:
        return
    selector = {"label_selector": dict(nodes)} if nodes else {}
    done = dataset_of(units).map(partial(answered, work), num_cpus=1, **selector)
    yield from answers(progress(done.iter_rows(), len(units), title, kind))


def dataset_of(units: Mapping[int, Any]) -> Any:
    """The Ray dataset of `units` (picklable), a block each.

    So a task is sent its own unit; in its closure every worker would get all of them.
    """
    import ray
    import ray.cloudpickle as pickle

    items = [{"index": index, "unit": pickle.dumps(unit)} for index, unit in units.items()]
    return ray.data.from_items(items, override_num_blocks=len(items))


def answered(work: Callable[[int, Any], Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of `answers` for a row of `dataset_of`: what `work` returns, or the UserError that it raises."""
    import ray.cloudpickle as pickle

    try:
        result = work(row["index"], pickle.loads(row["unit"]))
    except UserError as mistake:  # a result, because of what a task raises Ray Data keeps the traceback alone
        result = mistake
    return {"index": row["index"], "result": pickle.dumps(result)}


def answers(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Any]]:
    """Index and result of every row that `answered` made. Raises the UserError that one holds."""
    import ray.cloudpickle as pickle

    for row in rows:
        result = pickle.loads(row["result"])
        if isinstance(result, UserError):
            raise result
        yield row["index"], result


def check_rejects(parts: Iterable[tables.Part], inputs: int, limit: float, setting: str = "data.max_rejects") -> None:
    """Raise UserError if more than `limit` (a share) of `inputs` were set aside, saying the commonest reasons."""
    rejects = [r for p in parts for r in p.rejects]
    if rejects and len(rejects) > limit * inputs:
        reasons = "; ".join(f"{n}× {reason}" for reason, n in Counter(r.reason for r in rejects).most_common(3))
        raise UserError(
            f"{len(rejects)} of {inputs} photographs can't be used ({reasons}), and {setting} allows {limit:.0%}: "
            f"mend them, or raise {setting}"
        )
