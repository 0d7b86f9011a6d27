"""The value that means void in masks: pixels whose class or object is not known.

Class masks are uint8 arrays (H, W) of class ids, object masks uint8 or uint16 arrays (H, W) of object ids; 0 is background.
"""

import numpy as np

VOID_ID = 255
"""Void in class masks, and in object masks of 8 bits."""
VOID_ID_16BIT = 65535
"""Void in object masks of 16 bits."""


def void_id(mask: np.ndarray) -> int:
    """Return the value that means void in a mask: the largest that its dtype can hold.

    Args:
        mask: uint8 or uint16 array of ids.

    Returns:
        `VOID_ID` or `VOID_ID_16BIT`.
    """
    return VOID_ID_16BIT if mask.dtype == np.uint16 else VOID_ID
