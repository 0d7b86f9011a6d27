"""The generated data set: synthetic images with masks, so that the pipeline can run without any data (settings `data.generated`).

The images show textured shapes on a background of soft colour patches. The class of an object can be told from its outline and
its texture. As in real images, colour helps only a little: each class tends to one hue, but its shades run from dark to light,
and the background may have any hue. So a classifier that looks at single pixels does badly. Objects come in many sizes, overlap,
extend beyond the edge of the image, and have thin parts: the stalk of a disc, the points of a star, a thin ring.

An image is determined by the seed, its index and its size.
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
VAL_OFFSET = 1_000_000  # index of the first validation image; so high that it does not depend on the number of training images
# Standard deviation of the hue of objects of one class, as a share of a turn of the colour wheel. The mean hues of the classes
# are a fifth of a turn apart, so their ranges overlap.
_HUE_DEVIATION = 0.1
_SUPERSAMPLING = 4  # outlines are filled on a grid this many times finer, and averaged to make soft edges
_MIN_VISIBLE = 0.5  # share of an object that later objects must leave visible
_ATTEMPTS = 12  # places that an object tries before it is dropped


@dataclass(frozen=True)
class _Shape:
    """The class, position and size of an object to paint.

    Attributes:
        class_id: index in GENERATED_CLASSES, the tuple of class names; 0 is background.
        x: column of the centre in px.
        y: row of the centre in px.
        size: diameter in px.
        angle: rotation in radians.
        period: distance in px after which the texture repeats.
    """

    class_id: int
    x: float
    y: float
    size: float
    angle: float
    period: float


def _circle(radius: float, count: int = 48) -> np.ndarray:
    """Make a regular polygon that approximates a circle about the origin.

    Args:
        radius: radius of the circle.
        count: number of corners.

    Returns:
        float64 array (count, 2) of x, y.
    """
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _outlines(class_id: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Make the outline of an object with random proportions.

    Args:
        class_id: index in GENERATED_CLASSES, the tuple of class names; not 0, which is background.
        rng: source of random numbers.

    Returns:
        One or two polygons, float64 arrays (N, 2) of x, y, centred on the origin and about 1 in diameter. The two polygons of a
        disc are the disc and its stalk; those of a ring are its outer and its inner edge.
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
    """Compute what share of each pixel an object covers.

    Args:
        shape: the object.
        rng: source of random numbers, for the proportions of the outline.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        float32 array (H, W) in [0, 1].
    """
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
    """Turn the values of a wave that oscillates about 0 into a pattern from 0 to 1 with smooth edges."""
    return 0.5 + 0.5 * np.tanh(2.5 * wave)


_TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: _soften(np.cos(np.hypot(u, v))),  # concentric rings
    "square": lambda u, v: _soften(1.6 * np.sin(u * 0.75) * np.sin(v * 0.75)),  # checks
    "triangle": lambda u, v: _soften(np.sin(u)),  # stripes
    "star": lambda u, v: _soften(np.cos(u * 0.9) + np.cos(v * 0.9) - 0.9),  # dots
    "ring": lambda u, v: _soften(np.sin(9 * np.arctan2(v, u))),  # segments
}


def _two_shades(rng: np.random.Generator, hue: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a dark and a light shade of about the same hue.

    Args:
        rng: source of random numbers.
        hue: hue as a share of a full turn of the colour wheel; whole turns don't matter.

    Returns:
        The two colours in random order: float32 arrays (3,), RGB from 0 to 255.
    """
    dark = colorsys.hsv_to_rgb(hue, rng.uniform(0.3, 1), rng.uniform(0.1, 0.4))
    light = colorsys.hsv_to_rgb(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.1, 0.55), rng.uniform(0.8, 1))
    pair = np.array([dark, light] if rng.random() < 0.5 else [light, dark], np.float32) * 255
    return pair[0], pair[1]


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Make smooth random noise.

    Args:
        rng: source of random numbers.
        height: height of the noise in px.
        width: width of the noise in px.
        cell: approximate diameter of its patches in px.

    Returns:
        float32 array (H, W) with mean 0 and standard deviation 1.
    """
    coarse = rng.standard_normal((math.ceil(height / cell) + 3, math.ceil(width / cell) + 3)).astype(np.float32)
    fine = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)[:height, :width]
    return (fine - fine.mean()) / (fine.std() + 1e-6)


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Paint a background of soft patches in shades between two random colours of medium contrast.

    Args:
        rng: source of random numbers.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        float32 array (H, W, 3), RGB from 0 to 255.
    """
    first, second = _two_shades(rng, rng.random())
    second = first + (second - first) * rng.uniform(0.25, 0.5)
    cell = rng.uniform(0.12, 0.4) * min(height, width)
    blend = 0.5 + 0.22 * _noise(rng, height, width, cell) + 0.1 * _noise(rng, height, width, max(2.0, cell / 5))
    return first + np.clip(blend, 0, 1)[..., None] * (second - first)


def _paint_object(image: np.ndarray, shape: _Shape, coverage: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint an object on an image: textured, lit from one side, with a dark contour 1–2 px wide.

    Args:
        image: float32 array (H, W, 3), RGB from 0 to 255; it is not changed.
        shape: the object.
        coverage: float32 array (H, W) in [0, 1], the share of each pixel that the object covers.
        rng: source of random numbers, for the colours.

    Returns:
        The painted image, as a new array with the shape and dtype of `image`.
    """
    height, width = coverage.shape
    objects = len(GENERATED_CLASSES) - 1
    first, second = _two_shades(rng, shape.class_id / objects + rng.normal(0, _HUE_DEVIATION))
    # The coordinates of each pixel along the two axes of the object, in px from its centre.
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    u, v = (x - shape.x) * cos + (y - shape.y) * sin, (y - shape.y) * cos - (x - shape.x) * sin
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
    """Place up to four objects at random.

    One to four objects are drawn. For each, up to 12 random sizes and positions are tried. The object is placed by the first try
    that leaves at least half of every earlier object visible. If no try does, the object is dropped.

    Args:
        rng: source of random numbers.
        height: height of the image in px.
        width: width of the image in px.

    Yields:
        The objects from back to front, each with its coverage: a float32 array (H, W) in [0, 1], the share of each pixel covered.
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
    """Generate one image of the data set, with its masks.

    Args:
        index: index of the image in the data set. Training images are counted from 0, validation images from 1,000,000
            (VAL_OFFSET).
        seed: seed of the data set.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The image, a uint8 array (H, W, 3), RGB. Then the class mask, a uint8 array (H, W) of indices in GENERATED_CLASSES.
        Finally the object mask, a uint8 array (H, W) of object ids from 1, with background 0. In both masks, the pixels next to
        the border of an object are void (255): 1 px on either side.
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
    """Generate the data set and write it in VOC's layout, unless the folder already has it with the same seed, counts and size.

    Besides the files of VOC's layout, classes.txt and generated.json are written. The latter records what was generated. It is
    written last, so a data set that was left incomplete is generated anew.

    Args:
        folder: local folder or bucket prefix to write to.
        seed: seed of the data set.
        train: number of images in the split train.
        val: number of images in the split val.
        height: height of the images in px.
        width: width of the images in px.
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
