"""COCO JSON files: the masks they give, and what is refused, rejected or skipped."""

import json
import unicodedata

import numpy as np
import pytest

from deconvnet.datasets.formats.coco import read_coco
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from infra.errors import UserError
from tests.deconvnet.datasets.formats.inputs import HEIGHT, WIDTH, rejection_reason, write_image

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
SMALL = [40, 0, 50, 0, 50, 5, 40, 5]


def read(folder, annotations, images=None, categories=None, **rules):
    """The data set of a COCO file with these annotations, by default of image 1 (a.jpg) and category 90 (cat)."""
    write_image(folder / "images/a.jpg")
    document = {
        "images": images or [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 90, **each} for n, each in enumerate(annotations, 1)],
        "categories": categories or [{"id": 90, "name": "cat"}, {"id": -3, "name": "dog"}],
    }
    (folder / "coco.json").write_text(json.dumps(document))
    return read_coco([AnnotationSource(str(folder / "images"), str(folder / "coco.json"))], ImportOptions(**rules))


def test_polygons_run_lengths_and_crowds_of_any_category_ids_become_masks(tmp_path):
    first_column = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, HEIGHT * WIDTH - HEIGHT]}
    last_column = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * (WIDTH - 1), HEIGHT]}
    dataset = read(
        tmp_path,
        [
            {"segmentation": [SQUARE, SMALL]},
            {"segmentation": first_column, "category_id": -3},
            {"segmentation": last_column, "iscrowd": 1},
        ],
    )
    image = dataset.entries[0].load()
    assert dataset.classes == ("background", "dog", "cat")  # by category id
    assert image.image == (tmp_path / "images/a.jpg").read_bytes() and image.suffix == ".jpg"
    assert (image.class_mask == 2).sum() == 400 + 50 and (image.object_mask[image.class_mask == 2] == 1).all()
    assert (image.class_mask[:, 0] == 1).all() and (image.class_mask[:, -1] == 255).all()


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [0, 2400]}}, "annotation 2: its mask is 40×60, the image is 60×40"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 5]}}, "cover 5 px"),
        ({"segmentation": [[1, 2, "x", 4, 5, 6]]}, "not numbers"),
        ({"segmentation": "everything"}, "is a str"),
        ({"segmentation": [SQUARE], "category_id": 7}, "category 7, which the file does not name"),
        ({"segmentation": [SQUARE], "category_id": None}, "category None"),
        ({"bbox": [1, 2, 3, 4, 5, 6]}, "its box does not consist of four numbers"),
    ],
)
def test_a_malformed_annotation_rejects_its_image(tmp_path, annotation, words):
    assert words in rejection_reason(read(tmp_path, [{"segmentation": [SQUARE]}, annotation]))


def test_a_box_without_outline_is_void_and_an_annotation_without_pixels_is_skipped(tmp_path):
    annotations = [
        {"segmentation": [SQUARE]},
        {"bbox": [40, 5, 10, 20], "segmentation": []},
        {"segmentation": [[1, 1, 5, 5]]},
        {},
    ]
    image = read(tmp_path, annotations).entries[0].load()
    assert (image.class_mask == 255).sum() == 200 and image.class_mask[10, 45] == 255
    assert image.annotations == 4 and list(map(str, image.lost_annotations)) == [
        "annotation 2 (cat) has a box and no outline: its box becomes void",
        "annotation 3 (cat) covers no pixel",
        "annotation 4 (cat) has neither outline nor box",
    ]


def test_classes_that_are_not_imported_are_background_or_void(tmp_path):
    annotations = [{"segmentation": [SQUARE]}, {"segmentation": [SMALL], "category_id": -3}]
    dataset = read(tmp_path, annotations, classes=("cat",))
    assert dataset.classes == ("background", "cat") and set(np.unique(dataset.entries[0].load().class_mask)) == {0, 1}
    dataset = read(tmp_path, annotations, classes=("cat",), others_void=True)
    assert dataset.entries[0].load().class_mask[2, 45] == 255
    with pytest.raises(UserError, match="--classes: cow is not in the annotations, which have dog, cat"):
        read(tmp_path, annotations, classes=("cow",))


@pytest.mark.parametrize("others_void", [False, True])
def test_boxes_of_classes_that_are_not_imported_become_what_others_say(tmp_path, others_void):
    annotations = [
        {"segmentation": [SQUARE]},
        {"bbox": [25, 5, 25, 20], "category_id": -3},
        {"bbox": [0, 30, 5, 5]},
    ]
    image = read(tmp_path, annotations, classes=("cat",), others_void=others_void).entries[0].load()
    assert image.class_mask[8, 45] == (255 if others_void else 0) and image.class_mask[20, 28] == 1
    assert image.class_mask[32, 2] == 255 and image.lost_annotations[-1].label == "cat"


def test_images_that_are_missing_or_repeated_are_rejected(tmp_path):
    write_image(tmp_path / "images/sub/a.jpg")
    (tmp_path / "images/a.png").write_bytes(b"")
    images = [
        {"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT},
        {"id": 1, "file_name": "a.jpg"},
        {"id": 3, "file_name": "../../etc/passwd"},
        {"id": 4},
        {"id": 5, "file_name": "a.png"},
        {"id": 6, "file_name": "sub/a.jpg"},
        {"id": 7, "file_name": "b.jpg"},
        {"id": "7", "file_name": "c.jpg"},
        {"file_name": "d.jpg"},
    ]
    dataset = read(tmp_path, [{"segmentation": [SQUARE]}, {"image_id": 99, "segmentation": [SQUARE]}, {"image_id": None}], images)
    assert [entry.image_id for entry in dataset.entries] == ["a", "sub_a"]
    reasons = [
        "its image id 1 is in the file twice",
        "no such image below",
        "it has no file_name",
        "its id would be a, which is that of a.jpg",
        "its image id 7 is in the file twice",
        "its image id 7 is in the file twice",
        "it has no id",
    ]
    assert all(reason in reject.reason for reason, reject in zip(reasons, dataset.rejects, strict=True))
    assert dataset.notes == [f"{tmp_path}/coco.json: 5 images that it lists have no annotation"]
    assert [image for image, *_ in dataset.lost_annotations] == ["image 99", "image None"]


@pytest.mark.parametrize(
    ("annotation", "lost"),
    [
        ({"image_id": 99}, "annotation 2 (cat) is of an image that the file does not list under images"),
        ({"image_id": None, "category_id": "-3"}, "annotation 2 (dog) is of an image that the file does not list under images"),
        ({"image_id": "x", "category_id": 5}, "annotation 2 (category 5) is of an image"),
        ({"image_id": [], "category_id": {}}, "annotation 2 (category {}) is of an image"),
    ],
)
def test_annotations_of_images_that_are_not_listed_are_lost(tmp_path, annotation, lost):
    ((image, uri, loss),) = read(tmp_path, [{"segmentation": [SQUARE]}, annotation]).lost_annotations
    assert str(loss).startswith(lost) and uri == f"{tmp_path}/coco.json" and image == f"image {annotation['image_id']}"


def test_lost_annotations_of_other_classes_are_not_counted(tmp_path):
    annotations = [{"segmentation": [SQUARE]}, {"image_id": 9, "category_id": -3}]
    assert not read(tmp_path, annotations, classes=("cat",)).lost_annotations
    assert read(tmp_path, annotations, classes=("cat",), others_void=True).lost_annotations


def test_entries_that_are_no_json_objects_are_counted(tmp_path):
    write_image(tmp_path / "a.jpg")
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}, "b.jpg", None],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE]}, None, [7]],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    dataset = read_coco([AnnotationSource(str(tmp_path), str(tmp_path / "c.json"))], ImportOptions())
    assert len(dataset.entries) == 1 and len(dataset.rejects) == len(dataset.lost_annotations) == 2


@pytest.mark.parametrize("listed", [["a.jpg", "a.jpg"], ["a.jpg", "./a.jpg"], ["y\\a.jpg", "x/a.jpg"]])
def test_an_image_that_is_listed_with_several_ids_is_rejected(tmp_path, listed):
    """Each of its entries has some of its annotations."""
    images = [{"id": n, "file_name": name} for n, name in enumerate(listed, 1)]
    dataset = read(tmp_path, [{"segmentation": [SQUARE]}, {"segmentation": [SMALL], "image_id": 2}], images)
    assert not dataset.entries and len(dataset.rejects) == 2
    assert all("several ids" in each.reason or "another entry" in each.reason for each in dataset.rejects)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [], "annotations": {}, "categories": []}', "\xff"])
def test_a_file_that_is_no_coco_json_is_refused(tmp_path, text):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "c.json").write_text(text, "latin-1")
    with pytest.raises(UserError, match="is not COCO JSON"):
        read_coco([AnnotationSource(str(tmp_path), str(tmp_path / "c.json"))], ImportOptions())


ROBOFLOW = [
    {"id": 0, "name": "objects", "supercategory": "none"},
    {"id": 1, "name": "cat", "supercategory": "objects"},
    {"id": 2, "name": "dog", "supercategory": "objects"},
    {"id": 3, "name": "person", "supercategory": "person"},
]


def test_a_category_that_only_groups_others_is_no_class(tmp_path):
    dataset = read(tmp_path, [{"segmentation": [SQUARE], "category_id": 2}], categories=ROBOFLOW)
    assert dataset.classes == ("background", "cat", "dog", "person") and dataset.notes[0].endswith(
        "(supercategory): objects (--classes can include them)"
    )
    assert (dataset.entries[0].load().class_mask == 2).sum() == 400
    annotations = [{"segmentation": [SQUARE], "category_id": 0}, {"segmentation": [SMALL], "category_id": "1"}]
    used = read(tmp_path, annotations, categories=ROBOFLOW)
    assert used.classes == ("background", "objects", "cat", "dog", "person") and not used.notes
    named = read(tmp_path, annotations[1:], categories=ROBOFLOW, classes=("objects", "cat"))
    assert named.classes == ("background", "objects", "cat") and (named.entries[0].load().class_mask == 2).sum() == 50


@pytest.mark.parametrize(("name", "fold_case"), [("objects", False), ("Objects", True)])
def test_a_category_that_only_groups_others_may_be_the_background(tmp_path, name, fold_case):
    dog = {"segmentation": [SQUARE], "category_id": 2}
    dataset = read(tmp_path, [dog], categories=ROBOFLOW, background=name, fold_case=fold_case)
    assert dataset.classes == ("background", "cat", "dog", "person") and dataset.notes == ["objects is the background"]


def test_boxes_are_objects_if_the_user_wants_them(tmp_path):
    image = read(tmp_path, [{"bbox": [1, 2, 3, 4]}], boxes_void=False).entries[0].load()
    assert (image.class_mask == 2).sum() == 12 and (image.class_mask[2:6, 1:4] == 2).all() and not image.lost_annotations


@pytest.mark.parametrize(
    "polygons",
    [
        [SQUARE],
        SQUARE,  # one polygon, not in a list
        [[10, 10], [30, 10], [30, 30], [10, 30]],  # one polygon of pairs
        [[[10, 10], [30, 10], [30, 30], [10, 30]]],
        [[10, 10, 30, 10, 30, 30], [10, 10, 30, 30, 10, 30]],  # two triangles
        {"size": [HEIGHT, WIDTH], "counts": [10 * 40 + 10, *[20, 20] * 19, 20, 2400 - 30 * 40 + 10]},
        {"size": [float(HEIGHT), str(WIDTH)], "counts": [10 * 40 + 10, *[20, 20] * 19, 20, 2400 - 30 * 40 + 10]},
    ],
)
def test_an_outline_is_read_in_any_form(tmp_path, polygons):
    mask = read(tmp_path, [{"segmentation": polygons}]).entries[0].load().class_mask
    assert (mask[10:30, 10:30] == 2).all() and (mask > 0).sum() == 400


@pytest.mark.parametrize("as_text", [str, float, lambda number: f"{number}.0", lambda number: f" {number}"])
def test_numbers_written_as_text_are_the_numbers_they_say(tmp_path, as_text):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg")
    document = {
        "images": [
            {"id": as_text(3), "file_name": "a.jpg", "width": as_text(WIDTH), "height": as_text(HEIGHT)},
            {"id": 0, "file_name": "b.jpg"},
        ],
        "annotations": [
            {"image_id": 3, "category_id": as_text(0), "iscrowd": as_text(0), "segmentation": [SQUARE]},
            {"image_id": as_text(3), "category_id": 7, "iscrowd": as_text(1), "segmentation": [SMALL]},
            {"image_id": as_text(0), "category_id": "7", "segmentation": [SMALL]},
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": as_text(7), "name": "dog"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    dataset = read_coco([AnnotationSource(str(tmp_path), str(tmp_path / "c.json"))], ImportOptions())
    first, second = (entry.load().class_mask for entry in dataset.entries)
    assert dataset.classes == ("background", "cat", "dog")
    assert (first == 1).sum() == 400 and (first == 255).sum() == 50 and (second == 2).sum() == 50


@pytest.mark.parametrize("crowd", ["many", 0.5, [1]])
def test_an_iscrowd_that_is_no_number_rejects_its_image(tmp_path, crowd):
    assert "iscrowd is" in rejection_reason(read(tmp_path, [{"segmentation": [SQUARE], "iscrowd": crowd}]))


def test_one_id_for_two_categories_or_for_no_image_is_refused(tmp_path):
    with pytest.raises(UserError, match="the category id 90 is that of cat and of cow"):
        read(tmp_path, [{"segmentation": [SQUARE]}], categories=[{"id": 90, "name": "cat"}, {"id": "90", "name": "cow"}])
    with pytest.raises(UserError, match="no annotation has the id of one of its images"):
        read(tmp_path, [{"segmentation": [SQUARE], "image_id": "a"}])


MASK = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, HEIGHT * WIDTH - HEIGHT]}


def test_crowds_are_void_unless_all_annotations_are_masks_that_are_crowds(tmp_path):
    """CVAT exports every mask that was painted as a crowd."""
    crowd = {"segmentation": MASK, "iscrowd": 1}
    dataset = read(tmp_path, [crowd, {**crowd, "iscrowd": "1"}, {**crowd, "iscrowd": True}])
    image = dataset.entries[0].load()
    assert (image.class_mask == 2).sum() == HEIGHT and not image.lost_annotations
    assert dataset.notes == [
        f"{tmp_path}/coco.json: every annotation is a crowd (iscrowd) with run lengths, so each is an object"
    ]
    for other in (
        {"segmentation": [SQUARE]},
        {"segmentation": [SQUARE], "iscrowd": 1},
        {"segmentation": MASK, "iscrowd": 0},
        {"bbox": [1, 2, 3, 4], "iscrowd": 1},
    ):
        dataset = read(tmp_path, [crowd, other])
        losses = dataset.entries[0].load().lost_annotations
        assert losses[0].reason == "is a crowd, which becomes void" and losses[0].remedy == "--crowd object" and not dataset.notes
    image = read(tmp_path, [crowd, {"segmentation": [SQUARE]}], crowd_void=False).entries[0].load()
    assert not image.lost_annotations and (image.class_mask == 2).sum() == 400 + HEIGHT


def test_crowds_of_classes_that_are_not_imported_are_void_and_named_but_not_counted_as_losses(tmp_path):
    annotations = [{"segmentation": [SQUARE]}, {"segmentation": MASK, "iscrowd": 1, "category_id": -3}]
    image = read(tmp_path, annotations, classes=("cat",)).entries[0].load()
    assert image.annotations == 1 and not image.lost_annotations and image.class_mask[0, 0] == 255
    assert image.remark == "has crowds of classes that are not imported (dog), which become void"
    assert read(tmp_path, annotations).entries[0].load().remark == ""
    assert read(tmp_path, annotations, classes=("cat",), crowd_void=False).entries[0].load().class_mask[0, 0] == 0


NAME = "größe 1.jpg"


@pytest.mark.parametrize("listed", [NAME, unicodedata.normalize("NFD", NAME), "gr%C3%B6%C3%9Fe%201.jpg"])
def test_names_of_another_spelling_give_plain_ids(tmp_path, listed):
    write_image(tmp_path / "images" / NAME)
    dataset = read(tmp_path, [{"segmentation": [SQUARE]}], [{"id": 1, "file_name": listed}])
    assert [entry.image_id for entry in dataset.entries] == ["größe 1"] and not dataset.rejects


def test_an_image_in_another_folder_is_not_taken_for_a_missing_one(tmp_path):
    for name in ("site_a/1.jpg", "site_a/2.jpg"):
        write_image(tmp_path / "images" / name)
    images = [{"id": n, "file_name": name} for n, name in enumerate(["site_a/1.jpg", "site_b/1.jpg", "site_b/2.jpg"], 1)]
    dataset = read(tmp_path, [{"segmentation": [SQUARE]}], images)
    assert [entry.image_id for entry in dataset.entries] == ["site_a_1"]
    assert all(f"no such image below {tmp_path}/images in the folder site_b" in reject.reason for reject in dataset.rejects)


def test_a_file_with_boxes_but_no_outline_is_refused(tmp_path):
    with pytest.raises(UserError, match="boxes alone can't become masks"):
        read(tmp_path, [{"bbox": [1, 2, 3, 4]}])


def test_annotations_of_another_size_reject_their_image(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "width": HEIGHT, "height": WIDTH}]
    reason = rejection_reason(read(tmp_path, [{"segmentation": [SQUARE]}], images))
    assert reason == "its annotations are for 40×60, the image is 60×40 as displayed"
