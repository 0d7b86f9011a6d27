"""Label Studio's JSON export: the shapes that are read, what was not accepted by anybody, and what is refused or rejected."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deconvnet.datasets.formats.label_studio import read_label_studio
from deconvnet.datasets.formats.label_studio.brush_runs import decode_brush, encode_brush
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from infra.errors import BadInput, UserError
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

SDK_MASK = np.zeros((4, 6), bool)
SDK_MASK[1:3, 2:5] = SDK_MASK[3, 5] = SDK_MASK[0, 0] = True
SDK_RUNS = [0, 0, 0, 96, 57, 27, 252, 127, 248, 108, 2, 223, 253, 176, 11, 127, 248, 92, 2, 63, 240]
"""What label_studio_sdk 2.1.2 (converter.brush.mask2rle) makes of this mask."""
SDK_STROKE = [
    *(0, 0, 0, 96, 57, 27, 248, 1, 64, 10, 0, 60, 7, 254, 27, 0, 0, 40, 1, 64, 7, 128, 255, 0),
    *(40, 1, 64, 7, 128, 255, 0, 40, 1, 64, 7, 128, 255, 182, 0, 0, 80, 2, 128, 15, 0, 200, 0, 80),
    *(2, 128, 15, 1, 254, 0, 80, 2, 128, 15, 1, 255, 133, 192, 0, 10, 0, 80, 1, 224, 63, 192),
]
"""The same mask in a colour, as its editor draws it (encode_rle); one pixel of it is translucent."""


def test_runs_of_the_tools_own_library_are_read():
    np.testing.assert_array_equal(decode_brush(SDK_RUNS, 4, 6), SDK_MASK)
    stroke = SDK_MASK.copy()
    stroke[2, 2] = False
    np.testing.assert_array_equal(decode_brush(SDK_STROKE, 4, 6), stroke)


def packets(*parts):
    """Run lengths of a mask of 2×1 px from bits, given as text."""
    bits = f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_words_that_are_not_repeated_stand_one_after_the_other():
    words = [9, 8, 7, 255, 6, 5, 4, 0]
    literal = packets("0", "01", f"{7:04b}", *(f"{word:08b}" for word in words))
    np.testing.assert_array_equal(decode_brush(literal, 1, 2), [[True, False]])


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1))
def test_any_mask_comes_back(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    np.testing.assert_array_equal(decode_brush(encode_brush(mask), height, width), mask)


def test_runs_longer_than_the_largest_number_are_cut():
    mask = np.zeros((300, 200), bool)
    mask[40:260] = True
    assert len(encode_brush(mask)) < 40
    np.testing.assert_array_equal(decode_brush(encode_brush(mask), 300, 200), mask)


@pytest.mark.parametrize(
    ("values", "height", "reason"),
    [
        (SDK_RUNS[:-2], 4, "they end too early"),
        (SDK_RUNS, 5, "96 words of 8 bits, and 6×5 px need 120 of 8"),
        ("abc", 4, "are not a list of bytes"),
        ([1, 300], 4, "are not a list of bytes"),
        (None, 4, "are not a list of bytes"),
        ([255] * 3, 4, "they end too early"),
    ],
)
def test_damaged_runs_are_refused(values, height, reason):
    with pytest.raises(BadInput, match=reason):
        decode_brush(values, height, 6)


def test_a_run_over_the_end_of_the_image_is_refused():
    with pytest.raises(BadInput, match="more pixels than the image"):
        decode_brush(packets("1", "01", f"{8:04b}", f"{255:08b}"), 1, 2)


def percent(points):
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points]


def result(label, value, kind="polygonlabels", **more):
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {"type": kind, "from_name": "label", "to_name": "image", **size, "value": {**value, kind: [label]}, **more}


def polygon(label, points):
    return result(label, {"points": percent(points), "closed": True})


SCENE = [polygon("crate", SQUARE), polygon("ball", TRIANGLE)]


def task(results, number=4, image="a.jpg", **annotation):
    annotations = [{"id": 2, "result": results, **annotation}]
    return {"id": number, "data": {"image": f"/data/upload/1/0a1b2c3d-{image}"}, "annotations": annotations}


def read(folder, *tasks, **rules):
    for name in ("a.jpg", "b.jpg"):
        write_image(folder / "images" / name)
    write_text(folder / "export.json", json.dumps(tasks))
    return read_label_studio([AnnotationSource(str(folder / "images"), str(folder / "export.json"))], ImportOptions(**rules))


def load(folder, results, **rules):
    return read(folder, task(results), **rules).entries[0].load()


def test_polygons_and_brush_labels_become_objects(tmp_path):
    crate = result("crate", {"format": "rle", "rle": encode_brush(scene_mask() == 1)}, "brushlabels")
    choice = {"type": "choices", "from_name": "quality", "value": {"choices": ["good"]}}
    dataset = read(tmp_path, task([choice, crate, SCENE[1]]), classes=("crate", "ball"))
    assert dataset.classes == ("background", "crate", "ball") and not dataset.notes
    image = dataset.entries[0].load()
    np.testing.assert_array_equal(image.class_mask, scene_mask())
    assert image.annotations == 2 and set(np.unique(image.object_mask)) == {0, 1, 2}


def test_predictions_and_skipped_annotations_are_not_read_and_their_tasks_are_counted(tmp_path):
    predicted = {"id": 5, "data": {"image": "b.jpg"}, "predictions": [{"result": SCENE}]}
    dataset = read(tmp_path, task(SCENE), predicted, task(SCENE, 6, "b.jpg", was_cancelled=True))
    assert [entry.image_id for entry in dataset.entries] == ["a"]
    assert "2 tasks have no annotation and are left out (predictions are not read)" in dataset.notes[0]
    with pytest.raises(UserError, match="predictions are not read before someone has accepted them"):
        read(tmp_path, predicted)


def test_an_annotation_without_a_region_is_all_background(tmp_path):
    dataset = read(tmp_path, task([], 5, "b.jpg"), task(SCENE))
    assert not dataset.entries[0].load().class_mask.any() and dataset.entries[0].image_id == "b"


def test_rectangles_are_void_unless_they_are_to_be_objects_and_turn_about_their_first_corner(tmp_path):
    box = {"x": 50, "y": 25, "width": 25, "height": 40, "rotation": 90}
    rectangle = result("crate", box, "rectanglelabels")
    void = load(tmp_path / "v", [rectangle])
    assert [loss.remedy for loss in void.lost_annotations] == ["--boxes object"] and set(np.unique(void.class_mask)) == {0, 255}
    mask = load(tmp_path / "o", [rectangle], boxes_void=False).class_mask
    expected = np.zeros_like(mask)
    expected[10:25, 14:30] = 1  # 15×16 px from (30, 10), turned clockwise
    np.testing.assert_array_equal(mask, expected)


def test_other_shapes_are_counted(tmp_path):
    ellipse = result("ball", {"x": 5, "y": 5, "radiusX": 3, "radiusY": 2}, "ellipselabels")
    image = load(tmp_path, [*SCENE, ellipse])
    assert [loss.label for loss in image.lost_annotations] == [
        "ball"
    ] and "not a polygon, brush label or rectangle" in image.lost_annotations[0].reason
    np.testing.assert_array_equal(image.class_mask, scene_mask(2, 1))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"value": {"points": percent(SQUARE), "polygonlabels": ["crate", "ball"]}},
            "result 1 has the labels crate and ball: keep one",
        ),
        ({"image_rotation": 90}, "turned by 90° in Label Studio"),
        ({"original_width": WIDTH + 1}, "of images of different sizes: 60×40, 61×40"),
        ({"original_height": -4}, "60×-4 px; 1 to"),
        ({"original_height": None}, "its original_height is None"),
        ({"value": {"points": [[1, "x"]], "polygonlabels": ["crate"]}}, r"result 1 \(crate\): its polygon has coordinates"),
        ({"value": {"rle": [1], "polygonlabels": ["crate"]}}, "they end too early"),
        ({"value": {"points": percent(SQUARE), "polygonlabels": []}}, "result 1 has no label"),
        ({"value": {"points": percent(SQUARE)}, "type": "polygon", "id": "other"}, "result 1 has no label"),
    ],
)
def test_results_that_cannot_be_understood_reject_the_image(tmp_path, changed, reason):
    dataset = read(tmp_path, task([{**SCENE[0], **changed}, SCENE[1]]))
    assert re.search(reason, rejection_reason(dataset))


def test_tasks_that_cannot_be_used_are_rejected(tmp_path):
    twice = task(SCENE)
    twice["annotations"] *= 2
    dataset = read(tmp_path, twice, task(SCENE, 5, "gone.jpg"), task(SCENE, 6, "b.jpg"), task(SCENE, 7, "b.jpg"))
    reasons = [reject.reason for reject in dataset.rejects]
    assert reasons[0] == "task 4 has 2 annotations: keep one"
    assert reasons[1] == f"below {tmp_path}/images, no image or more than one has the name that task 5 states"
    assert "is also that of another task" in reasons[2] and not dataset.entries


def test_the_label_of_a_region_may_be_in_another_result_of_its_id(tmp_path):
    """As where the labelling configuration has a Polygon beside Labels, or a choice for each region."""
    outlines = [{**each, "id": name, "type": "polygon"} for name, each in zip("ab", SCENE, strict=True)]
    labels = [
        result(label, {"points": percent(points)}, "labels", id=name)
        for name, label, points in (("b", "ball", TRIANGLE), ("a", "crate", SQUARE))
    ]
    choice = {**result("good", {"x": 1, "y": 2}, "choices"), "id": "a"}
    image = load(tmp_path, [choice, *outlines, *labels], classes=("crate", "ball"))
    np.testing.assert_array_equal(image.class_mask, scene_mask())
    assert image.annotations == 2


def test_a_task_of_two_images_is_rejected(tmp_path):
    """Which of the two was annotated is not stated."""
    both = task(SCENE)
    both["data"]["reference"] = "https://example.org/b.jpg"
    same = task(SCENE, 5, "b.jpg")
    same["data"] |= {"copy": same["data"]["image"], "comment": "//[draft", "gone": "c.jpg"}
    dataset = read(tmp_path, both)
    assert not dataset.entries and dataset.rejects[0].reason == (
        f"task 4 has 2 images, a.jpg and b.jpg: leave one of them below {tmp_path}/images"
    )
    assert [entry.image_id for entry in read(tmp_path, same).entries] == ["b"]


@pytest.mark.parametrize("other", [task(SCENE[:1], image="b.jpg"), {**task([], image="b.jpg"), "annotations": []}])
def test_tasks_that_share_an_id_are_rejected(tmp_path, other):
    """As in two exports that were joined."""
    write_image(tmp_path / "images/c.jpg")
    dataset = read(tmp_path, task(SCENE), other, task(SCENE, 6, "c.jpg"))
    assert [entry.image_id for entry in dataset.entries] == ["c"]
    assert [reject.reason for reject in dataset.rejects] == ["2 tasks of the export have the id 4: give each an id of its own"]


def test_a_project_of_two_folders_takes_no_image_of_the_other(tmp_path):
    """One of the folders is given as --images, in which b.jpg belongs to no task."""
    tasks = [task(SCENE, 1), task(SCENE, 2)]
    for each, name in zip(tasks, ("images/a.jpg", "elsewhere/b.jpg"), strict=True):
        each["data"]["image"] = f"/data/local-files/?d=project/{name}"
    dataset = read(tmp_path, *tasks)
    assert [entry.image_id for entry in dataset.entries] == ["a"] and "no image or more than one" in dataset.rejects[0].reason


def test_two_exports_are_one_data_set_and_keep_their_splits(tmp_path):
    """Their tasks are counted from the same number on."""
    sources, results = [], {"a": SCENE, "b": SCENE[:1]}
    for split, name in (("train", "a"), ("val", "b")):
        write_image(tmp_path / f"{split}/images/{name}.jpg")
        write_text(tmp_path / f"{split}/export.json", json.dumps([task(results[name], image=f"{name}.jpg")]))
        sources.append(AnnotationSource(str(tmp_path / split / "images"), str(tmp_path / split / "export.json"), split))
    dataset = read_label_studio(sources, ImportOptions(classes=("crate", "ball")))
    assert {entry.image_id: entry.split for entry in dataset.entries} == {"a": "train", "b": "val"} and not dataset.rejects
    for entry, triangle in zip(dataset.entries, (2, 0), strict=True):
        np.testing.assert_array_equal(entry.load().class_mask, scene_mask(triangle=triangle))


def test_images_larger_than_allowed_are_rejected(tmp_path):
    assert "60×40 px; 1 to 300 px are allowed" in rejection_reason(read(tmp_path, task(SCENE), max_pixels=300))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "not `JSON-MIN`"),
        ("[1]", "not `JSON-MIN`"),
        ('[{"id": 1, "image": "a.jpg", "label": []}]', "not `JSON-MIN`"),
        ("no json", "can't be read: not JSON"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, words):
    write_image(tmp_path / "images/a.jpg")
    write_text(tmp_path / "export.json", content)
    source = AnnotationSource(str(tmp_path / "images"), str(tmp_path / "export.json"))
    with pytest.raises(UserError, match=words):
        read_label_studio([source], ImportOptions())
    with pytest.raises(UserError, match="can't be read: there is no file"):
        read_label_studio([AnnotationSource(str(tmp_path / "images"), str(tmp_path / "images")), source], ImportOptions())
