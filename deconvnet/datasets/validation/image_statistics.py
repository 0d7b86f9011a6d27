"""Measurements of a single image for the check of a data set: its classes, its objects, and what is suspicious about it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from deconvnet.datasets import voc
from deconvnet.datasets.importing.mask_values import blended_ids
from deconvnet.datasets.validation.perceptual_hash import perceptual_hash
from infra import storage
from infra.errors import BadInput
from infra.storage.tables import Reject
from proposals.edgebox import EdgeBoxOptions
from proposals.image_codec import decode_mask
from proposals.masks import VOID_ID, void_id

SPECKLE_PIXELS = 10  # pixels; a smaller object is more often a slip of the brush than intended
MUCH_VOID = 0.3  # share of the pixels; an image with more void is suspicious
ONE_CLASS = 0.99  # share of the pixels that are not void; an image in which one class covers more is suspicious
_MIN_OVERLAP = 0.5  # IoU of two bounding boxes that count as overlapping
_MAX_COMPARED = 2000  # objects of one image that are compared with each other


@dataclass(frozen=True)
class ImageStatistics:
    """Measurements of one image and its masks.

    Attributes:
        image_id: id of the image.
        split: "train" or "val".
        width: width in px, as displayed; 0 if the image is unusable.
        height: height in px, as displayed; 0 if the image is unusable.
        pixels: number of pixels by class id; 255 is void.
        objects: int64 array (N, 6) with one row for each object: class id, area in px, and bounding box x0, y0, x1, y1 in px.
            Here x1 and y1 are exclusive.
        suspicions: a sentence for the user for each kind of suspicion about the image. The kinds are "unusable", "blended edges",
            "one class", "empty", "void" and "speckles".
        perceptual_hash: uint64 array (4,), similar for images that look alike; None if the image is unusable or too plain.
        digest: SHA-256 of the image file in hex digits; empty if the image is unusable.
    """

    image_id: str
    split: str
    width: int = 0
    height: int = 0
    pixels: Mapping[int, int] = field(default_factory=dict)
    objects: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.int64))
    suspicions: Mapping[str, str] = field(default_factory=dict)
    perceptual_hash: np.ndarray | None = None
    digest: str = ""

    @property
    def usable(self) -> bool:
        """Return True if training would use the image."""
        return "unusable" not in self.suspicions

    @property
    def object_shares(self) -> np.ndarray:
        """Compute the share of the image's pixels that each object covers.

        Returns:
            float64 array (N,) in [0, 1], in the order of `objects`.
        """
        return self.objects[:, 1] / max(self.width * self.height, 1)

    def too_small_for_proposals(self, proposals: EdgeBoxOptions) -> np.ndarray:
        """Find the objects whose bounding box is smaller than the smallest region proposal.

        Region proposals are the boxes that EdgeBox finds in an image as likely objects.

        Args:
            proposals: options of EdgeBox. They give the size to which large images are reduced, and the smallest area of a box.

        Returns:
            bool array (N,), in the order of `objects`, True for objects that are too small.
        """
        scale = min(1.0, proposals.max_side / max(self.width, self.height, 1))
        x0, y0, x1, y1 = self.objects[:, 2:].T
        return (x1 - x0) * (y1 - y0) * scale**2 < proposals.min_box_area


def measure_image(root: str, image: voc.VocImageFiles | Reject, split: str, num_classes: int, max_pixels: int) -> ImageStatistics:
    """Read one image of a data set as training would, and measure it.

    Args:
        root: folder of the data set in VOC's layout.
        image: files of the image, or a Reject with the reason why it can't be used.
        split: split of the image, "train" or "val".
        num_classes: number of classes, background included.
        max_pixels: an image with more pixels is unusable.

    Returns:
        The measurements. For an unusable image, only its id, its split and its suspicions are set. One of them is "unusable".
    """
    if isinstance(image, Reject):
        return ImageStatistics(image.image_id, split, suspicions={"unusable": image.reason})
    row = voc.read_row(root, image, split, num_classes, max_pixels)
    if isinstance(row, Reject):
        suspicions = {"unusable": row.reason, **_check_edges_of_unusable(root, image, max_pixels)}
        return ImageStatistics(row.image_id, split, suspicions=suspicions)
    class_mask, object_mask = decode_mask(row["class_mask"]), decode_mask(row["object_mask"])
    ids, counts = np.unique(class_mask, return_counts=True)
    pixels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    objects = object_boxes(class_mask, object_mask)
    return ImageStatistics(
        row["image_id"],
        split,
        row["width"],
        row["height"],
        pixels,
        objects,
        suspicions={**_check_pixels(pixels), **_check_speckles(objects), **_check_edges(class_mask)},
        perceptual_hash=perceptual_hash(row["image"]),
        digest=hashlib.sha256(row["image"]).hexdigest(),
    )


def _check_edges_of_unusable(root: str, image: voc.VocImageFiles, max_pixels: int) -> dict[str, str]:
    """Check the class mask of an unusable image for ids that come from blending along edges.

    An image is unusable if its mask has ids that belong to no class. Resizing the mask with interpolation may be the cause.

    Args:
        root: folder of the data set in VOC's layout.
        image: files of the image.
        max_pixels: largest number of pixels that the mask may have.

    Returns:
        A dictionary with a sentence under "blended edges"; empty if no such id was found or the mask can't be read.
    """
    try:
        return _check_edges(decode_mask(storage.read_bytes(storage.join(root, image.class_mask.name)), max_pixels))
    except (BadInput, OSError):
        return {}


def _check_pixels(pixels: Mapping[int, int]) -> dict[str, str]:
    """Check whether an image is mostly void, has no object, or is covered by one class.

    Args:
        pixels: number of pixels by class id; 255 is void.

    Returns:
        A dictionary with a sentence for each suspicion found, under its kind. The kinds are "void" (over 30 % of the pixels are
        void), "empty" (there is no object) and "one class" (a class other than background covers over 99 % of the pixels that are
        not void).
    """
    total, void = sum(pixels.values()), pixels.get(VOID_ID, 0)
    annotated = {class_id: count for class_id, count in pixels.items() if class_id != VOID_ID}
    found = {}
    if void > MUCH_VOID * total:
        found["void"] = f"{100 * void / total:.0f} % of the pixels are void"
    if not any(annotated):
        found["empty"] = "no object" if annotated else "all void"
    else:
        largest = max(annotated, key=lambda class_id: annotated[class_id])
        if largest != 0 and annotated[largest] > ONE_CLASS * (total - void):
            found["one class"] = f"one class covers {100 * annotated[largest] / (total - void):.1f} %"
    return found


def _check_speckles(objects: np.ndarray) -> dict[str, str]:
    """Check whether an image has objects that are too small to be intended.

    Args:
        objects: int64 array (N, 6), one row for each object: class id, area in px², and bounding box x0, y0, x1, y1.

    Returns:
        A dictionary with a sentence under "speckles" if an object has fewer than 10 pixels; otherwise empty.
    """
    count = int((objects[:, 1] < SPECKLE_PIXELS).sum())
    return {"speckles": f"{count} object{'s' if count > 1 else ''} under {SPECKLE_PIXELS} px"} if count else {}


def _check_edges(class_mask: np.ndarray) -> dict[str, str]:
    """Check whether a class mask has ids that come from blending along edges, as after resizing with interpolation.

    Args:
        class_mask: uint8 or uint16 array (H, W) of class ids.

    Returns:
        A dictionary with a sentence under "blended edges"; empty if there is no such id.
    """
    ids = blended_ids(class_mask)
    names = ", ".join(str(i) for i in ids[:5]) + (", …" if len(ids) > 5 else "")
    return {"blended edges": f"ids {names} lie only along edges between other ids"} if ids else {}


def object_boxes(class_mask: np.ndarray, object_mask: np.ndarray) -> np.ndarray:
    """Measure the class, the area and the bounding box of each object in a mask.

    Args:
        class_mask: uint8 array (H, W) of class ids.
        object_mask: uint8 or uint16 array (H, W) of object ids; 0 is background, void is 255 (uint8) or 65535 (uint16). All
            pixels of an object must have the same class.

    Returns:
        int64 array (N, 6), one row for each object in the order of the object ids: class id, area in px², and bounding box x0,
        y0, x1, y1 in px. Here x1 and y1 are exclusive.
    """
    ids = np.where(object_mask == void_id(object_mask), 0, object_mask)
    windows = {i: window for i, window in enumerate(ndimage.find_objects(ids.astype(np.int32)), start=1) if window}
    areas = np.bincount(ids.ravel())
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in windows.values()]
    class_ids = [class_mask[window][ids[window] == i][0] for i, window in windows.items()]
    rows = [(class_id, areas[i], *box) for i, class_id, box in zip(windows, class_ids, boxes, strict=True)]
    return np.array(rows, np.int64).reshape(-1, 6)


def count_overlapping(objects: np.ndarray) -> int:
    """Count the objects of an image whose bounding box overlaps that of another object with an IoU of 0.5 or more.

    Args:
        objects: int64 array (N, 6), one row for each object: class id, area in px², and bounding box x0, y0, x1, y1. Objects of
            fewer than 10 pixels are ignored. So are all others after the first 2,000.

    Returns:
        The number of such objects.
    """
    objects = objects[objects[:, 1] >= SPECKLE_PIXELS][:_MAX_COMPARED]
    if len(objects) < 2:
        return 0
    x0, y0, x1, y1 = (objects[:, i].astype(np.float64) for i in range(2, 6))
    width = np.minimum.outer(x1, x1) - np.maximum.outer(x0, x0)
    height = np.minimum.outer(y1, y1) - np.maximum.outer(y0, y0)
    intersection = np.clip(width, 0, None) * np.clip(height, 0, None)
    area = (x1 - x0) * (y1 - y0)
    iou = intersection / (np.add.outer(area, area) - intersection)
    np.fill_diagonal(iou, 0)
    return int((iou >= _MIN_OVERLAP).any(axis=1).sum())
