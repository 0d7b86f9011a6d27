"""The assignment of images to the splits train, dev, val and test.

It depends only on the image ids, a seed and, if images are added to a table, on the splits there.
"""

import hashlib
from collections.abc import Collection, Mapping

from infra.errors import UserError


def _draw(ids: Collection[str], count: int, seed: int) -> list[str]:
    """Choose ids at random, in such a way that adding ids to the data set changes few of the choices.

    Args:
        ids: ids to choose from.
        count: number of ids to choose; if there are fewer, all are chosen.
        seed: seed of the random choice.

    Returns:
        The ids with the smallest SHA-256 hashes of "seed:id", in the order of the hashes.
    """
    return sorted(ids, key=lambda image_id: hashlib.sha256(f"{seed}:{image_id}".encode()).digest())[:count]


def assign_splits(
    train_ids: Collection[str],
    val_ids: Collection[str],
    dev_fraction: float,
    seed: int,
    limit: int | None = None,
    test_ids: Collection[str] = (),
    earlier_splits: Mapping[str, str] = {},
) -> dict[str, str]:
    """Assign each image to a split: train, dev (for validation during training), or val or test (for evaluation at the end).

    Args:
        train_ids: ids of the images to train on. The dev images are drawn from them.
        val_ids: ids of the images to evaluate on at the end. None of them may be in `train_ids`.
        dev_fraction: share of the images to train on that becomes dev, in (0, 1). At least one image becomes dev, and never all.
        seed: seed of the random choices.
        limit: number of images of `train_ids` (dev included) to use, and also the number of `val_ids` to use. They are chosen at
            random. None uses all images.
        test_ids: ids of a second list of images to evaluate on at the end, to which the limit applies, too. None of them may be
            in the other lists.
        earlier_splits: splits of images in an earlier table that was made with the same fraction, seed and limit. Images of
            train and dev stay where they are, and only images that are new to both are drawn for dev.

    Returns:
        "train", "dev", "val" or "test" by image id. Ids that are not used because of the limit are missing.

    Raises:
        UserError: if fewer than two of `train_ids` are used, as one image is needed for train and one for dev.
    """
    train, val, test = list(train_ids), list(val_ids), list(test_ids)
    if limit is not None:
        train, val, test = (_draw(each, limit, seed) for each in (train, val, test))
    if len(train) < 2:
        more = "" if limit is None else f", or raise data.limit ({limit})"
        raise UserError(
            f"images to train on: {len(train)}, and at least 2 are needed, as one is kept for validation during training: "
            f"add some to the split{more}"
        )
    count = min(max(1, round(dev_fraction * len(train))), len(train) - 1)
    kept = [image_id for image_id in train if earlier_splits.get(image_id) == "dev"]
    new = [image_id for image_id in train if earlier_splits.get(image_id) not in ("train", "dev")]
    dev = {*kept, *_draw(new, max(0, count - len(kept)), seed)}
    if not 0 < len(dev) < len(train):
        dev = set(_draw(train, count, seed))
    assigned = {image_id: "dev" if image_id in dev else "train" for image_id in train}
    return assigned | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
