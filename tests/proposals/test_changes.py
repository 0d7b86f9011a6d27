"""Changes are found by content, and rows of unchanged images are copied."""

from collections.abc import Callable

import pytest

from infra import storage
from infra.storage import tables
from proposals import schemas
from proposals.changes import SAME_IMAGE, SAME_LABELS, PreviousTable, compare, find_changes, previous_parts

Row = dict


def row(image_id: str, image: bytes = b"i", mask: bytes | None = b"m", split: str = "train") -> Row:
    return {
        "image_id": image_id,
        "split": split,
        "width": 1,
        "height": 1,
        "image": image,
        "class_mask": mask,
        "object_mask": mask,
    }


BEFORE = [row("a"), row("b"), row("c"), row("d"), row("e"), row("g")]
NOW = [row("a"), row("b", image=b"other"), row("c", mask=b"other"), row("d", split="dev"), row("f"), row("g")]
EXPECTED = {"a": "same", "b": "changed", "c": "relabelled", "d": "relabelled", "f": "new", "g": "same"}


@pytest.fixture
def write(tmp_path) -> Callable[[str, list[Row], int], str]:
    def made(name: str, rows: list[Row], parts: int) -> str:
        uri = str(tmp_path / name)
        pieces = tables.chunks(len(rows), -(-len(rows) // parts))
        found = [tables.write_part(uri, name * 16, i, [rows[j] for j in piece], schemas.IMAGES) for i, piece in enumerate(pieces)]
        tables.commit(uri, name * 16, found)
        return uri

    return made


def test_each_kind_of_change_is_found() -> None:
    assert dict(compare(iter(NOW), iter(BEFORE))) == EXPECTED
    assert set(dict(compare(iter(NOW), iter([]))).values()) == {"new"}


@pytest.mark.parametrize(
    ("column", "change"),
    [("image", "changed"), ("split", "relabelled"), ("class_mask", "relabelled"), ("object_mask", "relabelled")],
)
def test_another_value_of_a_single_column_is_found(column: str, change: str) -> None:
    for value in (b"other", *([None] if "mask" in column else [])):
        assert dict(compare(iter([row("a") | {column: value}]), iter([row("a")]))) == {"a": change}
        assert dict(compare(iter([row("a")]), iter([row("a") | {column: value}]))) == {"a": change}


@pytest.mark.parametrize(("before_parts", "parts"), [(1, 3), (3, 2)])
def test_changes_do_not_depend_on_how_tables_are_divided_into_parts(executor, write, tmp_path, before_parts, parts) -> None:
    before, now = write("b", BEFORE, before_parts), write("n", NOW, parts)
    out = str(tmp_path / "changes")
    commit = find_changes(now, before, out, "c" * 16, executor)
    assert commit.extra == {"new": 1, "changed": 1, "relabelled": 2, "same": 2, "gone": 1}
    assert {r["image_id"]: r["change"] for r in tables.iter_rows(out)} == EXPECTED
    # The rows that are copied from a table made from the previous images, for each part of the current ones.
    taken: dict[str, list] = {"image": [], "labels": []}
    for each in previous_parts(PreviousTable(before, out, "b" * 16), tables.require_commit(now)):
        assert each is not None
        for name, reusable in (("image", SAME_IMAGE), ("labels", SAME_LABELS)):
            taken[name] += [r["image_id"] for rows in each.rows(reusable, ["image_id"]).values() for r in rows]
    assert taken == {"image": ["a", "c", "d", "g"], "labels": ["a", "g"]}
    made_anew = PreviousTable(before, out, "other" * 16)
    assert set(previous_parts(made_anew, tables.require_commit(now))) == {None}, "its rows are of other images or settings"


def test_without_a_previous_table_every_image_is_new(executor, write, tmp_path) -> None:
    now = write("n", NOW, 2)
    commit = find_changes(now, str(tmp_path / "none"), str(tmp_path / "changes"), "c" * 16, executor)
    assert commit.extra == {"new": 6, "changed": 0, "relabelled": 0, "same": 0, "gone": 0}
    assert previous_parts(
        PreviousTable(str(tmp_path / "none"), str(tmp_path / "changes"), "b" * 16), tables.require_commit(now)
    ) == [
        None,
        None,
    ]


def test_only_overlapping_parts_are_read(write) -> None:
    uri = write("b", BEFORE, 3)
    parts = tables.require_commit(uri).parts
    assert [(p.first, p.last) for p in parts] == [("a", "b"), ("c", "d"), ("e", "g")]
    storage.remove(storage.join(uri, parts[0].name))
    assert [r["image_id"] for r in tables.rows_between(uri, parts, "d", "f")] == ["d", "e"]
