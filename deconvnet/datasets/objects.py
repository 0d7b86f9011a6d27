"""Object masks that fit a class mask. Stage 1 of the training crops these objects; stage 2 compares proposals with them."""

from collections.abc import Iterator

import cv2
import numpy as np

from infra.errors import BadInput
from proposals.masks import VOID_ID, VOID_ID_16BIT, void_id

_STRIP_PIXELS = 4_000_000  # masks are converted to 64 bits in strips of this size, so that large ones need little memory


def make_object_mask(class_mask: np.ndarray, object_mask: np.ndarray | None = None) -> np.ndarray:
    """Give each annotated pixel an object, and each object one class.

    * Background and void come from the class mask; void in the object mask is void as well.
    * An object id that covers several classes is split: the class with most of its pixels (the lowest id on a tie) keeps the
      object id, the others get new ids after the last.
    * Annotated pixels without an object id become an object for each 8-connected component of a class.

    Args:
        class_mask: uint8 array (H, W) of class ids; 0 is background, 255 void.
        object_mask: uint8 or uint16 array (H, W) of object ids; 0 is no object, 255 or 65535 void. None if objects are unknown.

    Returns:
        uint8 array (H, W) of object ids: 0 background, 255 void. If there are more than 254 objects, uint16 with void 65535.

    Raises:
        BadInput: if there are more objects than 16 bits can number.
    """
    ids = np.zeros(class_mask.shape, np.int32)
    void = class_mask == VOID_ID
    if object_mask is not None:
        ids[:] = object_mask
        void |= object_mask == void_id(object_mask)
        ids[void | (class_mask == 0)] = 0
        _split_by_class(class_mask, ids)
    rest = (ids == 0) & (class_mask > 0) & ~void
    last = int(ids.max(initial=0))
    for class_id in np.flatnonzero(np.bincount(class_mask[rest], minlength=1)):
        last = _add_components(ids, rest & (class_mask == class_id), last)
    if last >= VOID_ID_16BIT:
        raise BadInput(f"the masks hold more than {VOID_ID_16BIT - 1:,} objects")
    eight_bits = last < VOID_ID
    made = ids.astype(np.uint8 if eight_bits else np.uint16)
    made[void] = VOID_ID if eight_bits else VOID_ID_16BIT
    return made


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Divide the rows of an array of this shape into strips of bounded size."""
    rows = max(1, _STRIP_PIXELS // max(1, shape[1]))
    return (slice(top, top + rows) for top in range(0, shape[0], rows))


def _split_by_class(class_mask: np.ndarray, ids: np.ndarray) -> None:
    """Give each object id one class, in place.

    The class with most pixels of an id keeps it; the other classes get new ids after the highest.

    Args:
        class_mask: uint8 array (H, W) of class ids.
        ids: int32 array (H, W) of object ids; it is changed.
    """
    area: dict[tuple[int, int], int] = {}
    for rows in _strips(ids.shape):
        inside = ids[rows] > 0
        pairs, counts = np.unique(ids[rows][inside].astype(np.int64) * 256 + class_mask[rows][inside], return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            key = divmod(pair, 256)
            area[key] = area.get(key, 0) + count
    last = max((object_id for object_id, _ in area), default=0)
    kept: set[int] = set()
    for object_id, class_id in sorted(area, key=lambda key: (key[0], -area[key], key[1])):
        if object_id in kept:
            last += 1
            ids[(ids == object_id) & (class_mask == class_id)] = last
        kept.add(object_id)


def _add_components(ids: np.ndarray, pixels: np.ndarray, last: int) -> int:
    """Give each 8-connected component of some pixels an id of its own, in place.

    Args:
        ids: int32 array (H, W) of object ids; it is changed.
        pixels: bool array (H, W), True somewhere.
        last: highest id in use.

    Returns:
        The highest id in use afterwards.
    """
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    count, components = cv2.connectedComponents(pixels[window].astype(np.uint8), connectivity=8)
    inside = components > 0
    ids[window][inside] = components[inside] + last
    return last + count - 1
