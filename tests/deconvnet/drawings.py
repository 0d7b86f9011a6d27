"""Looking at a PNG that was drawn."""

import io

import numpy as np
from PIL import Image


def pixels(png: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB."""
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def area(picture: np.ndarray, colour) -> int:
    """How many pixels of `picture` have just this colour."""
    return int((picture == np.asarray(colour)).all(axis=2).sum())
