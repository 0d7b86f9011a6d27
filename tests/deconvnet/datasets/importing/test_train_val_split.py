"""The split into train and val: drawn, and by lists of names."""

import unicodedata

import pytest

from deconvnet.datasets.importing.dataset import AnnotatedDataset
from deconvnet.datasets.importing.train_val_split import draw_val, read_split_list, split_images
from infra.errors import UserError


def make_dataset(count):
    dataset = AnnotatedDataset(("background", "cat"))
    for i in range(count):
        dataset.add(f"p{i}.jpg", f"/src/p{i}.json", None, lambda: None)
    return dataset


def test_an_image_keeps_its_split_when_others_are_added():
    ids = [f"photo_{i}" for i in range(2000)]
    few, many = draw_val(ids[:500], 0.2, 0), draw_val(ids, 0.2, 0)
    assert few == many & set(ids[:500]) and 0.17 < len(many) / 2000 < 0.23
    assert draw_val(ids, 0.2, 1) != many
    assert [len(draw_val(ids[:n], 0.001, 0)) for n in (0, 1, 2, 3)] == [0, 0, 1, 1]
    assert len(draw_val(ids[:3], 0.999, 0)) == 2


def test_two_lists_of_names_give_the_splits():
    dataset = make_dataset(4)
    splits = split_images(dataset, ["p0", "x/p1.jpg", "p1", "p9"], ["p1.jpg", "p2"])
    assert splits == {"p0": "train", "p1": "val", "p2": "val"}
    assert dataset.notes == [
        "1 images are on both lists and go to val, such as p1",
        "1 annotated images are in neither list and are left out",
    ]
    assert [(reject.image_id, reject.reason) for reject in dataset.rejects] == [
        ("p9", "listed, but no annotated image, or more than one, has this name")
    ]


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("site_a/1.jpg", "site_a_1"),
        ("/data/photos/site_a/1.png", "site_a_1"),
        ("C:\\data\\site_a\\1.jpg", "site_a_1"),
        ("site_a_1", "site_a_1"),
        ("größe", "größe"),
        (unicodedata.normalize("NFD", "größe.jpg"), "größe"),
        ("gr%C3%B6%C3%9Fe.jpg", "größe"),
        ("2.jpg", "site_a_2"),
        ("1.jpg", None),  # in two folders
        ("site_c/1.jpg", None),
        ("site_b/2.jpg", None),  # another folder's image has this name
    ],
)
def test_a_listed_name_means_an_image_of_its_folder_in_any_spelling(listed, found):
    dataset = AnnotatedDataset(("background", "cat"))
    for name in ("site_a/1.jpg", "site_b/1.jpg", "site_a/2.jpg", "größe.jpg"):
        dataset.add(name, "c.json", None, lambda: None)
    splits = split_images(dataset, val_list=[listed])
    assert [image_id for image_id, split in splits.items() if split == "val"] == ([found] if found else [])
    assert len(dataset.rejects) == (found is None)


def test_with_one_list_the_other_split_is_the_rest():
    assert split_images(make_dataset(3), val_list=["p1"]) == {"p0": "train", "p1": "val", "p2": "train"}
    assert split_images(make_dataset(3), train_list=["p1"]) == {"p0": "val", "p1": "train", "p2": "val"}


def test_lists_overrule_the_splits_of_the_source():
    dataset = make_dataset(2)
    dataset.add("p2.jpg", "/src/p2.json", "val", lambda: None)
    assert split_images(dataset) == {"p0": "train", "p1": "train", "p2": "val"}
    assert split_images(dataset, val_list=["p1"]) == {"p0": "train", "p1": "val", "p2": "train"}


def test_images_of_test_are_used_only_if_they_are_listed():
    """An unlisted one must not be trained on, although the other unlisted images are."""
    dataset = make_dataset(3)
    for name in ("t0", "t1"):
        dataset.add(f"{name}.jpg", f"/src/{name}.json", "test", lambda: None)
    assert split_images(dataset, val_list=["t1", "p0"]) == {"t1": "val", "p0": "val", "p1": "train", "p2": "train"}
    assert dataset.notes == ["1 images that belong to test are left out, such as t0"]
    assert split_images(dataset, ["p0"], ["t0"]) == {"p0": "train", "t0": "val"}
    assert dataset.notes[1:] == [
        "2 annotated images are in neither list and are left out",
        "1 images that belong to test are left out, such as t1",
    ]
    drawn = split_images(dataset)
    assert drawn.keys() == {"p0", "p1", "p2"} and {*drawn.values()} == {"train", "val"}, "test says nothing of the others"


def test_a_list_in_another_encoding_is_read_by_its_name_or_refused(tmp_path):
    (tmp_path / "val.txt").write_bytes("裂缝_1.jpg\n裂缝_2.jpg\n".encode("gbk"))
    with pytest.raises(UserError, match=r"--val_list .*val\.txt can't be read: byte 0 .*--encoding"):
        read_split_list(str(tmp_path / "val.txt"), "val_list")
    assert read_split_list(str(tmp_path / "val.txt"), "val_list", "gbk") == ["裂缝_1.jpg", "裂缝_2.jpg"]
    with pytest.raises(UserError, match="there is no file"):
        read_split_list(str(tmp_path / "gone.txt"), "val_list")
