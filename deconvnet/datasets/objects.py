"""Objects from masks: what stage 1 crops, and what stage 2 measures proposals against."""

from collections.abc import Iterator

import cv2
import numpy as np

from infra.errors import BadInput
from proposals.masks import VOID_ID, VOID_ID_16BIT, void_id

_STRIP = 4_000_000  # px looked at together: a large photograph's masks are never copied whole as 64-bit numbers


def make_object_mask(class_mask: np.ndarray, object_mask: np.ndarray | None = None) -> np.ndarray:
    """Every pixel's object: uint8 H×W (ids from 1, 0 background, 255 void), or uint16 (65535 void) for more than 254 objects.

    `class_mask` is uint8 H×W, 255 void; `object_mask` uint8 or uint16 of the same size, void 255 or 65535, and its ids are kept.
    Afterwards each object has one class and each labelled pixel an object:

    * background and void are the class mask's, and the object mask's void is void as well;
    * an id that covers several classes is split: the class with most of its pixels (of equals, the lower) keeps the id, the
      others become objects of their own, with ids after the last;
    * labelled pixels without an object become one for each 8-connected component of a class; without an object mask, all do.

    Raises BadInput where there are more objects than a 16-bit PNG can name.
    """
    labels = np.zeros(class_mask.shape, np.int32)
    void = class_mask == VOID_ID
    if object_mask is not None:
        labels[:] = object_mask
        unknown = object_mask == void_id(object_mask)
        void |= unknown
        labels[void | (class_mask == 0)] = 0
        _split_by_class(class_mask, labels)
    rest = (labels == 0) & (class_mask > 0) & ~void
    last = int(labels.max(initial=0))
    for class_id in np.flatnonzero(np.bincount(class_mask[rest], minlength=1)):
        last = _add_components(labels, rest & (class_mask == class_id), last)
    if last >= VOID_ID_16BIT:
        raise BadInput(f"the masks hold more than {VOID_ID_16BIT - 1:,} objects")
    narrow = last < VOID_ID
    ids = labels.astype(np.uint8 if narrow else np.uint16)
    ids[void] = VOID_ID if narrow else VOID_ID_16BIT
    return ids


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, _STRIP // max(1, shape[1]))
    return (slice(top, top + rows) for top in range(0, shape[0], rows))


def _split_by_class(class_mask: np.ndarray, labels: np.ndarray) -> None:
    """Give each (id, class) pair of `labels` (int32 H×W, changed in place) an id of its own; the largest keeps the old one."""
    area: dict[tuple[int, int], int] = {}
    for rows in _strips(labels.shape):
        inside = labels[rows] > 0
        pairs, counts = np.unique(labels[rows][inside].astype(np.int64) * 256 + class_mask[rows][inside], return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            key = divmod(pair, 256)
            area[key] = area.get(key, 0) + count
    last = max((object_id for object_id, _ in area), default=0)
    kept: set[int] = set()
    for object_id, class_id in sorted(area, key=lambda key: (key[0], -area[key], key[1])):
        if object_id in kept:
            last += 1
            labels[(labels == object_id) & (class_mask == class_id)] = last
        kept.add(object_id)


def _add_components(labels: np.ndarray, pixels: np.ndarray, last: int) -> int:
    """Number the 8-connected components of `pixels` (bool H×W) in `labels` from `last` + 1; returns the last id given."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    count, parts = cv2.connectedComponents(pixels[window].astype(np.uint8), connectivity=8)
    inside = parts > 0
    labels[window][inside] = parts[inside] + last
    return last + count - 1
