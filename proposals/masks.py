"""The value that means "void" in masks. Void pixels are those whose class or object is not known.

Class masks are uint8 arrays (H, W) of class ids. Object masks are uint8 or uint16 arrays (H, W) of object ids. In both, 0 is
background.
"""

import numpy as np

VOID_ID = 255
"""The void value of class masks and of 8-bit object masks."""
VOID_ID_16BIT = 65535
"""The void value of 16-bit object masks."""


def void_id(mask: np.ndarray) -> int:
    """Return the value that means "void" in a mask: the largest value of its dtype.

    Args:
        mask: uint8 or uint16 array of ids.

    Returns:
        255 for uint8 masks, 65535 for uint16 masks.
    """
    return VOID_ID_16BIT if mask.dtype == np.uint16 else VOID_ID
