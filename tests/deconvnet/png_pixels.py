"""Helpers that look at the pixels of a PNG."""

import io

import numpy as np
from PIL import Image


def pixels(png: bytes) -> np.ndarray:
    """Decode a PNG to uint8 (H, W, 3), RGB."""
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def area(image: np.ndarray, colour) -> int:
    """Count the pixels of an image (H, W, 3) that have exactly this colour."""
    return int((image == np.asarray(colour)).all(axis=2).sum())
