"""The rules by which training crops are chosen, labelled and balanced (DeconvNet, Noh et al. 2015, §4.2 and §6.1).

* Stage 1, easy crops: the tight box of each annotated object, enlarged 1.2 times. In the crop's mask, the object's own pixels
  have its class and everything else is background.
* Stage 2, hard crops: each EdgeBox proposal that overlaps an annotated object with an IoU of at least 0.5, enlarged 1.2 times. In
  the crop's mask, every class is labelled.
* Windows (stage 2, for scenes without objects): squares that cover the image (`proposals.boxes.make_windows`), not enlarged. In
  the crop's mask, every class is labelled.
* Class balance: crops of rare classes are repeated in an epoch, up to 10 times.

These numbers are the defaults of `ExampleSettings`. The functions work on arrays and have no side effects. Class masks are uint8
(H, W) of class ids, with 0 for background and 255 for void. Object masks are uint8 or uint16 (H, W) of object ids, with 0 for
background and the largest value of the dtype for void. If the data has no class for the background, 0 is a class like any other
in class masks.
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from proposals.boxes import MEAN_RGB, WindowShape, crop, enlarge, iou
from proposals.masks import VOID_ID, check_masks, void_id

_MIN_SHARE = 0.01  # a class with a smaller share of a window's pixels is ignored in class balancing


@dataclass(frozen=True)
class AnnotatedObject:
    """An annotated object of an image.

    Attributes:
        object_id: id of the object in the object mask.
        class_id: id of its class.
        box: its tight box (x1, y1, x2, y2) in pixels, the smallest that contains all of its pixels.
    """

    object_id: int
    class_id: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class ExampleWindow:
    """A box of an image that becomes a training crop.

    Attributes:
        box: the enlarged box (x1, y1, x2, y2) in pixels; it may reach beyond the image.
        classes: ids of the classes for which the crop is counted in class balancing: the object's class, or for a window the
            classes in it.
        object_id: id of the object for which the box was chosen; 0 for a window.
        iou: IoU of the box with the object's tight box, before the box was enlarged; 1 in stage 1, 0 for a window.
    """

    box: tuple[float, float, float, float]
    classes: tuple[int, ...]
    object_id: int
    iou: float


def rarest(class_ids: Collection[int], repeats: Mapping[int, int]) -> int:
    """Return the rarest class of a crop, whose crops are repeated most. Of equally rare classes, return the lowest id.

    Args:
        class_ids: ids of the crop's classes, at least one.
        repeats: repeats by class id, see `repeats_by_class`. The crop is repeated as often as its rarest class.
    """
    return max(class_ids, key=lambda class_id: (repeats[class_id], -class_id))


def example_size(input_size: int) -> int:
    """Return the side of stored training crops: 250 px for a network input of 224 px, and in proportion for others.

    Stored crops are larger than the input, so that training can cut a random piece of `input_size` from them.

    Args:
        input_size: side of the network's input in pixels.

    Returns:
        Side of the stored crops in pixels.
    """
    return round(input_size * 250 / 224)


def find_objects(
    class_mask: np.ndarray, object_mask: np.ndarray, min_side: int = 1, background: bool = True
) -> list[AnnotatedObject]:
    """Find the annotated objects of an image.

    An object's class is the most frequent one among its pixels, void pixels excluded. Ties go to the lowest class id. Objects
    that are all void or mostly background are left out.

    Args:
        class_mask: uint8 array (H, W) of class ids.
        object_mask: uint8 or uint16 array (H, W) of object ids.
        min_side: objects whose box has a side shorter than this are left out, px.
        background: whether class 0 is the background. If not, it is a class that objects may have.

    Returns:
        The objects, ordered by object id.

    Raises:
        ValueError: if the masks have another dtype or shape, or their sizes differ.
    """
    check_masks(class_mask, object_mask)
    ids = np.where(object_mask == void_id(object_mask), 0, object_mask).astype(np.int32)
    objects = []
    for object_id, window in enumerate(ndimage.find_objects(ids), start=1):
        if window is None:
            continue
        rows, columns = window
        if min(rows.stop - rows.start, columns.stop - columns.start) < min_side:
            continue
        classes = class_mask[window][ids[window] == object_id]
        votes = np.bincount(classes[classes != VOID_ID], minlength=1)
        class_id = int(votes.argmax())
        if votes[class_id] and (class_id > 0 or not background):
            objects.append(AnnotatedObject(object_id, class_id, (columns.start, rows.start, columns.stop, rows.stop)))
    return objects


def choose_stage1(
    objects: Sequence[AnnotatedObject], context: float = 1.2, window: WindowShape = "square"
) -> list[ExampleWindow]:
    """Choose the boxes that become training crops of stage 1: the tight box of every object, enlarged.

    Args:
        objects: the annotated objects of the image.
        context: factor by which boxes are enlarged.
        window: how a box that is not square is enlarged, "square" or "stretched"; see `boxes.enlarge`.

    Returns:
        One enlarged box per object, with the object. They are sorted by coordinates.
    """
    tight = np.array([o.box for o in objects], np.float64).reshape(-1, 4)
    return _windows(enlarge(tight, context, window), objects, np.ones(len(objects)))


def choose_stage2(
    objects: Sequence[AnnotatedObject],
    proposals: np.ndarray,
    *,
    min_iou: float = 0.5,
    context: float = 1.2,
    window: WindowShape = "square",
    max_per_image: int | None = None,
    seed: int = 0,
    image_id: str = "",
) -> list[ExampleWindow]:
    """Choose the boxes that become training crops of stage 2: proposals that overlap an annotated object, enlarged.

    A proposal is used if its IoU with an object's tight box is at least `min_iou`. It belongs to the object with which its IoU is
    highest. If an image has more than `max_per_image` such proposals, the best one of each object is kept and the others are
    drawn at random. The random choice depends only on `seed` and `image_id`.

    Args:
        objects: the annotated objects of the image.
        proposals: array (N, 4) of x1, y1, x2, y2 in pixels.
        min_iou: lowest IoU of a proposal that is used, measured before it is enlarged.
        context: factor by which boxes are enlarged.
        window: how a box that is not square is enlarged, "square" or "stretched"; see `boxes.enlarge`.
        max_per_image: largest number of boxes per image; None for no limit.
        seed: seed of the random choice.
        image_id: id of the image.

    Returns:
        The enlarged boxes with their objects, sorted by coordinates.

    Raises:
        ValueError: if `min_iou` is not above 0 and at most 1, or the proposals are not boxes (see `boxes.as_boxes`).
    """
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou is {min_iou}, and must be above 0 and at most 1")
    if not objects or not len(proposals):
        return []
    overlap = iou(proposals, np.array([o.box for o in objects], np.float64))
    owner, best = overlap.argmax(axis=1), overlap.max(axis=1)
    kept = np.flatnonzero(best >= min_iou)
    if max_per_image is not None and len(kept) > max_per_image:
        best_of_owner = {int(owner[i]): int(i) for i in sorted(kept, key=lambda i: best[i])}
        shuffled = np.random.default_rng([seed, zlib.crc32(image_id.encode())]).permutation(kept)
        kept = np.array(sorted(shuffled, key=lambda i: best_of_owner[int(owner[i])] != i)[:max_per_image])
    return _windows(enlarge(proposals[kept], context, window), [objects[o] for o in owner[kept]], best[kept])


def choose_windows(
    class_mask: np.ndarray, windows: np.ndarray, *, max_per_image: int | None = None, seed: int = 0, image_id: str = ""
) -> list[ExampleWindow]:
    """Choose the windows of an image that become training crops: all that show an annotated pixel, or some of them.

    Class balancing counts a window for each class with at least 1 % of its pixels, and for its most frequent class.

    Args:
        class_mask: uint8 array (H, W) of class ids.
        windows: array (N, 4) of x1, y1, x2, y2 in whole pixels inside the image, as `proposals.boxes.make_windows` returns it.
        max_per_image: largest number of windows; if there are more, they are drawn at random. None for no limit.
        seed: seed of the random choice.
        image_id: id of the image, on which the random choice depends, too.

    Returns:
        The windows, not enlarged, sorted by coordinates.
    """
    found = []
    for x1, y1, x2, y2 in windows.astype(int).tolist():
        pixels = np.bincount(class_mask[y1:y2, x1:x2].ravel(), minlength=VOID_ID + 1)[:VOID_ID]
        if pixels.any():
            classes = {int(pixels.argmax()), *np.flatnonzero(pixels >= _MIN_SHARE * (y2 - y1) * (x2 - x1)).tolist()}
            found.append(ExampleWindow((x1, y1, x2, y2), tuple(sorted(classes)), 0, 0.0))
    if max_per_image is not None and len(found) > max_per_image:
        drawn = np.random.default_rng([seed, zlib.crc32(image_id.encode())]).permutation(len(found))[:max_per_image]
        found = [found[i] for i in drawn]
    return sorted(found, key=lambda window: window.box)


def cut_example(
    image: np.ndarray,
    class_mask: np.ndarray,
    object_mask: np.ndarray,
    window: ExampleWindow,
    stage: int,
    size: int,
    background: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a training crop and its mask out of an image.

    Args:
        image: uint8 array (H, W, 3), RGB.
        class_mask: uint8 array (H, W) of class ids.
        object_mask: uint8 or uint16 array (H, W) of object ids.
        window: the enlarged box to cut, and the object for which it was chosen.
        stage: the training stage. In stage 1 only the window's own object is labelled, and all other objects become background.
            In stage 2 every class is labelled. Void pixels stay void in both.
        size: side of the crop in pixels.
        background: whether class 0 is the background. If not, nothing can become background, so every class is labelled in both
            stages.

    Returns:
        crop: uint8 array (size, size, 3), RGB. Outside the image it has ImageNet's mean colour.
        mask: uint8 array (size, size) of class ids. Outside the image it is void (255).

    Raises:
        ValueError: if an array has another dtype or shape, their sizes differ, or the stage is neither 1 nor 2.
    """
    check_masks(class_mask, object_mask, image)
    if stage not in (1, 2):
        raise ValueError(f"stage is {stage}, and must be 1 or 2")
    mask = crop(class_mask, window.box, size, VOID_ID, cv2.INTER_NEAREST)
    if stage == 1 and background:
        ids = crop(object_mask, window.box, size, 0, cv2.INTER_NEAREST)
        own = np.where(ids == window.object_id, window.classes[0], 0)
        mask = np.where((mask == VOID_ID) | (ids == void_id(object_mask)), VOID_ID, own).astype(np.uint8)
    return crop(image, window.box, size, MEAN_RGB, cv2.INTER_LINEAR), mask


def repeats_by_class(counts: Mapping[int, int], max_repeats: int) -> dict[int, int]:
    """Compute how often training crops of each class are repeated in an epoch, to balance the classes.

    The number of repeats of a class is the largest count of any class, divided by the count of this class. It is rounded (halves
    up) and limited to the range from 1 to `max_repeats`.

    Args:
        counts: number of crops by class id.
        max_repeats: largest number of repeats.

    Returns:
        Repeats by class id; classes without crops are left out.
    """
    most = max(counts.values(), default=0)
    return {c: min(max((2 * most + n) // (2 * n), 1), max_repeats) for c, n in sorted(counts.items()) if n > 0}


def _windows(boxes: np.ndarray, owners: Sequence[AnnotatedObject], overlaps: np.ndarray) -> list[ExampleWindow]:
    """Combine enlarged boxes with their objects.

    Args:
        boxes: array (N, 4) of x1, y1, x2, y2 in pixels, already enlarged.
        owners: the N objects for which the boxes were chosen, in the same order.
        overlaps: array (N,), the IoU of each box with its object before the box was enlarged.

    Returns:
        One ExampleWindow per box, sorted by coordinates.
    """
    windows = [
        ExampleWindow((b[0], b[1], b[2], b[3]), (o.class_id,), o.object_id, float(v))
        for b, o, v in zip(boxes.tolist(), owners, overlaps, strict=True)
    ]
    return sorted(windows, key=lambda w: (w.box, -w.iou, w.object_id))
