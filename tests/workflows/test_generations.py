"""Generations of retraining: how they are read, and which are kept."""

import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from types import SimpleNamespace

import pyarrow as pa
import pytest

from infra import storage
from infra.errors import Interrupted, UserError
from infra.runtime.stages import Record, record_uri
from infra.storage import tables
from workflows.pipelines import generations
from workflows.pipelines.generations import (
    Generation,
    finish,
    folder,
    names_to_keep,
    new_name,
    prune,
    prune_tables,
    read_all,
    write,
)
from workflows.pipelines.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> str:
    """Five finished generations, whose challengers were versions 1 to 5, and an unfinished one."""
    base = str(tmp_path / "w")
    for n in range(1, 6):
        generation = Generation(f"2026110{n}-000000", None, n - 1 or None)
        write(base, generation)
        for part in ("models/stage2/model.json", "train/run/checkpoint", "init/net-1-0/model"):
            storage.write_bytes(storage.join(folder(base, generation.name), part), b"x")
        finish(base, generation, {"version": n})
    write(base, Generation("20261106-000000", None, 5))
    storage.write_bytes(storage.join(folder(base, "20261106-000000"), "train/run/checkpoint"), b"x")
    return base


def names(*days: int) -> list[str]:
    return [f"2026110{n}-000000" for n in days]


@pytest.mark.parametrize(
    ("newest", "name"),
    [
        (None, "20261123-040506"),
        ("20261122-000000", "20261123-040506"),
        ("20261123-040506", "20261123-040507"),  # two in one second
        ("20261224-235959", "20261225-000000"),  # the clock was set back
    ],
)
def test_names_sort_by_age_whatever_the_clock_says(newest: str | None, name: str) -> None:
    every = [Generation("20260101-000000", None, None), Generation(newest, None, None)] if newest else []
    assert new_name(every, datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC)) == name


@pytest.mark.parametrize("name", ["mine", "20261101-000000.bak", "20261101-000000-copy", "2026-11-01", "20261399-000000"])
def test_other_folders_are_neither_counted_nor_deleted(name: str, workspace: str) -> None:
    shutil.copytree(folder(workspace, names(1)[0]), folder(workspace, name))
    assert [g.name for g in read_all(workspace)] == names(1, 2, 3, 4, 5, 6)
    assert prune(workspace, None, 1) == names(1, 2, 3, 4)
    assert storage.exists(storage.join(folder(workspace, name), "train/run/checkpoint"))


def test_generations_are_read_oldest_first(workspace) -> None:
    found = read_all(workspace)
    assert [g.name for g in found] == names(1, 2, 3, 4, 5, 6)
    assert [g.finished for g in found] == [True] * 5 + [False] and found[2].outcome == {"version": 3}
    assert read_all(workspace + "-none") == []


def test_the_newest_the_champion_s_and_unfinished_generations_are_kept(workspace) -> None:
    assert names_to_keep(read_all(workspace), champion=2, keep=2) == set(names(2, 4, 5, 6))
    assert names_to_keep(read_all(workspace), champion=None, keep=1) == set(names(5, 6))
    storage.write_bytes(storage.join(folder(workspace, "20261105-120000"), "images/part"), b"left by an interrupted pruning")
    assert prune(workspace, 2, 2) == [*names(1, 3), "20261105-120000"]
    assert [g.name for g in read_all(workspace)] == names(2, 4, 5, 6)
    files = storage.list_files(folder(workspace))
    kept = [f for f in files if "/train/" in f or "/init/" in f]
    assert kept == ["20261106-000000/train/run/checkpoint"], "neither checkpoints nor champions' copies of the finished ones"
    assert f"{names(2)[0]}/models/stage2/model.json" in files and not [f for f in files if f.startswith("20261105-12")]


def test_a_partly_deleted_generation_does_not_look_complete(workspace, monkeypatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(generations.storage, "remove", removed.append)
    generations.remove(workspace, names(1)[0])
    assert removed == [storage.join(folder(workspace, names(1)[0]), "generation.json"), folder(workspace, names(1)[0])]


def test_a_file_of_another_version_is_a_user_error(workspace) -> None:
    storage.write_bytes(storage.join(folder(workspace, names(6)[0]), "generation.json"), b'{"of": "tomorrow"}')
    with pytest.raises(UserError, match="was not written by this version"):
        read_all(workspace)


def test_unchanged_files_are_remembered_with_the_images_that_they_were_compared_with(workspace) -> None:
    assert not generations.is_marked_unchanged(workspace, "f", "k")
    generations.mark_unchanged(workspace, "f", "k")
    assert generations.is_marked_unchanged(workspace, "f", "k") and len(read_all(workspace)) == 6
    assert not generations.is_marked_unchanged(workspace, "f", "other images")
    assert not generations.is_marked_unchanged(workspace, "other files", "k")
    storage.write_json(folder(workspace, generations.UNCHANGED_FILE), "f")  # of an earlier version
    assert not generations.is_marked_unchanged(workspace, "f", "k")


@pytest.mark.parametrize(
    ("folder", "base"),
    [
        ("/w/generations/20261101-000000", "/w"),
        ("s3://b/generations/20261101-000000/", "s3://b"),
        ("/w/generations/mine", "/w/generations/mine"),
        ("/w/generations/20261101-000000.bak", "/w/generations/20261101-000000.bak"),
        ("/w/others/20261101-000000", "/w/others/20261101-000000"),
        ("/w", "/w"),
    ],
)
def test_a_generation_has_its_tables_in_the_workspace_around_it(folder: str, base: str, monkeypatch) -> None:
    monkeypatch.setattr("workflows.pipelines.workspace.read_record", lambda *_: None)
    workspace = Workspace(folder)
    assert workspace.tables_root == base and workspace.table_folder("images") == storage.join(base, "images")
    assert workspace.images == storage.join(folder, "images") and workspace.version("images") is None
    workspace.use_version("images", 3)
    assert workspace.images == storage.join(base, "images@3") and workspace.versions() == {"images": "images@3"}


def use(root: str, stage: str, **versions: int) -> None:
    """Write the record of a stage that uses versions of tables."""
    made = Record("f", "r", [], "k", 1.0, {}, {name: (number, "f") for name, number in versions.items()})
    storage.write_json(record_uri(root, stage), asdict(made))


def test_versions_are_kept_that_the_workspace_a_generation_or_the_champion_uses(workspace) -> None:
    schema = pa.schema([pa.field("image_id", pa.string(), nullable=False)])
    for table in ("images", "proposals"):
        for number in range(9):
            uri = storage.join(workspace, table)
            rows = [{"image_id": f"{number}"}]
            part = tables.write_part(uri, "c0de" * 4, f"{number:032}", rows, schema)
            tables.commit(uri, f"{number:016}", [part], keep_earlier=True)
    use(workspace, "prepare", images=1)
    use(workspace, "proposals", proposals=1)
    for number, generation in enumerate(read_all(workspace)):
        use(folder(workspace, generation.name), "prepare", images=number)
        use(folder(workspace, generation.name), "proposals", proposals=2)
    prune(workspace, 2, 1)  # generations 2, 5 and 6 are left, which have images 1, 4 and 5
    lost: list[str] = []

    def check() -> None:
        if lost:
            raise Interrupted("another run has taken the lock")

    lock = SimpleNamespace(still_held=lambda: lost.append("images") if not lost else None, check=check)
    files = storage.list_files(workspace)
    with pytest.raises(Interrupted):
        prune_tables(workspace, {}, lock)
    assert storage.list_files(workspace) == files
    held = SimpleNamespace(still_held=lambda: True, check=lambda: None)
    prune_tables(workspace, {"tables": "images@3 proposals@0 examples/stage1@7", "other": "x@6"}, held)
    kept = {name: tables.kept_versions(storage.join(workspace, name)) for name in ("images", "proposals")}
    assert kept == {"images": [1, 3, 4, 5, 8], "proposals": [0, 1, 2, 8]}
    for name, numbers in kept.items():
        uri = storage.join(workspace, name)
        found = [row["image_id"] for n in numbers for row in tables.iter_rows(tables.at_version(uri, n))]
        assert found == [f"{n}" for n in numbers] and len(tables.part_files(uri)) == len(numbers)


def test_without_mlflow_nothing_is_deleted_in_a_workspace_that_may_have_registered_models(workspace, monkeypatch, caplog) -> None:
    """The champion's versions are known to MLflow alone. A workspace gets its identity before it registers a model."""
    pruned: list[tuple[object, ...]] = []
    monkeypatch.setattr(generations, "prune_tables", lambda *given: pruned.append(given))
    generations.prune_tables_after_run(workspace, "", "m", None)
    assert pruned == [(workspace, {}, None)]
    Workspace(workspace).identity()
    caplog.set_level("INFO")
    generations.prune_tables_after_run(workspace, "", "m", None)
    assert len(pruned) == 1 and "old versions of the tables are kept, as tracking.enabled is false" in caplog.text


def test_nothing_is_deleted_if_the_champion_is_not_known(workspace, monkeypatch, caplog) -> None:
    def fail(store: str, name: str) -> dict[str, str]:
        raise UserError("MLflow is away")

    monkeypatch.setattr(generations, "champion_tags", fail)
    monkeypatch.setattr(generations, "prune_tables", lambda *_: pytest.fail("pruned"))
    generations.prune_tables_after_run(workspace, "http://mlflow", "m", None)
    assert "old versions of the tables were not deleted: MLflow is away" in caplog.text
