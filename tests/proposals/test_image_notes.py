"""What the summaries of an `images` table's parts say about its images."""

from collections.abc import Callable

import pytest

from infra.storage import tables
from proposals import schemas
from proposals.image_notes import (
    count_changes,
    labels_key,
    note_of_reject,
    note_of_row,
    pixels_key,
    read_notes,
    usable_notes,
)

Row = dict


def row(image_id: str, image: bytes = b"i", mask: bytes | None = b"m", split: str = "train") -> Row:
    size = {"width": 1, "height": 1}
    return {"image_id": image_id, "split": split, **size, "image": image, "class_mask": mask, "object_mask": mask}


BEFORE = [row("a"), row("b"), row("c"), row("d"), row("e"), row("g")]
NOW = [row("a"), row("b", image=b"other"), row("c", mask=b"other"), row("d", split="dev"), row("f"), row("g")]


@pytest.fixture
def write(tmp_path) -> Callable[[str, list[Row], int], tables.Commit]:
    def made(name: str, rows: list[Row], parts: int) -> tables.Commit:
        uri = str(tmp_path / name)
        pieces = [[rows[j] for j in piece] for piece in tables.chunks(len(rows), -(-len(rows) // parts))]
        given = [[*piece, *map(note_of_row, piece)] for piece in pieces]
        found = [tables.write_part(uri, name * 16, i, piece, schemas.IMAGES) for i, piece in enumerate(given)]
        return tables.commit(uri, name * 16, found)

    return made


def test_a_note_is_the_text_that_workspaces_have() -> None:
    """With another text, all images of a workspace would count as changed, and its stages would run again."""
    assert note_of_row(row("a", mask=b"m"), "77aa").text == "77aa 7272e9166ea89d2c 54b9d53ef888f1d8 train a"


@pytest.mark.parametrize(("before_parts", "parts"), [(1, 3), (3, 2), (6, 1)])
@pytest.mark.parametrize("order", [1, -1])
def test_changes_do_not_depend_on_the_parts_or_their_order(write, before_parts: int, parts: int, order: int) -> None:
    before, now = write("b", BEFORE, before_parts), write("n", NOW[::order], parts)
    assert count_changes(now, before) == {"new": 1, "changed": 1, "relabelled": 2, "same": 2, "gone": 1}
    assert count_changes(now, None) == {"new": 6, "changed": 0, "relabelled": 0, "same": 0, "gone": 0}
    assert count_changes(now, now)["same"] == 6


@pytest.mark.parametrize(
    ("column", "change"),
    [("image", "changed"), ("split", "relabelled"), ("class_mask", "relabelled"), ("object_mask", "relabelled")],
)
def test_another_value_of_a_single_column_is_found_and_gives_parts_other_keys(write, column: str, change: str) -> None:
    old = write("a", [row("a")], 1)
    for value in (b"other", *([None, b""] if "mask" in column else [])):
        new = write("b", [row("a") | {column: value if column != "split" else "dev"}], 1)
        for one, other in ((old, new), (new, old)):
            assert count_changes(one, other)[change] == 1
        assert labels_key(old.parts[0]) != labels_key(new.parts[0])
        assert (pixels_key(old.parts[0]) != pixels_key(new.parts[0])) == (column == "image")


@pytest.mark.parametrize("column", ["image", "class_mask", "object_mask"])
def test_other_bytes_of_the_same_number_are_found(write, column: str) -> None:
    one, other = write("a", [row("a")], 1), write("b", [row("a") | {column: b"x"}], 1)
    assert count_changes(one, other)["same"] == 0


@pytest.mark.parametrize("masks", [((b"ab", b"c"), (b"a", b"bc")), ((b"a+b", b"c"), (b"a", b"b+c"))])
def test_bytes_that_move_from_one_mask_to_the_other_are_found(write, masks) -> None:
    rows = [row("a") | {"class_mask": classes, "object_mask": objects} for classes, objects in masks]
    made = [write(name, [each], 1) for name, each in zip("ab", rows, strict=True)]
    assert count_changes(*made)["relabelled"] == 1


@pytest.mark.parametrize("image_id", ["a", "a b", "ä-1.2", " - "])
def test_any_id_is_read_back_and_a_reject_has_no_row(tmp_path, image_id: str) -> None:
    rows = [row(image_id), note_of_row(row(image_id), "stamp"), note_of_reject(f"{image_id}?", "val", "other")]
    part = tables.write_part(str(tmp_path), "f", 0, rows, schemas.IMAGES)
    usable, reject = read_notes(part)
    assert (usable.image_id, usable.split, usable.stamp, usable.usable) == (image_id, "train", "stamp", True)
    assert (reject.image_id, reject.split, reject.stamp, reject.usable) == (f"{image_id}?", "val", "other", False)
    assert [note.image_id for note in usable_notes(tables.commit(str(tmp_path), "f", [part]))] == [image_id]


def test_a_reject_changes_no_key_of_a_part_with_rows(tmp_path) -> None:
    rows = [row("a"), note_of_row(row("a"))]
    made = [
        tables.write_part(str(tmp_path), "f", i, [*rows, *more], schemas.IMAGES)
        for i, more in enumerate(([], [note_of_reject("b", "train", "s")]))
    ]
    for key in (pixels_key, labels_key):
        assert key(made[0]) == key(made[1])


def test_parts_without_rows_or_notes_have_different_keys(tmp_path) -> None:
    contents = (
        [note_of_reject("a", "val", "s")],
        [note_of_reject("b", "val", "s")],
        [row("a")],
        [row("b")],
        [row("a", mask=None)],
    )
    parts = [tables.write_part(str(tmp_path), "f", i, content, schemas.IMAGES) for i, content in enumerate(contents)]
    for key in (pixels_key, labels_key):
        assert len({key(part) for part in parts}) == len(parts)
