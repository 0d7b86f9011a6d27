"""A folder in the layout of BSDS500, the Berkeley data set of boundaries."""

from pathlib import Path

import numpy as np
from scipy.io import savemat

from proposals.image_codec import encode_jpeg


def write(
    folder: Path,
    image_id: str,
    annotators: list[tuple[np.ndarray, np.ndarray]],
    height: int = 20,
    width: int = 30,
    split: str = "val",
) -> Path:
    """Write an image and its annotations in BSDS500's layout; returns the path of the annotations."""
    for kind in ("images", "groundTruth"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    (folder / "images" / split / f"{image_id}.jpg").write_bytes(encode_jpeg(np.full((height, width, 3), (200, 90, 30), np.uint8)))
    cells = np.empty((1, len(annotators)), object)
    for i, (segmentation, boundaries) in enumerate(annotators):
        cells[0, i] = {"Segmentation": segmentation, "Boundaries": boundaries}
    path = folder / "groundTruth" / split / f"{image_id}.mat"
    savemat(path, {"groundTruth": cells}, do_compression=True)
    return path


def drawing(column: int, height: int = 20, width: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Two segments divided at a column: segmentation and boundaries."""
    segmentation = np.where(np.arange(width) < column, 1, 2).astype(np.uint16)[None].repeat(height, axis=0)
    return segmentation, (np.arange(width) == column).astype(np.uint8)[None].repeat(height, axis=0)
