"""Class names of PASCAL VOC and of the generated data set, and the colours in which masks are painted (VOC's)."""

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

    The three highest bits of red are bits 0, 3 and 6 of the id, the highest bit first. Those of green are bits 1, 4 and 7, and
    the two highest bits of blue are bits 2 and 5.

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
