"""Boxes: overlap, context windows, and the one rule by which a window is cut from a photograph.

Boxes are x1, y1, x2, y2 in pixels: edges, not centres, so x2/y2 are exclusive and the box of pixel (0, 0) is 0, 0, 1, 1. A box
may leave the image. Training examples are cut and score maps put back by the same rule, `window_pixels`.
"""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

Window = Literal["square", "stretched"]

MEAN_RGB = (124, 117, 104)
"""What lies outside the photograph in a crop (uint8, RGB): ImageNet's mean, so zero after normalisation, to rounding."""


def extend(boxes: np.ndarray, scale: float = 1.2, window: Window = "square") -> np.ndarray:
    """Boxes (N,4) scaled about their centres for context: float32 (N,4), which may leave the image.

    "square" takes `scale` × the longer side for both sides, so a crop keeps the aspect ratio (the lists released with
    DeconvNet); "stretched" scales each side.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2:] - boxes[:, :2]
    if window == "square":
        sides = np.repeat(sides.max(axis=1, keepdims=True), 2, axis=1)
    half = sides * (scale / 2)
    return np.hstack([centres - half, centres + half]).astype(np.float32)


def window_pixels(box: Sequence[float] | np.ndarray) -> tuple[int, int, int, int]:
    """The whole pixels x1, y1, x2, y2 a box (4,) stands for, at least one each way; they may leave the image.

    The upper left edge and the sides are rounded (halves up), not the four edges: a square box gives a square window. A crop is
    these pixels resized, so whatever was computed on a crop belongs, resized, on these pixels again.
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
    """The pixels of `window_pixels(box)`, `fill` where they lie outside the image, resized: size×size[×C], dtype kept.

    `image` is H×W×C or H×W. cv2.INTER_LINEAR is for photographs: bilinear where a side grows, area averages where it shrinks
    (else fine texture aliases). cv2.INTER_NEAREST is for ids: taken at pixel centres (OpenCV's NEAREST_EXACT), so that masks
    and photographs stay in register; plain NEAREST takes upper left corners.
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
    """`image` resized to size×size."""
    if interpolation in (cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT):
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    height, width = image.shape[:2]
    if width > size or height > size:
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    if image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=interpolation)
    return image.copy() if image.base is not None else image


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N,4) and (M,4): float64 (N,M) in 0–1; 0 where either box is empty."""
    first = np.asarray(a, np.float64).reshape(-1, 1, 4)
    second = np.asarray(b, np.float64).reshape(1, -1, 4)
    shared = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    intersection = np.clip(shared, 0, None).prod(axis=-1)
    union = _area(first) + _area(second) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)
