"""The lines of YOLO's text files: the masks they give, and what is refused or rejected."""

import unicodedata

import numpy as np
import pytest

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
from tests.deconvnet.datasets.formats.yolo_inputs import SCENE, check_scene, line, read, write_scenes

BOX = f"0 {12 / WIDTH} {12.5 / HEIGHT} {12 / WIDTH} {15 / HEIGHT}\n"


def test_boxes_become_void_or_objects(tmp_path):
    write_scenes(tmp_path, a=BOX + line(1, TRIANGLE))
    write_text(tmp_path / "classes.txt", "crate\nball\n")
    image = read(tmp_path).entries[0].load()
    np.testing.assert_array_equal(image.class_mask, scene_mask(square=255))
    assert [(loss.label, loss.remedy) for loss in image.lost_annotations] == [
        ("crate", "--boxes object")
    ] and image.annotations == 2
    check_scene(read(tmp_path, boxes_void=False))
    image = read(tmp_path, classes=("ball",)).entries[0].load()  # a box of another class is background
    np.testing.assert_array_equal(image.class_mask, scene_mask(square=0, triangle=1))
    assert not image.lost_annotations
    image = read(tmp_path, classes=("ball",), others_void=True).entries[0].load()
    np.testing.assert_array_equal(image.class_mask, scene_mask(square=255, triangle=1))


def test_images_without_a_text_file_are_background_and_counted(tmp_path):
    write_scenes(tmp_path, a=SCENE, b=None, c=None)
    write_text(tmp_path / "classes.txt", "crate\nball\n")
    dataset = read(tmp_path)
    assert dataset.entries[1].load().class_mask.max() == 0
    assert "2 images have no text file, so they are all background" in dataset.notes


def test_names_in_another_form_of_unicode_are_the_same(tmp_path):
    write_image(tmp_path / f"images/{unicodedata.normalize('NFD', 'Straße_über')}.jpg")
    write_text(tmp_path / f"labels/{unicodedata.normalize('NFC', 'Straße_über')}.txt", SCENE)
    write_text(tmp_path / "classes.txt", "crate\nball\n")
    check_scene(read(tmp_path))


def test_two_text_files_of_one_image_are_rejected(tmp_path):
    write_scenes(tmp_path, a=SCENE)
    write_text(tmp_path / "images/a.txt", "")
    write_text(tmp_path / "classes.txt", "crate\nball\n")
    dataset = read(tmp_path)
    assert not dataset.entries and "are both of this image: keep one" in dataset.rejects[0].reason


def test_text_files_without_an_image_are_rejected(tmp_path):
    write_scenes(tmp_path, a=SCENE)
    write_text(tmp_path / "labels/lost.txt", SCENE)
    write_text(tmp_path / "labels/classes.txt", "crate\nball\n")
    dataset = read(tmp_path)
    assert [reject.reason for reject in dataset.rejects] == [f"no image of this name below {tmp_path}"]
    with pytest.raises(UserError, match=r"no text file below .* has the name of an image"):
        read(tmp_path / "labels", write_image(tmp_path / "other/x.jpg") or tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (line(7, SQUARE), "line 1 has the class 7, but only the classes 0–1 have names"),
        ("\n0 0.1 0.2 0.3 0.4 0.5\n", "line 2 has 5 numbers after the class"),
        ("0 10 20 30 40 50 60\n", "line 1 has numbers outside 0–1"),
        ("0 0.1 nan 0.3 0.4 0.5 0.6\n", "line 1 has numbers outside 0–1"),
        ("crate 0.1 0.2 0.3 0.4 0.5 0.6\n", "line 1 has words that are not numbers"),
        ("0.5 0.1 0.2 0.3 0.4 0.5 0.6\n", "line 1 has the class 0.5"),
    ],
)
def test_a_malformed_line_rejects_its_image(tmp_path, text, words):
    write_scenes(tmp_path, a=text)
    write_text(tmp_path / "classes.txt", "crate\nball\n")
    assert words in rejection_reason(read(tmp_path))


def test_a_line_that_repeats_another_is_counted_and_not_drawn(tmp_path):
    write_scenes(tmp_path, a=SCENE + SCENE)
    write_text(tmp_path / "classes.txt", "crate\nball\n")
    image = read(tmp_path).entries[0].load()
    assert image.hidden_objects == 0 and [loss.reason for loss in image.lost_annotations] == ["repeats an earlier line"] * 2
