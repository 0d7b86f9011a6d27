"""The one Ray Data job that makes a table: a part for each unit of work, wherever there is a CPU.

The parts are fixed before the job starts, so their content does not depend on the number of workers; a part that a killed run
finished is not made again. The driver holds names and counts, never rows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra import tables
from infra.errors import UserError
from infra.progress import progress

MakeRows = Callable[[Any], Iterable[Mapping[str, Any] | tables.Reject]]


def make_parts(
    table: str,
    fingerprint: str,
    schema: pa.Schema,
    units: Sequence[Any],
    make_rows: MakeRows,
    *,
    title: str,
    rows_per_group: int = 64,
    num_cpus: float = 1,
) -> list[tables.Part]:
    """Write a part for each of `units` (picklable) with `make_rows(unit)`; rows must come sorted. Returns the parts in order."""
    import ray

    def work(row: dict[str, Any]) -> dict[str, Any]:
        tables.write_part(table, fingerprint, row["index"], make_rows(units[row["index"]]), schema, rows_per_group)
        return {"index": row["index"]}

    todo = [i for i in range(len(units)) if not tables.part_done(table, fingerprint, i)]
    if todo:
        dataset = ray.data.from_items([{"index": i} for i in todo], override_num_blocks=len(todo))
        for _ in progress(dataset.map(work, num_cpus=num_cpus).iter_rows(), len(todo), title, "parts"):
            pass
    return [tables.read_part(table, fingerprint, i) for i in range(len(units))]


def check_rejects(parts: Iterable[tables.Part], inputs: int, limit: float, setting: str = "data.max_rejects") -> None:
    """Raise UserError if more than `limit` (a share) of `inputs` were set aside, saying the commonest reasons."""
    rejects = [r for p in parts for r in p.rejects]
    if rejects and len(rejects) > limit * inputs:
        reasons = "; ".join(f"{n}× {reason}" for reason, n in Counter(r.reason for r in rejects).most_common(3))
        raise UserError(
            f"{len(rejects)} of {inputs} photographs can't be used ({reasons}), and {setting} allows {limit:.0%}: "
            f"mend them, or raise {setting}"
        )
