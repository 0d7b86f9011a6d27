"""Masks and exports of them, for the tests of exports."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from deconvnet.datasets.exporting import ExportOptions, get_format
from deconvnet.datasets.exporting.export_writer import ExportSummary, Prediction, write_export
from proposals.image_codec import encode_mask

CLASSES = ("background", "ring", "crate", "ball")
HEIGHT, WIDTH = 120, 170
NAMES = ("a.jpg", "site 2/b.png")


def scene_mask(seed: int = 0) -> np.ndarray:
    """Return a mask with objects of all kinds.

    A ring with a crate and a smaller ring in its hole; two balls, one at the edge of the image, the other slanting and joined to
    a third by a corner alone; a crate of one pixel, and one that is a line.
    """
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 8, 2).tolist()
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(mask, (60 + x, 60), 42, 1, -1)
    cv2.circle(mask, (60 + x, 60), 30, 0, -1)
    cv2.rectangle(mask, (45 + x, 42), (58 + x, 55), 2, -1)
    cv2.circle(mask, (66 + x, 66), 9, 1, 4)
    cv2.ellipse(mask, (WIDTH - 6, 20 + y), (25, 14), 10.0, 0.0, 360.0, 3, -1)
    cv2.ellipse(mask, (135, 75 + y), (22, 12), 60.0, 0.0, 360.0, 3, -1)
    mask[108:112, 150:154], mask[112:116, 154:158] = 3, 3
    mask[3, 2] = 2
    mask[HEIGHT - 1, 5:60] = 2
    return mask


def write_prediction(
    folder: Path, name: str, mask: np.ndarray, score: float = 0.75, classes: tuple[str, ...] = CLASSES
) -> Prediction:
    """Write an image of random pixels below photos, and its mask below masks. The score of class i is the image's plus i/16."""
    image, file = folder / "photos" / name, (folder / "masks" / name).with_suffix(".png")
    for path in (image, file):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 255, (*mask.shape, 3), np.uint8)
    Image.fromarray(pixels).save(image)
    file.write_bytes(encode_mask(mask))
    ids = np.unique(mask).tolist()
    found = tuple(classes[i] if i < len(classes) else "?" for i in ids)
    return Prediction(name, str(image), str(file), found, score, tuple(score + i / 16 for i in ids))


def export(folder: Path, name: str, masks: dict[str, np.ndarray] | None = None, **rules: object) -> tuple[Path, ExportSummary]:
    """Export images, by default two of scenes, to folder/NAME. Returns the folder and the summary."""
    masks = {each: scene_mask(seed) for seed, each in enumerate(NAMES)} if masks is None else masks
    predictions = [write_prediction(folder, each, mask, 0.75 - n / 8) for n, (each, mask) in enumerate(masks.items())]
    to = folder / name
    to.mkdir()
    given = {"classes": CLASSES, "model": "models:/edeconvnet/3", **rules}
    return to, write_export(predictions, [], get_format(name), ExportOptions(**given), to, 1)  # type: ignore[arg-type]
