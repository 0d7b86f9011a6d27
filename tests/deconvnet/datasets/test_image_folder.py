"""Which files of a folder are images, and which of them would have masks of one name."""

from pathlib import Path

import pytest

from deconvnet.datasets.image_folder import list_folder
from infra.errors import UserError


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_images_are_found_in_all_folders_by_suffix_in_any_case(tmp_path: Path) -> None:
    make(tmp_path, "z.jpg", "b/c/d.TIFF", "b/e.WebP", "b/a.b.png", "x.txt", ".h.jpg", ".cache/y.jpg", "b/._e.webp")
    make(tmp_path, "out/m.png", "out2/n.png")
    found = list_folder(str(tmp_path), exclude=str(tmp_path / "out")).images
    assert [p.name for p in found] == ["b/a.b.png", "b/c/d.TIFF", "b/e.WebP", "out2/n.png", "z.jpg"]
    assert [p.stem for p in found] == ["b/a.b", "b/c/d", "b/e", "out2/n", "z"]
    assert not any(p.refused for p in found)


def test_a_stamp_changes_when_its_file_does(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    before = {p.name: p.stamp for p in list_folder(str(tmp_path)).images}
    (tmp_path / "a.jpg").write_bytes(b"xy")
    after = {p.name: p.stamp for p in list_folder(str(tmp_path)).images}
    assert after["a.jpg"] != before["a.jpg"] and after["b.jpg"] == before["b.jpg"]


def test_of_images_whose_masks_would_have_one_name_all_but_one_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.bmp", "a.JPG", "a.png", "b/a.png", "c.jpg", "c.JPG")
    found = {p.name: p.refused for p in list_folder(str(tmp_path)).images}
    assert [name for name, refused in found.items() if not refused] == ["a.JPG", "b/a.png", "c.JPG"]
    assert found["a.bmp"] == found["a.png"] == "its mask would have the same name as that of a.JPG: rename one of them"


def test_images_whose_names_leave_no_room_for_other_suffixes_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "x" * 250 + ".tiff", "x" * 251 + ".png", "測" * 83 + ".png", "測" * 83 + "xx/a.png")
    found = {p.name: p.refused for p in list_folder(str(tmp_path)).images}
    assert [name for name, refused in found.items() if not refused] == ["x" * 250 + ".tiff", "測" * 83 + ".png"]
    assert set(found.values()) == {"", "its name without suffix, or that of a folder, is longer than 250 bytes: shorten it"}


def test_links_to_nothing_are_refused_and_a_link_to_a_folder_above_lists_nothing_twice(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b/c.jpg", "out/m.png")
    for link, target in (("a.jpg", "gone.jpg"), ("b/up", ".."), ("b/d.png", "c.jpg"), (".git", "gone"), ("note", "gone")):
        (tmp_path / link).symlink_to(target)
    found = list_folder(str(tmp_path), exclude=str(tmp_path / "out"))
    assert {p.name: p.refused for p in found.images} == {
        "a.jpg": "it is a broken link: was the file fetched (dvc pull, git annex get)?",
        "a.png": "",
        "b/c.jpg": "",
        "b/d.png": "",
    }
    assert found.other_files == ["note"]
    before = {p.name: p.stamp for p in found.images}
    make(tmp_path, "gone.jpg")
    after = {p.name: p for p in list_folder(str(tmp_path), exclude=str(tmp_path / "out")).images}
    assert after["a.jpg"].stamp != before["a.jpg"] and not after["a.jpg"].refused


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="holds no image"):
        list_folder(str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        list_folder(str(tmp_path / "absent"))


def test_files_passed_over_are_counted_and_named(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b/x.HEIC", "c.jp2", "d.jfif", "e.heic", ".DS_Store", "README", "out/m.txt")
    found = list_folder(str(tmp_path), exclude=str(tmp_path / "out"))
    assert found.other_files == ["README", "b/x.HEIC", "c.jp2", "d.jfif", "e.heic"]
    assert found.other_files_text.startswith("skipped 5 files whose suffix is not that of an image (2 .heic, ")
    assert found.other_files_text.endswith("): README, b/x.HEIC, c.jp2, d.jfif, e.heic")
    make(tmp_path, *(f"more/{i:02d}.raw" for i in range(30)))
    assert list_folder(str(tmp_path)).other_files_text.endswith(", …")


def test_a_folder_of_other_files_alone_names_them(tmp_path: Path) -> None:
    make(tmp_path, "a.heic", "b.heic")
    with pytest.raises(UserError, match=r"holds no image .*skipped 2 files .*\(2 .heic\): a.heic, b.heic"):
        list_folder(str(tmp_path))
    (tmp_path / "c.jpg").write_bytes(b"x")
    (tmp_path / "a.heic").unlink()
    (tmp_path / "b.heic").unlink()
    assert list_folder(str(tmp_path)).other_files_text == ""
