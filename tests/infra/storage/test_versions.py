"""Versions of a table: parts that several share, readers of an old one, and the deletion of what no kept one names."""

from collections.abc import Callable
from typing import Any

import pytest
from deltalake import DeltaTable

from infra import storage
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from infra.runtime.parts import make_parts
from infra.runtime.stages import digest
from infra.storage import tables
from infra.storage.tables import delta_log
from tests.infra.storage.helpers import SCHEMA, names, opened

RECIPE = "c0de" * 16


def add(table: str, parts: str, **more: Any) -> tables.Commit:
    """Add a version of a part for each word, which has a row for each of its letters and is named by the word."""
    words = parts.split()
    made = [tables.write_part(table, RECIPE, digest(word), [{"image_id": i} for i in word], SCHEMA) for word in words]
    return tables.commit(table, digest(parts), made, keep_earlier=True, **more)


def versions(table: str) -> dict[int, str]:
    """The rows of each version that is there, by its number."""
    return {number: names(tables.at_version(table, number)) for number in tables.kept_versions(table)}


def test_versions_share_parts_and_each_has_its_rows_in_the_order_of_its_parts(folder: str) -> None:
    first = add(folder, "ab cd")
    files = set(tables.part_files(folder))
    assert add(folder, "ab cd").version == first.version == 0, "the same content adds no version"
    made = {number: add(folder, parts).version for number, parts in enumerate(("ab cd ef", "cd ax ef", "ax"), 1)}
    assert made == {1: 1, 2: 2, 3: 3}
    assert versions(folder) == {0: "abcd", 1: "abcdef", 2: "cdaxef", 3: "ax"} and names(folder) == "ax"
    assert files < set(tables.part_files(folder)) and len(tables.part_files(folder)) == 4
    assert [tables.read_footer(folder, part.name).num_rows for part in tables.require_commit(folder).parts] == [2]
    for number, rows in versions(folder).items():
        found = DeltaTable(opened(folder).table_uri, version=number, storage_options=opened(folder)._storage_options)
        assert sorted(row["image_id"] for row in found.to_pyarrow_table().to_pylist()) == sorted(rows)


def test_a_table_without_parts_has_no_rows_and_the_column_of_all_tables(folder: str) -> None:
    assert add(folder, "").rows == 0 and names(folder) == ""
    (column,) = opened(folder).schema().fields
    assert (column.name, column.type.type, column.nullable) == ("image_id", "string", False)


@pytest.mark.parametrize("missing", ["t@3", "t@12", "none@0"])
def test_a_version_that_is_not_there_is_refused(tmp_path, missing: str) -> None:
    add(f"{tmp_path}/t", "ab")
    uri = f"{tmp_path}/{missing}"
    assert tables.read_commit(uri) is None and tables.fingerprint_of(uri) is None
    with pytest.raises(FileNotFoundError, match=missing):
        tables.require_commit(uri)


def test_pruning_keeps_what_the_kept_versions_and_the_latest_one_name(folder: str) -> None:
    assert tables.prune(folder, [0]) == 0, "no table"
    for parts in ("ab cd", "ab cd ef", "ab gh", "gh ij"):
        add(folder, parts)
    stray = tables.write_part(folder, RECIPE, digest("killed"), [], SCHEMA)
    unfinished, other = (f"{RECIPE[:16]}/.{name}" for name in ("0123456789abcdef" * 2, "nfs0123456789abcdef"))
    for name in (unfinished, other):
        storage.write_bytes(storage.join(folder, name), b"PAR1")
    assert tables.prune(folder, [0, 77]) == 5, "records of 1 and 2, the part ef, and a part and a part's file of killed runs"
    assert not {stray.name, unfinished} & {*storage.list_files(folder)} and other in storage.list_files(folder)
    assert versions(folder) == {0: "abcd", 3: "ghij"}
    assert tables.read_commit(tables.at_version(folder, 1)) is None
    assert opened(folder).to_pyarrow_table().num_rows == 4
    assert add(folder, "ab cd ef").version == 4 and versions(folder) == {0: "abcd", 3: "ghij", 4: "abcdef"}
    assert tables.prune(folder, []) and versions(folder) == {4: "abcdef"}


def test_a_table_that_another_program_changed_is_not_pruned(folder: str) -> None:
    add(folder, "ab cd")
    add(folder, "cd")
    opened(folder).delete("image_id = 'c'")
    files = storage.list_files(folder)
    assert tables.prune(folder, []) == 0 and storage.list_files(folder) == files


def test_a_version_without_its_record_or_of_another_schema_counts_as_absent(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for parts in ("ab", "cd", "ef"):
        add(folder, parts)
    version = delta_log.read_version(folder, 1)
    assert version is not None
    storage.remove(storage.join(folder, version.facts["record"]))
    assert versions(folder) == {0: "ab", 2: "ef"} and tables.read_commit(tables.at_version(folder, 1)) is None
    tables.prune(folder, [0, 1])
    assert versions(folder) == {0: "ab", 2: "ef"}
    monkeypatch.setattr("infra.storage.tables.versions.SCHEMA_VERSION", 99)
    assert tables.read_commit(tables.at_version(folder, 0)) is None


def letters(unit: str) -> list[Any]:
    """The rows of a part for each letter, and a note; a part that must not be made again is refused."""
    if unit.isupper():
        raise UserError(f"{unit} is made again")
    return [*({"image_id": each} for each in unit), tables.Note(f"{len(unit)} rows")]


def test_only_parts_that_no_version_or_killed_run_has_made_are_made(tmp_path, executor: LocalExecutor, monkeypatch) -> None:
    table = str(tmp_path / "t")

    def made(*units: str, keys: str = "") -> list[tables.Part]:
        named = [digest(unit.lower()) for unit in units]
        return make_parts(table, RECIPE, SCHEMA, units, letters, executor, title="test", keys=named)

    first = made("ab", "cd")
    assert [part.notes for part in first] == ["2 rows", "2 rows"]
    tables.commit(table, "f" * 64, first, keep_earlier=True)
    killed = made("ef")  # finished by a run that then was killed
    opened_files: list[str] = []
    real = tables.parts._read_part
    monkeypatch.setattr(tables.parts, "_read_part", lambda table, name: opened_files.append(name) or real(table, name))
    second = made("CD", "gh", "AB", "EF")
    assert [part.first for part in second] == ["c", "g", "a", "e"] and second[3] == killed[0]
    assert second[0] == first[1] and first[0].name not in opened_files, "what the latest version names is not opened"
    tables.commit(table, "g" * 64, second, keep_earlier=True)
    storage.remove(storage.join(table, first[0].name))
    with pytest.raises(UserError, match="AB is made again"):
        made("AB")
    assert made("ab")[0] == first[0]


@pytest.mark.parametrize("act", [tables.prune, lambda table, keep: add(table, "kl ab")])
def test_a_failure_at_any_write_leaves_every_kept_version_whole(
    tmp_path, monkeypatch: pytest.MonkeyPatch, act: Callable[[str, list[int]], Any]
) -> None:
    left = -1

    def failing(write: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise InterruptedError
            return write(*given)

        return done

    remove = failing(storage.remove)
    monkeypatch.setattr(storage, "write_bytes", failing(storage.write_bytes))
    # a bucket may delete the files of one call in any order
    monkeypatch.setattr(storage, "remove_files", lambda uri, files: [remove(storage.join(uri, name)) for name in reversed(files)])
    monkeypatch.setattr(delta_log, "add_version", failing(delta_log.add_version))
    spared = 0
    for fatal in range(1, 9):
        table, left = str(tmp_path / str(fatal)), -1
        for parts in ("ab cd", "ab ef", "gh", "ij"):
            add(table, parts)
        left = fatal
        try:
            act(table, [1])
        except InterruptedError:
            spared += 1
        left = -1
        found = versions(table)
        assert found[1] == "abef" and (found[3] == "ij" or 3 not in found)
        assert set(found.values()) <= {"abcd", "abef", "gh", "ij", "klab"}, "a version with a record has all its parts"
        act(table, [1])
        assert names(table) == ("ij" if act is tables.prune else "klab")
    assert spared > 2
