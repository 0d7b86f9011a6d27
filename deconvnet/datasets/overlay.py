"""A photograph with its labels painted over it."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deconvnet.datasets.palette import VOC_PALETTE, colourise

_OPACITY = 0.5
_LEAST_NAMED = 0.002  # share of the pixels that a class must have to be named: the name of a speck hides its surroundings


def overlay(image: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """`image` (uint8 H×W×3, RGB) with `mask` (uint8 H×W, class ids) over it, uint8 H×W×3.

    Classes other than background (0) lie half transparent in VOC's colours, outlined, each named in its largest piece.
    """
    height, width = mask.shape
    seen = mask[..., None] > 0
    painted = np.where(seen, image * (1 - _OPACITY) + colourise(mask) * _OPACITY, image).astype(np.uint8)
    thick = max(1, round(min(height, width) / 400))
    present = [int(i) for i in np.unique(mask) if i]
    for i in present:
        outlines, _ = cv2.findContours((mask == i).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(painted, outlines, -1, VOC_PALETTE[i].tolist(), thick)
    picture = Image.fromarray(painted)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, min(height, width) / 24))
    for i in present:
        if (mask == i).mean() >= _LEAST_NAMED:
            name = classes[i] if i < len(classes) else f"id {i}"
            x, y = _middle(mask == i)
            box = draw.textbbox((x, y), name, font=font, anchor="mm")
            # Near an edge the name is pushed back inside.
            x += max(0, 2 - box[0]) - max(0, box[2] + 2 - width)
            y += max(0, 2 - box[1]) - max(0, box[3] + 2 - height)
            draw.text((x, y), name, font=font, anchor="mm", fill="white", stroke_width=thick + 1, stroke_fill="black")
    return np.asarray(picture)


def _middle(region: np.ndarray) -> tuple[float, float]:
    """x, y of the point of a boolean H×W's largest connected piece that lies deepest in it."""
    _, pieces, about, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    largest = 1 + int(about[1:, cv2.CC_STAT_AREA].argmax())
    depth = cv2.distanceTransform(np.pad((pieces == largest).astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(x), float(y)
