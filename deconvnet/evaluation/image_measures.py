"""The table of evaluated images, `report/images.parquet`: the measures of each image, and where its mask and picture are."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deconvnet.inference.uncertainty import Measures
from infra import storage
from infra.errors import UserError

IMAGES_FILE = "images.parquet"
"""Name of the file in the report's folder."""
SIDE_BY_SIDE = "images"
"""Name of the folder, in the report's folder, with each image beside its annotation and its prediction."""
MASKS = "masks"
"""Name of the folder, in the report's folder, with the predicted mask of each image."""


def images_file(rows: Sequence[Mapping[str, Any]], results: Sequence[str], classes: Sequence[str]) -> bytes:
    """Make the content of `images.parquet`.

    Args:
        rows: a dict for each image by the names of columns, see `images_schema`.
        results: names of the results.
        classes: class names, ordered by id.

    Returns:
        The content of the file, with the images in the order of their ids.
    """
    return parquet_file(sorted(rows, key=lambda row: row["image_id"]), images_schema(results, classes))


def parquet_file(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """Return the content of a Parquet file with these rows, each a dict by the names of the columns."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()


def images_schema(results: Sequence[str], classes: Sequence[str]) -> pa.Schema:
    """Return the columns of the table. All measures are from 0 to 1, of one image, and null if they are undefined.

    Unless they say otherwise, they are of the result "edeconvnet_crf", the ensemble of both networks with the CRF.
    """
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            *(pa.field(f"mean_iou.{name}", pa.float64()) for name in results),  # null if the whole annotation is void
            pa.field("pixel_accuracy", pa.float64()),
            pa.field("boundary_f", pa.float64()),  # mean over classes; null if there is no contour
            pa.field("boundary_iou", pa.float64()),  # mean over classes
            *(pa.field(each.name, pa.float64()) for each in fields(Measures)),  # how sure the prediction is, see there
            *(pa.field(f"iou.{name}", pa.float64()) for name in classes),  # null if neither annotated nor predicted
            pa.field("picture", pa.string(), nullable=False),  # path relative to the report's folder; "" if there is none
            pa.field("mask", pa.string(), nullable=False),  # path of a paletted PNG of class ids, relative to the report's folder
        ]
    )


def read_images(uri: str) -> list[dict[str, Any]]:
    """Read the rows of a table of images by the names of columns.

    Args:
        uri: URI of the file `images.parquet`.

    Raises:
        UserError: if there is no such file.
    """
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise UserError(f"{uri} does not exist: run the stage `evaluate` of its workspace again, which writes it") from error
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
    return rows


def mean_iou_by_result(rows: Iterable[Mapping[str, Any]], results: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return the mean IoU of each image by its id, then by the name of the result. None if it is undefined."""
    return {row["image_id"]: {name: row[f"mean_iou.{name}"] for name in results} for row in rows}


def remove_other_files(report_uri: str) -> None:
    """Delete pictures and masks of earlier evaluations: those in a report's folder that its table of images does not name."""
    file = storage.join(report_uri, IMAGES_FILE)
    rows = read_images(file) if storage.exists(file) else []
    for folder, column in ((SIDE_BY_SIDE, "picture"), (MASKS, "mask")):
        kept = {row[column] for row in rows}
        there = storage.list_files(storage.join(report_uri, folder))
        storage.remove_files(storage.join(report_uri, folder), [name for name in there if f"{folder}/{name}" not in kept])
