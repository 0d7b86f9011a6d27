"""Small images, and the reasons for which they are rejected, for the tests of formats."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.importing.dataset import AnnotatedDataset
from infra.errors import BadInput

HEIGHT, WIDTH = 40, 60


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """Write a JPEG of random pixels. Args: path; size: width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


def rejection_reason(dataset: AnnotatedDataset) -> str:
    """Return the reason for which the data set's first image can't be loaded; fails if it can."""
    with pytest.raises(BadInput) as caught:
        dataset.entries[0].load()
    return str(caught.value)
