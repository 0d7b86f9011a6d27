"""The values in mask files, ids or colours, and whether they look like values of classes."""

from dataclasses import dataclass

import cv2
import numpy as np

from infra.errors import BadInput
from proposals.image_codec import decode_image, decode_mask
from proposals.masks import VOID_ID, void_id


@dataclass(frozen=True)
class MaskValues:
    """What values a mask file has.

    Attributes:
        are_colours: True if the values are colours, False if they are ids.
        values: int64 array (N,), ascending: ids, or colours as R·65536 + G·256 + B.
        blended: True if some ids look like blends of their neighbours along edges (see `blended_ids`).
    """

    are_colours: bool
    values: np.ndarray
    blended: bool


def read_mask_values(data: bytes, max_pixels: int) -> MaskValues:
    """Read which values a mask has.

    Args:
        data: encoded bytes of the mask.
        max_pixels: most pixels a mask may have.

    Returns:
        Its ids, or its colours if it is a colour image.

    Raises:
        BadInput: if it can't be decoded.
    """
    try:
        ids = read_ids(data, max_pixels)
    except BadInput:
        return MaskValues(True, np.unique(read_colours(data, max_pixels)), False)
    narrow = ids.astype(np.uint16 if ids.max(initial=0) > VOID_ID else np.uint8)
    return MaskValues(False, np.unique(ids), bool(blended_ids(narrow)))


def read_ids(data: bytes, max_pixels: int) -> np.ndarray:
    """Read the ids of a mask: palette indices, grey levels, or the levels of a colour image that is all grey.

    Args:
        data: encoded bytes of the mask.
        max_pixels: most pixels a mask may have.

    Returns:
        int64 array (H, W).

    Raises:
        BadInput: if it can't be decoded, or has colours.
    """
    try:
        return decode_mask(data, max_pixels).astype(np.int64)
    except BadInput:
        image = decode_image(data, max_pixels)
        if (image != image[..., :1]).any():
            raise
        return image[..., 0].astype(np.int64)


def read_colours(data: bytes, max_pixels: int) -> np.ndarray:
    """Read the colours of a mask.

    Args:
        data: encoded bytes of the mask.
        max_pixels: most pixels a mask may have.

    Returns:
        int64 array (H, W) of R·65536 + G·256 + B.

    Raises:
        BadInput: if it can't be decoded.
    """
    image = decode_image(data, max_pixels).astype(np.int64)
    return image[..., 0] << 16 | image[..., 1] << 8 | image[..., 2]


def blended_ids(mask: np.ndarray, min_pixels: int = 20) -> list[int]:
    """Find ids that look like a blend of their neighbours rather than like a class.

    Resizing with interpolation, antialiasing and JPEG leave such ids along edges: nowhere 3 px wide, and with a lower and a
    higher id beside most of their pixels.

    Args:
        mask: uint8 or uint16 array (H, W) of ids.
        min_pixels: ids with fewer pixels, and void, are not considered.

    Returns:
        The ids that look blended, ascending.
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
