"""Painting a class mask over its image."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deconvnet.datasets.palette import class_palette, colourise
from proposals.masks import VOID_ID, check_masks

_OPACITY = 0.5
_MIN_NAMED_SHARE = 0.002  # classes that cover a smaller share of the image are not named, as the name would hide its surroundings


def overlay(image: np.ndarray, mask: np.ndarray, classes: Sequence[str], background: bool = True) -> np.ndarray:
    """Paint a class mask over an image.

    Each class is painted half transparent in its colour, with an outline. Its name is written once, in its largest connected
    piece, unless the class covers less than 0.2 % of the image. Background stays as it is. Void is painted, without outline and
    name.

    Args:
        image: uint8 array (H, W, 3), RGB.
        mask: uint8 array (H, W) of class ids; 255 is void.
        classes: class names by id; an id without a name is shown as text such as "id 7".
        background: whether class 0 is the background. If not, it is painted like any other class.

    Returns:
        uint8 array (H, W, 3), RGB.

    Raises:
        ValueError: if the image or the mask has another dtype or shape, or their sizes differ.
    """
    check_masks(mask, image=image)
    height, width = mask.shape
    palette = class_palette(background)
    foreground = (mask[..., None] > 0) | (not background)
    painted = np.where(foreground, image * (1 - _OPACITY) + colourise(mask, palette) * _OPACITY, image).astype(np.uint8)
    thickness = max(1, round(min(height, width) / 400))
    class_ids = [int(i) for i in np.unique(mask) if (i or not background) and i != VOID_ID]
    for class_id in class_ids:
        outlines, _ = cv2.findContours((mask == class_id).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(painted, outlines, -1, palette[class_id].tolist(), thickness)
    picture = Image.fromarray(painted)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, min(height, width) / 24))
    for class_id in class_ids:
        if (mask == class_id).mean() >= _MIN_NAMED_SHARE:
            name = classes[class_id] if class_id < len(classes) else f"id {class_id}"
            x, y = _innermost_point(mask == class_id)
            box = draw.textbbox((x, y), name, font=font, anchor="mm")
            # A name that would cross the edge of the image is moved inside.
            x += max(0, 2 - box[0]) - max(0, box[2] + 2 - width)
            y += max(0, 2 - box[1]) - max(0, box[3] + 2 - height)
            draw.text((x, y), name, font=font, anchor="mm", fill="white", stroke_width=thickness + 1, stroke_fill="black")
    return np.asarray(picture)


def side_by_side(
    image: np.ndarray, masks: Sequence[np.ndarray], classes: Sequence[str], background: bool = True, max_side: int = 320
) -> np.ndarray:
    """Put an image and copies of it with masks painted over them in a row, from left to right.

    Args:
        image: uint8 array (H, W, 3), RGB.
        masks: uint8 arrays (H, W) of class ids; 255 is void.
        classes: class names by id.
        background: whether class 0 is the background.
        max_side: longest side of each copy in pixels, to which it is scaled down.

    Returns:
        uint8 array (h, w, 3), RGB.

    Raises:
        ValueError: if the image or a mask has another dtype or shape, or their sizes differ.
    """
    for mask in masks:
        check_masks(mask, image=image)
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    resized = (cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT) for mask in masks)
    return np.concatenate([small, *(overlay(small, mask, classes, background) for mask in resized)], axis=1)


def _innermost_point(region: np.ndarray) -> tuple[float, float]:
    """Find the point that is farthest from the edge, in the largest connected piece of a region.

    Args:
        region: bool array (H, W), True inside the region; at least one pixel must be True.

    Returns:
        The coordinates x and y of the point in px.
    """
    _, pieces, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
    depth = cv2.distanceTransform(np.pad((pieces == largest).astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(x), float(y)
