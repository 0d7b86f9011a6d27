"""Operations on boxes: enlarge them, measure their overlap, cut them out of images, and make windows that cover an image.

A box is (x1, y1, x2, y2) in pixels. Coordinates are pixel edges, not pixel centres, so x2 and y2 are exclusive: the top left
pixel of an image is the box (0, 0, 1, 1). A box may reach beyond the image.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np

WindowShape = Literal["square", "stretched"]
"""The ways to enlarge a box that is not square; see `enlarge`."""

_MAX_WINDOW_PIXELS = 2**28  # limit for windows that reach beyond the image; such a crop takes 0.8 GB
MEAN_RGB = (124, 117, 104)
"""Fill colour outside the image (uint8, RGB). It is ImageNet's mean, so normalising images turns it into 0, up to rounding."""


def as_boxes(boxes: Any, name: str = "boxes") -> np.ndarray:
    """Convert boxes to an array, and check them.

    Args:
        boxes: boxes (N, 4), or one box (4,): x1, y1, x2, y2 in pixels. An empty sequence of any shape means no boxes.
        name: name of the caller's argument, for the error message.

    Returns:
        float64 array (N, 4).

    Raises:
        ValueError: if they have another shape, are not finite, or a right or lower edge lies before the left or upper one.
    """
    found = np.asarray(boxes, np.float64)
    if found.size and (found.ndim > 2 or found.shape[-1] != 4):
        raise ValueError(f"{name} has the shape {found.shape}; expected (N, 4): x1, y1, x2, y2 of each box")
    found = found.reshape(-1, 4)
    wrong = ~np.isfinite(found).all(axis=1) | (found[:, 2] < found[:, 0]) | (found[:, 3] < found[:, 1])
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(
            f"{name}: box {i} is {found[i].tolist()}; expected x1, y1, x2, y2 with x1 ≤ x2 and y1 ≤ y2, in pixels "
            "(x, y, width, height becomes x, y, x + width, y + height)"
        )
    return found


def enlarge(boxes: np.ndarray, scale: float = 1.2, window: WindowShape = "square") -> np.ndarray:
    """Scale boxes about their centres, to include some context around an object.

    Args:
        boxes: array (N, 4) of x1, y1, x2, y2 in pixels.
        scale: factor by which the sides are multiplied. DeconvNet (Noh et al., ICCV 2015) uses 1.2.
        window: "square" makes both sides `scale` times the longer side of the box, so that a square crop of it is not distorted.
            The lists of training crops released with DeconvNet do the same. "stretched" multiplies each side by `scale`.

    Returns:
        float32 array (N, 4) of x1, y1, x2, y2; the boxes may reach beyond the image.

    Raises:
        ValueError: if these are not boxes (see `as_boxes`), `scale` is not above 0, or `window` is unknown.
    """
    boxes = as_boxes(boxes)
    if not scale > 0 or window not in ("square", "stretched"):
        raise ValueError(f"scale is {scale}, window {window!r}; expected a number above 0, and square or stretched")
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2:] - boxes[:, :2]
    if window == "square":
        sides = np.repeat(sides.max(axis=1, keepdims=True), 2, axis=1)
    half = sides * (scale / 2)
    return np.hstack([centres - half, centres + half]).astype(np.float32)


def mirrored_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """Mirror boxes as their image is mirrored, left to right.

    Args:
        boxes: array (N, 4) of x1, y1, x2, y2 in pixels.
        width: width of the image in pixels.

    Returns:
        array (N, 4) of the same dtype.
    """
    found = boxes.copy()
    found[:, [0, 2]] = width - boxes[:, [2, 0]]
    return found


def window_pixels(box: Sequence[float] | np.ndarray) -> tuple[int, int, int, int]:
    """Round a box to whole pixels.

    Training and inference both use this function, so that they agree on the pixels of a crop. It rounds the top left corner and
    the two side lengths (halves up) instead of the four edges, so that a square box remains square.

    Args:
        box: x1, y1, x2, y2 in pixels, not necessarily whole numbers.

    Returns:
        (x1, y1, x2, y2), at least one pixel wide and high; it may reach beyond the image.

    Raises:
        ValueError: if this is not a box (see `as_boxes`).
    """
    ((x1, y1, x2, y2),) = as_boxes(box, "box").tolist()
    left, top, width, height = (int(np.floor(v + 0.5)) for v in (x1, y1, x2 - x1, y2 - y1))
    return left, top, left + max(width, 1), top + max(height, 1)


def crop(
    image: np.ndarray,
    box: Sequence[float] | np.ndarray,
    size: int,
    fill: int | Sequence[int] = MEAN_RGB,
    interpolation: int = cv2.INTER_LINEAR,
) -> np.ndarray:
    """Cut a box out of an image or a mask and resize it to a square.

    The box is first rounded by `window_pixels`. If it reaches beyond the image and has more than 2²⁸ pixels, as the square
    around a long object of a panorama may have, the image is shrunk before the box is cut out, so that the memory is limited.

    Args:
        image: array (H, W, C), or (H, W) for a mask.
        box: x1, y1, x2, y2 in pixels; the box may lie partly or wholly outside the image.
        size: side of the result in pixels.
        fill: value of the pixels outside the image: one number for all channels, or one per channel. The default is the mean
            colour of ImageNet.
        interpolation: cv2.INTER_LINEAR for images. They are enlarged bilinearly; when they are shrunk, pixels are first averaged
            by area, so that fine texture does not alias. cv2.INTER_NEAREST for masks of ids. They are resized by OpenCV's
            INTER_NEAREST_EXACT, which samples at pixel centres and so keeps a mask aligned with its image.

    Returns:
        Array (size, size, C) or (size, size) of the image's dtype; never a view of `image`.

    Raises:
        ValueError: if this is not a box, or `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}, and must be at least 1")
    height, width = image.shape[:2]
    x1, y1, x2, y2 = window_pixels(box)
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if (left, top, right, bottom) == (x1, y1, x2, y2):
        cut = image[y1:y2, x1:x2]
    elif left >= right or top >= bottom:
        cut = np.full((1, 1, *image.shape[2:]), fill, image.dtype)
    elif (x2 - x1) * (y2 - y1) > _MAX_WINDOW_PIXELS:
        factor = 2 * math.sqrt((x2 - x1) * (y2 - y1) / _MAX_WINDOW_PIXELS)  # doubled, so that once is enough
        shrunk = _shrink(image[top:bottom, left:right], factor, interpolation)
        return crop(shrunk, np.array([x1 - left, y1 - top, x2 - left, y2 - top]) / factor, size, fill, interpolation)
    else:
        cut = np.empty((y2 - y1, x2 - x1, *image.shape[2:]), image.dtype)
        cut[:] = fill
        cut[top - y1 : bottom - y1, left - x1 : right - x1] = image[top:bottom, left:right]
    return _resize(np.ascontiguousarray(cut), size, interpolation)


def _shrink(image: np.ndarray, factor: float, interpolation: int) -> np.ndarray:
    """Divide the sides of an image by a factor of at least 1. The other arguments and the result are as in `crop`."""
    height, width = image.shape[:2]
    nearest = interpolation in (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)
    sides = max(1, round(width / factor)), max(1, round(height / factor))
    return cv2.resize(image, sides, interpolation=cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_AREA)


def _resize(image: np.ndarray, size: int, interpolation: int) -> np.ndarray:
    """Resize an image to a square.

    Args:
        image: array (H, W, C) or (H, W).
        size: side of the result in pixels.
        interpolation: cv2.INTER_LINEAR for images or cv2.INTER_NEAREST for masks of ids; see `crop`.

    Returns:
        A new array (size, size, C) or (size, size) of the same dtype.
    """
    if interpolation in (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT):
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    height, width = image.shape[:2]
    if width > size or height > size:
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    if image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=interpolation)
    return image.copy() if image.base is not None else image


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the IoU (intersection over union) of every pair of boxes from two lists.

    Args:
        a: array (N, 4) of x1, y1, x2, y2.
        b: array (M, 4) of x1, y1, x2, y2.

    Returns:
        float64 array (N, M) of values from 0 to 1. Element (i, j) is the IoU of a[i] and b[j]; it is 0 if either box is empty.

    Raises:
        ValueError: if these are not boxes (see `as_boxes`).
    """
    first, second = as_boxes(a, "a")[:, None], as_boxes(b, "b")[None]
    shared = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    intersection = np.clip(shared, 0, None).prod(axis=-1)
    union = _area(first) + _area(second) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _area(boxes: np.ndarray) -> np.ndarray:
    """Compute the areas of boxes.

    Args:
        boxes: array (..., 4) of x1, y1, x2, y2 in pixels.

    Returns:
        Array (...) of areas in px²; the area of an empty box is 0.
    """
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)


def make_windows(height: int, width: int, sizes: Sequence[float], overlap: float = 0.5) -> np.ndarray:
    """Make the windows of an image: overlapping squares at several scales that cover it.

    Windows replace EdgeBox's boxes where scenes do not consist of objects, as in street scenes, maps and medical images: a class
    such as road has no box of its own. Unlike boxes of objects, they are not enlarged. The windows of each size cover every
    pixel, and none reaches beyond the image. Along each axis there are as few windows as the overlap allows, evenly spaced to
    within a pixel.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        sizes: sides of the squares as shares of the image's shorter side, above 0 and at most 1. Each is rounded to whole pixels.
            Sizes that are rounded to the same side are used once. Without sizes there are no windows.
        overlap: smallest share of a window's side by which it overlaps the next one, from 0 to below 1.

    Returns:
        float32 array (N, 4) of x1, y1, x2, y2, all whole pixels. The largest windows come first; those of one size are ordered by
        rows from the top, each from the left.

    Raises:
        ValueError: if the image has no pixels, or a size or the overlap is out of range.
    """
    if min(height, width) < 1 or not all(0 < size <= 1 for size in sizes) or not 0 <= overlap < 1:
        raise ValueError(
            f"windows of {width}×{height} px with sizes {tuple(sizes)} and overlap {overlap}: expected at least one pixel, sizes "
            "above 0 and at most 1, and an overlap from 0 to below 1"
        )
    sides = sorted({max(1, round(size * min(height, width))) for size in sizes}, reverse=True)
    found = [
        (x, y, x + side, y + side)
        for side in sides
        for y in _starts(height, side, overlap)
        for x in _starts(width, side, overlap)
    ]
    return np.array(found, np.float32).reshape(-1, 4)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Place windows along one axis.

    Args:
        length: length of the image along the axis, in pixels.
        side: side of the windows in pixels, at most `length`.
        overlap: smallest share of `side` by which neighbours overlap.

    Returns:
        The first pixels of the windows, ascending. The first is 0 and the last window ends with the image.
    """
    # 1e-9: binary floats only approximate shares such as 0.9
    step = max(1, int(side * (1 - overlap) + 1e-9))
    gaps = -(-(length - side) // step)
    return [number * (length - side) // gaps for number in range(gaps + 1)] if gaps else [0]
