"""Make a table in parts. Each part is a Parquet file and one unit of work for an `Executor`, which runs units in parallel.

The division into parts is fixed before the job starts, so the content of a part does not depend on the number of workers.
Parts that already exist are reused: those that a killed run has finished and, if parts have keys, those of earlier versions of
the table. The driver holds only summaries of the parts in memory, no rows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from infra.errors import UserError
from infra.live_metrics import Metric, ReasonLabels
from infra.runtime.executor import Executor
from infra.storage import tables

MakeRows = Callable[[Any], Iterable[Mapping[str, Any] | tables.Reject | tables.Note]]
"""A function that makes the rows of a part from its unit of work. The rows are sorted by image_id. It must be picklable.

Among the rows it returns a `Reject`, with the reason, for each input that can't be used, and any `Note`s.
"""


ROWS = Metric("deconvnet_rows_total", "Rows of tables that were made: images, or training crops", ("table",), counter=True)
REJECTS = Metric("deconvnet_rejects_total", "Inputs that could not be used, by reason", ("table", "reason"), counter=True)


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
    keys: Sequence[tables.Key] | None = None,
) -> list[tables.Part]:
    """Write the parts (Parquet files) of a table, one for each unit of work, and wait until all are written.

    Parts that already exist under the same fingerprint and key are reused. Those in the latest version of the table are not even
    opened. The parts become a version of the table only when the caller passes them to `tables.commit`.

    Args:
        table: URI of the table's folder.
        fingerprint: digest of the code version and settings that the parts are made from; without `keys`, also of the inputs. The
            subfolder with the parts is named after it.
        schema: columns of the rows.
        units: the units of work, as picklable objects of any kind. Each one gives the part at the same position.
        make_rows: picklable function that makes the rows of a unit, sorted by image_id. For each input that can't be used it
            returns a `Reject` among the rows.
        executor: the executor that runs the units.
        title: name of the work, shown with the progress.
        rows_per_group: number of rows in a Parquet row group, the smallest piece that can be read.
        keys: for each unit, a digest of the inputs from which its part is made, different for each part. None to name parts by
            their positions.

    Returns:
        Summaries of the parts, in the order of `units`.

    Raises:
        UserError: if `make_rows` raises UserError, or workers die.
        ValueError: if two keys are equal.
        Interrupted: if a stop was requested. The parts that are finished are kept.
    """
    names: Sequence[tables.Key] = range(len(units)) if keys is None else keys
    if len(set(names)) < len(names):
        raise ValueError("two parts have the same key, so they would be the same file")
    latest = tables.read_commit(table) if keys else None
    made = tables.finished_parts(table, fingerprint, names, {part.name: part for part in latest.parts} if latest else {})
    todo = {index: (names[index], unit) for index, unit in enumerate(units) if names[index] not in made}
    work = partial(_write_part, table, fingerprint, schema, rows_per_group, make_rows)
    reasons, name = ReasonLabels(), _table_name(table)
    for index, part in executor.map(todo, work, title=title):
        made[names[index]] = part
        executor.metrics.update(ROWS, part.rows, table=name)
        for reason, count in reasons.count(reject.reason for reject in part.rejects).items():
            executor.metrics.update(REJECTS, count, table=name, reason=reason)
    return [made[name] for name in names]


def _table_name(table: str) -> str:
    """Return the name of a table, given the URI of its folder: such as "images", or "examples/stage1" for training crops."""
    *_, above, name = f"/{table}".rstrip("/").split("/")
    return f"examples/{name}" if above == "examples" else name


def _write_part(
    table: str,
    fingerprint: str,
    schema: pa.Schema,
    rows_per_group: int,
    make_rows: MakeRows,
    _: int,
    task: tuple[tables.Key, Any],
) -> tables.Part:
    """Make the rows of one unit of work and write them as a part of the table, unless it already exists.

    Args:
        table: URI of the table's folder.
        fingerprint: digest of what all parts are made from, see `make_parts`.
        schema: columns of the rows.
        rows_per_group: number of rows in a Parquet row group.
        make_rows: function that makes the rows of a unit, sorted by image_id.
        _: position of the part in the table; not used.
        task: the key of the part, and the unit of work, an argument of `make_rows`.

    Returns:
        The summary of the part.
    """
    key, unit = task
    return tables.write_part(table, fingerprint, key, make_rows(unit), schema, rows_per_group)


def check_rejects(parts: Iterable[tables.Part], inputs: int, limit: float, setting: str = "data.max_rejects") -> None:
    """Check that not too many inputs, such as broken images, were rejected while a table was made.

    Args:
        parts: summaries of all parts of the table. They list the rejects, which are the inputs that could not be used.
        inputs: total number of inputs, rejected or not.
        limit: largest fraction of the inputs that may be rejected, from 0 to 1.
        setting: name of the setting that holds the limit, for the error message.

    Raises:
        UserError: if a larger fraction was rejected. The message names the three most frequent reasons.
    """
    rejects = [reject for part in parts for reject in part.rejects]
    if rejects and len(rejects) > limit * inputs:
        reasons = "; ".join(f"{n}× {reason}" for reason, n in Counter(r.reason for r in rejects).most_common(3))
        raise UserError(
            f"{len(rejects)} of {inputs} images can't be used ({reasons}), and {setting} allows {limit:.0%}: "
            f"repair them, or raise {setting}"
        )
