"""PASCAL VOC's colours: what masks are painted with, in files and in pictures."""

import numpy as np


def _voc_palette() -> np.ndarray:
    """The development kit's rule: the bits of the id, three at a time, fill the colour's bits from the highest down."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


VOC_PALETTE = _voc_palette()
"""uint8 256×3, RGB by id: 0 background is black, 255 void is the pale (224, 224, 192)."""


def colourise(mask: np.ndarray) -> np.ndarray:
    """A picture of `mask` (uint8 H×W ids): uint8 H×W×3, RGB."""
    return VOC_PALETTE[mask]
