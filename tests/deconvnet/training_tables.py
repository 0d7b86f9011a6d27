"""Small tables and networks for the tests of training."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from deconvnet.models.network import Network
from infra.storage import tables
from proposals import schemas
from proposals.image_codec import encode_jpeg, encode_mask
from tests.image_tables import image_row, write_images

SIZE = 32
STORED = 36


def example(seed: int, stored: int = STORED) -> tuple[np.ndarray, np.ndarray]:
    """Draw a square of class 1 (red) or 2 (green) on grey noise, void at the top: uint8 (H, W, 3) and (H, W)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 130, (stored, stored, 3), np.uint8)
    mask = np.zeros((stored, stored), np.uint8)
    label = int(rng.integers(1, 3))
    y, x = rng.integers(4, stored // 2, 2)
    image[y : y + 14, x : x + 14, label - 1] = 230
    mask[y : y + 14, x : x + 14] = label
    mask[:2] = 255
    return image, mask


def examples_table(folder: str, rows: int, rows_per_group: int = 8, repeats: tuple[int, ...] = (1, 2), seed: int = 0) -> str:
    """Write an `examples` table in two parts; row i occurs `repeats[i % len(repeats)]` times in an epoch. Returns its URI."""

    def made(numbers: range) -> Iterator[dict[str, Any]]:
        for i in numbers:
            image, mask = example(1000 * seed + i)
            yield {
                "image_id": f"{i:06d}",
                "stage": 1,
                "box": [0.0, 0.0, 10.0, 10.0],
                "class_ids": [i % len(repeats)],
                "iou": 1.0,
                "image": encode_jpeg(image),
                "mask": encode_mask(mask),
            }

    parts = [
        tables.write_part(folder, "f" * 16, i, made(n), schemas.EXAMPLES, rows_per_group)
        for i, n in enumerate(tables.chunks(rows, -(-rows // 2)))
    ]
    tables.commit(folder, "f" * 16, parts, {"repeats_by_class": {str(i): each for i, each in enumerate(repeats)}})
    return folder


def images_table(folder: str, rows: int, size: tuple[int, int] = (40, 56)) -> str:
    """Write an `images` table of which every fourth image is in `dev`, the others in `train`. Returns its URI."""

    height, width = size
    made = []
    for i in range(rows):
        image, mask = (each[:height, :width] for each in example(i, max(size)))
        made.append(image_row(f"{i:06d}", image, mask, None, "dev" if i % 4 == 3 else "train"))
    write_images(folder, made, rows_per_group=8)
    return folder


class Small(Network):
    """A small network with batch norm and dropout: scores of three classes."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(3, 1.0, "torchvision")
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Dropout(dropout), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)
