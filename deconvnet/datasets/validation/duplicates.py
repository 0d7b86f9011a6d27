"""Finding images that a data set has more than once.

Two kinds are found: equal files within a split, and images that look alike, one in train and the other in val.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

if TYPE_CHECKING:
    from deconvnet.datasets.validation.image_statistics import ImageStatistics

# Images look alike if their hashes differ in at most this many of 256 bits. Copies that were halved and re-encoded differ in up
# to 22 bits, and any two images of shared/voc-sample differ in 46 or more.
NEAR_DUPLICATE_BITS = 28
_MIN_EDGES = 16  # a hash (of 256 bits) with fewer bits set or unset belongs to a plain image, such as a blank page
_GRID = 16  # rows of a hash, and bits in each row
_PAIRS_AT_ONCE = 4_000_000  # most pairs of images that are compared in one step, to bound the memory
_ROTATIONS = {3: 180, 6: 270, 8: 90}  # degrees anticlockwise that undo an EXIF orientation


def perceptual_hash(image: bytes) -> np.ndarray | None:
    """Compute a hash of what an image shows (dHash).

    The hashes of two copies differ in few bits even if one was scaled, re-encoded or slightly retouched. The image as displayed
    is reduced to 16 rows of 17 grey cells. Each bit tells whether a cell is darker than its right neighbour.

    Args:
        image: encoded bytes of a valid image file.

    Returns:
        uint64 array (4,), which holds 256 bits; None if the image is too plain to be told from others by its hash.
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
    """Find pairs of a train image and a val image that look alike.

    Args:
        images: measurements of the images of both splits.

    Returns:
        For each pair the train image, the val image, and the number of bits (of 256) in which their hashes differ. The pairs are
        sorted, most similar first.
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
    """Find images of the same split whose files are equal byte for byte.

    Args:
        images: measurements of the images of both splits.

    Returns:
        Groups of two or more equal images.
    """
    groups: dict[tuple[str, str], list[ImageStatistics]] = {}
    for image in images:
        if image.digest:
            groups.setdefault((image.split, image.digest), []).append(image)
    return [group for group in groups.values() if len(group) > 1]
