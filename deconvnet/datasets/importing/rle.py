"""COCO's run-length encoding of masks, as a list of numbers or compressed to text.

Written here because pycocotools reads outside its memory where run lengths don't fit the image; here they are summed before they
are expanded.
"""

from typing import Any

import numpy as np

from deconvnet.datasets.importing.regions import Region, empty_region
from infra.errors import BadInput


def parse_run_lengths(counts: Any) -> np.ndarray:
    """Read run lengths from an annotation file.

    Args:
        counts: the `counts` of COCO's RLE: a list of whole numbers, or compressed text as pycocotools' rleToString writes it.
            In the text a number is 5 bits a character, lowest first; a character's bit 0x20 says that more follow, bit 0x10 of
            the last one is the sign. From the fourth number on, it is the difference to the number two before.

    Returns:
        int64 array (N,) of lengths, background first.

    Raises:
        BadInput: if the counts are neither.
    """
    if isinstance(counts, list):
        if not all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**40 for each in counts):
            raise BadInput("its run lengths are no whole numbers from 0 on")
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
        class_id: class of the object.
        counts: run lengths as `parse_run_lengths` takes them; they run down the columns of the image.
        height: height of the image, px.
        width: width of the image, px.

    Returns:
        The object's pixels, in the smallest window that holds them.

    Raises:
        BadInput: if the run lengths are damaged or don't add up to the pixels of the image.
    """
    lengths = parse_run_lengths(counts)
    if (total := int(lengths.sum())) != height * width:
        raise BadInput(f"its run lengths cover {total:,} px, the image has {height * width:,} ({width}×{height})")
    mask = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return empty_region(class_id)
    top, left = int(rows[0]), int(columns[0])
    return Region(class_id, top, left, np.ascontiguousarray(mask[top : rows[-1] + 1, left : columns[-1] + 1]))
