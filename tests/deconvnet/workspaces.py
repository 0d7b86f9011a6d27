"""Made-up tables of a finished workspace."""

from pathlib import Path

import numpy as np

from tests.image_tables import boxes_row, image_row, write_images_and_proposals


def made_up_tables(folder: Path) -> tuple[str, str]:
    """Write tables `images` and `proposals` of 18 images.

    Each image shows two rectangles, which are annotated objects of classes 1 and 2. Of 300 boxes per image the last ten are
    close to a rectangle. Image i is of dev if i % 6 is 4, of val if it is 5, else of train. Tables have two parts.

    Args:
        folder: where to write `images` and `proposals`.

    Returns:
        The URIs of both tables.
    """
    rng = np.random.default_rng(0)
    rows, boxes = [], []
    for i in range(18):
        image = rng.integers(90, 130, (64, 80, 3), np.uint8)
        masks = np.zeros((2, 64, 80), np.uint8)
        near = []
        for number, x in enumerate(rng.integers(2, 12, 2).tolist(), 1):
            left, right, top, bottom = (number - 1) * 40 + x, number * 40 - 4, 10 + x, 50
            image[top:bottom, left:right, number - 1] = 230
            masks[:, top:bottom, left:right] = number
            near.append(np.array([left, top, right, bottom]) + rng.integers(-4, 5, (5, 4)))
        corner = rng.integers(0, 40, (290, 2))
        found = np.concatenate([np.hstack([corner, corner + rng.integers(4, 24, (290, 2))]), *near]).astype(np.float32)
        split = ("train", "train", "train", "train", "dev", "val")[i % 6]
        rows.append(image_row(f"{i:03}", image, *masks, split))
        boxes.append(boxes_row(rows[-1], found, np.linspace(1, 0, 300).tolist()))
    return write_images_and_proposals(folder, rows, boxes, parts=2, rows_per_group=4)
