"""Read BSDS500, the Berkeley segmentation data set (Arbeláez, Maire, Fowlkes, Malik, PAMI 2011).

The folder is laid out as the data set's archive: `images/SPLIT/ID.jpg` and `groundTruth/SPLIT/ID.mat`, where a .mat file holds a
MATLAB cell per annotator with `Segmentation` (segment ids) and `Boundaries` (the thin lines between segments).
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.errors import BadInput, UserError
from proposals.image_codec import decode_image

# What scipy raises for .mat files that are truncated, not MATLAB's, or have other fields.
_READ_ERRORS = (OSError, ValueError, TypeError, AttributeError, LookupError, EOFError, NotImplementedError, zlib.error)


@dataclass(frozen=True)
class BsdsImage:
    """An image with the annotations of several people.

    Attributes:
        image_id: the file's name without its suffix.
        image: uint8 array (H, W, 3), RGB.
        boundaries: per annotator, bool array (H, W), true on boundary pixels.
        segmentations: per annotator, uint16 array (H, W) of segment ids.
    """

    image_id: str
    image: np.ndarray
    boundaries: list[np.ndarray]
    segmentations: list[np.ndarray]


def bsds_files(folder: str | Path, split: str) -> list[tuple[Path, Path]]:
    """List the files of a split.

    Args:
        folder: BSDS500's folder.
        split: "train", "val" or "test".

    Returns:
        (image file, annotation file) of each image, ordered by id.

    Raises:
        UserError: if the folder does not hold BSDS500, or an image is missing.
    """
    images, annotations = Path(folder) / "images" / split, Path(folder) / "groundTruth" / split
    pairs = [(images / f"{path.stem}.jpg", path) for path in sorted(annotations.glob("*.mat"))]
    if not pairs:
        raise UserError(
            f"{folder} is not BSDS500, or has no split {split!r}: "
            f"expected images/{split}/ID.jpg and groundTruth/{split}/ID.mat in it"
        )
    if missing := next((image for image, _ in pairs if not image.is_file()), None):
        raise UserError(f"{folder} is an incomplete BSDS500: {missing} is missing")
    return pairs


def read_bsds_image(files: tuple[Path, Path]) -> BsdsImage:
    """Read an image and its annotations.

    Args:
        files: one of the pairs that `bsds_files` returns.

    Raises:
        UserError: if either file cannot be read, or their sizes differ.
    """
    image_file, annotation_file = files
    try:
        image = decode_image(image_file.read_bytes())
    except (BadInput, OSError) as error:
        raise UserError(f"{image_file} can't be used: {error}") from None
    try:
        boundaries, segmentations = _read_annotations(annotation_file)
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{annotation_file} is not a BSDS500 annotation that can be read ({reason})") from None
    shapes = {each.shape for each in (*boundaries, *segmentations)}
    if shapes != {image.shape[:2]}:
        raise UserError(
            f"{annotation_file} does not fit its image: {sorted(shapes)} for {image.shape[:2]}; download BSDS500 again"
        )
    return BsdsImage(image_file.stem, image, boundaries, segmentations)


def _read_annotations(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read each annotator's boundaries and segmentation; raises one of _READ_ERRORS for other files."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        cells: list[Any] = list(loadmat(path, variable_names=["groundTruth"])["groundTruth"].ravel())
    except MatReadError as error:
        raise ValueError(str(error)) from None
    found = [(cell["Boundaries"][0, 0] != 0, cell["Segmentation"][0, 0].astype(np.uint16)) for cell in cells]
    if not found:
        raise ValueError("no annotator")
    return [boundaries for boundaries, _ in found], [segmentation for _, segmentation in found]
