"""Adding images to a data set: which are new, which get other masks, and what an interrupted addition leaves."""

import csv
import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets import voc
from deconvnet.datasets.importing.dataset import AnnotatedImage, LostAnnotation
from deconvnet.datasets.importing.images import as_layout_file
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.datasets.writing.addition import Addition, check_same_classes, temporary_folder
from deconvnet.datasets.writing.voc_writer import ImportSummary
from infra import storage
from infra.errors import Interrupted, UserError
from infra.storage.lock import Lock, Locked
from infra.storage.tables import Reject
from proposals.image_codec import decode_mask, encode_mask

SHAPE = (40, 60)


def mask_of(*boxes: tuple[int, int, int], shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """A mask with 8×12 px rectangles, each given by its top, its left and its id."""
    mask = np.zeros(shape, np.uint8)
    for top, left, value in boxes:
        mask[top : top + 8, left : left + 12] = value
    return mask


def bmp_of(pixels: np.ndarray) -> bytes:
    """An image as BMP."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


TWO_CATS = AnnotatedImage(b"new", ".jpg", mask_of((2, 3, 1), (20, 30, 1)), mask_of((2, 3, 1), (20, 30, 2)))


def corrected(
    layout, image_id: str, class_mask: np.ndarray | None = None, object_mask: np.ndarray | None = None
) -> AnnotatedImage:
    """An image of the data set with these masks; without any, with the class mask that it has."""
    root = layout.root
    if class_mask is None:
        class_mask = decode_mask((root / f"SegmentationClass/{image_id}.png").read_bytes())
    return AnnotatedImage((root / f"JPEGImages/{image_id}.jpg").read_bytes(), ".jpg", class_mask, object_mask)


def add(root: Path, images: dict[str, AnnotatedImage], summary: ImportSummary | None = None, **splits: str) -> Addition:
    """Add images to a data set, to train unless `splits` says val."""
    addition = Addition(root)
    with temporary_folder(root) as (temporary, lock):
        for image_id, image in images.items():
            addition.compare(image_id, image, temporary)
        addition.check_refused()
        addition.apply(
            temporary, {image_id: splits.get(image_id, "train") for image_id in images}, summary or ImportSummary({}), lock
        )
    return addition


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def read(root: Path, folder: str, image_id: str) -> np.ndarray:
    return decode_mask((root / folder / f"{image_id}.png").read_bytes())


def test_new_images_are_added_with_their_masks_to_the_lists(layout):
    layout.split("trainval", ["a", "b", "c", "d", "v", "w"])
    before = tree(layout.root)
    (layout.root / ".adding/JPEGImages").mkdir(parents=True)  # of a run that was killed
    (layout.root / ".adding/JPEGImages/old.jpg").write_bytes(b"old")
    many = replace(TWO_CATS, object_mask=TWO_CATS.object_mask.astype(np.uint16) * 300)
    added = add(layout.root, {"x": many, "y": TWO_CATS}, y="val")
    assert added.outcomes == {"x": "added", "y": "added"}
    assert voc.read_split(str(layout.root), "train") == ["a", "b", "c", "d", "x"]
    assert voc.read_split(str(layout.root), "val") == ["v", "w", "y"]
    assert voc.read_split(str(layout.root), "trainval") == ["a", "b", "c", "d", "v", "w", "x", "y"]
    after = tree(layout.root)
    assert after["JPEGImages/x.jpg"] == b"new" and "JPEGImages/old.jpg" not in after
    assert np.array_equal(read(layout.root, "SegmentationObject", "y"), TWO_CATS.object_mask)
    assert np.array_equal(read(layout.root, "SegmentationObject", "x"), many.object_mask)
    assert {name for name, content in before.items() if after[name] != content} == {
        f"ImageSets/Segmentation/{split}.txt" for split in ("train", "val", "trainval")
    }
    assert {name.split("/")[0] for name in after} == {*voc.FOLDERS, "ImageSets"}


def test_masks_of_known_images_are_replaced_and_the_images_keep_their_splits(layout):
    layout.split("test", ["t"])
    layout.annotated_image("t")
    layout.mask("a", mask_of((10, 15, 1)), "SegmentationObject")
    before = tree(layout.root)
    more = mask_of((2, 3, 1), (20, 30, 2))
    images = {image_id: corrected(layout, image_id, more, more) for image_id in ("a", "v", "t")} | {"b": corrected(layout, "b")}
    added = add(layout.root, images, a="val")
    assert added.outcomes == dict.fromkeys("avt", "replaced") | {"b": "unchanged"}
    assert added.describe(dict.fromkeys(images, "train")) == "added: 0; masks replaced: 3; unchanged: 1; refused: 0"
    after = tree(layout.root)
    changed = {name for name, content in after.items() if before.get(name) != content}
    assert changed == {f"{folder}/{each}.png" for folder in voc.FOLDERS[1:] for each in "avt"}
    assert np.array_equal(read(layout.root, "SegmentationObject", "a"), more)


def test_the_same_masks_in_another_encoding_are_unchanged_and_not_written(layout):
    path = layout.root / "SegmentationClass/a.png"
    before, image = path.stat(), corrected(layout, "a")
    assert path.read_bytes() != encode_mask(image.class_mask, VOC_PALETTE)
    assert add(layout.root, {"a": image}).outcomes == {"a": "unchanged"}
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino


def test_objects_are_forgotten_only_where_the_class_mask_changes_without_new_objects(layout):
    for image_id in "ab":
        layout.mask(image_id, mask_of((10, 15, 1), (2, 3, 2)), "SegmentationObject")
    add(layout.root, {"a": corrected(layout, "a", mask_of((2, 3, 1))), "b": corrected(layout, "b")})
    assert not (layout.root / "SegmentationObject/a.png").exists() and (layout.root / "SegmentationObject/b.png").exists()


def test_other_images_of_the_same_names_are_all_named_and_nothing_is_written(layout):
    before = tree(layout.root)
    with pytest.raises(UserError, match=r"2 new images have the names of different images in .*: b, v\. .*Nothing was written"):
        add(layout.root, {"b": TWO_CATS, "v": TWO_CATS, "x": TWO_CATS, "a": corrected(layout, "a", mask_of((1, 1, 1)))})
    assert tree(layout.root) == before


def test_images_converted_to_png_are_the_same_however_they_were_compressed(layout):
    """As after an upgrade of Pillow or zlib. The file of the image stays as it is."""
    pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    layout.image("a", pixels, ".png", compress_level=9)
    (layout.root / "JPEGImages/a.jpg").unlink()
    before = (layout.root / "JPEGImages/a.png").read_bytes()
    image, suffix = as_layout_file(bmp_of(pixels), "a.bmp")
    assert suffix == ".png" and image != before
    mask = mask_of((2, 3, 1), (20, 30, 2))
    assert add(layout.root, {"a": AnnotatedImage(image, suffix, mask)}).outcomes == {"a": "replaced"}
    assert (layout.root / "JPEGImages/a.png").read_bytes() == before and (
        read(layout.root, "SegmentationClass", "a") == mask
    ).all()
    pixels[7, 9, 1] ^= 1
    for other in (as_layout_file(bmp_of(pixels), "a.bmp")[0], b"no image"):
        with pytest.raises(UserError, match="names of different images"):
            add(layout.root, {"a": AnnotatedImage(other, suffix, mask)})


@pytest.mark.parametrize("name", ["copy_file", "write_bytes", "remove"])
def test_an_interrupted_addition_is_completed_by_the_next(layout, tmp_path, monkeypatch, name):
    """It breaks off at each file that is written or removed, and leaves no image in a list without its files."""
    layout.split("trainval", ["a", "b", "c", "d", "v", "w"])
    layout.mask("b", mask_of((10, 15, 1)), "SegmentationObject")
    images = {"x": TWO_CATS, "y": TWO_CATS, "a": corrected(layout, "a", mask_of((2, 3, 1)), mask_of((2, 3, 5)))}
    images["b"] = corrected(layout, "b", mask_of((3, 3, 1)))
    summary = ImportSummary({}, [Reject("z", "z.json", "import", "gone")])
    start = tree(layout.root)
    original = getattr(storage, name)

    def run(fail_at: int) -> bool:
        """Start from the beginning, break off at the n-th call, and return whether there was such a call."""
        calls = iter(range(100))

        def broken(*arguments, **named):
            if next(calls) == fail_at:
                raise KeyboardInterrupt
            return original(*arguments, **named)

        for path in tree(layout.root):
            (layout.root / path).unlink()
        for path, content in start.items():
            (layout.root / path).write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr(storage, name, broken)
            try:
                add(layout.root, images, summary, y="val")
            except KeyboardInterrupt:
                return True
        return False

    assert not run(100)
    whole = tree(layout.root)
    breaks = 0
    while run(breaks):
        left = tree(layout.root)
        for split in ("train", "val"):
            for image_id in voc.read_split(str(layout.root), split):
                assert {f"JPEGImages/{image_id}.jpg", f"SegmentationClass/{image_id}.png"} <= left.keys()
        add(layout.root, images, summary, y="val")
        assert tree(layout.root) == whole
        breaks += 1
    assert breaks >= 2


@pytest.mark.parametrize("last", range(6))
def test_an_addition_that_has_lost_its_lock_changes_nothing_more(layout, monkeypatch, last):
    """Six times: before it removes an object mask, before it copies each of four files, and before it changes the lists."""
    layout.mask("b", mask_of((10, 15, 1)), "SegmentationObject")
    images = {"x": TWO_CATS, "b": corrected(layout, "b", mask_of((3, 3, 1)))}
    changed = []
    addition = Addition(layout.root)
    with pytest.raises(Interrupted), temporary_folder(layout.root) as (temporary, lock):
        for image_id, image in images.items():
            addition.compare(image_id, image, temporary)

        def noting(act, *given):
            act(*given)
            changed.append(given)
            monkeypatch.setattr(Lock, "lost", len(changed) >= last)

        for name in ("remove", "copy_file", "write_bytes"):
            monkeypatch.setattr(storage, name, partial(noting, getattr(storage, name)))
        monkeypatch.setattr(Lock, "lost", last == 0)
        addition.apply(temporary, dict.fromkeys(images, "train"), ImportSummary({}), lock)
    assert len(changed) == last


def test_what_was_not_imported_is_appended_to_the_list_once(layout):
    loss = LostAnnotation("shape 1", "cat", "covers no pixel")
    for _ in range(2):
        add(
            layout.root,
            {"x": TWO_CATS},
            ImportSummary({}, [Reject("z", "z.json", "import", "no, gone")], [("x", "x.json", loss)]),
        )
    rows = list(csv.reader((layout.root / "rejects.csv").open()))
    assert rows[1:] == [["image", "z", "z.json", "no, gone"], ["annotation", "x", "x.json", "shape 1 (cat) covers no pixel"]]


@pytest.mark.parametrize("name", ["rejects.csv", "ImageSets/Segmentation/trainval.txt"])
def test_lists_that_can_not_be_read_are_refused_before_anything_is_changed(layout, name):
    """A spreadsheet program has saved them."""
    (layout.root / name).write_bytes("what,id,file,reason\nimage,größe,größe.json,gone\n".encode("cp1252"))
    before = tree(layout.root)
    with pytest.raises(UserError, match=name):
        add(layout.root, {"x": TWO_CATS, "a": corrected(layout, "a", mask_of((2, 3, 1)))}, ImportSummary({}))
    assert tree(layout.root) == before


def test_rejects_with_a_byte_order_mark_are_kept_and_an_empty_trainval_is_filled(layout):
    (layout.root / "rejects.csv").write_text("what,id,file,reason\nimage,größe,größe.json,gone\n", "utf-8-sig")
    layout.split("trainval", [])
    add(layout.root, {"x": TWO_CATS}, ImportSummary({}, [Reject("z", "z.json", "import", "gone")]), x="val")
    with (layout.root / "rejects.csv").open(encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["what", "id", "file", "reason"],
            ["image", "größe", "größe.json", "gone"],
            ["image", "z", "z.json", "gone"],
        ]
    lists = {split: voc.read_split(str(layout.root), split) for split in ("train", "val", "trainval")}
    assert lists == {"train": ["a", "b", "c", "d"], "val": ["v", "w", "x"], "trainval": ["x"]}


def test_only_one_addition_at_a_time(layout):
    with temporary_folder(layout.root), pytest.raises(Locked, match=r"import_data\.py"):
        add(layout.root, {"x": TWO_CATS})
    assert not (layout.root / "JPEGImages/x.jpg").exists()


@pytest.mark.parametrize(
    ("found", "known", "same"),
    [
        (("background", "dog", "cat"), ("background", "dog", "cat"), True),
        (("background", "dog", "cat"), ("_background_", "dog", "cat"), True),
        (("background", "dog", "cat"), ("background", "cat", "dog"), False),
        (("background", "dog"), ("background", "dog", "cat"), False),
        (("background", "sky"), ("sky", "road"), False),
    ],
)
def test_the_classes_must_be_the_same_in_the_same_order(found, known, same):
    if same:
        check_same_classes(found, known, Path("/d"))
        return
    with pytest.raises(UserError, match=r"the annotations have the classes .* and /d has .* same order"):
        check_same_classes(found, known, Path("/d"))
