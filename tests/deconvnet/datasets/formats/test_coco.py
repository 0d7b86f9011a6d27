"""COCO JSON files: the masks they give, and what is refused, rejected or skipped."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.formats.coco import read_coco
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportRules
from infra.errors import UserError
from proposals.image_codec import decode_image
from tests.deconvnet.datasets.formats.inputs import HEIGHT, WIDTH, rejection_reason, write_image

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
SMALL = [40, 0, 50, 0, 50, 5, 40, 5]


def read(folder, annotations, images=None, **rules):
    """The data set of a COCO file with these annotations, by default of image 1 (a.jpg) and category 90 (cat)."""
    write_image(folder / "images/a.jpg")
    document = {
        "images": images or [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 90, **each} for n, each in enumerate(annotations, 1)],
        "categories": [{"id": 90, "name": "cat"}, {"id": -3, "name": "dog"}],
    }
    (folder / "coco.json").write_text(json.dumps(document))
    return read_coco([AnnotationSource(str(folder / "images"), str(folder / "coco.json"))], ImportRules(**rules))


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
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [0, 2400]}}, "annotation 2: its run lengths are for [60, 40]"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 5]}}, "cover 5 px"),
        ({"segmentation": [[1, 2, "x", 4, 5, 6]]}, "no numbers"),
        ({"segmentation": "everything"}, "is a str"),
        ({"segmentation": [SQUARE], "category_id": 7}, "category 7, which the file does not name"),
        ({"segmentation": [SQUARE], "category_id": None}, "category None"),
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
    assert image.annotations == 4 and list(map(str, image.losses)) == [
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
    assert "2 annotations are of images that it does not list" in dataset.notes[0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [], "annotations": {}, "categories": []}', "\xff"])
def test_a_file_that_is_no_coco_json_is_refused(tmp_path, text):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "c.json").write_text(text, "latin-1")
    with pytest.raises(UserError, match="is no COCO JSON"):
        read_coco([AnnotationSource(str(tmp_path), str(tmp_path / "c.json"))], ImportRules())


def test_boxes_are_objects_if_the_user_wants_them(tmp_path):
    image = read(tmp_path, [{"bbox": [1, 2, 3, 4]}], boxes_void=False).entries[0].load()
    assert (image.class_mask == 2).sum() == 12 and (image.class_mask[2:6, 1:4] == 2).all() and not image.losses


def test_a_file_with_boxes_but_no_outline_is_refused(tmp_path):
    with pytest.raises(UserError, match="boxes alone can't become masks"):
        read(tmp_path, [{"bbox": [1, 2, 3, 4]}])


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("as_stored", [True, False])
def test_masks_fit_the_image_as_displayed_whichever_way_it_was_annotated(tmp_path, orientation, as_stored):
    """The stored image is 60×40 with a red square where its annotation is; displayed it is 40×60."""
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[4:12, 6:26] = (250, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.fromarray(stored).save(sink, "PNG", exif=exif)
    displayed = decode_image(sink.getvalue())[..., 0] > 100
    annotated = stored[..., 0] > 100 if as_stored else displayed
    y, x = np.nonzero(annotated)
    x0, x1, y0, y1 = (int(v) for v in (x.min(), x.max() + 1, y.min(), y.max() + 1))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/t.png").write_bytes(sink.getvalue())
    images = [{"id": 1, "file_name": "t.png", "width": annotated.shape[1], "height": annotated.shape[0]}]
    image = read(tmp_path, [{"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}], images).entries[0].load()
    assert np.array_equal(image.class_mask > 0, displayed) and np.array_equal(image.object_mask > 0, displayed)


def test_annotations_of_another_size_reject_their_image(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "width": HEIGHT, "height": WIDTH}]
    reason = rejection_reason(read(tmp_path, [{"segmentation": [SQUARE]}], images))
    assert reason == "its annotations are for 40×60, the image is 60×40 as displayed"
