"""Class names of PASCAL VOC and of the generated data set, and VOC's colours, in which masks are painted."""

import numpy as np

VOC_CLASSES = (
    "background",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""VOC's 21 class names by id."""

GENERATED_CLASSES = ("background", "disc", "square", "triangle", "star", "ring")
"""The class names of the generated data set (`deconvnet.datasets.synthetic`) by id."""


def _voc_palette() -> np.ndarray:
    """Compute the palette of VOC's development kit.

    The bits of an id are dealt out to the colour channels. From bit 0 up they become the highest bit of red, of green and of
    blue, then the second highest bit of red, of green and of blue, and so on.

    Returns:
        uint8 array (256, 3): RGB colour by id.
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


VOC_PALETTE = _voc_palette()
"""uint8 array (256, 3): RGB colour by id. Background (0) is black; void (255) is cream, (224, 224, 192)."""


def colourise(mask: np.ndarray) -> np.ndarray:
    """Paint a mask in VOC's colours.

    Args:
        mask: uint8 array (H, W) of ids.

    Returns:
        uint8 array (H, W, 3), RGB.
    """
    return VOC_PALETTE[mask]
