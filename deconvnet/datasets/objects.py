"""Object masks that are consistent with a class mask.

The training crops of stage 1 are cut round single objects of these masks. Those of stage 2 are cut round region proposals, which
are compared with the objects.
"""

import cv2
import numpy as np

from infra.errors import BadInput
from proposals.masks import VOID_ID, VOID_ID_16BIT, check_masks, void_id


def make_object_mask(class_mask: np.ndarray, object_mask: np.ndarray | None = None, background: bool = True) -> np.ndarray:
    """Make an object mask in which every annotated pixel belongs to an object, and every object has one class.

    * Background and void are taken from the class mask. Pixels that are void in the given object mask become void too.
    * An object id whose pixels have several classes is split. The class with most of these pixels keeps the object id; on a tie,
      it is the class with the lowest class id. The pixels of each other class get a new object id, above the highest one in use.
    * Annotated pixels without an object id are grouped into 8-connected regions of one class. Each region becomes an object.

    If the data has no background, then class 0 is a class like any other, and annotated pixels without an object id stay without
    an object: regions of sky or road are not objects. So without `object_mask` there are no objects at all.

    Args:
        class_mask: uint8 array (H, W) of class ids; 0 is background, 255 void.
        object_mask: uint8 or uint16 array (H, W) of object ids; 0 means no object, void is 255 (uint8) or 65535 (uint16). None if
            the objects are not annotated.
        background: whether class 0 is the background.

    Returns:
        uint8 array (H, W) of object ids, with background 0 and void 255. If there are more than 254 objects, it is uint16 with
        void 65535.

    Raises:
        BadInput: if there are more objects than 16 bits can number.
        ValueError: if a mask has another dtype or shape, or their sizes differ.
    """
    check_masks(class_mask, object_mask)
    ids = np.zeros(class_mask.shape, np.int32)
    void = class_mask == VOID_ID
    if object_mask is not None:
        ids[:] = object_mask
        void |= object_mask == void_id(object_mask)
        ids[void | (class_mask == 0) if background else void] = 0
        _split_by_class(class_mask, ids)
    rest = (ids == 0) & (class_mask > 0) & ~void
    last = int(ids.max(initial=0))
    for class_id in np.flatnonzero(np.bincount(class_mask[rest])) if background else ():
        last = _add_components(ids, rest & (class_mask == class_id), last)
    if last >= VOID_ID_16BIT:
        raise BadInput(f"the masks hold more than {VOID_ID_16BIT - 1:,} objects")
    eight_bits = last < VOID_ID
    made = ids.astype(np.uint8 if eight_bits else np.uint16)
    made[void] = VOID_ID if eight_bits else VOID_ID_16BIT
    return made


def _split_by_class(class_mask: np.ndarray, ids: np.ndarray) -> None:
    """Split each object that covers several classes into one object for each class, in place.

    The class with most of an object's pixels keeps the object id. Each other class gets a new id after the highest one.

    Args:
        class_mask: uint8 array (H, W) of class ids.
        ids: int32 array (H, W) of object ids, 0 for no object; it is changed.
    """
    inside = ids > 0
    pairs, areas = np.unique(ids[inside] * 256 + class_mask[inside], return_counts=True)  # 32 bits hold them: ids have 16
    last = int(ids.max(initial=0))
    kept: set[int] = set()
    for pair in pairs[np.lexsort((pairs, -areas, pairs // 256))].tolist():
        object_id, class_id = divmod(pair, 256)
        if object_id in kept:
            last += 1
            ids[(ids == object_id) & (class_mask == class_id)] = last
        kept.add(object_id)


def _add_components(ids: np.ndarray, pixels: np.ndarray, last: int) -> int:
    """Give a new object id to each 8-connected region of marked pixels, in place.

    Args:
        ids: int32 array (H, W) of object ids; it is changed.
        pixels: bool array (H, W), True at the pixels that need an id; at least one must be True.
        last: highest id in use; new ids are counted from `last` + 1.

    Returns:
        The highest id in use afterwards.
    """
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    count, components = cv2.connectedComponents(pixels[window].astype(np.uint8), connectivity=8)
    inside = components > 0
    ids[window][inside] = components[inside] + last
    return last + count - 1
