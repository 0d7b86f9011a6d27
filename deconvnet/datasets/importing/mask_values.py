"""Reading the values in mask files, which are ids or colours, and judging whether they look like values of classes."""

from dataclasses import dataclass

import cv2
import numpy as np

from infra.errors import BadInput
from proposals.image_codec import decode_image, decode_mask
from proposals.masks import VOID_ID, void_id


@dataclass(frozen=True)
class MaskValues:
    """The set of values that occur in a mask file.

    Attributes:
        are_colours: True if the values are colours, False if they are ids.
        values: int64 array (N,) of the values in ascending order. They are ids, or colours as R·65536 + G·256 + B.
        blended: True if some ids look like blends of their neighbours along edges (see `blended_ids`); always False for colours.
    """

    are_colours: bool
    values: np.ndarray
    blended: bool


def read_mask_values(data: bytes, max_pixels: int) -> MaskValues:
    """Find the values that occur in a mask file.

    Args:
        data: encoded bytes of the mask.
        max_pixels: most pixels that the mask may have.

    Returns:
        The ids in the mask, or the colours if it is a colour image.

    Raises:
        BadInput: if the mask can't be decoded.
    """
    try:
        ids = read_ids(data, max_pixels)
    except BadInput:
        return MaskValues(True, np.unique(read_colours(data, max_pixels)), False)
    narrow = ids.astype(np.uint16 if ids.max(initial=0) > VOID_ID else np.uint8)
    return MaskValues(False, np.unique(ids), bool(blended_ids(narrow)))


def read_ids(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode a mask file to ids.

    The ids are palette indices or grey levels. A colour image is accepted if all its pixels are grey.

    Args:
        data: encoded bytes of the mask.
        max_pixels: most pixels that the mask may have.

    Returns:
        int64 array (H, W) of ids.

    Raises:
        BadInput: if the mask can't be decoded, or has colours.
    """
    try:
        return decode_mask(data, max_pixels).astype(np.int64)
    except BadInput:
        image = decode_image(data, max_pixels)
        if (image != image[..., :1]).any():
            raise
        return image[..., 0].astype(np.int64)


def read_colours(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode a mask file to colours.

    Args:
        data: encoded bytes of the mask.
        max_pixels: most pixels that the mask may have.

    Returns:
        int64 array (H, W) of colours as R·65536 + G·256 + B.

    Raises:
        BadInput: if the mask can't be decoded.
    """
    image = decode_image(data, max_pixels).astype(np.int64)
    return image[..., 0] << 16 | image[..., 1] << 8 | image[..., 2]


def blended_ids(mask: np.ndarray, min_pixels: int = 20) -> list[int]:
    """Find the ids in a mask that look like blends of their neighbours rather than like classes.

    Resizing with interpolation, antialiasing and JPEG leave such ids along edges. An id looks blended if it nowhere fills a
    square of 3×3 px, and if at least half of its pixels have both a lower and a higher id beside them.

    Args:
        mask: uint8 or uint16 array (H, W) of ids.
        min_pixels: ids with fewer pixels are not considered; neither is void.

    Returns:
        The ids that look blended, in ascending order.
    """
    void = void_id(mask)
    square = np.ones((3, 3), np.uint8)
    lowest = cv2.erode(mask, square)  # void is the highest id, so it never counts here
    highest = cv2.dilate(np.where(mask == void, 0, mask).astype(mask.dtype), square)
    ids, areas = np.unique(mask, return_counts=True)
    candidates, between = np.unique(mask[(lowest < mask) & (mask < highest)], return_counts=True)
    wide = set(np.unique(mask[lowest == highest]).tolist())  # ids with a 3×3 square of their own
    area = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    counts = zip(candidates.tolist(), between.tolist(), strict=True)
    return [i for i, count in counts if i != void and i not in wide and area[i] >= min_pixels and 2 * count >= area[i]]
