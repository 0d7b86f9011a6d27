"""Small data sets with YOLO's text files."""

import numpy as np

from deconvnet.datasets.formats.yolo import read_yolo
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from tests.deconvnet.datasets.formats.inputs import HEIGHT, SQUARE, TRIANGLE, WIDTH, scene_mask, write_image, write_text


def line(number, points):
    return " ".join([str(number), *(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in points)]) + "\n"


SCENE = line(0, SQUARE) + line(1, TRIANGLE)


def read(annotations, images=None, **rules):
    return read_yolo([AnnotationSource(str(images or annotations), str(annotations))], ImportOptions(**rules))


def write_scenes(folder, **texts):
    """Write images/NAME.jpg and labels/NAME.txt for each text that is not None; NAME may have folders, written as __."""
    for name, text in texts.items():
        write_image(folder / f"images/{name.replace('__', '/')}.jpg")
        if text is not None:
            write_text(folder / f"labels/{name.replace('__', '/')}.txt", text)


def splits_of(dataset):
    return {entry.image_id: entry.split for entry in dataset.entries}


def check_scene(dataset):
    assert dataset.classes == ("background", "crate", "ball") and not dataset.rejects
    np.testing.assert_array_equal(dataset.entries[0].load().class_mask, scene_mask())
