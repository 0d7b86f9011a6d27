"""Tables are Delta Lake tables: read by other programs, and of two writers one succeeds. On disk and on a real S3 server."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars
import pyarrow as pa
import pytest
import ray
from deltalake import write_deltalake

from deconvnet.inference.predictions_table import PREDICTIONS
from infra import storage
from infra.errors import Interrupted, UserError
from infra.storage import tables
from infra.storage.tables import delta_log
from proposals import schemas
from tests.infra.conftest import new_folder, use_s3
from tests.infra.storage.helpers import SCHEMA, names, opened
from tests.servers import FlakyProxy

SCHEMAS = {
    "images": schemas.IMAGES,
    "proposals": schemas.PROPOSALS,
    "examples": schemas.EXAMPLES,
    "segmentations": schemas.SEGMENTATIONS,
    "predictions": PREDICTIONS,
    "rejects": tables.REJECTS,
}
"""The columns of all tables."""
READ_BY_RAY = ("images", "proposals", "examples", "predictions")
"""The tables that are read with Ray Data, too."""


def make(table: str, name: str, rows: str, **more: Any) -> tables.Commit:
    """Make a table with a part for each letter of `rows`. Its fingerprint, like the names of its parts, is made of `name`."""
    fingerprint = 20 * name
    parts = [tables.write_part(table, fingerprint, i, [{"image_id": each}], SCHEMA) for i, each in enumerate(rows)]
    return tables.commit(table, fingerprint, parts, **more)


def options(table: str) -> dict[str, str]:
    """What other programs need to reach the test's server."""
    found = delta_log.location_for_deltalake(table)[1]
    return {name: value for name, value in found.items() if name.startswith(("aws", "google", "azure", "allow"))}


@pytest.fixture
def table_on_disk(tmp_path: Path) -> str:
    """The folder of a table in which no store takes part."""
    return str(tmp_path / "table")


def example(kind: pa.DataType, number: int) -> Any:
    """A value of a type of columns."""
    if pa.types.is_list(kind):
        return [example(kind.value_type, number + i) for i in range(4)]
    return {"string": str(number), "binary": bytes([number])}.get(str(kind), number)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("disk", name) for name in SCHEMAS),
        *(("s3", name) for name in SCHEMAS),
        *(pytest.param(kind, "images", marks=pytest.mark.slow) for kind in ("gs", "abfs")),
    ],
)
def test_every_table_is_read_by_deltalake_and_polars(kind: str, name: str, request: pytest.FixtureRequest) -> None:
    folder, schema = new_folder(request, kind), SCHEMAS[name]
    rows = [{field.name: example(field.type, n) for field in schema} for n in range(6)]
    parts = [tables.write_part(folder, "f" * 64, i, rows[2 * i : 2 * i + 2], schema) for i in range(3)]
    empty = tables.write_part(folder, "f" * 64, 3, [], schema)
    tables.commit(folder, "f" * 64, [*parts, empty])
    by_id = sorted(tables.iter_rows(folder), key=lambda row: row["image_id"])
    assert by_id == rows
    read = opened(folder).to_pyarrow_table()
    assert sorted(read.to_pylist(), key=lambda row: row["image_id"]) == rows and read.schema.names == schema.names
    assert polars.scan_delta(folder, storage_options=options(folder) or None).sort("image_id").collect().to_dicts() == rows


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("disk", name) for name in READ_BY_RAY), *(pytest.param("s3", name, marks=pytest.mark.slow) for name in READ_BY_RAY)],
)
def test_ray_data_reads_the_tables_and_an_older_version_as_long_as_its_files_exist(
    kind: str, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, schema = new_folder(request, kind), SCHEMAS[name]
    rows = [{field.name: example(field.type, n) for field in schema} for n in range(6)]
    monkeypatch.setattr(storage, "remove_files", lambda uri, names: None)
    for size in (4, 6):
        parts = [tables.write_part(folder, f"{size}" * 64, i, rows[2 * i : 2 * i + 2], schema) for i in range(size // 2)]
        tables.commit(folder, f"{size}" * 64, parts)
        found = ray.data.read_delta(folder, storage_options=options(folder)).take_all()
        assert sorted(found, key=lambda row: row["image_id"]) == rows[:size]
    assert ray.data.read_delta(folder, version=0, storage_options=options(folder)).count() == 4


def test_the_log_has_the_size_rows_and_ids_of_every_part(folder: str) -> None:
    made = make(folder, "one", "äbc")
    actions = pa.table(opened(folder).get_add_actions(flatten=True)).to_pylist()
    known = {(a["path"], a["size_bytes"], a["num_records"], a["min.image_id"], a["max.image_id"]) for a in actions}
    assert known == {(p.name, p.size, 1, each, each) for p, each in zip(made.parts, "äbc", strict=True)}
    for part in made.parts:
        assert len(storage.read_bytes(storage.join(folder, part.name))) == part.size


def test_a_table_may_be_empty_and_filled_later(folder: str) -> None:
    tables.commit(folder, "f" * 64, [])
    assert tables.require_commit(folder).rows == opened(folder).to_pyarrow_table().num_rows == 0 == len(names(folder))
    make(folder, "two", "ab")
    assert names(folder) == "ab" and opened(folder).to_pyarrow_table().num_rows == 2


def test_a_new_table_may_have_other_columns(folder: str) -> None:
    make(folder, "one", "ab")
    schema = pa.schema([*SCHEMA, pa.field("split", pa.string())])
    part = tables.write_part(folder, "t" * 64, 0, [{"image_id": "c", "split": "val"}], schema)
    tables.commit(folder, "t" * 64, [part])
    assert opened(folder).to_pyarrow_table().to_pylist() == [{"image_id": "c", "split": "val"}] == list(tables.iter_rows(folder))


def test_the_same_content_adds_no_version_and_another_extra_adds_one_with_the_same_parts(folder: str) -> None:
    made = make(folder, "one", "abc")
    files = storage.list_files(folder)
    assert make(folder, "one", "abc") == made and storage.list_files(folder) == files
    noted = tables.commit(folder, made.fingerprint, made.parts, {"note": 1})
    assert noted.parts == made.parts and tables.require_commit(folder).extra == {"note": 1}
    assert opened(folder).version() == 1 and opened(folder).to_pyarrow_table().num_rows == 3 and names(folder) == "abc"
    fewer = tables.commit(folder, made.fingerprint, made.parts[:2])
    assert fewer.rows == opened(folder).to_pyarrow_table().num_rows == 2 and names(folder) == "ab"


@pytest.mark.parametrize("path", ["a b", "ä", "50%", "a#b?c=d"])
def test_a_table_may_be_in_any_folder(folder: str, path: str) -> None:
    table = f"{folder}/{path}/t"
    make(table, "one", "ab")
    make(table, "two", "cd")
    assert names(table) == "cd" and sorted(row["image_id"] for row in opened(table).to_pyarrow_table().to_pylist()) == ["c", "d"]


def test_a_folder_that_delta_lake_would_mistake_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Delta Lake would read %20 in it as another character"):
        make(str(tmp_path / "a%20b"), "one", "ab")


def at_the_first(monkeypatch: pytest.MonkeyPatch, what: str, act: Callable[[], object]) -> None:
    """Let another run work after this one has called a function of the log for the first time."""
    real = getattr(delta_log, what)

    def called(*given: Any) -> Any:
        result = real(*given)
        monkeypatch.setattr(delta_log, what, real)
        act()
        return result

    monkeypatch.setattr(delta_log, what, called)


@pytest.mark.parametrize("before", ["", "ab"])
def test_of_two_writers_one_succeeds_and_the_other_is_told(folder: str, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    if before:
        make(folder, "old", before)
    at_the_first(monkeypatch, "latest_version", lambda: make(folder, "two", "cd"))
    with pytest.raises(UserError, match=r"another run made the table .* at the same time, and its rows are kept"):
        make(folder, "one", "xyz")
    assert names(folder) == "cd" and opened(folder).version() == bool(before)
    with pytest.raises(UserError, match="another run deleted"):
        tables.commit(folder, 20 * "old", [tables.Part(tables.part_name(20 * "old", 0), [])])
    make(folder, "one", "xyz")
    assert names(folder) == "xyz"


@pytest.mark.parametrize("before", ["", "ab"])
def test_two_writers_of_the_same_content_both_succeed(folder: str, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    if before:
        make(folder, "old", before)
    at_the_first(monkeypatch, "latest_version", lambda: make(folder, "one", "xyz"))
    make(folder, "one", "xyz")
    assert names(folder) == "xyz" and opened(folder).version() == bool(before)


def test_the_holder_of_a_lock_replaces_what_a_run_added_that_had_lost_it(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run was frozen after it had checked its lock. After its commit it checks it again, and deletes nothing."""
    checks = []

    def lost() -> None:
        checks.append("")
        if len(checks) > 2:  # after its first two checks, it adds the version
            raise Interrupted("this run took the lock")

    def other() -> None:
        with pytest.raises(Interrupted):
            make(folder, "two", "cd", check=lost)
        assert names(folder) == "cd"

    at_the_first(monkeypatch, "latest_version", other)
    make(folder, "one", "xyz", check=lambda: None)
    assert names(folder) == "xyz" and opened(folder).version() == 1


def test_a_run_that_lost_its_lock_adds_nothing(table_on_disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    took: list[str] = []

    def check() -> None:
        if took:
            raise Interrupted("the other took the lock")

    at_the_first(monkeypatch, "latest_version", lambda: took.append(make(table_on_disk, "two", "cd").fingerprint))
    with pytest.raises(Interrupted):
        make(table_on_disk, "one", "xyz", check=check)
    assert names(table_on_disk) == "cd" and opened(table_on_disk).version() == 0


def test_no_version_names_parts_that_another_run_deleted(table_on_disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run has no lock, and takes the parts of this one for remains of an earlier run."""
    at_the_first(monkeypatch, "latest_version", lambda: make(table_on_disk, "two", "cd"))
    with pytest.raises(UserError, match=r"another run deleted .*/part-0000\d\.parquet of the table"):
        make(table_on_disk, "one", "xyz", check=lambda: None)
    assert names(table_on_disk) == "cd"


def test_a_run_that_wakes_after_its_commit_deletes_nothing_of_its_successor(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(folder, "old", "ab")
    at_the_first(monkeypatch, "add_version", lambda: make(folder, "two", "cd"))
    make(folder, "one", "xyz")
    assert names(folder) == "cd"


def test_a_table_is_read_while_another_run_replaces_it(table_on_disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(table_on_disk, "old", "ab")
    at_the_first(monkeypatch, "latest_version", lambda: make(table_on_disk, "two", "cd"))
    assert tables.require_commit(table_on_disk).fingerprint == 20 * "two"


def test_delta_lakes_own_clean_up_keeps_the_table(folder: str) -> None:
    make(folder, "old", "ab")
    made = make(folder, "new", "cd")
    stray = tables.write_part(folder, "s" * 64, 0, [{"image_id": "s"}], SCHEMA)
    removed = opened(folder).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True)
    assert [stray.name] == [name for name in removed if name.startswith("s")]
    kept = replace(made, version=opened(folder).version())
    assert tables.require_commit(folder) == kept and names(folder) == "cd" and tables.fingerprint_of(folder) == made.fingerprint
    assert opened(folder).version() > 1
    make(folder, "one", "xyz")
    assert names(folder) == "xyz"
    opened(folder).create_checkpoint()
    make(folder, "two", "a")
    assert names(folder) == "a"


def test_versions_stay_in_the_log_however_old_they_are(table_on_disk: str) -> None:
    """Generations name them. By default Delta Lake deletes entries of more than 30 days that come before a checkpoint."""
    for name in ("one", "two"):
        make(table_on_disk, name, "ab")
    opened(table_on_disk).create_checkpoint()
    for entry in Path(table_on_disk, delta_log.LOG).iterdir():
        os.utime(entry, (0, 0))
    make(table_on_disk, "three", "cd")
    assert delta_log.version_numbers(table_on_disk) == [0, 1, 2]


@pytest.mark.parametrize("how", ["append", "overwrite", "delete"])
def test_a_table_that_another_program_changed_is_refused_and_replaced(folder: str, how: str) -> None:
    make(folder, "one", "ab")
    if how == "delete":
        opened(folder).delete("image_id = 'a'")
    else:
        write_deltalake(folder, pa.table({"image_id": ["z"]}, schema=SCHEMA), mode=how, storage_options=options(folder))
    assert tables.read_commit(folder) is None and tables.fingerprint_of(folder) is None
    with pytest.raises(UserError, match="or changed by another program: run the command that makes it again"):
        names(folder)
    make(folder, "one", "ab")
    assert names(folder) == "ab" and opened(folder).to_pyarrow_table().num_rows == 2


def test_a_commit_whose_answer_is_lost_is_recognised(s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FlakyProxy(s3.url) as proxy:
        use_s3(monkeypatch, proxy)
        real = delta_log._add

        def lossy(*given: Any) -> None:
            proxy.lose_answers = 1
            real(*given)

        monkeypatch.setattr(delta_log, "_add", lossy)
        for name, rows in {"one": "ab", "two": "cd", "three": "e"}.items():
            make(bucket, name, rows)
            assert names(bucket) == rows and proxy.lose_answers == 0
        assert opened(bucket).version() == 2


def test_a_log_that_cant_be_written_gives_a_message_and_leaves_the_old_table(
    table_on_disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(table_on_disk, "old", "ab")

    def fail(*_: object) -> None:
        raise OSError("Generic \x1b[31m↳\x1b[0m store error\n at http://me:secret@server/x: no")

    monkeypatch.setattr(delta_log, "_add", fail)
    with pytest.raises(UserError, match=r"can't add a version to the table .*: Generic ↳ store error at http://server/x: no$"):
        make(table_on_disk, "new", "xyz")
    assert names(table_on_disk) == "ab"


def test_a_version_says_which_table_it_is(table_on_disk: str) -> None:
    made = make(table_on_disk, "one", "ab")
    entry = opened(table_on_disk).history(1)[0]["deconvnet"]
    facts = json.loads(entry) if isinstance(entry, str) else entry
    assert facts["fingerprint"] == made.fingerprint and facts["schema_version"] == tables.SCHEMA_VERSION
    assert storage.read_json(storage.join(table_on_disk, facts["record"]))["rows"] == 2
