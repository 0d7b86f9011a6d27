"""Annotated outlines as pixels: polygons, discs and COCO's run lengths, and how they are painted over one another.

A pixel belongs to an outline if its centre lies inside, by the even-odd rule; coordinates are px from the photograph's top left
corner, so that centres lie at halves. Nothing here trusts its input: run lengths are summed before they are unrolled (pycocotools
reads past its memory where they don't fit the photograph), and an outline far outside the photograph costs no more than one in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.errors import BadInput
from proposals.masks import VOID_ID, VOID_ID_16BIT

_MOST_CROSSINGS = 50_000_000  # of a polygon's edges with rows of pixels: 1 GB while it is filled


@dataclass(frozen=True)
class Region:
    """Pixels of one object. class_id: 255 void; pixels: bool h×w, its top left corner at (top, left) of the photograph."""

    class_id: int
    top: int
    left: int
    pixels: np.ndarray

    @property
    def area(self) -> int:
        return int(self.pixels.sum())

    @property
    def window(self) -> tuple[slice, slice]:
        """Where the pixels lie in the photograph."""
        height, width = self.pixels.shape
        return np.s_[self.top : self.top + height, self.left : self.left + width]


def _numbers(values: Any, what: str) -> np.ndarray:
    try:
        made = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{what} has coordinates that are no numbers") from None
    if not np.isfinite(made).all():
        raise BadInput(f"{what} has coordinates that are no finite numbers")
    return made


def points(values: Any, what: str) -> np.ndarray:
    """Float64 (n, 2) x, y of a list of pairs, or of x, y, x, y, …. Raises BadInput; `what` names the outline."""
    made = _numbers(values, what)
    if made.ndim == 1 and made.size % 2 == 0:
        made = made.reshape(-1, 2)
    if made.ndim != 2 or made.shape[1] != 2:
        raise BadInput(f"{what} is no list of x, y pairs")
    return made


def polygon(class_id: int, outline: np.ndarray, height: int, width: int) -> Region:
    """The inside of `outline` (float (n, 2) x, y), closed from the last point to the first; parts off the photograph are cut away.

    Fewer than three points have no inside. Raises BadInput for one that zigzags beyond all reason.
    """
    if len(outline) < 3:
        return Region(class_id, 0, 0, np.zeros((0, 0), bool))
    x0, y0 = outline.T
    x1, y1 = np.roll(outline, -1, axis=0).T
    low, high = (np.clip(f(y0), 0, height) for f in (np.min, np.max))
    top, bottom = int(np.floor(low)), int(np.ceil(high))
    left, right = (int(r(np.clip(f(x0), 0, width))) for f, r in ((np.min, np.floor), (np.max, np.ceil)))
    # An edge crosses the rows whose centres lie between its ends, the upper included: rows ceil(y - 0.5) on.
    first, last = (np.ceil(np.clip(f(y0, y1), -1, height + 1) - 0.5).astype(np.int64) for f in (np.minimum, np.maximum))
    first, last = np.clip(first, top, bottom), np.clip(last, top, bottom)
    counts = last - first
    if counts.sum() > _MOST_CROSSINGS:
        raise BadInput(f"a polygon of {len(outline):,} points can't be filled: it crosses the photograph too often")
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (rows + 0.5 - y0[edge]) / (y1 - y0)[edge]
    x = x0[edge] + slope * (x1 - x0)[edge]
    columns = np.ceil(np.clip(x, left - 1, right + 1) - 0.5).astype(np.int64).clip(left, right)
    turns = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(turns, (rows - top, columns - left), 1)
    return Region(class_id, top, left, np.cumsum(turns, axis=1)[:, :-1] % 2 == 1)


def box(class_id: int, x0: float, y0: float, x1: float, y1: float, height: int, width: int) -> Region:
    """The rectangle between two opposite corners."""
    return polygon(class_id, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), height, width)


def disc(class_id: int, x: float, y: float, radius: float, height: int, width: int) -> Region:
    """The pixels whose centres are at most `radius` px from (x, y)."""
    top, bottom = (int(np.clip(v, 0, height)) for v in (np.floor(y - radius), np.ceil(y + radius)))
    left, right = (int(np.clip(v, 0, width)) for v in (np.floor(x - radius), np.ceil(x + radius)))
    down, along = np.ogrid[top:bottom, left:right]
    return Region(class_id, top, left, (down + 0.5 - y) ** 2 + (along + 0.5 - x) ** 2 <= radius**2)


def bitmap(class_id: int, mask: np.ndarray, top: int, left: int, height: int, width: int) -> Region:
    """The true pixels of `mask` (bool h×w), laid with its corner at (top, left); parts off the photograph are cut away."""
    inside = mask[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    return Region(class_id, max(0, top), max(0, left), inside) if inside.size else Region(class_id, 0, 0, np.zeros((0, 0), bool))


def run_lengths(counts: Any) -> np.ndarray:
    """COCO's run lengths (background first) from a list of integers or its compressed text. Raises BadInput.

    The text (pycocotools' rleToString): a number is 5 bits a character from the lowest on, the character's 0x20 says that more
    follow, the last one's 0x10 is the sign; from the fourth number on it is the difference to the last but one.
    """
    if isinstance(counts, list):
        if not all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**40 for each in counts):
            raise BadInput("its run lengths are no whole numbers from 0 on")
        return np.array(counts, np.int64)
    if not isinstance(counts, str):
        raise BadInput(f"its run lengths are a {type(counts).__name__}, a list or text is needed")
    made: list[int] = []
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
        made.append(value + made[-2] if len(made) > 2 else value)
        value = shift = 0
    if shift or min(made, default=0) < 0:
        raise BadInput("its compressed run lengths are damaged")
    return np.array(made, np.int64)


def runs(class_id: int, counts: Any, height: int, width: int) -> Region:
    """The region of COCO's run lengths, which go down the columns. Raises BadInput where they are not the photograph's."""
    lengths = run_lengths(counts)
    if (total := int(lengths.sum())) != height * width:
        raise BadInput(f"its run lengths cover {total:,} px, the photograph has {height * width:,} ({width}×{height})")
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return trimmed(Region(class_id, 0, 0, flat.reshape(width, height).T))


def trimmed(region: Region) -> Region:
    """The same pixels in the smallest window."""
    rows, columns = (np.flatnonzero(region.pixels.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return Region(region.class_id, 0, 0, np.zeros((0, 0), bool))
    inside = region.pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Region(region.class_id, region.top + int(rows[0]), region.left + int(columns[0]), np.ascontiguousarray(inside))


def union(regions: Sequence[Region]) -> Region:
    """One object of several pieces, of the first one's class. `regions` must not be empty."""
    if len(regions) == 1:
        return regions[0]
    pieces = [each for each in regions if each.pixels.size] or [regions[0]]
    top, left = min(p.top for p in pieces), min(p.left for p in pieces)
    bottom, right = (max(each) for each in zip(*((p.window[0].stop, p.window[1].stop) for p in pieces), strict=True))
    pixels = np.zeros((bottom - top, right - left), bool)
    for piece in pieces:
        height, width = piece.pixels.shape
        pixels[piece.top - top :, piece.left - left :][:height, :width] |= piece.pixels
    return Region(regions[0].class_id, top, left, pixels)


@dataclass(frozen=True)
class Painted:
    """Masks of one photograph.

    classes: uint8 H×W, 255 void; objects: uint8 H×W, ids from 1 in the order of the regions (255 void), or uint16 (65535 void)
    for more than 254; overlap: pixels that several objects claim; hidden: objects of which nothing is seen.
    """

    classes: np.ndarray
    objects: np.ndarray
    overlap: int
    hidden: int


def _from_the_ground_up(regions: Sequence[Region], small_over_large: bool) -> Iterator[tuple[int, Region]]:
    """Void first, so that it never hides an object; then the objects with their ids."""
    yield from ((0, each) for each in regions if each.class_id == VOID_ID)
    objects = list(enumerate((each for each in regions if each.class_id != VOID_ID), start=1))
    yield from sorted(objects, key=lambda pair: -pair[1].area) if small_over_large else objects


def paint(regions: Sequence[Region], height: int, width: int, small_over_large: bool = True) -> Painted:
    """Paint `regions` on background: void, then objects, large before small (else in their order, the last on top).

    A region of class 0 is background that hides what lies below it. Raises BadInput for more objects than a 16-bit PNG can name.
    """
    classes = np.zeros((height, width), np.uint8)
    claims = np.zeros((height, width), np.uint16)
    ids = np.zeros((height, width), np.int32)
    void = np.zeros((height, width), bool)
    for number, region in _from_the_ground_up(regions, small_over_large):
        if number >= VOID_ID_16BIT:
            raise BadInput(f"more than {VOID_ID_16BIT - 1:,} objects")
        classes[region.window][region.pixels] = region.class_id
        ids[region.window][region.pixels] = number if region.class_id else 0
        void[region.window][region.pixels] = region.class_id == VOID_ID
        claims[region.window] += region.pixels & (region.class_id != VOID_ID)
    objects = sum(1 for each in regions if each.class_id != VOID_ID)
    shown = {number for number in np.unique(ids).tolist() if number}
    wanted = {n for n, r in _from_the_ground_up(regions, False) if r.class_id not in (0, VOID_ID)}
    narrow = objects < VOID_ID
    made = ids.astype(np.uint8 if narrow else np.uint16)
    made[void] = VOID_ID if narrow else VOID_ID_16BIT
    return Painted(classes, made, int((claims > 1).sum()), len(wanted - shown))
