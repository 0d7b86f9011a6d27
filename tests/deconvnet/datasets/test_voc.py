"""Reading VOC's layout: images are used or rejected with a reason, folders and lists refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.voc import VocDataset, list_files, read_row, read_split
from infra import storage
from infra.errors import UserError
from infra.storage.tables import Reject
from proposals.image_codec import decode_image, decode_mask, encode_mask

LIMIT = 10_000_000


def row_of(layout, image_id="a", num_classes=3, max_pixels=LIMIT):
    found = VocDataset(str(layout.root)).find(image_id)
    return found if isinstance(found, Reject) else read_row(str(layout.root), found, "train", num_classes, max_pixels)


def reason_of(layout, *args, **kwargs):
    row = row_of(layout, *args, **kwargs)
    assert isinstance(row, Reject) and row.stage == "prepare" and row.path.startswith(str(layout.root))
    return row.reason


def test_a_usable_image_becomes_a_row_with_the_bytes_of_its_file(layout):
    row = row_of(layout)
    assert (row["image_id"], row["split"], row["width"], row["height"]) == ("a", "train", 60, 40)
    assert row["image"] == (layout.root / "JPEGImages/a.jpg").read_bytes()
    classes, ids = decode_mask(row["class_mask"]), decode_mask(row["object_mask"])
    assert classes.sum() == 600 and np.array_equal(classes, ids)


def test_an_object_mask_is_used_if_there_is_one(layout):
    ids = np.zeros((40, 60), np.uint8)
    ids[10:30, 15:30], ids[10:30, 30:45] = 5, 6
    layout.mask("a", ids, "SegmentationObject")
    assert np.array_equal(decode_mask(row_of(layout)["object_mask"]), ids)


def test_a_mask_without_objects_is_used(layout):
    layout.mask("a", np.zeros((40, 60), np.uint8))
    assert not decode_mask(row_of(layout)["object_mask"]).any()


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".Jpeg", ".png", ".PNG"])
def test_suffixes_may_be_upper_or_lower_case(layout, suffix):
    layout.image("e", suffix=suffix)
    layout.mask("e")
    assert row_of(layout, "e")["width"] == 60


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "I;16"])
def test_images_of_all_colour_modes_are_used(layout, mode):
    if mode == "I;16":
        image = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27)
    else:
        image = Image.fromarray(np.full((40, 60, 3), 120, np.uint8)).convert(mode)
    (layout.root / "JPEGImages/a.jpg").unlink()
    layout.image("a", image, ".jpg" if mode == "CMYK" else ".png")
    row = row_of(layout)
    assert decode_image(row["image"]).shape == (row["height"], row["width"], 3)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_size_and_mask_of_an_image_are_those_displayed_by_exif_orientation(layout, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = orientation in (6, 8)
    layout.image("a", np.zeros((60, 40, 3) if turned else (40, 60, 3), np.uint8), exif=exif)
    row = row_of(layout)
    assert (row["width"], row["height"]) == (60, 40)
    assert decode_image(row["image"]).shape[:2] == (40, 60)
    if turned:
        layout.mask("a", np.zeros((60, 40), np.uint8))  # as stored, not as displayed
        assert "the mask is 40×60, the image 60×40 as displayed" in reason_of(layout)


def test_files_that_are_no_images_are_rejected(layout):
    good = (layout.root / "JPEGImages/a.jpg").read_bytes()
    for content, word in [(b"", "empty"), (b"these are words\n" * 50, "not an image"), (good[: len(good) // 2], "truncated")]:
        layout.image("a", content)
        assert word in reason_of(layout)
    png = encode_mask(np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8))
    layout.image("a", png[: len(png) // 2])
    assert "truncated" in reason_of(layout)


def test_images_that_are_too_small_or_too_large_are_rejected(layout):
    for height in (16, 15):
        layout.image("a", np.zeros((height, 60, 3), np.uint8))
        layout.mask("a", np.zeros((height, 60), np.uint8))
        if height == 16:
            assert row_of(layout)["height"] == 16
    assert "60×15 is too small" in reason_of(layout)
    assert "larger than 2,000 pixels" in reason_of(layout, "b", max_pixels=2000)
    for folder in ("SegmentationObject", "SegmentationClass"):  # a huge mask of a small image is not decoded
        layout.mask("b", np.zeros((41, 60), np.uint8), folder)
        assert reason_of(layout, "b", max_pixels=40 * 60) == "60×41 is larger than 2,400 pixels"


def test_unusable_masks_reject_their_image(layout):
    layout.mask("a", np.zeros((30, 60), np.uint8))
    assert reason_of(layout) == "the mask is 60×30, the image 60×40 as displayed"
    for class_id in (3, 4, 254):
        layout.mask("a", np.full((40, 60), class_id, np.uint8))
        assert f"class id {class_id} in the mask, and the list has 3 classes" in reason_of(layout)
    layout.mask("a", np.full((40, 60), 300, np.uint16))
    assert "class id 300" in reason_of(layout)
    layout.mask("a", b"")
    assert reason_of(layout) == "the file is empty"
    layout.mask("a", (layout.root / "JPEGImages/a.jpg").read_bytes())
    assert "paletted or grey" in reason_of(layout)
    (layout.root / "SegmentationClass/a.png").unlink()
    assert "no mask in SegmentationClass" in reason_of(layout)
    layout.mask("b", np.zeros((40, 50), np.uint8), "SegmentationObject")
    bad = row_of(layout, "b")
    assert bad.path.endswith("SegmentationObject/b.png") and "60×40" in bad.reason


def test_void_and_the_last_class_are_valid_ids(layout):
    mask = np.full((40, 60), 255, np.uint8)
    mask[:5] = 2
    layout.mask("a", mask)
    assert np.array_equal(decode_mask(row_of(layout)["class_mask"]), mask)


def test_lines_of_a_split_that_give_no_image_are_rejected(layout):
    secret = layout.root.parent / "secret.jpg"
    secret.write_bytes((layout.root / "JPEGImages/a.jpg").read_bytes())
    layout.split("train", ["a", "../../secret", "/etc/passwd", "b\\c", "..", "a", "gone", "v", "\x07", "測" * 84, "b", "a"])
    images, rejects = VocDataset(str(layout.root)).split("train", {"v": "val"})
    assert [each.image_id for each in images] == ["a", "b"]
    words = {
        "../../secret": "plain file name",
        "/etc/passwd": "plain file name",
        "b\\c": "plain file name",
        "..": "plain file name",
        "a": "more than once, on 3 lines",
        "gone": "no file of this id",
        "v": "in the split val too",
        "\x07": "unprintable",
        "測" * 84: "longer than 250 bytes",
    }
    assert sorted(r.image_id for r in rejects) == sorted(words)
    for reject in rejects:
        assert words[reject.image_id] in reject.reason


@pytest.mark.parametrize("folder", ["JPEGImages", "SegmentationClass", "SegmentationObject"])
def test_an_image_of_which_a_file_is_a_link_to_nothing_is_rejected(layout, folder):
    """Also if it is the object mask, which may be missing: objects must not be made up from the class mask."""
    name = "a.jpg" if folder == "JPEGImages" else "a.png"
    (layout.root / folder).mkdir(exist_ok=True)
    (layout.root / folder / name).unlink(missing_ok=True)
    (layout.root / folder / name).symlink_to(layout.root / "not fetched")
    files = VocDataset(str(layout.root)).find("a")
    reject = read_row(str(layout.root), files, "train", 3, 10**6)
    assert reject.path.endswith(f"{folder}/{name}") and "a broken link" in reject.reason
    assert "a" not in list_files(str(layout.root), folder)


@pytest.mark.parametrize("forbidden", ["a.jpg", "a.png"])
def test_an_image_of_which_a_file_may_not_be_read_is_rejected(layout, monkeypatch, forbidden):
    files, read_bytes = VocDataset(str(layout.root)).find("a"), storage.read_bytes

    def refuse(uri):
        if uri.endswith(forbidden):
            raise PermissionError(13, "Permission denied")
        return read_bytes(uri)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    reject = read_row(str(layout.root), files, "train", 3, LIMIT)
    assert reject.reason == "no permission to read the file" and reject.path.endswith(f"/{forbidden}")


def test_if_an_id_has_several_files_the_jpeg_is_used(layout):
    layout.image("a", suffix=".png")
    assert VocDataset(str(layout.root)).find("a").image.name == "JPEGImages/a.jpg"


def test_split_files_may_have_blanks_windows_line_ends_and_a_byte_order_mark(layout):
    (layout.root / "ImageSets/Segmentation/odd.txt").write_bytes(b"\xef\xbb\xbfa\r\n\r\n  b \r\n")
    assert read_split(str(layout.root), "odd") == ["a", "b"]


def test_missing_or_empty_folders_and_splits_are_refused(layout, tmp_path):
    with pytest.raises(UserError, match=r"no data folder .*nowhere"):
        VocDataset(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"JPEGImages is missing or empty"):
        VocDataset(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"no split file .*test\.txt"):
        read_split(str(layout.root), "test")
    layout.split("none", [])
    with pytest.raises(UserError, match="lists no id"):
        read_split(str(layout.root), "none")
    (layout.root / "ImageSets/Segmentation/bin.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="not text"):
        read_split(str(layout.root), "bin")


LARGE = """
import re, sys
from pathlib import Path
from deconvnet.datasets.voc import VocDataset, read_row
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
dataset = VocDataset(sys.argv[1])
before = peak()
row = read_row(sys.argv[1], dataset.find("large"), "train", 3, 100_000_000)
print(row["width"], row["height"], peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_an_image_of_4000_by_3000_is_read_in_bounded_memory(layout):
    layout.image("large", np.full((3000, 4000, 3), 90, np.uint8))
    mask = np.zeros((3000, 4000), np.uint8)
    mask[50:2500, 50:3500] = 1
    mask[2750:, 3750:] = 2
    encoded = encode_mask(mask)
    layout.mask("large", encoded)
    layout.mask("large", encoded, "SegmentationObject")
    done = subprocess.run([sys.executable, "-c", LARGE, str(layout.root)], capture_output=True, text=True, check=True)
    width, height, megabytes = map(int, done.stdout.split())
    assert (width, height) == (4000, 3000)
    assert megabytes < 200  # 175; a second copy of the image would take 36 more
