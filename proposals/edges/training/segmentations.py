"""What a structured forest learns edges from: segmentations, made of a data set's class and object masks."""

import cv2
import numpy as np
import pyarrow as pa

from proposals.edges.training.forest import UNKNOWN
from proposals.masks import VOID_ID, void_id

SEGMENTATIONS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),  # the encoded file (JPEG, PNG, …), unchanged
        # one 16-bit PNG per annotator, of segment ids from 1; 0 where the segment is unknown
        pa.field("segmentations", pa.list_(pa.binary()), nullable=False),
    ]
)
"""Columns of the table that edge forests are trained on: one row per image with its segmentations."""

_REACH = 6.0  # px; the void lines that VOC draws round objects are about 5 px wide


def segments_from_masks(class_mask: np.ndarray, object_mask: np.ndarray | None) -> np.ndarray:
    """Segments that the masks tell apart, by class and object: uint16 H×W, ids from 1, UNKNOWN where that can't be told.

    class_mask: uint8 H×W, 255 void; object_mask: uint8 or uint16 H×W, the type's largest value void. Void within 6 px of something
    known belongs to what is nearest, so that the boundary runs in the middle of a void line.
    """
    ids, void = class_mask.astype(np.int64), class_mask == VOID_ID
    if object_mask is not None:
        ids = (ids << 16) | object_mask
        void |= object_mask == void_id(object_mask)
    if void.all():
        return np.full(ids.shape, UNKNOWN, np.uint16)
    segments = (np.unique(ids, return_inverse=True)[1].reshape(ids.shape) + 1).astype(np.uint16)
    if not void.any():
        return segments
    # The known pixels are the zeros that distances are taken to; each has a label of its own.
    away, nearest = cv2.distanceTransformWithLabels(void.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    of_label = np.zeros(int(nearest.max()) + 1, np.uint16)
    of_label[nearest[~void]] = segments[~void]
    return np.where(away <= _REACH, of_label[nearest], np.uint16(UNKNOWN))
