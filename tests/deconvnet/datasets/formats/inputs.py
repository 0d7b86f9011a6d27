"""Small images, their masks as tools write them, and the reasons for which they are rejected, for the tests of formats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.formats.masks import read_masks
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions
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


def runs(mask: np.ndarray) -> list[int]:
    """Return the run lengths of a bool mask, row by row: of background and object in turn."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.ravel(), [False]]).astype(int)))
    return np.diff([0, *edges, mask.size]).tolist()


def compressed(lengths: Sequence[int]) -> str:
    """Return run lengths as COCO's text, as pycocotools' rleToString writes it."""
    text = ""
    for i, length in enumerate(lengths):
        rest = length - (lengths[i - 2] if i > 2 else 0)
        while True:
            bits, rest = rest & 0x1F, rest >> 5
            more = rest != -1 if bits & 0x10 else rest != 0
            text += chr((bits | (0x20 if more else 0)) + 48)
            if not more:
                break
    return text


def starts_and_lengths(mask: np.ndarray) -> str:
    """Return the runs of a bool mask, row by row, as Kaggle's tables have them: the starts count from 1."""
    lengths = runs(mask)
    starts = np.cumsum([0, *lengths])[1:-1:2] + 1
    return " ".join(f"{start} {length}" for start, length in zip(starts, lengths[1::2], strict=True))


def read_mask_folder(
    folder: Path, *masks: np.ndarray | Image.Image, table: str | None = None, suffix: str = ".png", **rules: Any
) -> AnnotatedDataset:
    """Write these masks and an image for each, and a table of classes if one is given. Return the data set of the folder."""
    for number, mask in enumerate(masks):
        write_image(folder / f"images/p{number}.jpg")
        (folder / "masks").mkdir(exist_ok=True)
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        mask.save(folder / f"masks/p{number}{rules.get('mask_suffix', '')}{suffix}")
    if table:
        (folder / "table.txt").write_text(table)
        rules["class_table_uri"] = str(folder / "table.txt")
    return read_masks([AnnotationSource(str(folder / "images"), str(folder / "masks"))], ImportOptions(**rules))
