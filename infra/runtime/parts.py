"""Makes a table part by part: one unit of work for each part, run by an `Executor`.

The parts are fixed before the job starts, so their content does not depend on the number of workers. A part that a killed run
finished is not made again. The driver holds names and counts, never rows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from infra.errors import UserError
from infra.runtime.executor import Executor
from infra.storage import tables

MakeRows = Callable[[Any], Iterable[Mapping[str, Any] | tables.Reject]]
"""Makes the rows of a part from its unit, sorted, and the rejects among them. It must be picklable."""


def make_parts(
    table: str,
    fingerprint: str,
    schema: pa.Schema,
    units: Sequence[Any],
    make_rows: MakeRows,
    executor: Executor,
    *,
    title: str,
    rows_per_group: int = 64,
) -> list[tables.Part]:
    """Write one part of a table for each unit; the table is complete only once the caller commits the parts.

    Args:
        table: URI of the table.
        fingerprint: of the stage that makes it; names the parts' folder.
        schema: of the rows.
        units: picklable units, one a part, in the order of the parts.
        make_rows: makes a unit's rows, which must come sorted.
        executor: runs the units.
        title: name of the work in the progress display.
        rows_per_group: rows of a Parquet row group, which is what a reader reads at once.

    Returns:
        the parts, in the order of `units`.
    """
    work = partial(_write_part, table, fingerprint, schema, rows_per_group, make_rows)
    finished = tables.parts_done(table, fingerprint)
    made = {
        index: tables.read_part(table, fingerprint, index)
        for index in range(len(units))
        if tables.part_name(fingerprint, index) in finished
    }
    todo = {index: unit for index, unit in enumerate(units) if index not in made}
    made |= dict(executor.map(todo, work, title=title))
    return [made[index] for index in range(len(units))]


def _write_part(
    table: str, fingerprint: str, schema: pa.Schema, rows_per_group: int, make_rows: MakeRows, index: int, unit: Any
) -> tables.Part:
    """Make and write the part of one unit."""
    return tables.write_part(table, fingerprint, index, make_rows(unit), schema, rows_per_group)


def check_rejects(parts: Iterable[tables.Part], inputs: int, limit: float, setting: str = "data.max_rejects") -> None:
    """Check that not too many inputs were rejected.

    Args:
        parts: the parts of a finished table, which hold the rejects.
        inputs: number of inputs, rejected or not.
        limit: share of them that may be rejected, 0 to 1.
        setting: name of the setting that holds `limit`, for the message.

    Raises:
        UserError: if more were rejected; the message has the three commonest reasons.
    """
    rejects = [reject for part in parts for reject in part.rejects]
    if rejects and len(rejects) > limit * inputs:
        reasons = "; ".join(f"{n}× {reason}" for reason, n in Counter(r.reason for r in rejects).most_common(3))
        raise UserError(
            f"{len(rejects)} of {inputs} images can't be used ({reasons}), and {setting} allows {limit:.0%}: "
            f"mend them, or raise {setting}"
        )
