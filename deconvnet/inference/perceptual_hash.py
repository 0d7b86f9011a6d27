"""Perceptual hashes of images, by which near-duplicates are recognised: copies of other size or quality, neighbouring frames.

They are OpenCV's pHash: 64 bits, one for each low frequency of the grey image (set if it is strong). The hashes of similar images
differ in few bits, those of other images in about half of the bits.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

BITS = 64
Bits = NDArray[np.uint8]


def perceptual_hash(image: NDArray[np.uint8]) -> str:
    """Compute the perceptual hash of an image.

    Args:
        image: uint8 (H, W, 3), RGB.

    Returns:
        16 hexadecimal digits.
    """
    return bytes(cv2.img_hash.pHash(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]).hex()


def unpack(hashes: Sequence[str]) -> Bits:
    """Convert perceptual hashes to an array of bits.

    Args:
        hashes: N texts that `perceptual_hash` returned.

    Returns:
        uint8 (N, 64), each 0 or 1.
    """
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, BITS // 8)
    return np.unpackbits(packed, axis=1)
