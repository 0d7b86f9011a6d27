"""Generations of retraining: how they are read, and which are kept."""

import shutil
from datetime import UTC, datetime

import pytest

from infra import storage
from infra.errors import UserError
from workflows.pipelines import generations
from workflows.pipelines.generations import Generation, finish, folder, kept, new_name, prune, read_all, write


@pytest.fixture
def workspace(tmp_path) -> str:
    """Five finished generations, whose challengers were versions 1 to 5, and an unfinished one."""
    base = str(tmp_path / "w")
    for n in range(1, 6):
        generation = Generation(f"2026110{n}-000000", None, n - 1 or None)
        write(base, generation)
        for part in ("models/stage2/model.json", "train/run/checkpoint", "images/_delta_log/00000000000000000000.json"):
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
    assert kept(read_all(workspace), champion=2, keep=2) == set(names(2, 4, 5, 6))
    assert kept(read_all(workspace), champion=None, keep=1) == set(names(5, 6))
    storage.write_bytes(storage.join(folder(workspace, "20261105-120000"), "images/part"), b"left by an interrupted pruning")
    assert prune(workspace, 2, 2) == [*names(1, 3), "20261105-120000"]
    assert [g.name for g in read_all(workspace)] == names(2, 4, 5, 6)
    files = storage.list_files(folder(workspace))
    assert [f for f in files if "/train/" in f] == ["20261106-000000/train/run/checkpoint"]  # of the unfinished one
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


def test_the_fingerprint_of_unchanged_files_is_remembered(workspace) -> None:
    assert generations.unchanged_fingerprint(workspace) is None
    generations.mark_unchanged(workspace, "f")
    assert generations.unchanged_fingerprint(workspace) == "f" and len(read_all(workspace)) == 6
