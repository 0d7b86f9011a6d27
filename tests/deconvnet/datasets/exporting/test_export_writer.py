"""Exports of many images: what can't be exported is named with its reason, and nothing else of it is written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.exporting import ExportOptions, get_format
from deconvnet.datasets.exporting.export_writer import write_export
from deconvnet.datasets.formats import get_format as get_reader
from deconvnet.datasets.images_table import prepare_images
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from deconvnet.datasets.writing.new_folder import new_folder
from deconvnet.datasets.writing.voc_writer import write_voc_layout
from deconvnet.settings import DataSettings
from infra.runtime.local_executor import LocalExecutor
from infra.storage.tables import Reject
from proposals.image_notes import count_changes
from tests.deconvnet.datasets.exporting.scenes import CLASSES, export, scene_mask, write_prediction

RULES = ExportOptions(CLASSES)


def test_images_that_cannot_be_exported_are_listed_with_the_reason(tmp_path):
    mask = scene_mask()
    good, gone, other = (write_prediction(tmp_path, f"{name}.jpg", mask) for name in ("good", "gone", "other"))
    Path(gone.mask).unlink()
    Image.fromarray(np.zeros(mask.shape, np.uint8)).save(other.mask)
    strange = write_prediction(tmp_path, "strange.jpg", np.where(mask == 0, 9, mask).astype(np.uint8))
    (to := tmp_path / "to").mkdir()
    known = Reject("earlier.jpg", "/earlier.jpg", "export", "the image is gone")
    summary = write_export([good, gone, other, strange], [known], get_format("labelme"), RULES, to, 2)
    reasons = {reject.image_id: reject.reason for reject in summary.rejects}
    assert summary.images == 1 and set(reasons) == {"earlier.jpg", "gone.jpg", "other.jpg", "strange.jpg"}
    assert reasons["gone.jpg"] == f"there is no file {gone.mask}"
    assert (
        "its mask has the classes background, but the table predictions lists background, ring, crate, ball"
        in reasons["other.jpg"]
    )
    assert "ring, crate, ball, id 9" in reasons["strange.jpg"]
    rows = (to / "rejects.csv").read_text().splitlines()
    assert len(rows) == 5 and rows[1] == "earlier.jpg,/earlier.jpg,the image is gone"
    assert {path.name for path in (to / "images").iterdir()} == {"good.jpg", "good.json"}


def test_images_that_would_have_the_same_id_in_vocs_layout_are_not_mixed_up(tmp_path):
    masks = {
        "a/b.jpg": scene_mask(0),
        "a_b.jpg": scene_mask(1),
        "a_b.png": scene_mask(1),
        "ä, c.jpg": scene_mask(2),
        "d.bmp": scene_mask(3),
    }
    folder, summary = export(tmp_path, "voc", masks, shapes="masks")
    reasons = {reject.image_id: reject.reason for reject in summary.rejects}
    assert all("same name as those of a/b.jpg" in reasons.pop(name) for name in ("a_b.jpg", "a_b.png"))
    assert not reasons and summary.images == 3
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "SegmentationClass/a_b.png")), scene_mask(0))
    copied, original = (np.asarray(Image.open(path)) for path in (folder / "JPEGImages/d.png", tmp_path / "photos/d.bmp"))
    np.testing.assert_array_equal(copied, original)


def test_small_objects_are_left_out_of_masks_too(tmp_path):
    mask = scene_mask()
    masks = {"a.jpg": mask, "b.jpg": np.zeros_like(mask)}
    folder, summary = export(tmp_path, "voc", masks, shapes="masks", min_area=2)
    found = np.asarray(Image.open(folder / "SegmentationClass/a.png"))
    assert found[3, 2] == 0 and (found != mask).sum() == 1 and summary.worst == (1 - 1 / mask.size, "a.jpg")
    assert summary.agreement == pytest.approx(1 - 0.5 / mask.size, abs=1e-9)


def test_without_a_background_small_objects_stay_in_masks_because_every_pixel_has_a_class(tmp_path):
    folder, _ = export(tmp_path, "voc", {"a.jpg": scene_mask()}, shapes="masks", min_area=2, background=False)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "SegmentationClass/a.png")), scene_mask())


def test_labels_with_a_meaning_of_their_own_in_cvats_table_leave_it_out(tmp_path):
    prediction = write_prediction(tmp_path, "a.jpg", np.zeros((5, 6), np.uint8))
    for name, has_table in (("cat", True), ("cat: tabby", False), ("#1", False)):
        (to := tmp_path / name.replace(":", "")).mkdir()
        write_export([prediction], [], get_format("voc"), ExportOptions(("background", name), shapes="masks"), to, 1)
        assert (to / "labelmap.txt").exists() == has_table


def import_coco(folder: Path, images: Path, to: Path) -> None:
    """Import COCO's JSON as import_data.py does; the image e.jpg is val."""
    source = AnnotationSource(str(images), str(folder / "annotations/instances_default.json"))
    dataset = get_reader("coco").read([source], ImportOptions(classes=CLASSES[1:]))
    splits = {entry.image_id: "val" if entry.image_id == "e" else "train" for entry in dataset.entries}
    with new_folder(to) as temporary:
        write_voc_layout(dataset, splits, temporary, max_rejects=0, threads=1, origin={})


def test_a_corrected_label_is_one_that_retraining_finds_relabelled(tmp_path):
    """The table `images` of a retraining, whose changes are those that retrain.py counts and reads again."""
    masks = {f"{name}.jpg": scene_mask(seed) for seed, name in enumerate("abcde")}
    folder, _ = export(tmp_path, "coco", masks)
    data = [tmp_path / "data-1", tmp_path / "data-2"]
    import_coco(folder, folder / "images", data[0])
    file = folder / "annotations/instances_default.json"
    text = file.read_text()
    ball = text.index('"category_id": 3', text.index('"image_id": 2'))
    file.write_text(text[:ball] + text[ball:].replace('"category_id": 3', '"category_id": 2', 1))  # no ball, but a crate
    import_coco(folder, folder / "images", data[1])
    commits: list = [None]
    for root in data:
        settings = DataSettings(root=str(root), classes=CLASSES, dev_fraction=0.2)
        key = str(len(commits)) * 64
        commits.append(prepare_images(settings, 0, str(tmp_path / "images"), key, str(root), LocalExecutor(1), commits[-1]))
    assert count_changes(commits[2], commits[1]) == {"new": 0, "changed": 0, "relabelled": 1, "same": 4, "gone": 0}
