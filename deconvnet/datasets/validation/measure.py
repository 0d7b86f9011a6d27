"""What a person would want to know of labelled photographs before training: measured photograph by photograph, then together."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from deconvnet.datasets import voc
from infra import storage
from infra.errors import BadInput
from infra.storage.tables import Reject
from proposals.image_codec import decode_mask
from proposals.masks import VOID_ID, void_id

SPECKLE = 10  # px: objects under this are slips of the brush more often than objects
MUCH_VOID = 0.3  # share of a photograph's pixels
ONE_CLASS = 0.99  # share of the pixels that are not void
SMALL, LARGE = 0.01, 0.1  # share of the photograph: small objects are under the first, large ones over the second
NEAR = (
    28  # of 256 bits: in so few copies differ (up to 22 when halved and re-encoded); of voc-sample's photographs no two under 46
)
_FLAT = 16  # of 256 bits: hashes with fewer bits set or unset say nothing (skies, blank pages)
_HASH_SIDE = 16
_OVERLAP = 0.5  # IoU of boxes
_MOST_COMPARED = 2000  # objects of a photograph
_BLOCK = 4_000_000  # pairs of hashes compared together


@dataclass(frozen=True)
class Search:
    """What proposals can find: boxes of `min_box_area` px² or more, in photographs scaled down to `max_side` px."""

    min_box_area: float
    max_side: int


@dataclass(frozen=True)
class Measured:
    """One photograph. pixels: by class id, 255 void; objects: int64 (n, 6), class id, area in px and box x0, y0, x1, y1 (exclusive);
    suspicions: by kind, in words; hash: uint64 (4,), None where it says nothing; digest: of the file.
    """

    image_id: str
    split: str
    width: int = 0
    height: int = 0
    pixels: Mapping[int, int] = field(default_factory=dict)
    objects: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), np.int64))
    suspicions: Mapping[str, str] = field(default_factory=dict)
    hash: np.ndarray | None = None
    digest: str = ""

    @property
    def shares(self) -> np.ndarray:
        """Each object's share of the photograph."""
        return self.objects[:, 1] / max(self.width * self.height, 1)

    def unfindable(self, search: Search) -> np.ndarray:
        """Which objects' boxes are too small for proposals: bool (n,)."""
        scale = min(1.0, search.max_side / max(self.width, self.height, 1))
        x0, y0, x1, y1 = self.objects[:, 2:].T
        return (x1 - x0) * (y1 - y0) * scale**2 < search.min_box_area


def measure(root: str, photograph: voc.VocImageFiles | Reject, split: str, num_classes: int, max_pixels: int) -> Measured:
    """What there is to say of one photograph of the folder `root`, read just as the pipeline reads it."""
    if isinstance(photograph, Reject):
        return Measured(photograph.image_id, split, suspicions={"unusable": photograph.reason})
    row = voc.read_row(root, photograph, split, num_classes, max_pixels)
    if isinstance(row, Reject):
        return Measured(row.image_id, split, suspicions=_of_reject(root, photograph, row.reason, max_pixels))
    classes, ids = decode_mask(row["class_mask"]), decode_mask(row["object_mask"])
    values, counts = np.unique(classes, return_counts=True)
    pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    objects = boxes_of(classes, ids)
    return Measured(
        row["image_id"], split, row["width"], row["height"], pixels, objects,
        {**_of_pixels(pixels, objects), **_of_edges(classes)}, content_hash(row["image"]),
        hashlib.sha256(row["image"]).hexdigest(),
    )  # fmt: skip


def _of_reject(root: str, photograph: voc.VocImageFiles, reason: str, max_pixels: int) -> dict[str, str]:
    """An unusable photograph; ids that are no classes may well be those of softened edges."""
    found = {"unusable": reason}
    try:
        return found | _of_edges(decode_mask(storage.read_bytes(storage.join(root, photograph.class_mask.name)), max_pixels))
    except (BadInput, OSError):
        return found


def _of_pixels(pixels: Mapping[int, int], objects: np.ndarray) -> dict[str, str]:
    found = {}
    total = sum(pixels.values())
    void = pixels.get(VOID_ID, 0)
    seen = {i: n for i, n in pixels.items() if i != VOID_ID}
    if void > MUCH_VOID * total:
        found["void"] = f"{100 * void / total:.0f} % of the pixels are void"
    if not any(seen):
        found["empty"] = "no object" if seen else "all void"
    elif max(seen.values()) > ONE_CLASS * (total - void) and max(seen, key=lambda i: seen[i]):
        found["one class"] = f"one class covers {100 * max(seen.values()) / (total - void):.1f} %"
    if speckles := int((objects[:, 1] < SPECKLE).sum()):
        found["speckles"] = f"{speckles} object{'s' if speckles > 1 else ''} under {SPECKLE} px"
    return found


def _of_edges(classes: np.ndarray) -> dict[str, str]:
    ids = soft_ids(classes)
    names = ", ".join(str(i) for i in ids[:5]) + (", …" if len(ids) > 5 else "")
    return {"soft edges": f"ids {names} lie along edges alone, between other ids"} if ids else {}


def soft_ids(classes: np.ndarray, least: int = 20) -> list[int]:
    """Ids of a mask (uint8 or uint16 H×W) that look like a blend of their neighbours, not like a class.

    That is what resizing with interpolation, antialiasing and JPEG leave along edges: nowhere 3 px wide, and most of the id's
    pixels have a lower and a higher id beside them. Void and ids of fewer than `least` px are not judged.
    """
    void = void_id(classes)
    square = np.ones((3, 3), np.uint8)
    lowest = cv2.erode(classes, square)  # void, the highest id, never counts
    highest = cv2.dilate(np.where(classes == void, 0, classes).astype(classes.dtype), square)
    values, counts = np.unique(classes, return_counts=True)
    blended, blends = np.unique(classes[(lowest < classes) & (classes < highest)], return_counts=True)
    inside = set(np.unique(classes[lowest == highest]).tolist())
    total = dict(zip(values.tolist(), counts.tolist(), strict=True))
    pairs = zip(blended.tolist(), blends.tolist(), strict=True)
    return [i for i, n in pairs if i != void and total[i] >= least and 2 * n >= total[i] and i not in inside]


def boxes_of(classes: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Objects as in `Measured.objects` from the two masks of the `images` table (each object has one class)."""
    void = void_id(ids)
    y, x = np.nonzero((ids > 0) & (ids != void))
    numbers, member = np.unique(ids[y, x], return_inverse=True)
    made = np.zeros((len(numbers), 6), np.int64)
    made[:, 1] = np.bincount(member, minlength=len(numbers))
    made[member, 0] = classes[y, x]
    made[:, 2:4] = max(classes.shape)
    for column, (at, values) in enumerate(((np.minimum, x), (np.minimum, y), (np.maximum, x + 1), (np.maximum, y + 1)), start=2):
        at.at(made[:, column], member, values)
    return made


def content_hash(image: bytes) -> np.ndarray | None:
    """256 bits of what a photograph shows, uint64 (4,): whether each cell of a 16×16 grid is darker than its right neighbour.

    (dHash.) Copies that were scaled, re-encoded or slightly retouched differ in few bits. None for photographs too flat to tell.
    """
    picture = Image.open(io.BytesIO(image))
    picture.draft("L", (128, 128))
    orientation = picture.getexif().get(0x0112, 1)
    grey = picture.convert("L")
    if orientation in (3, 6, 8):
        grey = grey.rotate({3: 180, 6: 270, 8: 90}[orientation], expand=True)
    cells = np.asarray(grey.resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX), np.int16)
    bits = cells[:, :-1] < cells[:, 1:]
    if not _FLAT <= bits.sum() <= bits.size - _FLAT:
        return None
    return np.packbits(bits.ravel()).view(np.uint64)


def look_alikes(photographs: Sequence[Measured]) -> list[tuple[Measured, Measured, int]]:
    """Pairs of a train and a val photograph that show the same, and in how many of 256 bits they differ; the nearest first."""
    train, val = ([p for p in photographs if p.split == split and p.hash is not None] for split in ("train", "val"))
    if not train or not val:
        return []
    of_train, of_val = (np.stack([p.hash for p in each if p.hash is not None]) for each in (train, val))
    pairs = []
    step = max(1, _BLOCK // len(train))
    for start in range(0, len(val), step):
        differ = np.zeros((len(of_val[start : start + step]), len(train)), np.uint16)
        for word in range(of_train.shape[1]):
            differ += np.bitwise_count(of_val[start : start + step, None, word] ^ of_train[None, :, word])
        for i, j in zip(*np.nonzero(differ <= NEAR), strict=True):
            pairs.append((train[j], val[start + i], int(differ[i, j])))
    return sorted(pairs, key=lambda pair: (pair[2], pair[0].image_id, pair[1].image_id))


def copies(photographs: Sequence[Measured]) -> list[list[Measured]]:
    """Photographs of one split whose files are the same, byte for byte."""
    by_digest: dict[tuple[str, str], list[Measured]] = {}
    for each in photographs:
        if each.digest:
            by_digest.setdefault((each.split, each.digest), []).append(each)
    return [same for same in by_digest.values() if len(same) > 1]


def overlapping(objects: np.ndarray) -> int:
    """How many of a photograph's objects have a box that another's overlaps by IoU 0.5 or more; speckles don't count."""
    objects = objects[objects[:, 1] >= SPECKLE][:_MOST_COMPARED]
    if len(objects) < 2:
        return 0
    x0, y0, x1, y1 = (objects[:, i].astype(np.float64) for i in range(2, 6))
    width = np.minimum.outer(x1, x1) - np.maximum.outer(x0, x0)
    height = np.minimum.outer(y1, y1) - np.maximum.outer(y0, y0)
    inside = np.clip(width, 0, None) * np.clip(height, 0, None)
    area = (x1 - x0) * (y1 - y0)
    iou = inside / (np.add.outer(area, area) - inside)
    np.fill_diagonal(iou, 0)
    return int((iou >= _OVERLAP).any(axis=1).sum())
