"""Read BSDS500, the Berkeley segmentation data set (Arbeláez, Maire, Fowlkes, Malik, PAMI 2011).

The folder must have the layout of the data set's archive: `images/SPLIT/ID.jpg` and `groundTruth/SPLIT/ID.mat`. A .mat file holds
one MATLAB cell per annotator, with the arrays `Segmentation` (segment ids) and `Boundaries` (thin lines between segments).
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
    """An image of BSDS500 with the annotations of several people.

    Attributes:
        image_id: the name of the image file without its suffix.
        image: uint8 array (H, W, 3), RGB.
        boundaries: a bool array (H, W) per annotator, true on boundary pixels.
        segmentations: a uint16 array (H, W) of segment ids per annotator.
    """

    image_id: str
    image: np.ndarray
    boundaries: list[np.ndarray]
    segmentations: list[np.ndarray]


def bsds_files(folder: str | Path, split: str) -> list[tuple[Path, Path]]:
    """List the image and annotation files of a split.

    Args:
        folder: the folder of BSDS500.
        split: "train", "val" or "test".

    Returns:
        A pair (image file, annotation file) for each image, sorted by file name.

    Raises:
        UserError: if the folder does not hold BSDS500 or lacks this split, or an image is missing.
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
        files: the image file and the annotation file, as `bsds_files` returns them.

    Returns:
        The decoded image and the arrays of all annotators.

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
    """Read the annotations in a .mat file.

    Args:
        path: the annotation file.

    Returns:
        boundaries: a bool array (H, W) per annotator, true on boundary pixels.
        segmentations: a uint16 array (H, W) of segment ids per annotator.

    Raises:
        ValueError: if the file has no annotator. Files with other contents raise any of the exceptions in `_READ_ERRORS`.
    """
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
