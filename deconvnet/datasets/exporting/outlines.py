"""Finding the objects in a class mask, and the polygons around them.

An object is an 8-connected region of one class. Its polygon has coordinates in px from the top left corner of the image. With a
tolerance of 0 the polygon runs along the edges of the object's pixels. Then exactly these pixels lie inside by the even-odd rule,
which is also used to import annotations (`deconvnet.datasets.importing.regions`). A hole is joined to the outer edge by a slit of
width 0, because every labelling tool can edit polygons of one ring, but not all can edit polygons with holes.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from deconvnet.datasets.exporting import ExportOptions, PredictedObject
from deconvnet.datasets.importing.regions import Region, polygon_region


def find_objects(mask: np.ndarray, options: ExportOptions) -> list[PredictedObject]:
    """Find the objects in a class mask.

    Args:
        mask: uint8 array (H, W) of class ids.
        options: options of the export; `classes`, `background`, `min_area`, `shapes` and `tolerance` apply.

    Returns:
        The objects, largest first: a tool that draws them in this order draws small objects over large ones.

    Raises:
        ValueError: if the mask has an id without a class, such as 255 (void).
    """
    found = []
    for class_id in np.unique(mask).tolist():
        if class_id >= len(options.classes):
            raise ValueError(f"the mask has the id {class_id}, and there are {len(options.classes)} classes")
        if class_id not in options.labels:
            continue
        _, components, boxes, _ = cv2.connectedComponentsWithStats((mask == class_id).astype(np.uint8), connectivity=8)
        for number, (left, top, width, height, area) in enumerate(boxes.tolist()):
            if number and area >= options.min_area:  # component 0 is what lies outside
                pixels = components[top : top + height, left : left + width] == number
                found.append(Region(class_id, top, left, pixels))
    found.sort(key=lambda region: -region.area)
    no_polygon = np.zeros((0, 2))
    return [
        PredictedObject(r, region_polygon(r, options.tolerance) if options.shapes == "polygons" else no_polygon) for r in found
    ]


def region_polygon(region: Region, tolerance: float) -> np.ndarray:
    """Make the polygon round an object.

    Args:
        region: the object, a connected region with at least one pixel.
        tolerance: largest distance of the polygon from the midpoints of the pixel edges, in px. A ring that would be left with
            fewer than three corners is not simplified.

    Returns:
        float64 array (N, 2) of the corners x, y, in px of the image. Holes are joined to the outer edge.
    """
    # OpenCV's contours run through the centres of an object's outermost pixels, not along their edges. So each pixel is drawn as
    # 2×2 pixels; half the coordinates of their contour, rounded up, are the coordinates of the pixel's edges.
    doubled = np.kron(region.pixels, np.ones((2, 2), np.uint8)).astype(np.uint8)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_simplify((contour[:, 0] + 1) // 2, tolerance) for contour in contours]
    outer = next(ring for ring, (*_, parent) in zip(rings, hierarchy[0], strict=True) if parent < 0)
    holes = [ring for ring, (*_, parent) in zip(rings, hierarchy[0], strict=True) if parent >= 0]
    for hole in sorted(holes, key=lambda ring: float(ring[:, 0].min())):
        outer = _join_hole(outer, hole)
    return outer + np.array([region.left, region.top])


def _simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Simplify a closed ring along the edges of pixels.

    The corners of the new ring are the middles of pixel edges. A slanting line through the middles is nearer to the true outline
    than a line through the corners of the steps, and needs fewer corners.

    Args:
        ring: int array (N, 2) of the corners; corners may repeat.
        tolerance: largest distance of the new ring from the middles of the edges, in px; 0 to leave the ring as it is.

    Returns:
        float64 array (M, 2), at least three corners.
    """
    ring = ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)]
    if not tolerance:
        return ring.astype(np.float64)
    sides = np.roll(ring, -1, axis=0) - ring
    lengths = np.abs(sides).max(axis=1)
    along = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 0.5
    middles = np.repeat(ring, lengths, axis=0) + np.repeat(sides / lengths[:, None], lengths, axis=0) * along[:, None]
    simplified = cv2.approxPolyDP(middles.astype(np.float32), tolerance, closed=True)[:, 0]
    return (simplified if len(simplified) >= 3 else ring).astype(np.float64)


def _join_hole(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Join the ring of a hole to the ring around it, by a line from the hole's leftmost corner to the nearest corner and back.

    Args:
        outer: float64 array (N, 2), the outer ring.
        hole: float64 array (M, 2), the ring of the hole.

    Returns:
        float64 array (N + M + 2, 2), one ring.
    """
    start = int(hole[:, 0].argmin())
    at = int(((outer - hole[start]) ** 2).sum(axis=1).argmin())
    turned = np.roll(hole, -start, axis=0)
    return np.concatenate([outer[: at + 1], turned, turned[:1], outer[at:]])


def measure_agreement(mask: np.ndarray, objects: Sequence[PredictedObject], options: ExportOptions) -> float:
    """Compare the exported objects with their mask, to measure how much simplified polygons and left-out objects changed.

    Args:
        mask: uint8 array (H, W) of class ids.
        objects: the objects that are exported, largest first.
        options: options of the export; `shapes` and `background` apply.

    Returns:
        Share of the pixels, 0 to 1, that have the same class when the objects are painted, smaller ones over larger ones.
    """
    painted = np.full(mask.shape, 0 if options.background else -1, np.int16)
    for each in objects:
        region = each.region
        if options.shapes == "polygons":
            region = polygon_region(region.class_id, each.polygon, *mask.shape)
        painted[region.window][region.pixels] = region.class_id
    return float((painted == mask).mean())


def run_lengths(pixels: np.ndarray) -> list[int]:
    """Return the lengths of the runs of False and True in turn.

    Args:
        pixels: bool array (N,).

    Returns:
        The lengths. The first is of False, and 0 if the first pixel is True. Their sum is N.
    """
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    return [0, *lengths] if pixels.size and pixels[0] else lengths
