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


def class_palette(background: bool = True) -> np.ndarray:
    """Return the colours in which the masks of a data set are painted.

    Args:
        background: whether class 0 is the background, which is black. If not, class 0 has the colour of VOC's class 1, and so on,
            so that no class is black.

    Returns:
        uint8 array (256, 3): RGB colour by id. Void (255) is always cream.
    """
    if background:
        return VOC_PALETTE
    return np.concatenate([VOC_PALETTE[1:-1], VOC_PALETTE[:1], VOC_PALETTE[-1:]])


def colourise(mask: np.ndarray, palette: np.ndarray = VOC_PALETTE) -> np.ndarray:
    """Paint a mask in the colours of its classes.

    Args:
        mask: uint8 array (H, W) of ids.
        palette: uint8 array (256, 3): RGB colour by id, see `class_palette`.

    Returns:
        uint8 array (H, W, 3), RGB.
    """
    return palette[mask]
