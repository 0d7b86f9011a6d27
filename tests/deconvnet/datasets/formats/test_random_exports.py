"""COCO and LabelMe files as tools may export them: the masks that are imported are the truth, or the image or file is refused.

Each image is unmistakable, so it is recognised by its pixels when it was imported. The truth is drawn beside it, from rectangles.
"""

import base64
import io
import json
import tempfile
import unicodedata
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deconvnet.datasets.formats.coco import read_coco
from deconvnet.datasets.formats.labelme import read_labelme
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions
from deconvnet.datasets.importing.orientation import GUESSED
from infra.errors import BadInput, UserError
from proposals.image_codec import decode_image
from tests.deconvnet.datasets.formats.inputs import compressed, runs
from tests.examples import examples

CLASSES = ("crate", "ball", "größe")
SIZES = ((24, 18), (18, 24), (20, 20))
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Scene:
    """An image and its objects: rectangles x0, y0, x1, y1 as displayed, each with a class id from 1 on."""

    data: bytes
    orientation: int
    size: tuple[int, int]  # as displayed
    objects: list[tuple[int, tuple[int, int, int, int]]]

    def mask(self) -> np.ndarray:
        """The right class mask: small objects over large ones, and of equals the later one."""
        mask = np.zeros(self.size[::-1], np.uint8)
        for class_id, (x0, y0, x1, y1) in sorted(self.objects, key=lambda o: -(o[1][2] - o[1][0]) * (o[1][3] - o[1][1])):
            mask[y0:y1, x0:x1] = class_id
        return mask

    def in_frame(self, box: tuple[int, int, int, int], stored: bool) -> np.ndarray:
        """The bool mask of a rectangle, as displayed or as stored."""
        mask = np.zeros(self.size[::-1], bool)
        x0, y0, x1, y1 = box
        mask[y0:y1, x0:x1] = True
        return turn_back(mask, self.orientation) if stored else mask


def turn_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image from the way it is displayed to the way it is stored."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    flips = {1: [], 2: [1], 3: [0, 1], 4: [0], 5: [], 6: [0], 7: [0, 1], 8: [1]}[orientation]
    for axis in flips:
        pixels = np.flip(pixels, axis)
    return np.ascontiguousarray(pixels)


def draw_scene(draw: Draw, number: int, turned: bool) -> Scene:
    """Draw a random scene. A scene that is turned has an object from edge to edge, which tells how it was annotated."""
    orientation = draw(st.sampled_from([2, 3, 4, 5, 6, 6, 7, 8, 8])) if turned else 1
    width, height = draw(st.sampled_from(SIZES))
    objects = []
    for _ in range(draw(st.integers(0 if number else 1, 3))):
        x0, y0 = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
        box = (x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height)))
        objects.append((draw(st.integers(1, len(CLASSES))), box))
    if turned:
        objects += [(1, (0, 3, width, 5)), (2, (3, 0, 5, height))]
    rng = np.random.default_rng(number)
    pixels = np.kron(rng.integers(0, 255, (3, 3, 3)), np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.fromarray(turn_back(pixels, orientation)).save(sink, "PNG", exif=exif)
    assert np.array_equal(decode_image(sink.getvalue()), pixels)
    return Scene(sink.getvalue(), orientation, (width, height), objects)


@st.composite
def scene_sets(draw: Draw) -> tuple[list[Scene], dict[str, bool]]:
    """Scenes of one data set, and whether their sizes and points are annotated as stored."""
    turned = draw(st.booleans())
    scenes = [draw_scene(draw, number, turned and draw(st.booleans())) for number in range(draw(st.integers(1, 4)))]
    return scenes, {"size": draw(st.booleans()), "points": draw(st.booleans())}


def write_images(draw: Draw, scenes: list[Scene], folder: Path) -> list[str]:
    """Write the images in some folders, also with the same file names. Returns their paths; some files may be missing."""
    nested, same = draw(st.booleans()), draw(st.booleans())
    names = []
    for number, scene in enumerate(scenes):
        name = (f"site_{number}/" if nested else "") + ("bild ä.png" if nested and same else f"bild ä {number}.png")
        names.append(name)
        if draw(st.integers(0, 9)):
            on_disk = unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), name)
            (folder / on_disk).parent.mkdir(parents=True, exist_ok=True)
            (folder / on_disk).write_bytes(scene.data)
    folder.mkdir(exist_ok=True)
    stranger = np.kron(np.arange(9).reshape(3, 3, 1) * 28, np.ones((6, 8, 3))).astype(np.uint8)
    Image.fromarray(stranger).save(folder / "stranger.png")
    return names


def listed_name(draw: Draw, name: str) -> str:
    """A name as some tool may list it."""
    spell = draw(st.sampled_from([str, urllib.parse.quote, lambda text: unicodedata.normalize("NFD", text)]))
    prefix = draw(st.sampled_from(["", "./", "images/", "/data/project 7/images/", "C:\\data\\"]))
    path = prefix + spell(name)
    return path.replace("/", "\\") if draw(st.booleans()) else path


def corners(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The rectangle x0, y0, x1, y1 of a mask that is one."""
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def segmentation(draw: Draw, mask: np.ndarray, kind: str) -> Any:
    """A rectangle as COCO's segmentation."""
    x0, y0, x1, y1 = corners(mask)
    flat = [x0, y0, x1, y0, x1, y1, x0, y1]
    if kind == "polygon":
        pairs = [flat[i : i + 2] for i in range(0, 8, 2)]
        return draw(st.sampled_from([[flat], flat, pairs, [pairs], [[float(v) for v in flat]], [[*flat, *flat[:2]]]]))
    counts = runs(mask.T)
    return {"size": list(mask.shape), "counts": draw(st.sampled_from([counts, compressed(counts)]))}


def compare(read: Callable[[], AnnotatedDataset], scenes: list[Scene]) -> int:
    """Assert that all imported masks are right, but where annotations became void and that is reported.

    Returns:
        The number of masks that were compared: none if the files were refused, and only those of images that were not rejected.
    """
    try:
        dataset = read()
    except UserError:
        return 0
    assert dataset.classes[0] == "background" and set(dataset.classes[1:]) <= set(CLASSES)
    compared = 0
    for entry in dataset.entries:
        try:
            image = entry.load()
        except BadInput:
            continue
        pixels = decode_image(image.image)
        [scene] = [scene for scene in scenes if np.array_equal(decode_image(scene.data), pixels)]  # fails for the stranger
        names = np.array(["background", *CLASSES, *["?"] * 252])[scene.mask()]
        found = np.array([*dataset.classes, *["?"] * (255 - len(dataset.classes)), "void"])[image.class_mask]
        wrong = names != found
        if wrong.any() and image.remark != GUESSED:
            assert image.lost_annotations, f"{entry.image_id}\n{names}\n{found}"
            for class_id, box in scene.objects:  # a void object hides no other
                wrong &= (found != "void") & ~(scene.in_frame(box, False) & (found == CLASSES[class_id - 1]))
            assert not wrong.any(), f"{entry.image_id}\n{names}\n{found}"
        compared += 1
    return compared


def write_coco(draw: Draw, scenes: list[Scene], stored: dict[str, bool], folder: Path) -> AnnotationSource:
    """Write COCO JSON."""
    number = draw(st.sampled_from([int, int, str, float]))
    flags = draw(st.sampled_from([(0, 1), ("0", "1"), (False, True), (None, 1)]))
    kinds = draw(
        st.sampled_from([("polygon",), ("mask",), ("polygon", "mask"), ("polygon", "box"), ("mask", "crowd"), ("crowd",)])
    )
    category_ids = draw(st.lists(st.integers(-3, 90), min_size=3, max_size=3, unique=True))
    names = write_images(draw, scenes, folder / "images")
    images, annotations = [], []
    for index, (scene, name) in enumerate(zip(scenes, names, strict=True)):
        shape = scene.in_frame((0, 0, 1, 1), stored["size"]).shape
        size = {"width": number(shape[1]), "height": number(shape[0])} if draw(st.integers(0, 4)) else {}
        images.append({"id": number(index), "file_name": listed_name(draw, name), **size})
        for class_id, box in scene.objects:
            kind = draw(st.sampled_from(kinds))
            mask = scene.in_frame(box, stored["points"])
            x0, y0, x1, y1 = corners(mask)
            annotation = {
                "id": len(annotations),
                "image_id": draw(st.sampled_from([int, str]))(index),
                "category_id": number(category_ids[class_id - 1]),
                "iscrowd": flags[kind == "crowd"],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": [] if kind == "box" else segmentation(draw, mask, kind),
            }
            annotations.append(annotation)
    categories = [{"id": number(key), "name": name} for key, name in zip(category_ids, CLASSES, strict=True)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    for section in document.values():
        draw(st.randoms()).shuffle(section) if section is images else None
    (folder / "c.json").write_text(json.dumps(document))
    return AnnotationSource(str(folder / "images"), str(folder / "c.json"))


def write_labelme(draw: Draw, scenes: list[Scene], stored: dict[str, bool], folder: Path) -> AnnotationSource:
    """Write a LabelMe file for each scene."""
    embed = draw(st.sampled_from(["none", "all", "some"]))
    names = write_images(draw, scenes, folder / "images")
    mirrored = draw(st.booleans())  # the JSON files lie in folders as the images do
    for index, (scene, name) in enumerate(zip(scenes, names, strict=True)):
        shapes = []
        for class_id, box in scene.objects:
            mask = scene.in_frame(box, stored["points"])
            x0, y0, x1, y1 = corners(mask)
            square = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
            kind = draw(st.sampled_from(["polygon", "rectangle", "rotation", "mask", None]))
            shape = {"label": CLASSES[class_id - 1], "shape_type": kind, "points": square, "group_id": None}
            if kind == "rectangle" and draw(st.booleans()):
                shape["points"] = draw(st.sampled_from([square[::2], square[1::2], square[2::-2]]))
            if kind == "mask":
                sink = io.BytesIO()
                Image.fromarray(np.ones((y1 - y0, x1 - x0), bool)).save(sink, "PNG")
                shape |= {"points": [[x0, y0], [x1 - 1, y1 - 1]], "mask": base64.b64encode(sink.getvalue()).decode()}
            shapes.append(shape)
        height, width = scene.in_frame((0, 0, 1, 1), stored["size"]).shape
        path = name.rsplit("/", 1)[-1] if mirrored else listed_name(draw, name)
        content = {"shapes": shapes, "imagePath": path, "imageWidth": width, "imageHeight": height, "imageData": None}
        if not draw(st.integers(0, 4)):
            del content["imageWidth"], content["imageHeight"]
        if embed == "all" or (embed == "some" and draw(st.booleans())):
            content["imageData"] = base64.b64encode(scene.data).decode()
        target = folder / "json" / (name if mirrored else f"{index}.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_suffix(".json").write_text(json.dumps(content))
    images = draw(st.sampled_from(["images", "images", "json"]))
    return AnnotationSource(str(folder / images), str(folder / "json"))


@pytest.mark.parametrize(("write", "read"), [(write_coco, read_coco), (write_labelme, read_labelme)])
def test_masks_are_the_truth_or_refused_and_enough_are_not_refused(write, read) -> None:
    compared = 0

    @examples(25)
    @given(scene_sets(), st.data())
    def check(case: tuple[list[Scene], dict[str, bool]], data: st.DataObject) -> None:
        nonlocal compared
        scenes, stored = case
        with tempfile.TemporaryDirectory() as temporary:
            source = write(data.draw, scenes, stored, Path(temporary))
            compared += compare(lambda: read([source], ImportOptions()), scenes)

    check()
    assert compared > 12  # usually 25 to 50
