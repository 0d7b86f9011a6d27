"""Small images, and the reasons for which they are rejected, for the tests of formats."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.importing.dataset import AnnotatedDataset
from infra.errors import BadInput

HEIGHT, WIDTH = 40, 60
TRIANGLE = [(30.0, 10.0), (54.0, 34.0), (30.0, 34.0)]
SQUARE = [(6.0, 5.0), (18.0, 5.0), (18.0, 20.0), (6.0, 20.0)]


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """Write an image of random pixels, a JPEG unless its suffix says otherwise. Args: path; size: width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write a text file, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def scene_mask(square: int = 1, triangle: int = 2) -> np.ndarray:
    """Return the class mask of an image with SQUARE and TRIANGLE, by the classes of their pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:20, 6:18] = square
    mask[(x > 30) & (y < 34) & (y - 10 > x - 30)] = triangle
    return mask


def rejection_reason(dataset: AnnotatedDataset) -> str:
    """Return the reason for which the data set's first image can't be loaded; fails if it can."""
    with pytest.raises(BadInput) as caught:
        dataset.entries[0].load()
    return str(caught.value)
