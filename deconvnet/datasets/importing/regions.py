"""Turning annotated shapes into pixels: polygons, rectangles, circles, bitmaps and COCO's run lengths.

Coordinates are in px from the top left corner of the image, so the centre of the first pixel is at (0.5, 0.5). A pixel belongs to
a shape if its centre lies inside, by the even-odd rule. The shapes may be malformed; one that extends far outside the image takes
no more time or memory than one inside.

pycocotools is not used for run lengths, because it reads memory out of bounds if they don't fit the image. Here they are summed
and checked before they are expanded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.errors import BadInput

_MAX_COORDINATE = 1e9  # largest absolute value of a coordinate, px; no image is that large
_MAX_CROSSINGS = 50_000_000  # most crossings of a polygon's edges with pixel rows; filling such a polygon takes 1 GB


@dataclass(frozen=True)
class Region:
    """The pixels of one object, stored as a bitmap for a rectangular window of the image.

    Attributes:
        class_id: class id of the object; 0 is background, 255 void.
        top: row of the window's top left pixel in the image.
        left: column of the window's top left pixel in the image.
        pixels: bool array (h, w) of the size of the window, True where the object is.
    """

    class_id: int
    top: int
    left: int
    pixels: np.ndarray

    @property
    def area(self) -> int:
        """Return the number of pixels of the object."""
        return int(self.pixels.sum())

    @property
    def window(self) -> tuple[slice, slice]:
        """Return the slices (rows, columns) that cut the window of this region out of an array (H, W)."""
        height, width = self.pixels.shape
        return np.s_[self.top : self.top + height, self.left : self.left + width]

    def in_image(self, height: int, width: int) -> np.ndarray:
        """Return a bool array of the size of the image, `height` × `width` px, that is True where the object is."""
        whole = np.zeros((height, width), bool)
        whole[self.window] = self.pixels
        return whole


def empty_region(class_id: int) -> Region:
    """Make a region that belongs to a class but has no pixels."""
    return Region(class_id, 0, 0, np.zeros((0, 0), bool))


def as_int(value: Any, name: str) -> int:
    """Read a whole number that some tools write as text or with a decimal point, such as the id "7" or 7.0.

    Args:
        value: value in the annotation file.
        name: name of the field, such as "its category_id", for the error message.

    Returns:
        The number; 1 and 0 for true and false.

    Raises:
        BadInput: if the value is not a whole number.
    """
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}(\.0*)?\s*", value):
        return int(value.split(".")[0])
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise BadInput(f"{name} is {value!r}, which is not a whole number")


def parse_points(values: Any, name: str) -> np.ndarray:
    """Convert the coordinates in an annotation file to an array.

    Args:
        values: list of pairs [x, y], or flat list [x, y, x, y, …].
        name: name of the shape, such as "its polygon", for the error message.

    Returns:
        float64 array (N, 2) of x, y.

    Raises:
        BadInput: if a value is not a number or far too large, or the values are not pairs.
    """
    try:
        points = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{name} has coordinates that are not numbers") from None
    if not (np.abs(points) <= _MAX_COORDINATE).all():
        raise BadInput(f"{name} has coordinates that are not finite numbers, or far outside of any image")
    if points.ndim == 1 and points.size % 2 == 0:
        points = points.reshape(-1, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise BadInput(f"{name} is not a list of x, y pairs")
    return points


def polygon_region(class_id: int, outline: np.ndarray, height: int, width: int) -> Region:
    """Make a region of the pixels inside a polygon.

    Args:
        class_id: class id of the object.
        outline: float array (N, 2) of the corners x, y; the last corner is joined to the first. With fewer than three corners the
            region is empty.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The pixels inside the polygon. Parts outside the image are cut off.

    Raises:
        BadInput: if the outline crosses the rows of the image so often that filling it would take over 1 GB of memory.
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
    if counts.sum() > _MAX_CROSSINGS:
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
    """Make a region of the pixels inside a rectangle.

    Args:
        class_id: class id of the object.
        corners: x and y of one corner, then x and y of the opposite corner; any two opposite corners will do.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The pixels inside the rectangle. Parts outside the image are cut off.
    """
    x0, y0, x1, y1 = corners
    return polygon_region(class_id, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), height, width)


def circle_region(class_id: int, centre: tuple[float, float], radius: float, height: int, width: int) -> Region:
    """Make a region of the pixels inside a circle.

    Args:
        class_id: class id of the object.
        centre: x and y of the centre in px.
        radius: radius in px.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The pixels whose centres are at most `radius` from the centre of the circle. Parts outside the image are cut off.
    """
    x, y = centre
    top, bottom = (int(np.clip(v, 0, height)) for v in (np.floor(y - radius), np.ceil(y + radius)))
    left, right = (int(np.clip(v, 0, width)) for v in (np.floor(x - radius), np.ceil(x + radius)))
    down, along = np.ogrid[top:bottom, left:right]
    return Region(class_id, top, left, (down + 0.5 - y) ** 2 + (along + 0.5 - x) ** 2 <= radius**2)


def bitmap_region(class_id: int, mask: np.ndarray, top: int, left: int, height: int, width: int) -> Region:
    """Make a region from a small bitmap that lies somewhere in the image.

    Args:
        class_id: class id of the object.
        mask: bool array (h, w), True where the object is.
        top: row of the image where the first row of the bitmap lies; may be negative.
        left: column of the image where the first column of the bitmap lies; may be negative.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The pixels where the bitmap is True. Parts outside the image are cut off.
    """
    inside = mask[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    return Region(class_id, max(0, top), max(0, left), inside) if inside.size else empty_region(class_id)


def mask_region(class_id: int, mask: np.ndarray) -> Region:
    """Make a region from a mask of the whole image.

    Args:
        class_id: class id of the object.
        mask: bool array (H, W), True where the object is.

    Returns:
        The pixels of the object, in the smallest window that holds them.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return empty_region(class_id)
    top, left = int(rows[0]), int(columns[0])
    return Region(class_id, top, left, np.ascontiguousarray(mask[top : rows[-1] + 1, left : columns[-1] + 1]))


def merge_regions(regions: Sequence[Region]) -> Region:
    """Merge the pieces of one object into one region.

    Args:
        regions: the pieces, at least one.

    Returns:
        A region of the pixels of all pieces, with the class of the first piece.
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


def parse_run_lengths(counts: Any) -> np.ndarray:
    """Decode the run lengths of a mask in a COCO annotation file.

    In compressed text (as pycocotools' rleToString writes it), each character holds 6 bits: its code minus 48. The low 5 bits are
    the next bits of a number, lowest first. Bit 0x20 is set if the number continues in the next character. In the last character
    of a number, bit 0x10 is the sign. From the fourth number on, each number is the difference from the run length two positions
    before.

    Args:
        counts: value of `counts` in the annotation: a list of integers, or compressed text.

    Returns:
        int64 array (N,) of run lengths. The first is of background, the second of the object, and so on alternately.

    Raises:
        BadInput: if `counts` is of another type or damaged.
    """
    if isinstance(counts, list):
        if not all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**40 for each in counts):
            raise BadInput("its run lengths are not whole numbers from 0 on")
        return np.array(counts, np.int64)
    if not isinstance(counts, str):
        raise BadInput(f"its run lengths are a {type(counts).__name__}, a list or text is needed")
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise BadInput("its compressed run lengths are damaged")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift or min(lengths, default=0) < 0:
        raise BadInput("its compressed run lengths are damaged")
    return np.array(lengths, np.int64)


def run_length_region(class_id: int, counts: Any, height: int, width: int) -> Region:
    """Decode COCO's run lengths to a region.

    Args:
        class_id: class id of the object.
        counts: run lengths, a list or compressed text (see `parse_run_lengths`); they run down the columns of the image.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The pixels of the object, in the smallest window that holds them.

    Raises:
        BadInput: if the run lengths are damaged, or their sum is not the number of pixels of the image.
    """
    lengths = parse_run_lengths(counts)
    if (total := int(lengths.sum())) != height * width:
        raise BadInput(f"its run lengths cover {total:,} px, the image has {height * width:,} ({width}×{height})")
    mask = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T
    return mask_region(class_id, mask)
