"""Writing VOC's layout: complete or not at all, with what was not imported listed."""

import csv

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotatedImage, LostAnnotation
from deconvnet.datasets.writing.new_folder import new_folder
from deconvnet.datasets.writing.voc_writer import write_voc_layout
from infra.errors import BadInput, Interrupted, UserError
from infra.storage import read_json
from infra.storage.lock import Lock, Locked
from proposals.image_codec import decode_mask


def loader(fault=""):
    """A function that loads a small annotated image, or fails with this reason."""

    def load():
        if fault:
            raise BadInput(fault)
        mask = np.zeros((20, 30), np.uint8)
        mask[5:9] = 1
        losses = (LostAnnotation("shape 1", "cat", "is a crowd, which becomes void", "--crowd object"),)
        return AnnotatedImage(
            b"image",
            ".jpg",
            mask,
            mask,
            overlap_pixels=6,
            hidden_objects=1,
            annotations=10,
            lost_annotations=losses,
            remark="is grey",
        )

    return load


def make_dataset(faulty=()):
    """Ten images p0 to p9; those whose numbers are in `faulty` can't be loaded."""
    dataset = AnnotatedDataset(("background", "cat"))
    for i in range(10):
        dataset.add(f"p{i}.jpg", f"/src/p{i}.json", None, loader(f"it has {i} faults" if i in faulty else ""))
    return dataset


def write(dataset, val, folder, max_rejects, origin=None, max_void=0.1):
    """Write the data set with these images in val and the others in train."""
    splits = {f"p{i}": "val" if i in val else "train" for i in range(10)}
    return write_voc_layout(dataset, splits, folder, max_rejects=max_rejects, max_void=max_void, threads=2, origin=origin or {})


def test_the_layout_has_lists_images_masks_rejects_and_counts(tmp_path):
    summary = write(make_dataset(faulty=(3,)), (8, 9), tmp_path, 0.1, {"from": "test"})
    assert (tmp_path / "ImageSets/Segmentation/train.txt").read_text().split() == ["p0", "p1", "p2", "p4", "p5", "p6", "p7"]
    assert (tmp_path / "ImageSets/Segmentation/val.txt").read_text() == "p8\np9\n"
    assert len((tmp_path / "ImageSets/Segmentation/trainval.txt").read_text().split()) == 9
    assert (tmp_path / "classes.txt").read_text() == "background\ncat\n"
    assert (tmp_path / "JPEGImages/p0.jpg").read_bytes() == b"image"
    mask = Image.open(tmp_path / "SegmentationClass/p0.png")
    assert mask.mode == "P" and mask.getpalette()[3:6] == [128, 0, 0]
    assert decode_mask((tmp_path / "SegmentationObject/p0.png").read_bytes()).sum() == 120
    rows = list(csv.reader((tmp_path / "rejects.csv").open()))
    assert rows[1] == ["image", "p3", "/src/p3.json", "it has 3 faults"] and len(rows) == 11
    assert len(summary.rejects) == 1 and len(summary.lost_annotations) == 9
    assert rows[2] == ["annotation", "p0", "/src/p0.json", "shape 1 (cat) is a crowd, which becomes void"]
    content = read_json(str(tmp_path / "import.json"))
    assert content["annotations"] == 90 and content["notes"] == ["9× an image is grey"]
    assert content["losses"] == [{"class": "cat", "reason": "is a crowd, which becomes void", "annotations": 9}]
    assert content["from"] == "test" and content["images"] == {"train": 7, "val": 2}
    assert content["overlaps"] == {"images": 9, "share_of_pixels": 0.01, "hidden_objects": 9}


def test_object_masks_of_16_bits_come_back(tmp_path):
    objects = np.arange(600, dtype=np.uint16).reshape(20, 30)
    dataset = AnnotatedDataset(("background", "cat"))
    for i in range(3):
        dataset.add(f"p{i}.jpg", "", None, lambda: AnnotatedImage(b"image", ".jpg", np.ones((20, 30), np.uint8), objects))
    write(dataset, (2,), tmp_path, 0)
    np.testing.assert_array_equal(decode_mask((tmp_path / "SegmentationObject/p0.png").read_bytes()), objects)


def test_too_many_rejects_stop_the_import_with_the_reasons(tmp_path):
    words = r"2 of 10 images can't be used \(2× it has 3 faults; the first is /src/p3.json\), and max_rejects allows 10%"
    with pytest.raises(UserError, match=words):
        write(make_dataset(faulty=(3, 5)), (9,), tmp_path, 0.1)


def test_files_that_the_reader_rejected_count_among_the_rejects(tmp_path):
    dataset = make_dataset(faulty=())
    for name in ("x", "y"):
        dataset.reject(name, f"/src/{name}.json", "not JSON")
    (tmp_path / "refused").mkdir()
    with pytest.raises(UserError, match=r"2 of 12 images can't be used \(2× not JSON.*max_rejects allows 10%"):
        write(dataset, (9,), tmp_path / "refused", 0.1)
    write(dataset, (9,), tmp_path, 0.17)  # 2 of 10 would be too many


def test_too_many_annotations_that_become_no_objects_stop_the_import_and_the_options_are_named(tmp_path):
    words = (
        r"10 of 100 annotations don't become objects \(10× cat is a crowd, which becomes void\), and max_void allows 9%: .*"
        r"give --crowd object, .*--classes, or raise --max_void"
    )
    with pytest.raises(UserError, match=words):
        write(make_dataset(), (9,), tmp_path, 0.1, max_void=0.09)


def test_annotations_of_no_image_count_as_lost(tmp_path):
    dataset = make_dataset()
    dataset.lost_annotations += [
        ("image 99", "/src/c.json", LostAnnotation("annotation 7", "cat", "is of an image that is not listed"))
    ] * 2
    summary = write(dataset, (9,), tmp_path, 0.1, max_void=0.2)
    assert summary.count_lost()[1] == ("cat", "is of an image that is not listed", 2)
    rows = list(csv.reader((tmp_path / "rejects.csv").open()))
    assert rows.count(["annotation", "image 99", "/src/c.json", "annotation 7 (cat) is of an image that is not listed"]) == 2
    content = read_json(str(tmp_path / "import.json"))
    assert content["annotations"] == 102 and content["losses"][1]["annotations"] == 2
    (tmp_path / "again").mkdir()
    with pytest.raises(
        UserError, match=r"12 of 102 annotations .*2× cat is of an image that is not listed\), and max_void allows 11%"
    ):
        write(dataset, (9,), tmp_path / "again", 0.1, max_void=0.11)


def test_a_split_without_usable_images_stops_the_import(tmp_path):
    with pytest.raises(UserError, match="val has 0 images, and at least 1"):
        write(make_dataset(faulty=(9,)), (9,), tmp_path, 0.5)


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(ZeroDivisionError), new_folder(folder) as temporary:
        (temporary / "half").write_text("")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".new.importing").mkdir()  # left behind by an import that was killed
    (tmp_path / ".new.importing/old").write_text("")
    folder.mkdir()
    with new_folder(folder) as temporary:
        (temporary / "made").write_text("")
        assert not list(folder.iterdir())
    assert [p.name for p in folder.iterdir()] == ["made"] and [p.name for p in tmp_path.iterdir()] == ["new"]
    with pytest.raises(UserError, match="exists and is not empty"), new_folder(folder):
        pass
    assert [p.name for p in folder.iterdir()] == ["made"]


def test_a_folder_does_not_appear_if_its_lock_was_lost_and_what_another_import_may_use_stays(tmp_path, monkeypatch):
    with pytest.raises(Interrupted, match="was not renewed in time"), new_folder(tmp_path / "new"):
        monkeypatch.setattr(Lock, "lost", True)
    assert {p.name for p in tmp_path.iterdir()} == {".new.importing", ".new.lock"}


def test_two_imports_into_one_folder_do_not_mix(tmp_path):
    """They had one temporary folder: the second emptied it, and what appeared was made of both."""
    with new_folder(tmp_path / "new") as temporary:
        (temporary / "one").write_text("")
        with (
            pytest.raises(Locked, match=r"import_data\.py \(process .*\) has held the lock"),
            new_folder(tmp_path / "new") as other,
        ):
            (other / "two").write_text("")
        with new_folder(tmp_path / "beside") as other:
            (other / "two").write_text("")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["beside", "beside/two", "new", "new/one"]
