"""Decoding COCO's run-length encoding of masks, which is a list of numbers or compressed text.

pycocotools is not used, because it reads memory out of bounds if the run lengths don't fit the image. Here the run lengths are
summed and checked before they are expanded.
"""

from typing import Any

import numpy as np

from deconvnet.datasets.importing.regions import Region, mask_region
from infra.errors import BadInput


def parse_run_lengths(counts: Any) -> np.ndarray:
    """Decode the run lengths of a mask in a COCO annotation file.

    In compressed text (as pycocotools' rleToString writes it), each character holds 6 bits: its code minus 48. The low 5 bits are
    the next bits of a number, lowest first. Bit 0x20 is set if the number goes on in the next character. In the last character of
    a number, bit 0x10 is the sign. From the fourth number on, each number is the difference from the run length two positions
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
