"""Finding images that a data set has more than once.

Two kinds are found: equal files within a split, and images that look alike, one in train and the other in val.
"""

from collections.abc import Sequence

import numpy as np

from deconvnet.datasets.validation.image_statistics import ImageStatistics

# Images look alike if their hashes differ in at most this many of 256 bits. Copies that were halved and re-encoded differ in up
# to 22 bits, and any two images of shared/voc-sample differ in 46 or more.
NEAR_DUPLICATE_BITS = 28
_PAIRS_AT_ONCE = 4_000_000  # most pairs of images that are compared in one step, to bound the memory


def find_near_duplicates(images: Sequence[ImageStatistics]) -> list[tuple[ImageStatistics, ImageStatistics, int]]:
    """Find pairs of a train image and a val image that look alike.

    Args:
        images: measurements of the images of both splits, with their perceptual hashes. Images without a hash are ignored.

    Returns:
        For each pair the train image, the val image, and the number of bits (of 256) in which their perceptual hashes differ. The
        pairs are sorted, most similar first.
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


def find_identical(images: Sequence[ImageStatistics]) -> list[list[ImageStatistics]]:
    """Find images of the same split whose files are equal byte for byte.

    Args:
        images: measurements of the images of both splits, with the digests of their files. Unusable images are ignored.

    Returns:
        Groups of two or more images of the same split with equal files.
    """
    groups: dict[tuple[str, str], list[ImageStatistics]] = {}
    for image in images:
        if image.digest:
            groups.setdefault((image.split, image.digest), []).append(image)
    return [group for group in groups.values() if len(group) > 1]
