"""import_data.py --add_to: images that are added to a data set, get new masks, or are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deconvnet.datasets import voc
from infra.errors import UserError
from proposals.image_codec import decode_mask, encode_mask
from tests.workflows.imports.importing import CLASSES, added, arguments
from workflows import import_data


@pytest.fixture(scope="module")
def imported(data, tmp_path_factory) -> Path:
    """A folder with `mine` and its lists, to be copied."""
    folder = tmp_path_factory.mktemp("imported")
    lists = folder / "lists"
    lists.mkdir()
    for split, ids in (("train", voc.read_split(str(data), "train")[:5]), ("val", voc.read_split(str(data), "val"))):
        (lists / f"{split}.txt").write_text("\n".join(ids))
    given = ["--train_list", str(lists / "train.txt"), "--val_list", str(lists / "val.txt"), "--classes", CLASSES]
    import_data.main(arguments(data, folder / "mine", *given))
    return folder


@pytest.fixture
def mine(imported, tmp_path) -> Path:
    """The generated images as an imported data set without its last three images of train."""
    shutil.copytree(imported, tmp_path, dirs_exist_ok=True)
    return tmp_path / "mine"


def outcome(said: str) -> str:
    """The line that says what becomes of the images."""
    return next(line for line in said.splitlines() if "masks replaced" in line)


def test_images_are_added_to_a_data_set_and_a_second_time_nothing_changes(data, mine, capsys):
    ids = {split: voc.read_split(str(data), split) for split in ("train", "val")}
    (mine / "SegmentationClass" / f"{ids['val'][0]}.png").write_bytes(encode_mask(np.full((60, 80), 5, np.uint8)))
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*") if path.is_file()}
    words = "added: 3 (3 train); masks replaced: 1; unchanged: 6; refused: 0; unusable: 0"
    import_data.main(added(data, mine, "--val_share", "0", "--dry-run"))
    assert outcome(capsys.readouterr().out) == f"would be {words}"
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*") if path.is_file()} == before
    import_data.main(added(data, mine, "--val_share", "0", "--seed", "3"))
    said = capsys.readouterr().out
    assert outcome(said) == words and "python workflows/retrain.py" in said
    for split in ("train", "val"):
        assert voc.read_split(str(mine), split) == ids[split]
    for image_id in ids["train"] + ids["val"]:
        name = f"SegmentationClass/{image_id}.png"
        assert np.array_equal(decode_mask((mine / name).read_bytes()), decode_mask((data / name).read_bytes()))
    assert (mine / "check.md").read_text() in said and "| train |      8 |" in said
    import_data.main(added(data, mine))
    assert outcome(capsys.readouterr().out) == "added: 0; masks replaced: 0; unchanged: 10; refused: 0; unusable: 0"
    lists = [text for split in ("train", "val") for text in (f"--{split}_list", str(mine.parent / f"lists/{split}.txt"))]
    import_data.main(added(data, mine, *lists, "--dry-run"))
    assert "note: 3 annotated images are in neither list and are left out" in capsys.readouterr().out


@pytest.mark.parametrize(("seed", "new"), [("1", []), ("3", ["train_00007"])])
def test_few_images_are_split_as_in_one_import_of_all(data, mine, tmp_path, seed, new):
    """With these seeds, one image of all ten is drawn for val. If it is not new, none of the new images goes there."""
    ids = [voc.read_split(str(data), split) for split in ("train", "val")]
    for image_id in ids[0][5:]:
        for name in (f"JPEGImages/{image_id}.jpg", f"SegmentationClass/{image_id}.png"):
            (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "new" / name).write_bytes((data / name).read_bytes())
    import_data.main(added(tmp_path / "new", mine, "--val_share", "0.001", "--seed", seed))
    assert [voc.read_split(str(mine), split) for split in ("train", "val")] == [
        [each for each in ids[0] if each not in new],
        ids[1] + new,
    ]


def test_another_image_of_the_same_name_is_refused_in_a_dry_run_too(data, mine, tmp_path, capsys):
    names = [f"{each}.jpg" for each in voc.read_split(str(data), "train")[:2]]
    for name in names:
        (mine / "JPEGImages" / name).write_bytes(
            (data / "JPEGImages" / f"{voc.read_split(str(data), 'val')[0]}.jpg").read_bytes()
        )
    for dry in (["--dry-run"], []):
        with pytest.raises(UserError, match=r"2 new images have the names of different images in .*: train_00000, train_00001"):
            import_data.main(added(data, mine, *dry))
        assert outcome(capsys.readouterr().out).startswith(
            "would be added: 3 (3 train); masks replaced: 0; unchanged: 5; refused: 2"
        )
    assert len(voc.read_split(str(mine), "train")) == 5 and not (mine / ".adding").exists()


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        (["star"], [], None),
        (["star", "lamp"], [], "the annotations have the class lamp, and the data set has disc, square, triangle, star, ring"),
        (["star", "lamp"], ["--classes", "disc,square,triangle,star,ring"], None),
        (["star"], ["--classes", "star,ring"], "the classes background, star, ring, and .* has background, disc, square, triang"),
    ],
)
def test_the_classes_are_those_of_the_data_set(data, mine, tmp_path, labels, more, words):
    """A class may be missing from what is added, and ids stay; a class that the data set does not have is not background."""
    image_id = voc.read_split(str(data), "train")[0]
    outlines = [[5 + 30 * n, 5, 25 + 30 * n, 5, 25 + 30 * n, 30, 5 + 30 * n, 30] for n in range(len(labels))]
    content = {
        "images": [{"id": 1, "file_name": f"{image_id}.jpg", "width": 80, "height": 60}],
        "annotations": [{"image_id": 1, "category_id": n, "segmentation": [outline]} for n, outline in enumerate(outlines)],
        "categories": [{"id": n, "name": label} for n, label in enumerate(labels)],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    given = ["--from", "coco", "--images", str(data / "JPEGImages"), "--annotations", str(tmp_path / "c.json")]
    before = (mine / f"SegmentationClass/{image_id}.png").read_bytes()
    if words:
        with pytest.raises(UserError, match=words):
            import_data.main([*given, "--add_to", str(mine), *more])
        assert (mine / f"SegmentationClass/{image_id}.png").read_bytes() == before
        return
    import_data.main([*given, "--add_to", str(mine), *more])
    mask = decode_mask((mine / f"SegmentationClass/{image_id}.png").read_bytes())
    assert mask[15, 15] == 4 and set(np.unique(mask)) == {0, 4}
    assert decode_mask((mine / f"SegmentationObject/{image_id}.png").read_bytes())[15, 15] == 1


def test_images_that_are_given_for_another_split_stay_where_they_are_and_are_counted(data, mine, tmp_path, capsys):
    ids = {split: voc.read_split(str(mine), split) for split in ("train", "val")}
    (tmp_path / "val.txt").write_text("\n".join(ids["train"][:2]))
    import_data.main(added(data, mine, "--val_list", str(tmp_path / "val.txt")))
    said = capsys.readouterr().out
    assert "note: 2 images of train are given for another split, but stay in train" in said
    assert "note: 2 images of val are given for another split, but stay in val" in said
    assert voc.read_split(str(mine), "train")[:5] == ids["train"] and voc.read_split(str(mine), "val") == ids["val"]


def test_a_data_set_without_the_names_of_its_classes_needs_them(data, mine):
    (mine / "classes.txt").unlink()
    options = added(data, mine, "--dry-run")
    import_data.main(options)
    with pytest.raises(UserError, match=r"has no classes\.txt: name its classes by --classes"):
        import_data.main([*options[: options.index("--classes")], "--dry-run"])
