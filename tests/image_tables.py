"""Rows of the tables `images` and `proposals` from arrays, and such tables, whose parts correspond."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.storage import tables
from proposals import schemas
from proposals.image_codec import encode_jpeg, encode_mask
from proposals.image_notes import note_of_row

Row = dict[str, Any]


def image_row(
    image_id: str, image: np.ndarray, classes: np.ndarray | None, objects: np.ndarray | None, split: str = "train"
) -> Row:
    """A row of `images`: an RGB image (H, W, 3) with its class mask and object mask (H, W), all uint8."""
    return {
        "image_id": image_id,
        "split": split,
        "width": image.shape[1],
        "height": image.shape[0],
        "image": encode_jpeg(image),
        "class_mask": None if classes is None else encode_mask(classes),
        "object_mask": None if objects is None else encode_mask(objects),
    }


def boxes_row(of: Row, boxes: Any, scores: Any = None) -> Row:
    """The row of `proposals` for a row of `images`: boxes (N, 4), and N scores, which are 1 by default."""
    size = {name: of[name] for name in ("image_id", "width", "height")}
    found = np.asarray(boxes, np.float32).reshape(-1, 4).tolist()
    return {**size, "boxes": found, "scores": [1.0] * len(found) if scores is None else list(scores)}


def write_images(uri: str, rows: Sequence[Row], parts: int = 1, rows_per_group: int = 2) -> list[list[Row]]:
    """Write a table `images` in this many parts, and return the rows of each."""
    pieces = [[rows[i] for i in numbers] for numbers in tables.chunks(len(rows), -(-len(rows) // parts))]
    _write(uri, pieces, schemas.IMAGES, rows_per_group)
    return pieces


def write_images_and_proposals(
    folder: Path, images: Sequence[Row], proposals: Sequence[Row], parts: int = 1, rows_per_group: int = 2
) -> tuple[str, str]:
    """Write `images` and `proposals` below a folder in this many parts, and return their URIs."""
    pieces = write_images(str(folder / "images"), images, parts, rows_per_group)
    of = {row["image_id"]: row for row in proposals}
    found = [[of[row["image_id"]] for row in piece if row["image_id"] in of] for piece in pieces]
    _write(str(folder / "proposals"), found, schemas.PROPOSALS, rows_per_group)
    return str(folder / "images"), str(folder / "proposals")


def _write(uri: str, pieces: Sequence[Sequence[Row]], schema: Any, rows_per_group: int) -> None:
    notes = [[note_of_row(row) for row in piece] if schema is schemas.IMAGES else [] for piece in pieces]
    given = [[*piece, *noted] for piece, noted in zip(pieces, notes, strict=True)]
    made = [tables.write_part(uri, "i" * 16, i, each, schema, rows_per_group) for i, each in enumerate(given)]
    tables.commit(uri, "i" * 16, made)
