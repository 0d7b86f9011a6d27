"""Which crops DeconvNet trains on, and their labels (Noh et al. 2015, §4.2–4.3): pure functions on arrays.

Stage 1, easy: each annotated object by its own tight box, everything else background. Stage 2, hard: EdgeBox proposals that
overlap an object, every class in the crop labelled. Class masks are uint8 H×W of class ids, 255 void; object masks are uint8 or
uint16 H×W of object ids from 1, 0 background, the type's largest value void.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from proposals.boxes import MEAN_RGB, Window, crop, extend, iou
from proposals.masks import VOID_ID, void_id


@dataclass(frozen=True)
class Object:
    """An annotated object: its id in the object mask, its class, and its tight box (x1, y1, x2, y2)."""

    object_id: int
    class_id: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Choice:
    """A window to cut: extended box (may leave the image), the class it is balanced by, the object it is of, and its IoU with it."""

    box: tuple[float, float, float, float]
    class_id: int
    object_id: int
    iou: float


def example_size(input_size: int) -> int:
    """Side of the stored crops in px: room for a random crop of `input_size`, as 250 is for 224."""
    return round(input_size * 250 / 224)


def find_objects(class_mask: np.ndarray, object_mask: np.ndarray, min_side: int = 1) -> list[Object]:
    """The annotated objects, by id. An object's class is that of most of its pixels that aren't void (of equals, the lowest id).

    Left out: objects whose box is shorter than `min_side` px, all void, or mostly background.
    """
    ids = np.where(object_mask == void_id(object_mask), 0, object_mask).astype(np.int32)
    objects = []
    for object_id, place in enumerate(ndimage.find_objects(ids), start=1):
        if place is None:
            continue
        rows, columns = place
        if min(rows.stop - rows.start, columns.stop - columns.start) < min_side:
            continue
        classes = class_mask[place][ids[place] == object_id]
        votes = np.bincount(classes[classes != VOID_ID], minlength=1)
        if (class_id := int(votes.argmax())) > 0:
            objects.append(Object(object_id, class_id, (columns.start, rows.start, columns.stop, rows.stop)))
    return objects


def choose_stage1(objects: Sequence[Object], context: float = 1.2, window: Window = "square") -> list[Choice]:
    """Every object's box, extended; sorted by box."""
    tight = np.array([o.box for o in objects], np.float64).reshape(-1, 4)
    return _choices(extend(tight, context, window), objects, np.ones(len(objects)))


def choose_stage2(
    objects: Sequence[Object],
    proposals: np.ndarray,
    *,
    min_iou: float = 0.5,
    context: float = 1.2,
    window: Window = "square",
    max_per_image: int | None = None,
    seed: int = 0,
    image_id: str = "",
) -> list[Choice]:
    """The proposals (N,4) with IoU ≥ `min_iou` with an object's tight box, then extended; sorted by box.

    A choice belongs to the object it overlaps best. Of more than `max_per_image`, the best of each object are kept and the rest
    drawn by `seed` and `image_id`.
    """
    if not objects or not len(proposals):
        return []
    overlap = iou(proposals, np.array([o.box for o in objects], np.float64))
    owner, best = overlap.argmax(axis=1), overlap.max(axis=1)
    kept = np.flatnonzero(best >= min_iou)
    if max_per_image is not None and len(kept) > max_per_image:
        first_of_owner = {int(owner[i]): int(i) for i in sorted(kept, key=lambda i: best[i])}
        draw = np.random.default_rng([seed, zlib.crc32(image_id.encode())]).permutation(kept)
        kept = np.array(sorted(draw, key=lambda i: first_of_owner[int(owner[i])] != i)[:max_per_image])
    return _choices(extend(proposals[kept], context, window), [objects[o] for o in owner[kept]], best[kept])


def cut(
    image: np.ndarray, class_mask: np.ndarray, object_mask: np.ndarray, choice: Choice, stage: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The crop, uint8 size×size×3 RGB, and its label, uint8 size×size; outside the photograph MEAN_RGB and void.

    Stage 1 labels the object's own pixels with its class and all others background; stage 2 every class in the crop. Void
    stays void.
    """
    label = crop(class_mask, choice.box, size, VOID_ID, cv2.INTER_NEAREST)
    if stage == 1:
        ids = crop(object_mask, choice.box, size, 0, cv2.INTER_NEAREST)
        own = np.where(ids == choice.object_id, choice.class_id, 0)
        label = np.where((label == VOID_ID) | (ids == void_id(object_mask)), VOID_ID, own).astype(np.uint8)
    return crop(image, choice.box, size, MEAN_RGB, cv2.INTER_LINEAR), label


def repeats_by_class(counts: Mapping[int, int], max_repeats: int) -> dict[int, int]:
    """How often the examples of each class are seen in an epoch, so that rare classes come near the most frequent one.

    largest count / own count, rounded (halves up), from 1 to `max_repeats`. Classes without examples are left out.
    """
    most = max(counts.values(), default=0)
    return {c: min(max((2 * most + n) // (2 * n), 1), max_repeats) for c, n in sorted(counts.items()) if n > 0}


def _choices(boxes: np.ndarray, owners: Sequence[Object], overlaps: np.ndarray) -> list[Choice]:
    """Choices sorted by box."""
    made = [
        Choice((b[0], b[1], b[2], b[3]), o.class_id, o.object_id, float(v))
        for b, o, v in zip(boxes.tolist(), owners, overlaps, strict=True)
    ]
    return sorted(made, key=lambda c: (c.box, -c.iou, c.object_id))
