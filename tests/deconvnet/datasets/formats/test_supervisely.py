"""Supervisely's projects: their layouts, objects of all kinds, and what is refused or rejected."""

import base64
import io
import json
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.formats import supervisely
from deconvnet.datasets.formats.supervisely import read_supervisely
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from infra.errors import UserError
from tests.deconvnet.datasets.formats.inputs import (
    HEIGHT,
    SQUARE,
    TRIANGLE,
    WIDTH,
    rejection_reason,
    scene_mask,
    write_image,
    write_text,
)

META = {
    "classes": [{"title": t, "shape": "any", "color": "#FF0000"} for t in ("crate", "ball")],
    "tags": [],
    "projectType": "images",
}


def figure(label, kind, points=(), holes=(), **more):
    return {"classTitle": label, "geometryType": kind, "tags": [], "points": {"exterior": points, "interior": holes}, **more}


def bitmap(label, image, origin, **save):
    sink = io.BytesIO()
    image.save(sink, "PNG", **save)
    text = base64.b64encode(zlib.compress(sink.getvalue())).decode()
    return {"classTitle": label, "geometryType": "bitmap", "bitmap": {"data": text, "origin": origin}}


SCENE = [figure("crate", "polygon", SQUARE), figure("ball", "polygon", TRIANGLE)]


def write(folder, objects, image="ds0/img/a.jpg", annotation="ds0/ann/a.jpg.json", meta=META):
    """Write a project with one image that has these objects."""
    write_image(folder / image)
    document = {"description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH}, "objects": objects}
    write_text(folder / annotation, json.dumps(document))
    if meta:
        write_text(folder / "meta.json", json.dumps(meta))
    return folder


def read(annotations, images=None, **rules):
    return read_supervisely([AnnotationSource(str(images or annotations), str(annotations))], ImportOptions(**rules))


@pytest.mark.parametrize(
    ("image", "annotation"),
    [
        ("ds0/img/a.jpg", "ds0/ann/a.jpg.json"),
        ("ds0/img/a.jpg", "ds0/ann/a.json"),
        ("img/a.png", "ann/a.png.json"),
        ("ds0/datasets/ds1/img/a.jpg", "ds0/datasets/ds1/ann/a.jpg.json"),
        (unicodedata.normalize("NFD", "ds0/img/ä.jpg"), "ds0/ann/ä.jpg.json"),
    ],
    ids=["project", "older project", "data set", "nested data sets", "Unicode"],
)
def test_the_layouts_of_projects(tmp_path, image, annotation):
    dataset = read(write(tmp_path, SCENE, image, annotation))
    assert dataset.classes == ("background", "crate", "ball") and not dataset.rejects
    np.testing.assert_array_equal(dataset.entries[0].load().class_mask, scene_mask())


def test_images_and_annotations_may_be_named_apart(tmp_path):
    write(tmp_path, SCENE)
    for annotations in (tmp_path / "ds0/ann", tmp_path / "ds0", tmp_path):
        dataset = read(annotations, tmp_path / "ds0/img")
        assert dataset.classes == ("background", "crate", "ball")  # the order is that of meta.json
        np.testing.assert_array_equal(dataset.entries[0].load().class_mask, scene_mask())


def test_two_annotation_files_of_one_image_are_rejected(tmp_path):
    write(tmp_path, SCENE)
    write(tmp_path, [], annotation="ds0/ann/a.json")
    dataset = read(tmp_path)
    assert not dataset.entries and len(dataset.rejects) == 2


def test_images_of_one_name_in_two_data_sets_are_told_apart(tmp_path):
    write(tmp_path, SCENE)
    write(tmp_path, [], "ds1/img/a.jpg", "ds1/ann/a.jpg.json")
    dataset = read(tmp_path)
    assert {entry.image_id: int(entry.load().class_mask.max()) for entry in dataset.entries} == {"ds0_a": 2, "ds1_a": 0}


def paletted(mask):
    """The bitmap as Supervisely writes it: a palette of black and white, in which black is transparent."""
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image, {"transparency": 0}


@pytest.mark.parametrize(
    "make",
    [
        paletted,
        lambda mask: (Image.fromarray(mask.astype(np.uint8) * 255), {}),
        lambda mask: (Image.fromarray(mask), {}),
        lambda mask: (Image.fromarray(np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask * np.uint8(255)])), {}),
    ],
    ids=["palette", "grey", "1 bit", "alpha"],
)
def test_bitmaps_are_small_pngs(tmp_path, make):
    mask = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], bool)
    image, save = make(mask)
    made = bitmap("ball", image, [10, 5], **save)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[5:8, 10:14] = mask * 2
    for kind in ("bitmap", "alpha_mask"):
        dataset = read(write(tmp_path, [made | {"geometryType": kind}]))
        np.testing.assert_array_equal(dataset.entries[0].load().class_mask, expected)


@pytest.mark.parametrize("limit", ["_MAX_BYTES", "_MAX_PIXELS"])
def test_a_bitmap_larger_than_any_image_rejects_its_image(tmp_path, monkeypatch, limit):
    dataset = read(write(tmp_path, [bitmap("ball", Image.fromarray(np.ones((5, 5), bool)), [10, 5])]))
    dataset.entries[0].load()
    monkeypatch.setattr(supervisely, limit, 24)
    assert rejection_reason(dataset) == "object 1 (ball): its bitmap is damaged"


def test_holes_of_polygons_stay_background(tmp_path):
    hole = [[10, 8], [14, 8], [14, 12], [10, 12]]
    mask = read(write(tmp_path, [figure("crate", "polygon", SQUARE, [hole])])).entries[0].load().class_mask
    assert mask.sum() == 12 * 15 - 16 and not mask[8:12, 10:14].any()


def test_rectangles_become_void_or_objects_and_other_figures_are_counted(tmp_path):
    objects = [
        figure("crate", "rectangle", [SQUARE[0], SQUARE[2]]),
        figure("ball", "polygon", TRIANGLE),
        figure("ball", "line", [[1, 2], [3, 4]]),
        figure("ball", "point", [[1, 2]]),
    ]
    write(tmp_path, objects)
    image = read(tmp_path).entries[0].load()
    np.testing.assert_array_equal(image.class_mask, scene_mask(square=255))
    assert [(loss.label, loss.remedy) for loss in image.lost_annotations] == [
        ("crate", "--boxes object"),
        ("ball", ""),
        ("ball", ""),
    ]
    np.testing.assert_array_equal(read(tmp_path, boxes_void=False).entries[0].load().class_mask, scene_mask())


@pytest.mark.parametrize(
    ("malformed", "words"),
    [
        (figure("", "polygon", SQUARE), "object 1 has no class"),
        (figure("crate", "polygon", [["x", 1]]), "object 1 (crate): its polygon has coordinates that are not numbers"),
        (
            {"classTitle": "crate", "geometryType": "bitmap", "bitmap": {"data": "eJw=", "origin": [0, 0]}},
            "its bitmap is damaged",
        ),
        ({"classTitle": "crate", "geometryType": "bitmap"}, "its bitmap is damaged"),
        ({"classTitle": "crate", "geometryType": "polygon", "points": [[1, 2]]}, "its polygon has no points"),
        (figure("crate", "polygon", SQUARE, 7.5), "the holes of its polygon are not a list"),
        (figure("crate", "rectangle", SQUARE[:3]), "a rectangle has 2 points, this one 3"),
    ],
)
def test_a_malformed_object_rejects_its_image(tmp_path, malformed, words):
    assert words in rejection_reason(read(write(tmp_path, [malformed])))


def test_what_is_no_project_is_refused_and_files_that_fit_no_image_are_rejected(tmp_path):
    write_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"no \.json file in a folder ann"):
        read(tmp_path)
    write_text(tmp_path / "ann/b.json", "[]")
    with pytest.raises(UserError, match=r"no annotation file can be used; .*b\.json: not an annotation file of Supervisely"):
        read(tmp_path)
    write(tmp_path, SCENE, "img/a.jpg", "ann/gone.jpg.json")
    assert {reject.reason[:11] for reject in read(tmp_path).rejects} == {"its image i", "not an anno"}
    write_text(tmp_path / "meta.json", "{}")
    with pytest.raises(UserError, match=r"is not a meta\.json of Supervisely"):
        read(tmp_path)


@pytest.mark.parametrize("image", ["a.jpg", "img/a.jpg", "ds1/img/a.jpg"])
def test_an_image_of_another_data_set_is_not_taken_for_a_missing_one(tmp_path, image):
    for name in ("ds1", "ds2"):
        write(tmp_path / "project", SCENE, "other.jpg", f"{name}/ann/a.jpg.json")
    write_image(tmp_path / "images" / image)
    dataset = read(tmp_path / "project", tmp_path / "images")
    assert [entry.image_id for entry in dataset.entries] == (["ds1_a"] if "ds1" in image else [])
    words = "its image is not below" if "ds1" in image else f"{image}, its image below {tmp_path}/images, is also that of another"
    assert dataset.rejects and all(words in reject.reason for reject in dataset.rejects)


@pytest.mark.parametrize("folder", ["img", ""])
def test_the_images_of_one_data_set_are_not_those_of_another(tmp_path, folder):
    """One of the two is given as --images. Its image b.jpg has no annotation."""
    for name in ("ds1", "ds2"):
        write(tmp_path, SCENE, f"{name}/img/other.jpg", f"{name}/ann/{'a' if name == 'ds1' else 'b'}.jpg.json")
        write_image(tmp_path / f"ds1/img/{'a' if name == 'ds1' else 'b'}.jpg")
    dataset = read(tmp_path, tmp_path / "ds1" / folder)
    assert [entry.image_id for entry in dataset.entries] == ["a"]
    assert [reject.reason for reject in dataset.rejects] == [f"its image is not below {tmp_path / 'ds1' / folder}"]
