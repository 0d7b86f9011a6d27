"""Columns of the Parquet tables that this package reads and writes.

Boxes are (x1, y1, x2, y2) in pixels of the image as displayed, that is, after its EXIF orientation has been applied. Their
coordinates are pixel edges, so x2 and y2 are exclusive. The rows of every part (Parquet file) are sorted by image_id.
"""

import pyarrow as pa

_BOX = pa.list_(pa.float32())  # four numbers; Delta Lake has no lists of fixed length


def _required(name: str, kind: pa.DataType) -> pa.Field:
    """Make a column of a Parquet schema whose values are never null.

    Args:
        name: name of the column.
        kind: type of its values.

    Returns:
        The column.
    """
    return pa.field(name, kind, nullable=False)


IMAGES = pa.schema(
    [
        _required("image_id", pa.string()),  # unique
        _required("split", pa.string()),  # train, dev, val or test
        _required("width", pa.int32()),  # pixels, as displayed
        _required("height", pa.int32()),
        _required("image", pa.binary()),  # the encoded file (JPEG, PNG, …), unchanged
        pa.field(
            "class_mask", pa.binary()
        ),  # 8-bit PNG of class ids, 0 background if there is one, 255 void; null without annotation
        # PNG of object ids from 1, 0 background, void 255 (8-bit) or 65535 (16-bit); null without annotation
        pa.field("object_mask", pa.binary()),
    ]
)
"""One row per image: the encoded file and its annotation."""

PROPOSALS = pa.schema(
    [
        _required("image_id", pa.string()),  # unique, as in IMAGES
        _required("width", pa.int32()),  # pixels, as displayed
        _required("height", pa.int32()),
        _required("boxes", pa.list_(_BOX)),  # best first
        _required("scores", pa.list_(pa.float32())),  # EdgeBox's objectness, one per box
    ]
)
"""One row per image: its proposals. Each part covers the images of one part of the `images` table."""

EXAMPLES = pa.schema(
    [
        _required("image_id", pa.string()),  # the image that the crop was cut from; one image may give many rows
        _required("stage", pa.int8()),  # 1: crops of annotated objects; 2: crops of proposals
        _required("box", _BOX),  # the crop, enlarged by `examples.context` (1.2×); may reach beyond the image
        _required(
            "class_ids", pa.list_(pa.int16())
        ),  # class of the crop's object, or the classes in a window; used for class balancing
        _required("iou", pa.float32()),  # of the object's tight box with the box before enlarging; 1 in stage 1, 0 for windows
        _required("image", pa.binary()),  # JPEG, square
        _required("mask", pa.binary()),  # 8-bit PNG of class ids, 0 background, 255 void; same size as the JPEG
    ]
)
"""One row per training crop. Its repeats in an epoch are not stored: they depend on the counts of all crops (`mining/job.py`)."""

SEGMENTATIONS = pa.schema(
    [
        _required("image_id", pa.string()),
        _required("image", pa.binary()),  # the encoded file (JPEG, PNG, …), unchanged
        # one 16-bit PNG of segment ids (from 1) per annotator; 0 where the segment is unknown
        _required("segmentations", pa.list_(pa.binary())),
    ]
)
"""One row per image from which an edge detector is trained."""
