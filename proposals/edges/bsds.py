"""Reading BSDS500 (Arbeláez, Maire, Fowlkes, Malik 2011): photographs and the boundaries that people drew in them.

The folder is the one that the data set unpacks to: `images/SPLIT/ID.jpg` and `groundTruth/SPLIT/ID.mat`, a MATLAB cell for each
annotator with `Segmentation` (segments' ids) and `Boundaries` (the thin lines between them).
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.errors import BadInput, UserError
from proposals.image_codec import decode_image

# What scipy raises for files that are cut short, foreign, or have other fields than these.
_BROKEN = (OSError, ValueError, TypeError, AttributeError, LookupError, EOFError, NotImplementedError, zlib.error)


@dataclass(frozen=True)
class Annotated:
    """A photograph, uint8 H×W×3 RGB; for each annotator the boundaries, bool H×W, and the segmentation, uint16 H×W of ids."""

    image_id: str
    image: np.ndarray
    boundaries: list[np.ndarray]
    segmentations: list[np.ndarray]


def read_bsds(folder: str | Path, split: str) -> Iterator[Annotated]:
    """The photographs of a split (train, val or test), by id, read as they are asked for.

    Raises UserError at the call where the folder is no BSDS500 or lacks the split, and in time for a file that can't be read.
    """
    return map(read_annotated, bsds_files(folder, split))


def bsds_files(folder: str | Path, split: str) -> list[tuple[Path, Path]]:
    """Each photograph and its annotations (.jpg, .mat), by id. Raises UserError where the folder has none."""
    photographs, annotations = Path(folder) / "images" / split, Path(folder) / "groundTruth" / split
    pairs = [(photographs / f"{path.stem}.jpg", path) for path in sorted(annotations.glob("*.mat"))]
    if not pairs:
        raise UserError(
            f"{folder} is not BSDS500, or has no split {split!r}: "
            f"expected images/{split}/ID.jpg and groundTruth/{split}/ID.mat in it"
        )
    if missing := next((photograph for photograph, _ in pairs if not photograph.is_file()), None):
        raise UserError(f"{folder} is not a whole BSDS500: {missing} is missing")
    return pairs


def read_annotated(files: tuple[Path, Path]) -> Annotated:
    """One of `bsds_files`, read. Raises UserError where either file can't be used."""
    photograph, annotations = files
    try:
        image = decode_image(photograph.read_bytes())
    except (BadInput, OSError) as error:
        raise UserError(f"{photograph} can't be used: {error}") from None
    try:
        boundaries, segmentations = _annotations(annotations)
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{annotations} is not a BSDS500 annotation that can be read ({reason})") from None
    shapes = {each.shape for each in (*boundaries, *segmentations)}
    if shapes != {image.shape[:2]}:
        raise UserError(f"{annotations} does not fit its photograph: {sorted(shapes)} for {image.shape[:2]}; fetch BSDS500 again")
    return Annotated(photograph.stem, image, boundaries, segmentations)


def _annotations(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each annotator's boundaries and segmentation. Raises one of _BROKEN where the file is something else."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        cells: list[Any] = list(loadmat(path, variable_names=["groundTruth"])["groundTruth"].ravel())
    except MatReadError as error:
        raise ValueError(str(error)) from None
    found = [(cell["Boundaries"][0, 0] != 0, cell["Segmentation"][0, 0].astype(np.uint16)) for cell in cells]
    if not found:
        raise ValueError("no annotator")
    return [b for b, _ in found], [s for _, s in found]
