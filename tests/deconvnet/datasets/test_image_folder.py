"""Which files of a folder are photographs, and which of them would share a mask."""

from pathlib import Path

import pytest

from deconvnet.datasets.image_folder import list_image_files
from infra.errors import UserError


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_photographs_are_found_below_by_any_suffix_in_any_case(tmp_path: Path) -> None:
    make(tmp_path, "z.jpg", "b/c/d.TIFF", "b/e.WebP", "b/a.b.png", "x.txt", ".h.jpg", ".cache/y.jpg", "b/._e.webp", "out/m.png")
    found = list_image_files(str(tmp_path), leave_out=str(tmp_path / "out"))
    assert [p.name for p in found] == ["b/a.b.png", "b/c/d.TIFF", "b/e.WebP", "z.jpg"]
    assert [p.stem for p in found] == ["b/a.b", "b/c/d", "b/e", "z"]
    assert not any(p.refused for p in found)


def test_a_stamp_tells_a_changed_file(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    before = {p.name: p.stamp for p in list_image_files(str(tmp_path))}
    (tmp_path / "a.jpg").write_bytes(b"xy")
    after = {p.name: p.stamp for p in list_image_files(str(tmp_path))}
    assert after["a.jpg"] != before["a.jpg"] and after["b.jpg"] == before["b.jpg"]


def test_of_those_that_share_a_mask_one_is_taken_by_suffix_then_name(tmp_path: Path) -> None:
    make(tmp_path, "a.bmp", "a.JPG", "a.png", "b/a.png", "c.jpg", "c.JPG")
    found = {p.name: p.refused for p in list_image_files(str(tmp_path))}
    assert [name for name, refused in found.items() if not refused] == ["a.JPG", "b/a.png", "c.JPG"]
    assert found["a.bmp"] == found["a.png"] == "its mask would be that of a.JPG: rename one of them"


def test_nothing_there_is_a_sentence(tmp_path: Path) -> None:
    make(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="holds no photograph"):
        list_image_files(str(tmp_path))
    with pytest.raises(UserError, match="is not there"):
        list_image_files(str(tmp_path / "absent"))
