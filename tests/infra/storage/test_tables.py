"""Tables are complete or absent, and complete parts are not made twice."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import storage
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from infra.runtime.parts import check_rejects, make_parts
from infra.storage import tables
from infra.storage.row_groups import GROUP_BYTES
from infra.storage.tables import delta_log, versions

SCHEMA = pa.schema([pa.field("image_id", pa.string(), nullable=False), pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4)))])


def row(name: str) -> dict:
    """A row with this image_id."""
    return {"image_id": name, "boxes": [[0.0, 0.0, 1.0, 1.0]]}


def make(table: str, name: str, rows: str) -> tables.Commit:
    """Make a table with a part for each letter of `rows`. Its fingerprint, like the names of its parts, is made of `name`."""
    fingerprint = 20 * name  # as long as a digest, of which names of files have the first letters
    parts = [tables.write_part(table, fingerprint, i, [row(each)], SCHEMA) for i, each in enumerate(rows)]
    return tables.commit(table, fingerprint, parts)


def names(table: str, part: tables.Part | None = None) -> str:
    """The image_ids of all rows of a table or part."""
    return "".join(r["image_id"] for r in tables.iter_rows(table, part=part))


def test_a_table_is_absent_until_it_is_committed(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    tables.write_part(table, "f", 0, [row("a")], SCHEMA)
    assert tables.read_commit(table) is None
    with pytest.raises(FileNotFoundError):
        tables.require_commit(table)


def test_rows_are_read_in_order_and_rejects_are_kept_apart(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    reject = tables.Reject("b", "b.jpg", "proposals", "broken")
    parts = [
        tables.write_part(table, "f", 1, [row("c"), row("d")], SCHEMA, rows_per_group=1),
        tables.write_part(table, "f", 0, [row("a"), reject, tables.Note("n")], SCHEMA),
    ]
    tables.commit(table, "f", parts, {"note": 1})
    made = tables.require_commit(table)
    assert [r["image_id"] for r in tables.iter_rows(table)] == ["c", "d", "a"], "in the order of the parts as they were given"
    assert next(tables.iter_rows(table)) == row("c")
    assert (
        made.rows == 3 and made.rejects == [reject] and made.extra == {"note": 1} and [p.notes for p in made.parts] == ["", "n"]
    )
    assert [[g.rows for g in p.row_groups] for p in made.parts] == [[1, 1], [1]]


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([100] * 10, [4, 4, 2]),  # four rows at most
        ([GROUP_BYTES // 2] * 5, [2, 2, 1]),
        ([GROUP_BYTES // 2 + 1] * 3, [1, 1, 1]),
        ([GROUP_BYTES * 3, 1, 1, GROUP_BYTES, 0, 1], [1, 2, 2, 1]),
        ([], []),
    ],
)
def test_a_row_group_has_a_limited_number_of_rows_and_bytes(tmp_path: Path, sizes: list[int], groups: list[int]) -> None:
    schema = pa.schema([pa.field("image_id", pa.string()), pa.field("image", pa.binary())])
    rows = [{"image_id": f"{i:02}", "image": bytes(size)} for i, size in enumerate(sizes)]
    table = str(tmp_path / "t")
    part = tables.write_part(table, "f", 0, rows, schema, rows_per_group=4)
    assert [g.rows for g in part.row_groups] == groups
    assert sum(g.nbytes for g in part.row_groups) == sum(sizes)
    found = [tables.read_row_group(table, part.name, i).to_pylist() for i in range(len(groups))]
    assert list(map(len, found)) == groups and [row for group in found for row in group] == rows


def test_a_complete_part_is_not_made_again(tmp_path: Path) -> None:
    table = str(tmp_path / "t")

    def rows():
        yield row("a")

    first = tables.write_part(table, "f", 0, rows(), SCHEMA)

    def never():
        raise AssertionError("made twice")
        yield

    assert tables.write_part(table, "f", 0, never(), SCHEMA) == first


def test_a_part_whose_rows_fail_leaves_no_file(tmp_path: Path) -> None:
    table = str(tmp_path / "t")

    def broken():
        yield row("a")
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError):
        tables.write_part(table, "f", 0, broken(), SCHEMA, rows_per_group=1)
    assert storage.list_files(table) == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_failure_at_any_write_leaves_the_old_table_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Run again, it makes the new table, and leaves nothing of the old one."""
    left = -1  # number of writes until the failure

    def failing(write: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and moment == "before":
                raise InterruptedError
            result = write(*given)
            if left == 0:
                raise InterruptedError
            return result

        return done

    def remove_files(uri: str, names: Sequence[str]) -> None:
        for name in names:
            remove(storage.join(uri, name))

    remove = failing(storage.remove)
    monkeypatch.setattr(storage, "write_bytes", failing(storage.write_bytes))
    monkeypatch.setattr(storage, "remove_files", remove_files)
    monkeypatch.setattr(delta_log, "add_version", failing(delta_log.add_version))
    seen = []
    for fatal in range(1, 20):
        table = str(tmp_path / str(fatal))
        left = -1
        make(table, "old", "abc")
        left = fatal
        with suppress(InterruptedError):
            make(table, "new", "xyz")
        seen.append(names(table))
        assert all(names(table, part) == "xyz"[i] for i, part in tables.finished_parts(table, 20 * "new", range(3)).items())
        spared, left = left, -1
        make(table, "new", "xyz")
        assert names(table) == "xyz" and not [f for f in storage.list_files(table) if "old" in f]
    assert seen == sorted(seen) and set(seen) == {"abc", "xyz"} and spared > 0, "fewer writes than failures were tried"


def test_the_digest_of_a_part_is_that_of_its_rows_and_its_size_that_of_its_file(tmp_path: Path) -> None:
    reject = tables.Reject("c", "c.jpg", "prepare", "broken")
    contents = {"a": [row("a")], "again": [row("a"), reject], "b": [row("b")], "ab": [row("a"), row("b")], "none": []}
    made = {name: tables.write_part(str(tmp_path / name), "f", 0, rows, SCHEMA) for name, rows in contents.items()}
    digests = {name: part.digest for name, part in made.items()}
    assert digests.pop("a") == digests.pop("again") and len(set(digests.values())) == 3
    for name, part in made.items():
        assert part.size == (tmp_path / name / part.name).stat().st_size
        assert tables.finished_parts(str(tmp_path / name), "f", [0]) == {0: part}


def test_the_lowest_and_the_highest_id_are_known_though_rows_are_not_sorted(tmp_path: Path) -> None:
    part = tables.write_part(str(tmp_path), "f", 0, [row(name) for name in "bcdae"], SCHEMA, rows_per_group=2)
    assert (part.first, part.last) == ("a", "e")


def test_discarded_parts_are_made_again(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    tables.discard(table, [tables.write_part(table, "f", 0, [tables.Reject("a", "a.jpg", "prepare", "no permission")], SCHEMA)])
    assert tables.write_part(table, "f", 0, [row("a")], SCHEMA).rows == 1


def test_a_table_of_another_schema_version_counts_as_absent_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = str(tmp_path / "t")
    with monkeypatch.context() as patch:
        patch.setattr(versions, "SCHEMA_VERSION", 0)
        make(table, "old", "abc")
    assert tables.read_commit(table) is None and tables.fingerprint_of(table) is None
    with pytest.raises(UserError, match=r"was written by another version of this program.*run the command that makes it again"):
        tables.require_commit(table)
    make(table, "new", "xyz")
    assert names(table) == "xyz"


def test_a_table_of_before_delta_lake_counts_as_absent_and_is_replaced(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    storage.write_json(f"{table}/_commit.json", {"fingerprint": "f" * 64, "schema_version": 3, "rows": 0, "parts": []})
    storage.write_json(f"{table}/{'f' * 16}/part-00000.json", {})
    assert tables.read_commit(table) is None and tables.finished_parts(table, "f" * 64, [0]) == {}
    with pytest.raises(UserError, match=r"was written by another version of this program.*run the command that makes it again"):
        tables.require_commit(table)
    make(table, "new", "xyz")
    assert names(table) == "xyz" and not storage.exists(f"{table}/_commit.json") and not storage.list_files(f"{table}/{'f' * 16}")


def test_a_part_of_an_earlier_program_is_made_again(tmp_path: Path) -> None:
    """Its rows can be read, as `predict.py` does, but it has no summary in its footer."""
    table = str(tmp_path / "t")
    name = tables.write_part(table, "f", 0, [row("old")], SCHEMA).name
    pq.write_table(pa.Table.from_pylist([row("old")], schema=SCHEMA), f"{table}/{name}")
    assert tables.part_files(table) == [name] and tables.finished_parts(table, "f", [0]) == {}
    part = tables.write_part(table, "f", 0, [row("new")], SCHEMA)
    assert names(table, part) == "new"


def test_a_row_group_counts_classes_and_the_bytes_of_binary_columns(tmp_path: Path) -> None:
    columns = {"image_id": pa.string(), "class_ids": pa.list_(pa.int16()), "image": pa.binary(), "mask": pa.binary()}
    rows = [{"image_id": "a", "class_ids": ids, "image": b"i", "mask": b"m"} for ids in ([3], [1, 15], [3], [3])]
    part = tables.write_part(str(tmp_path / "t"), "f", 0, rows, pa.schema(columns), rows_per_group=3)
    assert part.row_groups == [tables.RowGroup(3, 6, classes={"3": 2, "1,15": 1}), tables.RowGroup(1, 2, classes={"3": 1})]


def test_chunks_cover_the_range_once() -> None:
    pieces = tables.chunks(103, 25)
    assert [i for p in pieces for i in p] == list(range(103))
    assert max(map(len, pieces)) <= 25 and len(pieces) == 5
    assert list(tables.chunks(0, 25)[0]) == []


def test_too_many_rejects_raise_an_error_with_the_reasons() -> None:
    part = tables.Part("p", [], [tables.Reject(str(i), "", "prepare", "the file is empty") for i in range(3)])
    check_rejects([part], 30, 0.1)
    with pytest.raises(UserError, match=r"3 of 20 images.*3× the file is empty.*raise data\.max_rejects"):
        check_rejects([part], 20, 0.1)


def test_make_parts_makes_only_the_missing_parts(tmp_path: Path, executor: LocalExecutor) -> None:
    table = str(tmp_path / "t")
    tables.write_part(table, "f", 1, [row("kept")], SCHEMA)
    parts = make_parts(table, "f", SCHEMA, ["a", "b", "c"], lambda name: [row(name)], executor, title="test")
    tables.commit(table, "f", parts)
    assert [r["image_id"] for r in tables.iter_rows(table)] == ["a", "kept", "c"]


def test_parts_of_one_job_have_different_keys_and_row_groups_of_the_given_length(tmp_path: Path, executor: LocalExecutor) -> None:
    def made(**more: Any) -> list[tables.Part]:
        return make_parts(str(tmp_path), "f", SCHEMA, ["ab", "cd"], lambda names: map(row, names), executor, title="test", **more)

    with pytest.raises(ValueError, match="two parts have the same key"):
        made(keys=["same", "same"])
    assert [[group.rows for group in part.row_groups] for part in made(rows_per_group=1)] == [[1, 1], [1, 1]]


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    """Most jobs would read all images otherwise."""
    table = str(tmp_path)
    (part,) = make(table, "new", "a").parts
    for rows in (
        list(tables.iter_rows(table, ["image_id"])),
        list(tables.iter_rows(table, ["image_id"], part)),
        tables.read_row_group(table, part.name, 0, ["image_id"]).to_pylist(),
        tables.read_row_group(table, part.name, 0, ["image_id"], tables.read_footer(table, part.name)).to_pylist(),
    ):
        assert rows == [{"image_id": "a"}]


def test_images_are_not_compressed_again_and_binary_columns_have_no_statistics(tmp_path: Path) -> None:
    """The lowest and highest image of each row group would be in the footer."""

    def columns(*names: str) -> dict[str, tuple[str, bool]]:
        schema = pa.schema({"image_id": pa.string()} | {name: pa.binary() for name in names})
        content = {"image_id": "a"} | dict.fromkeys(names, b"12345678" * 100)
        part = tables.write_part(str(tmp_path), "f" if "image" in names else "g", 0, [content], schema)
        group = tables.read_footer(str(tmp_path), part.name).row_group(0)
        found = (group.column(i) for i in range(group.num_columns))
        return {each.path_in_schema: (each.compression, each.is_stats_set) for each in found}

    assert columns("image") == {"image_id": ("UNCOMPRESSED", True), "image": ("UNCOMPRESSED", False)}
    assert columns("mask") == {"image_id": ("ZSTD", True), "mask": ("ZSTD", False)}
