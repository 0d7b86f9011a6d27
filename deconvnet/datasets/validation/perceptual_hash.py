"""A hash of what an image shows, by which near-duplicates are found."""

import io

import numpy as np
from PIL import Image, ImageOps

_MIN_EDGES = 16  # a hash (of 256 bits) with fewer bits set or unset belongs to a plain image, such as a blank page
_GRID = 16  # rows of a hash, and bits in each row


def perceptual_hash(image: bytes) -> np.ndarray | None:
    """Compute a hash of what an image shows (dHash).

    The hashes of two copies differ in few bits even if one was scaled, re-encoded or slightly retouched. The image as displayed
    is reduced to 16 rows of 17 grey cells. Each bit tells whether a cell is darker than its right neighbour.

    Args:
        image: encoded bytes of a valid image file.

    Returns:
        uint64 array (4,), which holds 256 bits; None if the image is too plain to be told from others by its hash.
    """
    picture = Image.open(io.BytesIO(image))
    picture.draft("L", (128, 128))
    grey = ImageOps.exif_transpose(picture).convert("L")
    cells = np.asarray(grey.resize((_GRID + 1, _GRID), Image.Resampling.BOX), np.int16)
    bits = cells[:, :-1] < cells[:, 1:]
    if not _MIN_EDGES <= bits.sum() <= bits.size - _MIN_EDGES:
        return None
    return np.packbits(bits.ravel()).view(np.uint64)
