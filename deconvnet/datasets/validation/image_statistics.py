"""What the check of a data set measures on each image: its classes, its objects, and what is suspicious about it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from deconvnet.datasets import voc
from deconvnet.datasets.importing.mask_values import blended_ids
from deconvnet.datasets.validation.duplicates import perceptual_hash
from infra import storage
from infra.errors import BadInput
from infra.storage.tables import Reject
from proposals.image_codec import decode_mask
from proposals.masks import VOID_ID, void_id

SPECKLE_AREA = 10  # px: an object smaller than this is more often a slip of the brush than an object
MUCH_VOID = 0.3  # share of an image's pixels
ONE_CLASS = 0.99  # share of an image's pixels that are not void
_MIN_OVERLAP = 0.5  # IoU of boxes
_MOST_COMPARED = 2000  # objects of an image


@dataclass(frozen=True)
class ProposalLimits:
    """Which objects region proposals can find.

    Attributes:
        min_box_area: smallest box proposed, in px² of the scaled image.
        max_side: larger images are scaled down to this longer side, px, before proposals are made.
    """

    min_box_area: float
    max_side: int


@dataclass(frozen=True)
class ImageStatistics:
    """Measurements of one image and its masks.

    Attributes:
        image_id: id of the image.
        split: "train" or "val".
        width: in px, as displayed; 0 if the image is unusable.
        height: in px, as displayed; 0 if the image is unusable.
        pixels: number of pixels by class id; 255 is void.
        objects: int64 array (N, 6), a row an object: class id, area in px, and box x0, y0, x1, y1 in px, x1 and y1 exclusive.
        suspicions: what is suspicious, as a sentence by kind; the kinds are those of `report.KINDS`.
        perceptual_hash: uint64 array (4,), similar for images that look alike; None if the image is unusable or too plain.
        digest: hex SHA-256 of the image file; empty if the image is unusable.
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
        """True if training would use the image."""
        return "unusable" not in self.suspicions

    @property
    def object_shares(self) -> np.ndarray:
        """Share of the image's pixels that each object covers: float64 array (N,) in [0, 1]."""
        return self.objects[:, 1] / max(self.width * self.height, 1)

    def unfindable(self, limits: ProposalLimits) -> np.ndarray:
        """Tell which objects have boxes that are too small for proposals.

        Args:
            limits: what proposals can find.

        Returns:
            bool array (N,), in the order of `objects`.
        """
        scale = min(1.0, limits.max_side / max(self.width, self.height, 1))
        x0, y0, x1, y1 = self.objects[:, 2:].T
        return (x1 - x0) * (y1 - y0) * scale**2 < limits.min_box_area


def measure_image(root: str, image: voc.VocImageFiles | Reject, split: str, num_classes: int, max_pixels: int) -> ImageStatistics:
    """Read one image of a data set, as training would, and measure it.

    Args:
        root: folder in VOC's layout.
        image: the image's files, or why there are none.
        split: "train" or "val".
        num_classes: number of classes, with background.
        max_pixels: most pixels an image may have.

    Returns:
        The measurements; for an unusable image only its id, its split and the suspicion "unusable".
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
    """Check the mask of an unusable image for blended edges, if it can be read: they explain ids that are no classes."""
    try:
        return _check_edges(decode_mask(storage.read_bytes(storage.join(root, image.class_mask.name)), max_pixels))
    except (BadInput, OSError):
        return {}


def _check_pixels(pixels: Mapping[int, int]) -> dict[str, str]:
    """Look for images that are mostly void, without objects, or of one class.

    Args:
        pixels: number of pixels by class id.

    Returns:
        What was found, as a sentence by kind.
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
    """Look for objects that are too small to be meant. Returns a sentence by kind, empty if there are none."""
    count = int((objects[:, 1] < SPECKLE_AREA).sum())
    return {"speckles": f"{count} object{'s' if count > 1 else ''} under {SPECKLE_AREA} px"} if count else {}


def _check_edges(class_mask: np.ndarray) -> dict[str, str]:
    """Look for ids that come from blending along edges. Returns a sentence by kind, empty if there are none."""
    ids = blended_ids(class_mask)
    names = ", ".join(str(i) for i in ids[:5]) + (", …" if len(ids) > 5 else "")
    return {"blended edges": f"ids {names} lie only along edges between other ids"} if ids else {}


def object_boxes(class_mask: np.ndarray, object_mask: np.ndarray) -> np.ndarray:
    """Find the class, area and bounding box of each object.

    Args:
        class_mask: uint8 array (H, W) of class ids.
        object_mask: uint8 or uint16 array (H, W) of object ids, each of one class; 0 is background, 255 or 65535 void.

    Returns:
        int64 array (N, 6) as `ImageStatistics.objects`, in the order of the object ids.
    """
    y, x = np.nonzero((object_mask > 0) & (object_mask != void_id(object_mask)))
    ids, index = np.unique(object_mask[y, x], return_inverse=True)
    objects = np.zeros((len(ids), 6), np.int64)
    objects[index, 0] = class_mask[y, x]
    objects[:, 1] = np.bincount(index, minlength=len(ids))
    objects[:, 2:4] = max(class_mask.shape)
    np.minimum.at(objects[:, 2], index, x)
    np.minimum.at(objects[:, 3], index, y)
    np.maximum.at(objects[:, 4], index, x + 1)
    np.maximum.at(objects[:, 5], index, y + 1)
    return objects


def count_overlapping(objects: np.ndarray) -> int:
    """Count the objects of an image whose box overlaps another object's box by an IoU of 0.5 or more.

    Args:
        objects: int64 array (N, 6) as `ImageStatistics.objects`. Speckles, and objects beyond the first 2,000, are not compared.

    Returns:
        Number of objects.
    """
    objects = objects[objects[:, 1] >= SPECKLE_AREA][:_MOST_COMPARED]
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
