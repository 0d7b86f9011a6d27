"""The generated data set: synthetic images with masks, so that the pipeline runs without any data (settings `data.generated`).

The images show textured shapes on a blotchy ground. The class of an object shows in its outline and its texture and, as in real
images, a little in its hue: objects tend to a hue of their class, but shades run from dark to light and the ground has any hue,
so a classifier of single pixels does badly. Objects come at many scales, overlap, reach over the edge of the image, and have thin
parts (the stalk of a disc, the points of a star, a thin ring).

Each image depends on the seed, its index and its size alone.
"""

import colorsys
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from deconvnet.datasets import voc
from deconvnet.datasets.palette import GENERATED_CLASSES, VOC_PALETTE
from infra import storage
from infra.runtime.progress import progress
from proposals.image_codec import encode_jpeg, encode_mask
from proposals.masks import VOID_ID

GENERATOR_VERSION = 2  # increase it when a change makes the same seed give other images
VAL_OFFSET = 1_000_000  # index of the first validation image, so that more training images don't change it
# Standard deviation in turns of the colour wheel; the hues of classes are a fifth of a turn apart, so they overlap.
_HUE_DEVIATION = 0.1
_SUPERSAMPLING = 4  # outlines are filled on a grid this many times finer and averaged, for soft edges
_MIN_VISIBLE = 0.5  # share of an object that others must leave visible
_ATTEMPTS = 12  # to place an object


@dataclass(frozen=True)
class _Shape:
    """An object's class and where it lies.

    Attributes:
        class_id: index in GENERATED_CLASSES.
        x: column of the centre, px.
        y: row of the centre, px.
        size: diameter, px.
        angle: rotation, radians.
        period: period of its texture, px.
    """

    class_id: int
    x: float
    y: float
    size: float
    angle: float
    period: float


def _object_coordinates(shape: _Shape, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute coordinates along the axes of an object for each pixel.

    Returns:
        Two float32 arrays (H, W), in px from the centre of the object.
    """
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    return (x - shape.x) * cos + (y - shape.y) * sin, (y - shape.y) * cos - (x - shape.x) * sin


def _circle(radius: float, count: int = 48) -> np.ndarray:
    """Make a circle about the origin, as a polygon: float64 array (count, 2)."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _outlines(class_id: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Make the outline of an object, with random proportions.

    Returns:
        Polygons about the origin with a diameter of about 1: float64 arrays (N, 2) of x, y.
    """
    match GENERATED_CLASSES[class_id]:
        case "disc":
            body = _circle(0.5) * [1, rng.uniform(0.75, 1)]
            if rng.random() < 0.5:
                return [body]
            body = body * 0.75 - [0, 0.18]
            half = rng.uniform(0.03, 0.05)
            return [body, np.array([[-half, 0.1], [half, 0.1], [half, 0.55], [-half, 0.55]])]
        case "square":
            return [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [0.42, 0.42 * rng.uniform(0.65, 1)]]
        case "triangle":
            return [np.array([[0, -0.5], [0.5, 0.42], [-0.5, 0.42]]) * [rng.uniform(0.75, 1.1), 1] + [rng.uniform(-0.1, 0.1), 0]]
        case "star":
            angles = np.arange(10) * np.pi / 5
            radius = np.where(np.arange(10) % 2, 0.55 * rng.uniform(0.42, 0.55), 0.55)
            return [radius[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)]
        case _:
            return [_circle(0.5), _circle(0.5 * rng.uniform(0.5, 0.72))]


def _coverage(shape: _Shape, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Compute the share of each pixel that an object covers: float32 array (H, W) in [0, 1]."""
    fine = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    polygons = [((p * shape.size) @ rotation + [shape.x, shape.y]) * _SUPERSAMPLING for p in _outlines(shape.class_id, rng)]
    polygons = [np.rint(p).astype(np.int32) for p in polygons]
    if GENERATED_CLASSES[shape.class_id] == "ring":
        cv2.fillPoly(fine, polygons, 1)  # filled together, so that the even-odd rule leaves the hole
    else:
        for polygon in polygons:
            cv2.fillPoly(fine, [polygon], 1)
    return fine.reshape(height, _SUPERSAMPLING, width, _SUPERSAMPLING).mean(axis=(1, 3), dtype=np.float32)


def _soften(wave: np.ndarray) -> np.ndarray:
    """Turn a wave about 0 into a pattern in [0, 1] with soft edges."""
    return 0.5 + 0.5 * np.tanh(2.5 * wave)


_TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: _soften(np.cos(np.hypot(u, v))),  # concentric rings
    "square": lambda u, v: _soften(1.6 * np.sin(u * 0.75) * np.sin(v * 0.75)),  # checks
    "triangle": lambda u, v: _soften(np.sin(u)),  # stripes
    "star": lambda u, v: _soften(np.cos(u * 0.9) + np.cos(v * 0.9) - 0.9),  # dots
    "ring": lambda u, v: _soften(np.sin(9 * np.arctan2(v, u))),  # segments
}


def _two_shades(rng: np.random.Generator, hue: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a dark and a light shade of a hue.

    Args:
        rng: random numbers.
        hue: in turns of the colour wheel.

    Returns:
        The two in random order: float32 arrays (3,), RGB 0–255.
    """
    dark = colorsys.hsv_to_rgb(hue, rng.uniform(0.3, 1), rng.uniform(0.1, 0.4))
    light = colorsys.hsv_to_rgb(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.1, 0.55), rng.uniform(0.8, 1))
    pair = np.array([dark, light] if rng.random() < 0.5 else [light, dark], np.float32) * 255
    return pair[0], pair[1]


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Make smooth noise with blotches of about `cell` px: float32 array (H, W) of mean 0 and standard deviation 1."""
    coarse = rng.standard_normal((math.ceil(height / cell) + 3, math.ceil(width / cell) + 3)).astype(np.float32)
    fine = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)[:height, :width]
    return (fine - fine.mean()) / (fine.std() + 1e-6)


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Make a blotchy ground of two colours of medium contrast: float32 array (H, W, 3), RGB 0–255."""
    first, second = _two_shades(rng, rng.random())
    second = first + (second - first) * rng.uniform(0.25, 0.5)
    cell = rng.uniform(0.12, 0.4) * min(height, width)
    blend = 0.5 + 0.22 * _noise(rng, height, width, cell) + 0.1 * _noise(rng, height, width, max(2.0, cell / 5))
    return first + np.clip(blend, 0, 1)[..., None] * (second - first)


def _paint_object(image: np.ndarray, shape: _Shape, coverage: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint an object on an image: textured, lit from one side, with a dark contour of 1–2 px.

    Args:
        image: float32 array (H, W, 3), RGB 0–255.
        shape: the object.
        coverage: its share of each pixel, float32 array (H, W).
        rng: random numbers.

    Returns:
        A new array like `image`.
    """
    height, width = coverage.shape
    objects = len(GENERATED_CLASSES) - 1
    first, second = _two_shades(rng, shape.class_id / objects + rng.normal(0, _HUE_DEVIATION))
    u, v = _object_coordinates(shape, height, width)
    scale = 2 * np.pi / shape.period
    pattern = _TEXTURES[GENERATED_CLASSES[shape.class_id]](u * scale, v * scale)
    surface = first + pattern[..., None] * (second - first)
    surface *= (1 + 0.12 * u / shape.size)[..., None]  # light from one side
    inside = cv2.erode((coverage >= 0.5).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32)
    rim = np.clip(coverage - inside, 0, 1)[..., None]
    dark = surface.mean(axis=2, keepdims=True) * 0.25
    surface += 0.7 * rim * (dark - surface)
    return image + coverage[..., None] * (surface - image)


def _place_objects(rng: np.random.Generator, height: int, width: int) -> Iterator[tuple[_Shape, np.ndarray]]:
    """Place one to four objects at random.

    Yields:
        The objects from back to front, each with its coverage (see `_coverage`); at least half of each stays visible.
    """
    side = min(height, width)
    visible = np.zeros((height, width), np.int32)  # the number of the object that is visible at each pixel
    areas: dict[int, int] = {}
    for _ in range(int(rng.integers(1, 5))):
        class_id = int(rng.integers(1, len(GENERATED_CLASSES)))
        for _ in range(_ATTEMPTS):
            size = side * math.exp(rng.uniform(math.log(0.18), math.log(0.9)))
            margin = 0.35 * size
            shape = _Shape(
                class_id,
                x=rng.uniform(margin, width - margin),
                y=rng.uniform(margin, height - margin),
                size=size,
                angle=rng.uniform(0, 2 * np.pi),
                period=rng.uniform(0.85, 1.15) * (4 + 0.09 * size),
            )
            coverage = _coverage(shape, rng, height, width)
            solid = coverage >= 0.5
            left = np.bincount(np.where(solid, 0, visible).ravel(), minlength=len(areas) + 1)
            if all(left[i] >= _MIN_VISIBLE * area for i, area in areas.items()):
                visible[solid] = len(areas) + 1
                areas[len(areas) + 1] = int(solid.sum())
                yield shape, coverage
                break


def generate(index: int, seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate one image of the data set.

    Args:
        index: index of the image; those of validation images start at VAL_OFFSET.
        seed: seed of the data set.
        height: height of the image, px.
        width: width of the image, px.

    Returns:
        image: uint8 array (H, W, 3), RGB.
        class_mask: uint8 array (H, W) of indices in GENERATED_CLASSES; 255 is void. Void covers 1 px on each side of every border
            between objects or ground.
        object_mask: uint8 array (H, W) of object ids from 1; 0 is background, 255 void.
    """
    rng = np.random.default_rng([seed, index])
    image = _ground(rng, height, width)
    object_mask = np.zeros((height, width), np.uint8)
    classes = [0]  # class id by object id
    for shape, coverage in _place_objects(rng, height, width):
        image = _paint_object(image, shape, coverage, rng)
        object_mask[coverage >= 0.5] = len(classes)
        classes.append(shape.class_id)
    image += rng.normal(0, rng.uniform(2, 6), image.shape)
    class_mask = np.array(classes, np.uint8)[object_mask]
    square = np.ones((3, 3), np.uint8)
    border = cv2.dilate(object_mask, square) != cv2.erode(object_mask, square)
    class_mask[border] = VOID_ID
    object_mask[border] = VOID_ID
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), class_mask, object_mask


def write_dataset(folder: str, seed: int, train: int, val: int, height: int, width: int) -> None:
    """Write the data set in VOC's layout. Does nothing if it is there already, with the same seed, counts and size.

    Args:
        folder: local folder or s3:// prefix. Beside VOC's files it gets classes.txt, and generated.json, which is written last
            and describes what was generated.
        seed: seed of the data set.
        train: number of images in the split train.
        val: number of images in the split val.
        height: height of the images, px.
        width: width of the images, px.
    """
    recipe = {"version": GENERATOR_VERSION, "seed": seed, "train": train, "val": val, "height": height, "width": width}
    marker = storage.join(folder, "generated.json")
    if storage.exists(marker) and storage.read_json(marker) == recipe:
        return
    storage.remove(marker)
    splits = {
        "train": [(f"train_{i:05d}", i) for i in range(train)],
        "val": [(f"val_{i:05d}", VAL_OFFSET + i) for i in range(val)],
    }
    images = [*splits["train"], *splits["val"]]
    for image_id, index in progress(images, len(images), "generating", "images"):
        image, class_mask, object_mask = generate(index, seed, height, width)
        storage.write_bytes(storage.join(folder, voc.IMAGES_DIR, f"{image_id}.jpg"), encode_jpeg(image))
        for name, mask in ((voc.CLASS_MASKS_DIR, class_mask), (voc.OBJECT_MASKS_DIR, object_mask)):
            storage.write_bytes(storage.join(folder, name, f"{image_id}.png"), encode_mask(mask, VOC_PALETTE))
    for split, members in splits.items():
        ids = "".join(f"{image_id}\n" for image_id, _ in members)
        storage.write_bytes(voc.split_path(folder, split), ids.encode())
    storage.write_bytes(storage.join(folder, "classes.txt"), ("\n".join(GENERATED_CLASSES) + "\n").encode())
    storage.write_json(marker, recipe)
