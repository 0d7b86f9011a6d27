"""The rules by which training crops are chosen, labelled and balanced (DeconvNet, Noh et al. 2015, §4.2 and §6.1).

* Stage 1, easy examples: the tight box of each annotated object, enlarged to a 1.2x window. In the mask, the object's own pixels
  have its class and everything else is background.
* Stage 2, hard examples: each EdgeBox proposal with IoU >= 0.5 with an annotated object, enlarged to a 1.2x window. In the mask,
  every class in the window is labelled.
* Class balance: examples of rare classes are repeated in an epoch, up to 10 times.

The numbers are the defaults of `ExampleSettings`. Pure functions on arrays. Class masks are uint8 (H, W) of class ids, 0 background
and 255 void. Object masks are uint8 or uint16 (H, W) of object ids, 0 background and the largest value of the dtype void.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from proposals.boxes import MEAN_RGB, WindowShape, crop, enlarge, iou
from proposals.masks import VOID_ID, void_id


@dataclass(frozen=True)
class AnnotatedObject:
    """An object of the ground truth.

    Attributes:
        object_id: its id in the object mask.
        class_id: its class.
        box: its tight box, x1, y1, x2, y2 in pixels.
    """

    object_id: int
    class_id: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class ExampleWindow:
    """A window of an image that becomes a training crop.

    Attributes:
        box: the enlarged box, x1, y1, x2, y2 in pixels; may reach beyond the image.
        class_id: class of the object; classes are balanced by it.
        object_id: id of the object that the window was chosen for.
        iou: IoU of the box before it was enlarged with the object's tight box; 1 in stage 1.
    """

    box: tuple[float, float, float, float]
    class_id: int
    object_id: int
    iou: float


def example_size(input_size: int) -> int:
    """Return the side of stored crops in pixels: 250 for a network input of 224, in proportion for others.

    The margin leaves room for a random crop of `input_size` during training.

    Args:
        input_size: side of the network's input, px.
    """
    return round(input_size * 250 / 224)


def find_objects(class_mask: np.ndarray, object_mask: np.ndarray, min_side: int = 1) -> list[AnnotatedObject]:
    """Find the annotated objects of an image.

    An object's class is the one that most of its non-void pixels have; ties go to the lowest class id. Objects that are all void
    or mostly background are left out.

    Args:
        class_mask: uint8 array (H, W).
        object_mask: uint8 or uint16 array (H, W).
        min_side: objects whose box has a shorter side than this (px) are left out.

    Returns:
        The objects, ordered by object id.
    """
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
        if (class_id := int(votes.argmax())) > 0:
            objects.append(AnnotatedObject(object_id, class_id, (columns.start, rows.start, columns.stop, rows.stop)))
    return objects


def choose_stage1(
    objects: Sequence[AnnotatedObject], context: float = 1.2, window: WindowShape = "square"
) -> list[ExampleWindow]:
    """Choose the windows of stage 1: the tight box of every object, enlarged.

    Args:
        objects: the image's objects.
        context: factor by which boxes are enlarged.
        window: shape of the enlarged box, see `boxes.enlarge`.

    Returns:
        One window per object, sorted by box.
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
    """Choose the windows of stage 2: the proposals with IoU >= `min_iou` with an object's tight box, then enlarged.

    A window belongs to the object that its proposal overlaps best. If there are more than `max_per_image`, the best proposal of
    each object is kept and the others are drawn at random, in a way that depends only on `seed` and `image_id`.

    Args:
        objects: the image's objects.
        proposals: array (N, 4) of boxes in pixels.
        min_iou: lowest IoU, before enlarging.
        context: factor by which boxes are enlarged.
        window: shape of the enlarged box, see `boxes.enlarge`.
        max_per_image: most windows per image; None for all.
        seed: seed of the random choice.
        image_id: id of the image.

    Returns:
        The windows, sorted by box.
    """
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


def cut_example(
    image: np.ndarray, class_mask: np.ndarray, object_mask: np.ndarray, window: ExampleWindow, stage: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a training crop and its mask.

    Args:
        image: uint8 array (H, W, 3), RGB.
        class_mask: uint8 array (H, W).
        object_mask: uint8 or uint16 array (H, W).
        window: the window to cut.
        stage: 1 labels the window's own object and makes everything else background; 2 labels every class in the window. Void
            stays void in both.
        size: side of the crop in pixels.

    Returns:
        crop: uint8 array (size, size, 3), RGB; MEAN_RGB outside the image.
        mask: uint8 array (size, size) of class ids; void outside the image.
    """
    mask = crop(class_mask, window.box, size, VOID_ID, cv2.INTER_NEAREST)
    if stage == 1:
        ids = crop(object_mask, window.box, size, 0, cv2.INTER_NEAREST)
        own = np.where(ids == window.object_id, window.class_id, 0)
        mask = np.where((mask == VOID_ID) | (ids == void_id(object_mask)), VOID_ID, own).astype(np.uint8)
    return crop(image, window.box, size, MEAN_RGB, cv2.INTER_LINEAR), mask


def repeats_by_class(counts: Mapping[int, int], max_repeats: int) -> dict[int, int]:
    """Compute how often examples of each class are seen per epoch, so that rare classes approach the most frequent one.

    A class is repeated (largest count / its own count) times, rounded (halves up) and limited to 1 ... `max_repeats`.

    Args:
        counts: number of examples by class id.
        max_repeats: most repeats of one example.

    Returns:
        Repeats by class id, without the classes that have no examples.
    """
    most = max(counts.values(), default=0)
    return {c: min(max((2 * most + n) // (2 * n), 1), max_repeats) for c, n in sorted(counts.items()) if n > 0}


def _windows(boxes: np.ndarray, owners: Sequence[AnnotatedObject], overlaps: np.ndarray) -> list[ExampleWindow]:
    """Combine boxes (N, 4), their objects and their IoUs to windows, sorted by box."""
    windows = [
        ExampleWindow((b[0], b[1], b[2], b[3]), o.class_id, o.object_id, float(v))
        for b, o, v in zip(boxes.tolist(), owners, overlaps, strict=True)
    ]
    return sorted(windows, key=lambda w: (w.box, -w.iou, w.object_id))
