"""Small images tables for tests of proposals and training crops."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.image_tables import Row, image_row, write_images


def scene(image_id: str, seed: int, split: str = "train", height: int = 90, width: int = 120) -> Row:
    """A row with a noisy background, a large rectangle of class 1 (object 1) with void above it, and a smaller one of class 2."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(8, 16, 2)
    image = rng.integers(90, 110, (height, width, 3))
    classes = np.zeros((height, width), np.uint8)
    objects = np.zeros((height, width), np.uint8)
    for object_id, (window, colour) in enumerate(
        [
            ((slice(y, y + 50), slice(x, x + 44)), (200, 40, 40)),
            ((slice(y + 20, y + 60), slice(x + 55, x + 90)), (40, 60, 220)),
        ],
        start=1,
    ):
        image[window] = colour
        classes[window] = objects[window] = object_id
    classes[y - 1, x : x + 44] = objects[y - 1, x : x + 44] = 255
    return image_row(image_id, image.astype(np.uint8), classes, objects, split)


@pytest.fixture
def images(tmp_path: Path) -> Callable[[Sequence[Row], int], str]:
    """A function that writes rows as an images table with a number of parts, and returns its URI."""

    def write(rows: Sequence[Row], parts: int = 1) -> str:
        write_images(uri := str(tmp_path / f"images-{parts}"), rows, parts)
        return uri

    return write


@pytest.fixture
def rows() -> list[Row]:
    """Ten scenes of three splits, an image without objects, one all void, one of one pixel, and one without masks."""
    grey = np.full((40, 50, 3), 90, np.uint8)
    empty, void = np.zeros((40, 50), np.uint8), np.full((40, 50), 255, np.uint8)
    return [
        *(scene(f"{i:03d}", i, "dev" if i % 4 == 3 else "train") for i in range(8)),
        image_row("100-empty", grey, empty, empty),
        image_row("101-void", grey, void, void),
        image_row("102-dot", grey[:1, :1], empty[:1, :1], empty[:1, :1]),
        image_row("103-unlabelled", grey, None, None),
        scene("104", 104),
        scene("105", 105, "val"),
    ]


@pytest.fixture
def voc_rows(shared: Path) -> list[Row]:
    """Six real images of voc-sample with their masks, as rows of the images table."""
    voc = shared / "voc-sample"
    ids = (voc / "ImageSets/Segmentation/train.txt").read_text().split()[:120:20]
    rows = []
    for image_id in sorted(ids):
        data, classes, objects = (
            (voc / folder / f"{image_id}.{kind}").read_bytes()
            for folder, kind in [("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("SegmentationObject", "png")]
        )
        rows.append(
            {
                "image_id": image_id,
                "split": "train",
                "width": 1,
                "height": 1,
                "image": data,
                "class_mask": classes,
                "object_mask": objects,
            }
        )
    return rows
