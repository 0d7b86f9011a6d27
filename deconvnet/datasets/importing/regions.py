"""Annotated shapes as pixels: polygons, boxes, circles and bitmaps.

Coordinates are pixels from the top left corner of the image, so the centre of the first pixel is at (0.5, 0.5). A pixel belongs
to a shape if its centre lies inside, by the even-odd rule. The input may be malformed: a shape far outside the image costs no
more than one inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.errors import BadInput

_MOST_CROSSINGS = 50_000_000  # of a polygon's edges with rows of pixels: 1 GB while it is filled


@dataclass(frozen=True)
class Region:
    """The pixels of one object, in a window of the image.

    Attributes:
        class_id: class of the object; 0 background, 255 void.
        top: row of the window's first pixel.
        left: column of the window's first pixel.
        pixels: bool array (h, w) over the window: True where the object is.
    """

    class_id: int
    top: int
    left: int
    pixels: np.ndarray

    @property
    def area(self) -> int:
        """Number of pixels of the object."""
        return int(self.pixels.sum())

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the window covers."""
        height, width = self.pixels.shape
        return np.s_[self.top : self.top + height, self.left : self.left + width]


def empty_region(class_id: int) -> Region:
    """Return a region of this class without pixels."""
    return Region(class_id, 0, 0, np.zeros((0, 0), bool))


def parse_points(values: Any, what: str) -> np.ndarray:
    """Convert coordinates from an annotation file to an array.

    Args:
        values: list of pairs [x, y], or flat list [x, y, x, y, …].
        what: the shape, for the error message: "its polygon".

    Returns:
        float64 array (N, 2) of x, y.

    Raises:
        BadInput: if the values are no finite numbers or no pairs.
    """
    try:
        points = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{what} has coordinates that are no numbers") from None
    if not np.isfinite(points).all():
        raise BadInput(f"{what} has coordinates that are no finite numbers")
    if points.ndim == 1 and points.size % 2 == 0:
        points = points.reshape(-1, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise BadInput(f"{what} is no list of x, y pairs")
    return points


def polygon_region(class_id: int, outline: np.ndarray, height: int, width: int) -> Region:
    """Fill a polygon.

    Args:
        class_id: class of the object.
        outline: float array (N, 2) of corners x, y; the last is joined to the first. Fewer than three have no inside.
        height: height of the image, px.
        width: width of the image, px.

    Returns:
        The pixels inside the polygon; parts outside the image are cut off.

    Raises:
        BadInput: if the outline crosses the rows of the image so often that filling it would take over a gigabyte.
    """
    if len(outline) < 3:
        return empty_region(class_id)
    x0, y0 = outline.T
    x1, y1 = np.roll(outline, -1, axis=0).T
    low, high = (np.clip(extreme(y0), 0, height) for extreme in (np.min, np.max))
    top, bottom = int(np.floor(low)), int(np.ceil(high))
    left, right = (int(rounded(np.clip(f(x0), 0, width))) for f, rounded in ((np.min, np.floor), (np.max, np.ceil)))
    # An edge crosses the rows whose centres lie between its ends, the upper end included: rows from ceil(y - 0.5) on.
    first, last = (np.ceil(np.clip(f(y0, y1), -1, height + 1) - 0.5).astype(np.int64) for f in (np.minimum, np.maximum))
    first, last = np.clip(first, top, bottom), np.clip(last, top, bottom)
    counts = last - first
    if counts.sum() > _MOST_CROSSINGS:
        raise BadInput(f"a polygon of {len(outline):,} points can't be filled: it crosses the image too often")
    # One entry per crossing of an edge with a row: its row, and the column from which on pixels lie right of the edge.
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (rows + 0.5 - y0[edge]) / (y1 - y0)[edge]
    x = x0[edge] + slope * (x1 - x0)[edge]
    columns = np.ceil(np.clip(x, left - 1, right + 1) - 0.5).astype(np.int64).clip(left, right)
    crossings = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(crossings, (rows - top, columns - left), 1)
    return Region(class_id, top, left, np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1)


def box_region(class_id: int, corners: tuple[float, float, float, float], height: int, width: int) -> Region:
    """Fill a rectangle.

    Args:
        class_id: class of the object.
        corners: x, y of one corner and x, y of the opposite one, in any order.
        height: height of the image, px.
        width: width of the image, px.

    Returns:
        The pixels inside the rectangle; parts outside the image are cut off.
    """
    x0, y0, x1, y1 = corners
    return polygon_region(class_id, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), height, width)


def circle_region(class_id: int, centre: tuple[float, float], radius: float, height: int, width: int) -> Region:
    """Fill a circle.

    Args:
        class_id: class of the object.
        centre: x, y.
        radius: in pixels.
        height: height of the image, px.
        width: width of the image, px.

    Returns:
        The pixels whose centres are at most `radius` from the centre; parts outside the image are cut off.
    """
    x, y = centre
    top, bottom = (int(np.clip(v, 0, height)) for v in (np.floor(y - radius), np.ceil(y + radius)))
    left, right = (int(np.clip(v, 0, width)) for v in (np.floor(x - radius), np.ceil(x + radius)))
    down, along = np.ogrid[top:bottom, left:right]
    return Region(class_id, top, left, (down + 0.5 - y) ** 2 + (along + 0.5 - x) ** 2 <= radius**2)


def bitmap_region(class_id: int, mask: np.ndarray, top: int, left: int, height: int, width: int) -> Region:
    """Place a small mask in the image.

    Args:
        class_id: class of the object.
        mask: bool array (h, w), True where the object is.
        top: row of the image at which the mask's first row lies; may be negative.
        left: column of the image at which the mask's first column lies; may be negative.
        height: height of the image, px.
        width: width of the image, px.

    Returns:
        The mask's True pixels; parts outside the image are cut off.
    """
    inside = mask[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    return Region(class_id, max(0, top), max(0, left), inside) if inside.size else empty_region(class_id)


def merge_regions(regions: Sequence[Region]) -> Region:
    """Unite the pieces of one object.

    Args:
        regions: at least one region; the first one's class is that of the result.

    Returns:
        A region of all their pixels.
    """
    if len(regions) == 1:
        return regions[0]
    pieces = [region for region in regions if region.pixels.size] or [regions[0]]
    top, left = min(piece.top for piece in pieces), min(piece.left for piece in pieces)
    bottom, right = (max(ends) for ends in zip(*((p.window[0].stop, p.window[1].stop) for p in pieces), strict=True))
    pixels = np.zeros((bottom - top, right - left), bool)
    for piece in pieces:
        height, width = piece.pixels.shape
        pixels[piece.top - top :, piece.left - left :][:height, :width] |= piece.pixels
    return Region(regions[0].class_id, top, left, pixels)
