"""A small data set in VOC's layout that tests can change."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proposals.image_codec import encode_mask


class Layout:
    """Writes images, masks and splits in VOC's layout below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def image(self, image_id: str, content: bytes | np.ndarray | Image.Image | None = None, suffix: str = ".jpg", **save) -> None:
        """Write an image: these bytes or pixels (encoded by the suffix, with Pillow's options `save`), or random pixels."""
        if content is None:
            seed = int.from_bytes(image_id.encode(), "big") % 2**32
            content = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        if isinstance(content, np.ndarray):
            content = Image.fromarray(content)
        if isinstance(content, Image.Image):
            sink = io.BytesIO()
            content.save(sink, "PNG" if suffix.lower() == ".png" else "JPEG", **save)
            content = sink.getvalue()
        self._write(f"JPEGImages/{image_id}{suffix}", content)

    def mask(self, image_id: str, mask: np.ndarray | bytes | None = None, folder: str = "SegmentationClass") -> None:
        """Write a mask: these bytes, or these ids as PNG, or a mask (40, 60) with a rectangle of class 1."""
        if mask is None:
            mask = np.zeros((40, 60), np.uint8)
            mask[10:30, 15:45] = 1
        self._write(f"{folder}/{image_id}.png", mask if isinstance(mask, bytes) else encode_mask(mask))

    def split(self, name: str, ids: Sequence[str]) -> None:
        """Write the list of a split."""
        self._write(f"ImageSets/Segmentation/{name}.txt", "".join(f"{each}\n" for each in ids).encode())

    def annotated_image(self, image_id: str) -> None:
        """Write an image of random pixels and a mask with one object."""
        self.image(image_id)
        self.mask(image_id)

    def _write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def make_layout(root: Path) -> Layout:
    """Write a data set with four images in train and two in val."""
    made = Layout(root)
    train, val = ["a", "b", "c", "d"], ["v", "w"]
    for image_id in train + val:
        made.annotated_image(image_id)
    made.split("train", train)
    made.split("val", val)
    return made


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A data set with four images in train and two in val."""
    return make_layout(tmp_path / "voc")
