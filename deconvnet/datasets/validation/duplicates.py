"""Images that a data set has more than once: files that are equal, and images of train and val that look alike."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

if TYPE_CHECKING:
    from deconvnet.datasets.validation.image_statistics import ImageStatistics

# Of 256 bits. Copies that were halved and re-encoded differ in up to 22; of shared/voc-sample's images no two differ in under 46.
NEAR_DUPLICATE_BITS = 28
_MIN_EDGES = 16  # of 256 bits: a hash with fewer bits set, or fewer unset, says nothing (skies, blank pages)
_GRID = 16
_PAIRS_AT_ONCE = 4_000_000
_ROTATIONS = {3: 180, 6: 270, 8: 90}  # degrees anticlockwise that undo an EXIF orientation


def perceptual_hash(image: bytes) -> np.ndarray | None:
    """Hash what an image shows, such that copies that were scaled, re-encoded or slightly retouched differ in few bits (dHash).

    The image as displayed is reduced to a grid of grey cells; a bit tells whether a cell is darker than its right neighbour.

    Args:
        image: encoded bytes of a valid image.

    Returns:
        uint64 array (4,) of 256 bits; None if the image is too plain to be told from others.
    """
    picture = Image.open(io.BytesIO(image))
    picture.draft("L", (128, 128))
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    grey = picture.convert("L")
    if orientation in _ROTATIONS:
        grey = grey.rotate(_ROTATIONS[orientation], expand=True)
    cells = np.asarray(grey.resize((_GRID + 1, _GRID), Image.Resampling.BOX), np.int16)
    bits = cells[:, :-1] < cells[:, 1:]
    if not _MIN_EDGES <= bits.sum() <= bits.size - _MIN_EDGES:
        return None
    return np.packbits(bits.ravel()).view(np.uint64)


def find_near_duplicates(images: Sequence["ImageStatistics"]) -> list[tuple["ImageStatistics", "ImageStatistics", int]]:
    """Find pairs of a train and a val image that look alike.

    Args:
        images: the images of both splits.

    Returns:
        Train image, val image, and the number of bits of 256 in which their hashes differ; the most similar pairs first.
    """
    train, val = ([each for each in images if each.split == s and each.perceptual_hash is not None] for s in ("train", "val"))
    if not train or not val:
        return []
    train_hashes, val_hashes = (
        np.stack([each.perceptual_hash for each in split if each.perceptual_hash is not None]) for split in (train, val)
    )
    pairs = []
    step = max(1, _PAIRS_AT_ONCE // len(train))
    for start in range(0, len(val), step):
        block = val_hashes[start : start + step]
        differing = np.zeros((len(block), len(train)), np.uint16)
        for word in range(block.shape[1]):
            differing += np.bitwise_count(block[:, None, word] ^ train_hashes[None, :, word])
        for i, j in zip(*np.nonzero(differing <= NEAR_DUPLICATE_BITS), strict=True):
            pairs.append((train[j], val[start + i], int(differing[i, j])))
    return sorted(pairs, key=lambda pair: (pair[2], pair[0].image_id, pair[1].image_id))


def find_identical(images: Sequence["ImageStatistics"]) -> list[list["ImageStatistics"]]:
    """Find images whose files are equal byte for byte.

    Args:
        images: the images of both splits.

    Returns:
        Groups of two or more images of one split.
    """
    groups: dict[tuple[str, str], list[ImageStatistics]] = {}
    for image in images:
        if image.digest:
            groups.setdefault((image.split, image.digest), []).append(image)
    return [group for group in groups.values() if len(group) > 1]
