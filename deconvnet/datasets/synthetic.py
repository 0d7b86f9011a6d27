"""The generated data set: photographs no camera took, so that the pipeline runs where there is no data.

Each object's class shows in its outline and in its texture, and as in real photographs a little in its hue: objects lean to a hue of
their class, shades run from dark to light and the ground takes any hue, so a rule that looks at single pixels does badly. Objects come at many scales, overlap, run over
the photograph's edge, and have thin parts (a disc's stalk, a star's points, a thin ring).

Every photograph is a function of (seed, index, size) alone, whoever makes it and in whatever order.
"""

import colorsys
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from deconvnet.datasets.palette import GENERATED_CLASSES, VOC_PALETTE
from infra import storage
from infra.runtime.progress import progress
from proposals.image_codec import encode_jpeg, encode_mask
from proposals.masks import VOID_ID

GENERATOR_VERSION = 2  # raise it when the same seed comes to give other photographs

VAL_OFFSET = 1_000_000  # index of the first validation photograph: more training photographs don't change it
_HUE_SPREAD = 0.1  # turns: neighbouring classes, a fifth of a turn apart, overlap
_FINE = 4  # outlines are filled on a grid this much finer, then averaged: soft edges
_MIN_VISIBLE = 0.5  # share of an object that must stay in sight of the others
_TRIES = 12


@dataclass(frozen=True)
class _Shape:
    """An object's place: class id, centre and diameter in px, rotation in radians, period of its texture in px."""

    class_id: int
    x: float
    y: float
    size: float
    angle: float
    period: float


def _local(shape: _Shape, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's place in the object's own axes, px from its centre: two float32 H×W."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    return (x - shape.x) * cos + (y - shape.y) * sin, (y - shape.y) * cos - (x - shape.x) * sin


def _circle(radius: float, count: int = 48) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def _outlines(class_id: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Polygons of a class at diameter 1 about the origin, even-odd: a list of float (n, 2). Proportions vary."""
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
            turn = np.arange(10) * np.pi / 5
            radius = np.where(np.arange(10) % 2, 0.55 * rng.uniform(0.42, 0.55), 0.55)
            return [radius[:, None] * np.stack([np.sin(turn), -np.cos(turn)], axis=1)]
        case _:
            return [_circle(0.5), _circle(0.5 * rng.uniform(0.5, 0.72))]


def _cover(shape: _Shape, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The share of each pixel that the object covers: float32 H×W in [0, 1]."""
    canvas = np.zeros((height * _FINE, width * _FINE), np.uint8)
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    polygons = [((p * shape.size) @ turn + [shape.x, shape.y]) * _FINE for p in _outlines(shape.class_id, rng)]
    polygons = [np.rint(p).astype(np.int32) for p in polygons]
    if GENERATED_CLASSES[shape.class_id] == "ring":
        cv2.fillPoly(canvas, polygons, 1)  # together: even-odd leaves the hole
    else:
        for polygon in polygons:
            cv2.fillPoly(canvas, [polygon], 1)
    return canvas.reshape(height, _FINE, width, _FINE).mean(axis=(1, 3), dtype=np.float32)


def _soft(wave: np.ndarray) -> np.ndarray:
    """A wave in [-1, 1] as a soft-edged pattern in [0, 1]."""
    return 0.5 + 0.5 * np.tanh(2.5 * wave)


_TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: _soft(np.cos(np.hypot(u, v))),  # concentric rings
    "square": lambda u, v: _soft(1.6 * np.sin(u * 0.75) * np.sin(v * 0.75)),  # checks
    "triangle": lambda u, v: _soft(np.sin(u)),  # stripes
    "star": lambda u, v: _soft(np.cos(u * 0.9) + np.cos(v * 0.9) - 0.9),  # dots
    "ring": lambda u, v: _soft(np.sin(9 * np.arctan2(v, u))),  # segments
}


def _colours(rng: np.random.Generator, hue: float) -> tuple[np.ndarray, np.ndarray]:
    """A dark and a light shade of one hue (turns), in either order: float32 (3,), RGB 0–255."""
    dark = colorsys.hsv_to_rgb(hue, rng.uniform(0.3, 1), rng.uniform(0.1, 0.4))
    light = colorsys.hsv_to_rgb(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.1, 0.55), rng.uniform(0.8, 1))
    pair = np.array([dark, light] if rng.random() < 0.5 else [light, dark], np.float32) * 255
    return pair[0], pair[1]


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth noise with blotches of about `cell` px: float32 H×W, zero mean, unit deviation."""
    coarse = rng.standard_normal((math.ceil(height / cell) + 3, math.ceil(width / cell) + 3)).astype(np.float32)
    fine = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)[:height, :width]
    return (fine - fine.mean()) / (fine.std() + 1e-6)


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A blotchy ground between two colours of middling contrast: float32 H×W×3, RGB 0–255."""
    first, second = _colours(rng, rng.random())
    second = first + (second - first) * rng.uniform(0.25, 0.5)
    cell = rng.uniform(0.12, 0.4) * min(height, width)
    blend = 0.5 + 0.22 * _noise(rng, height, width, cell) + 0.1 * _noise(rng, height, width, max(2.0, cell / 5))
    return first + np.clip(blend, 0, 1)[..., None] * (second - first)


def _paint(image: np.ndarray, shape: _Shape, cover: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`image` (float32 H×W×3) with the object on it: textured, shaded, with a contour of 1–2 px."""
    height, width = cover.shape
    objects = len(GENERATED_CLASSES) - 1
    first, second = _colours(rng, shape.class_id / objects + rng.normal(0, _HUE_SPREAD))
    u, v = _local(shape, height, width)
    scale = 2 * np.pi / shape.period
    pattern = _TEXTURES[GENERATED_CLASSES[shape.class_id]](u * scale, v * scale)
    surface = first + pattern[..., None] * (second - first)
    surface *= (1 + 0.12 * u / shape.size)[..., None]  # light from one side
    inside = cv2.erode((cover >= 0.5).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32)
    rim = np.clip(cover - inside, 0, 1)[..., None]
    dark = surface.mean(axis=2, keepdims=True) * 0.25
    surface += 0.7 * rim * (dark - surface)
    return image + cover[..., None] * (surface - image)


def _scene(rng: np.random.Generator, height: int, width: int) -> Iterator[tuple[_Shape, np.ndarray]]:
    """The objects from back to front with their covers; none hides more than half of another."""
    side = min(height, width)
    seen = np.zeros((height, width), np.int32)
    areas: dict[int, int] = {}
    for _ in range(int(rng.integers(1, 5))):
        class_id = int(rng.integers(1, len(GENERATED_CLASSES)))
        for _ in range(_TRIES):
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
            cover = _cover(shape, rng, height, width)
            solid = cover >= 0.5
            left = np.bincount(np.where(solid, 0, seen).ravel(), minlength=len(areas) + 1)
            if all(left[i] >= _MIN_VISIBLE * area for i, area in areas.items()):
                seen[solid] = len(areas) + 1
                areas[len(areas) + 1] = int(solid.sum())
                yield shape, cover
                break


def generate(index: int, seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photograph `index` of the data set `seed`.

    Returns the image (uint8 H×W×3, RGB), the class mask (uint8 H×W, ids of GENERATED_CLASSES, 255 void) and the object mask
    (uint8 H×W, ids from 1, 0 background, 255 void). Void lies 1 px to each side of every border between objects or ground.
    """
    rng = np.random.default_rng([seed, index])
    image = _ground(rng, height, width)
    objects = np.zeros((height, width), np.uint8)
    classes = [0]
    for shape, cover in _scene(rng, height, width):
        image = _paint(image, shape, cover, rng)
        objects[cover >= 0.5] = len(classes)
        classes.append(shape.class_id)
    image += rng.normal(0, rng.uniform(2, 6), image.shape)
    labels = np.array(classes, np.uint8)[objects]
    square = np.ones((3, 3), np.uint8)
    border = cv2.dilate(objects, square) != cv2.erode(objects, square)
    labels[border] = VOID_ID
    objects[border] = VOID_ID
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), labels, objects


def write_dataset(folder: str, seed: int, train: int, val: int, height: int, width: int) -> None:
    """Write the data set as a VOC-layout folder (path or s3://), or do nothing where it already stands whole.

    JPEGImages, SegmentationClass, SegmentationObject, ImageSets/Segmentation/{train,val}.txt, classes.txt; `generated.json` is
    written last and says what was made.
    """
    recipe = {
        "version": GENERATOR_VERSION, "seed": seed, "train": train, "val": val, "height": height, "width": width
    }  # fmt: skip
    marker = storage.join(folder, "generated.json")
    if storage.exists(marker) and storage.read_json(marker) == recipe:
        return
    storage.remove(marker)
    splits = {
        "train": [(f"train_{i:05d}", i) for i in range(train)],
        "val": [(f"val_{i:05d}", VAL_OFFSET + i) for i in range(val)],
    }
    members = [*splits["train"], *splits["val"]]
    for image_id, index in progress(members, len(members), "generating", "photographs"):
        image, labels, objects = generate(index, seed, height, width)
        storage.write_bytes(storage.join(folder, "JPEGImages", f"{image_id}.jpg"), encode_jpeg(image))
        for name, mask in (("SegmentationClass", labels), ("SegmentationObject", objects)):
            storage.write_bytes(storage.join(folder, name, f"{image_id}.png"), encode_mask(mask, VOC_PALETTE))
    for split, drawn in splits.items():
        names = "".join(f"{image_id}\n" for image_id, _ in drawn)
        storage.write_bytes(storage.join(folder, "ImageSets", "Segmentation", f"{split}.txt"), names.encode())
    storage.write_bytes(storage.join(folder, "classes.txt"), ("\n".join(GENERATED_CLASSES) + "\n").encode())
    storage.write_json(marker, recipe)
