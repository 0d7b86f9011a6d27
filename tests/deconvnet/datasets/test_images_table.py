"""The `images` table: which images it has, what is rejected and refused, and its fingerprint."""

import os
from pathlib import Path

import numpy as np
import pytest

from deconvnet.datasets import images_table, voc
from deconvnet.datasets.images_table import class_names, data_fingerprint, data_folder, prepare_images
from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.settings import DataSettings, GeneratedSettings
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from infra.storage import tables
from proposals.image_codec import decode_image, decode_mask
from proposals.image_notes import count_changes


def settings_for(layout, **changes) -> DataSettings:
    return DataSettings(**{"root": str(layout.root), "classes": ("background", "thing", "other"), "max_rejects": 0.9, **changes})


def run(settings, out, seed=0, fingerprint="f" * 64, previous=None):
    return prepare_images(settings, seed, str(out), fingerprint, settings.root, LocalExecutor(1), previous)


@pytest.fixture
def read_files(monkeypatch) -> list[str]:
    """The ids of the images that are read, in order."""
    found, real = [], voc.read_row
    monkeypatch.setattr(voc, "read_row", lambda root, files, *more: found.append(files.image_id) or real(root, files, *more))
    return found


def ids_of_parts(out, made) -> list[str]:
    """The ids of the images of each part, as one text."""
    return ["".join(row["image_id"] for row in tables.iter_rows(str(out), part=part)) for part in made.parts]


def test_the_table_has_the_images_of_the_data_set(executor, tmp_path):
    settings = DataSettings(generated=GeneratedSettings(train=40, val=8, height=32, width=48))
    root = data_folder(settings, 0, str(tmp_path / "data"))
    out = str(tmp_path / "images")
    made = prepare_images(settings, 0, out, data_fingerprint(settings, root), root, executor)
    assert made == tables.read_commit(out)
    assert made.extra["counts"] == {"train": 38, "dev": 2, "val": 8} and made.extra["classes"] == list(GENERATED_CLASSES)
    assert len(made.extra["digest"]) == 64 and len(made.parts) == 2 and made.rows == 48 and not made.rejects
    rows = list(tables.iter_rows(out))
    assert [r["image_id"] for r in rows] == sorted(r["image_id"] for r in rows)
    for row in rows:
        shape = (row["height"], row["width"])
        assert decode_image(row["image"]).shape[:2] == decode_mask(row["class_mask"]).shape == shape == (32, 48)
        assert decode_mask(row["object_mask"]).shape == shape


def test_unusable_images_are_rejected_with_their_reasons_and_the_others_kept(layout, tmp_path):
    layout.image("b", b"")
    layout.mask("w", np.full((40, 60), 9, np.uint8))
    layout.split("train", ["a", "b", "c", "d", "a", "../x", "gone", "v"])
    made = run(settings_for(layout), tmp_path / "images")
    assert made.extra["counts"] == {"train": 2, "dev": 1, "val": 1}
    reasons = {r.image_id: r.reason for r in made.rejects}
    assert sorted(reasons) == ["../x", "a", "b", "gone", "v", "w"]
    assert "empty" in reasons["b"] and "class id 9" in reasons["w"] and "split val too" in reasons["v"]
    assert {r["image_id"]: r["split"] for r in tables.iter_rows(str(tmp_path / "images"))}["v"] == "val"
    again = run(settings_for(layout), tmp_path / "again")
    assert (again.parts, again.extra) == (made.parts, made.extra)


def test_an_image_that_several_splits_list_has_one_row_and_a_reject_for_each_other_list(layout, tmp_path):
    for image_id in "tu":
        layout.annotated_image(image_id)
    for split, ids in {"train": "abcdtv", "held": "tuv"}.items():
        layout.split(split, list(ids))
    made = run(settings_for(layout, test_split="held"), tmp_path / "images")
    assert [row["image_id"] for row in tables.iter_rows(str(tmp_path / "images"))] == list("abcdtuvw")
    assert splits(tmp_path / "images").items() >= {"t": "test", "u": "test", "v": "val", "w": "val"}.items()
    rejects = {(r.image_id, Path(r.path).stem, r.reason) for r in made.rejects}
    why = "the id is in the split {} too, where it stays".format
    assert rejects == {("t", "train", why("held")), ("v", "held", why("val")), ("v", "train", why("val"))}


@pytest.mark.parametrize("split, ids", [("val", ["v", "w"]), ("train", ["a", "b", "c", "d"])])
def test_a_split_without_a_usable_image_is_refused_and_nothing_committed(layout, tmp_path, split, ids):
    for image_id in ids:
        layout.image(image_id, b"")
    with pytest.raises(UserError, match=rf"no usable image in the split {split} .*the file is empty"):
        run(settings_for(layout, max_rejects=1), tmp_path / "images")
    assert tables.read_commit(str(tmp_path / "images")) is None


def test_a_split_whose_files_are_all_missing_is_refused(layout, tmp_path):
    layout.split("train", ["x", "y"])
    with pytest.raises(UserError, match=r"no usable image in the split train \(2× no file of this id"):
        run(settings_for(layout), tmp_path / "images")


def test_more_rejects_than_allowed_stop_the_run(layout, tmp_path):
    layout.image("b", b"")
    with pytest.raises(UserError, match=r"1 of 6 images can't be used .*data\.max_rejects"):
        run(settings_for(layout, max_rejects=0.05), tmp_path / "images")
    assert tables.read_commit(str(tmp_path / "images")) is None


def test_a_limit_takes_that_many_images_of_each_split(layout, tmp_path):
    made = run(settings_for(layout, limit=2), tmp_path / "images")
    assert made.extra["counts"] == {"train": 1, "dev": 1, "val": 2}


def test_the_digest_changes_with_the_content(layout, tmp_path):
    first = run(settings_for(layout), tmp_path / "1").extra["digest"]
    assert run(settings_for(layout), tmp_path / "2", fingerprint="0" * 64).extra["digest"] == first
    layout.image("a", np.zeros((40, 60, 3), np.uint8))
    assert run(settings_for(layout), tmp_path / "3").extra["digest"] != first


def test_parts_are_bounded_in_count_and_bytes(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(images_table, "_PER_PART", 4)
    assert [p.rows for p in run(settings_for(layout), tmp_path / "1").parts] == [4, 2]
    sizes = [path.stat().st_size for path in (layout.root / "JPEGImages").iterdir()]
    monkeypatch.setattr(images_table, "_PART_BYTES", 2 * max(sizes))
    assert 3 * min(sizes) > 2 * max(sizes)
    assert [p.rows for p in run(settings_for(layout), tmp_path / "two").parts] == [2, 2, 2]
    monkeypatch.setattr(images_table, "_PART_BYTES", 1)
    assert [p.rows for p in run(settings_for(layout), tmp_path / "2").parts] == [1] * 6


def test_a_table_that_grows_reads_and_writes_only_what_is_new_or_changed(layout, tmp_path, monkeypatch, read_files):
    monkeypatch.setattr(images_table, "_PER_PART", 2)
    out = tmp_path / "images"
    first = run(settings_for(layout), out)
    assert ids_of_parts(out, first) == ["ab", "cd", "vw"] and read_files == list("abcdvw")
    assert run(settings_for(layout), out, previous=first) == first and len(read_files) == 6
    for image_id in ("aa", "e", "z"):
        layout.annotated_image(image_id)
    layout.split("train", ["a", "b", "aa", "d", "e"])
    layout.split("val", ["v", "w", "z"])
    read_files.clear()
    grown = run(settings_for(layout), out, previous=first)
    assert ids_of_parts(out, grown) == ["ab", "d", "vw", "aae", "z"] and sorted(read_files) == ["aa", "d", "e", "z"]
    assert [part in first.parts for part in grown.parts] == [True, False, True, False, False]
    assert count_changes(grown, first) == {"new": 3, "changed": 0, "relabelled": 0, "same": 5, "gone": 1}
    layout.image("b", np.zeros((40, 60, 3), np.uint8))
    mask = layout.root / "SegmentationClass/w.png"
    time = mask.stat().st_mtime_ns
    layout.mask("w", np.ones((40, 60), np.uint8))
    os.utime(mask, ns=(time, time))  # as if it were copied with its time: only its size differs
    os.utime(layout.root / "JPEGImages/aa.jpg", ns=(1, 1))
    layout.split("val", ["v", "w"])
    layout.split("train", ["a", "b", "aa", "d", "e", "z"])
    read_files.clear()
    changed = run(settings_for(layout), out, previous=grown)
    assert ids_of_parts(out, changed) == ["ab", "d", "vw", "aae", "z"] and sorted(read_files) == [
        "a",
        "aa",
        "b",
        "e",
        "v",
        "w",
        "z",
    ]
    assert count_changes(changed, grown) == {"new": 0, "changed": 1, "relabelled": 2, "same": 5, "gone": 0}
    assert changed.parts[3].digest == grown.parts[3].digest, "touched files have the same content"
    fresh = run(settings_for(layout), tmp_path / "fresh")
    assert sorted(map(repr, tables.iter_rows(str(out)))) == sorted(
        map(
            repr,
            (
                {**row, "split": split}
                for row in tables.iter_rows(str(tmp_path / "fresh"))
                for split in [splits(out)[row["image_id"]]]
            ),
        )
    )
    assert count_changes(fresh, None)["new"] == fresh.rows == 8


def splits(out) -> dict[str, str]:
    """The split of each image."""
    return {row["image_id"]: row["split"] for row in tables.iter_rows(str(out))}


def test_an_image_that_is_added_moves_no_other_between_train_and_dev_unless_the_draw_changes(layout, tmp_path):
    for number in range(40):
        layout.annotated_image(f"x{number}")
    layout.split("train", [f"x{number}" for number in range(20)])
    out, settings = tmp_path / "images", settings_for(layout, dev_fraction=0.2)
    first = run(settings, out)
    before = splits(out)
    layout.split("train", [f"x{number}" for number in range(40)])
    grown = run(settings, out, previous=first)
    assert before.items() <= splits(out).items() and grown.extra["counts"]["dev"] == 8
    changes = {"dev_fraction": 0.2}, {"dev_fraction": 0.3}, {"dev_fraction": 0.2, "limit": 30}
    for seed, change in zip((1, 0, 0), changes, strict=True):
        other = settings_for(layout, **change)
        run(other, out, seed=seed, previous=grown)
        run(other, fresh := tmp_path / repr(change), seed=seed)
        assert splits(out) == splits(fresh)


def test_a_reject_is_tried_again_when_its_files_change_or_the_run_was_refused(layout, tmp_path, read_files):
    layout.image("b", b"")
    out = tmp_path / "images"
    first = run(settings_for(layout), out)
    read_files.clear()
    assert run(settings_for(layout), out, previous=first).rejects == first.rejects and not read_files
    layout.image("a", b"broken now, too")
    layout.image("b")
    assert [r.image_id for r in run(settings_for(layout), out, previous=first).rejects] == ["a"]
    layout.image("a")
    whole = run(settings_for(layout), out, previous=first)
    layout.split("train", ["a", "b", "c", "d", "not there"])
    more = run(settings_for(layout), out, previous=first)
    assert not whole.rejects and [r.image_id for r in more.rejects] == ["not there"]
    layout.image("v", b"")
    refused = tmp_path / "refused"
    for _ in range(2):
        read_files.clear()
        with pytest.raises(UserError, match="can't be used"):
            run(settings_for(layout, max_rejects=0.05), refused)
        assert read_files == list("abcdvw")


def test_a_run_that_is_refused_deletes_no_part_of_an_earlier_version(layout, tmp_path):
    """A file is repaired, and then its earlier copy restored, so that the version before has the part for it."""
    out, broken = tmp_path / "images", layout.root / "JPEGImages/b.jpg"
    layout.image("b", b"broken")
    time = broken.stat().st_mtime_ns
    first = run(settings_for(layout), out)
    layout.image("b")
    second = run(settings_for(layout), out, previous=first)
    layout.image("b", b"broken")
    os.utime(broken, ns=(time, time))
    with pytest.raises(UserError, match="can't be used"):
        run(settings_for(layout, max_rejects=0.0), out, previous=second)
    assert tables.kept_versions(str(out)) == [first.version, second.version]
    for made in (first, second):
        assert ids_of_parts(out, made) == ["".join(sorted(set("abcdvw") - {r.image_id for r in made.rejects}))]


def test_an_id_that_is_listed_again_and_again_is_one_reject(layout, tmp_path):
    layout.split("train", ["a"] * 100 + ["b", "c", "d"] + ["../x"] * 70)
    made = run(settings_for(layout), tmp_path / "images")
    assert made.rows == 6 and [(r.image_id, "lines" in r.reason) for r in made.rejects] == [
        ("../x", True),
        ("../x", False),
        ("a", True),
    ]
    assert "more than once, on 100 lines" in made.rejects[2].reason


@pytest.mark.parametrize(
    "changes",
    [{"max_pixels": 50_000_000}, {"classes": ("background", "thing", "other", "more")}, {"background": "none"}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_settings_make_other_parts_and_the_same_settings_find_the_earlier_ones(layout, tmp_path, read_files, changes):
    out = tmp_path / "images"
    first = run(settings_for(layout), out)
    read_files.clear()
    other = run(settings_for(layout, **changes), out, previous=first)
    assert len(read_files) == 6 and {part.name for part in other.parts}.isdisjoint(part.name for part in first.parts)
    assert "max_pixels" not in changes or other.extra == first.extra, "with the same rows"
    read_files.clear()
    assert run(settings_for(layout), out, previous=other).parts == first.parts and not read_files


def test_the_fingerprint_changes_with_the_files_that_are_used_and_no_others(layout):
    settings = settings_for(layout)
    root = str(layout.root)
    seen = [data_fingerprint(settings, root)]
    layout.annotated_image("unused")
    assert data_fingerprint(settings, root) == seen[0]
    (layout.root / "JPEGImages/a.jpg").write_bytes((layout.root / "JPEGImages/a.jpg").read_bytes() + b" ")
    seen.append(data_fingerprint(settings, root))
    os.utime(layout.root / "SegmentationClass/v.png", ns=(1, 1))
    seen.append(data_fingerprint(settings, root))
    layout.split("val", ["v"])
    seen.append(data_fingerprint(settings, root))
    layout.mask("b", folder="SegmentationObject")
    seen.append(data_fingerprint(settings, root))
    mask, image = layout.root / "SegmentationClass/v.png", layout.root / "JPEGImages/v.jpg"
    mask.write_bytes(mask.read_bytes() + b" ")  # another size, with the time of before
    os.utime(mask, ns=(1, 1))
    seen.append(data_fingerprint(settings, root))
    image.rename(image.with_suffix(".jpeg"))
    seen.append(data_fingerprint(settings, root))
    assert len(set(seen)) == 7
    layout.split("held", ["unused"])
    tested = settings_for(layout, test_split="held")
    before = data_fingerprint(tested, root)
    os.utime(layout.root / "SegmentationClass/unused.png", ns=(1, 1))
    assert data_fingerprint(tested, root) != before and data_fingerprint(settings, root) == seen[-1]


def test_the_fingerprint_of_generated_data_is_that_of_its_settings():
    small, large = (DataSettings(generated=GeneratedSettings(train=n)) for n in (10, 20))
    assert data_fingerprint(small, "/nowhere") == data_fingerprint(small, "/elsewhere") != data_fingerprint(large, "/nowhere")


def test_class_names_and_folder_are_those_of_the_settings_or_generated(layout, tmp_path):
    named = settings_for(layout)
    assert class_names(named) == ("background", "thing", "other") and class_names(DataSettings()) == GENERATED_CLASSES
    assert data_folder(named, 0, str(tmp_path / "unused")) == str(layout.root)
    assert not (tmp_path / "unused").exists()


def test_real_images_become_rows(shared):
    """A few images of shared/voc-sample."""
    settings = DataSettings(root=str(shared / "voc-sample"), limit=12)
    for item in images_table._items(settings, 0, settings.root)[:12]:
        row = next(iter(images_table._rows([item], settings.root, 21, settings.max_pixels, True)))
        assert isinstance(row, dict), row
        classes, ids = decode_mask(row["class_mask"]), decode_mask(row["object_mask"])
        assert classes.shape == ids.shape == (row["height"], row["width"])
        assert np.array_equal((ids > 0) & (ids != 255), (classes > 0) & (classes != 255) & (ids != 255))
