"""Make the segmentations from which a structured forest learns edges, given the class and object masks of a data set."""

import cv2
import numpy as np

from proposals.edges.training.forest import UNKNOWN
from proposals.masks import VOID_ID, check_masks, void_id

_REACH = 6.0  # px; the void lines that VOC draws around objects are about 5 px wide


def segments_from_masks(class_mask: np.ndarray, object_mask: np.ndarray | None) -> np.ndarray:
    """Divide an image into segments, one for each combination of class and object.

    A void pixel at most 6 px away from a known pixel joins the segment of the nearest known pixel. So if a line of void pixels
    separates two segments, their boundary runs along the middle of that line. Void pixels further away get the id UNKNOWN.

    Args:
        class_mask: uint8 array (H, W) of class ids; 255 is void.
        object_mask: uint8 or uint16 array (H, W) of object ids; the largest value of the dtype is void. None to divide by class
            only.

    Returns:
        uint16 array (H, W) of segment ids from 1, or UNKNOWN (0).

    Raises:
        ValueError: if a mask has another dtype or shape, or their sizes differ.
    """
    check_masks(class_mask, object_mask)
    ids, void = class_mask.astype(np.int64), class_mask == VOID_ID
    if object_mask is not None:
        ids = (ids << 16) | object_mask
        void |= object_mask == void_id(object_mask)
    if void.all():
        return np.full(ids.shape, UNKNOWN, np.uint16)
    segments = (np.unique(ids, return_inverse=True)[1].reshape(ids.shape) + 1).astype(np.uint16)
    if not void.any():
        return segments
    # Distances are measured to the zeros, the known pixels; DIST_LABEL_PIXEL gives each of them a label of its own.
    distance, nearest = cv2.distanceTransformWithLabels(void.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    segment_of_label = np.zeros(int(nearest.max()) + 1, np.uint16)
    segment_of_label[nearest[~void]] = segments[~void]
    return np.where(distance <= _REACH, segment_of_label[nearest], np.uint16(UNKNOWN))
