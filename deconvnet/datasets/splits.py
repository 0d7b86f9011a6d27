"""The split of a data set into train, dev and val, from the images' ids and a seed alone."""

import hashlib
from collections.abc import Collection

from infra.errors import UserError


def _draw(ids: Collection[str], count: int, seed: int) -> list[str]:
    """Draw `count` ids: those with the smallest SHA-256 of "seed:id", so that few of them change when ids are added."""
    return sorted(ids, key=lambda image_id: hashlib.sha256(f"{seed}:{image_id}".encode()).digest())[:count]


def assign_splits(
    train_ids: Collection[str], val_ids: Collection[str], dev_fraction: float, seed: int, limit: int | None = None
) -> dict[str, str]:
    """Assign each image to a split.

    Args:
        train_ids: ids of the images to train on, from which dev is drawn. All ids must be distinct.
        val_ids: ids of the images to evaluate on at the end.
        dev_fraction: share of `train_ids` that becomes dev, in (0, 1): at least one image, never all.
        seed: seed of the draw.
        limit: draw only this many of `train_ids` (dev among them) and this many of `val_ids`; None: all.

    Returns:
        "train", "dev" or "val" by image id.

    Raises:
        UserError: if fewer than two images are left of `train_ids`: one to train on, one for dev.
    """
    train, val = list(train_ids), list(val_ids)
    if limit is not None:
        train, val = _draw(train, limit, seed), _draw(val, limit, seed)
    if len(train) < 2:
        more = "" if limit is None else f", or raise data.limit ({limit})"
        raise UserError(
            f"images to train on: {len(train)}, and at least 2 are needed, as one is kept for validation during training: "
            f"add some to the split{more}"
        )
    dev = set(_draw(train, min(max(1, round(dev_fraction * len(train))), len(train) - 1), seed))
    return {image_id: "dev" if image_id in dev else "train" for image_id in train} | dict.fromkeys(val, "val")
