"""Scale images that are too large for prediction or for a file format down, and masks back up."""

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from proposals.boxes import as_boxes
from proposals.masks import check_image

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Value = TypeVar("Value", np.uint8, np.float32)
_JPEG_SIDE = 65_500  # px, the longest side that Pillow and libjpeg write


def scale_down(image: Image, boxes: Floats, max_side: int) -> tuple[Image, Floats]:
    """Scale an image and its boxes down if the image's longer side exceeds a limit.

    Args:
        image: uint8 (H, W, 3), RGB.
        boxes: (N, 4) boxes x1, y1, x2, y2 in pixels.
        max_side: upper limit of the longer side of the image, in pixels.

    Returns:
        The scaled image, uint8 (h, w, 3), and the boxes in pixels of the scaled image, float32 (N, 4). An image that is small
        enough is returned unchanged.

    Raises:
        ValueError: if the image has another dtype or shape, or `boxes` does not hold valid boxes.
    """
    check_image(image)
    boxes = as_boxes(boxes).astype(np.float32)
    height, width = image.shape[:2]
    if max(height, width) <= max_side:
        return image, boxes
    scale = max_side / max(height, width)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    factors = np.array([w / width, h / height] * 2, np.float32)
    return np.asarray(cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA), np.uint8), boxes * factors


def fit_in_jpeg(image: Image) -> Image:
    """Scale an image (H, W, 3), uint8, down if it has more than 65,500 pixels on a side, as a JPEG file can't have more."""
    return scale_down(image, np.zeros((0, 4), np.float32), _JPEG_SIDE)[0]


def resize_nearest(plane: NDArray[Value], size: tuple[int, ...]) -> NDArray[Value]:
    """Resize a mask, or a plane of probabilities, by nearest neighbour. One that already has the new size is returned unchanged.

    Args:
        plane: class ids or other bytes, uint8 (h, w), or probabilities, float32 (h, w).
        size: the new height H and width W in pixels.

    Returns:
        The values, (H, W), of the same dtype.
    """
    if plane.shape == size:
        return plane
    return np.asarray(cv2.resize(plane, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), plane.dtype)
