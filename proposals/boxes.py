"""Boxes: enlarging, overlap, and the rule by which a box is cut out of an image.

A box is (x1, y1, x2, y2) in pixels. Coordinates are pixel edges, not centres: x2 and y2 are exclusive, and the top left pixel is
the box (0, 0, 1, 1). A box may reach beyond the image.
"""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

WindowShape = Literal["square", "stretched"]
"""How `enlarge` treats a box that is not square: see there."""

MEAN_RGB = (124, 117, 104)
"""Fill colour outside the image (uint8, RGB): ImageNet's mean, which becomes 0 (to rounding) when images are normalised."""


def enlarge(boxes: np.ndarray, scale: float = 1.2, window: WindowShape = "square") -> np.ndarray:
    """Scale boxes about their centres, to include some context around an object.

    Args:
        boxes: array (N, 4).
        scale: factor, 1.2 in DeconvNet.
        window: "square" makes both sides `scale` times the longer side, so that a crop keeps the aspect ratio, as in the lists
            of examples released with DeconvNet; "stretched" scales each side by itself.

    Returns:
        float32 array (N, 4); the boxes may reach beyond the image.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2:] - boxes[:, :2]
    if window == "square":
        sides = np.repeat(sides.max(axis=1, keepdims=True), 2, axis=1)
    half = sides * (scale / 2)
    return np.hstack([centres - half, centres + half]).astype(np.float32)


def window_pixels(box: Sequence[float] | np.ndarray) -> tuple[int, int, int, int]:
    """Round a box to whole pixels.

    The one rounding rule for crops: training and inference cut these pixels and resize them, and the scores of a crop are resized
    back to these pixels. The top left corner and the two sides are rounded (halves up), not the four edges, so a square box gives
    a square window.

    Args:
        box: 4 coordinates.

    Returns:
        (x1, y1, x2, y2), at least one pixel wide and high; may reach beyond the image.
    """
    x1, y1, x2, y2 = (float(edge) for edge in box)
    left, top, width, height = (int(np.floor(v + 0.5)) for v in (x1, y1, x2 - x1, y2 - y1))
    return left, top, left + max(width, 1), top + max(height, 1)


def crop(
    image: np.ndarray,
    box: Sequence[float] | np.ndarray,
    size: int,
    fill: int | Sequence[int] = MEAN_RGB,
    interpolation: int = cv2.INTER_LINEAR,
) -> np.ndarray:
    """Cut `window_pixels(box)` out of an image or a mask and resize it to a square.

    Args:
        image: array (H, W, C), or (H, W) for a mask.
        box: 4 coordinates; may lie partly or wholly outside the image.
        size: side of the result in pixels.
        fill: value of the pixels outside the image, one per channel or one for all.
        interpolation: cv2.INTER_LINEAR for images: bilinear when enlarging; when shrinking, pixels are averaged by area first, so
            that fine texture does not alias. cv2.INTER_NEAREST for masks of ids: OpenCV's INTER_NEAREST_EXACT, which samples at
            pixel centres, so that a mask stays aligned with its image (plain INTER_NEAREST samples at top left corners).

    Returns:
        Array (size, size, C) or (size, size) of the image's dtype; never a view of `image`.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = window_pixels(box)
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if (left, top, right, bottom) == (x1, y1, x2, y2):
        cut = image[y1:y2, x1:x2]
    else:
        cut = np.empty((y2 - y1, x2 - x1, *image.shape[2:]), image.dtype)
        cut[:] = fill
        if left < right and top < bottom:
            cut[top - y1 : bottom - y1, left - x1 : right - x1] = image[top:bottom, left:right]
    return _resize(np.ascontiguousarray(cut), size, interpolation)


def _resize(image: np.ndarray, size: int, interpolation: int) -> np.ndarray:
    """Resize an image to (size, size), with the interpolations that `crop` describes."""
    if interpolation in (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT):
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    height, width = image.shape[:2]
    if width > size or height > size:
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    if image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=interpolation)
    return image.copy() if image.base is not None else image


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of every pair of boxes.

    Args:
        a: array (N, 4).
        b: array (M, 4).

    Returns:
        float64 array (N, M) of values from 0 to 1; 0 where either box is empty.
    """
    first = np.asarray(a, np.float64).reshape(-1, 1, 4)
    second = np.asarray(b, np.float64).reshape(1, -1, 4)
    shared = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    intersection = np.clip(shared, 0, None).prod(axis=-1)
    union = _area(first) + _area(second) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _area(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes (..., 4) in px²; 0 for empty ones."""
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)
