"""Who trains, who chooses, who is measured: a photograph's split from its name and the seed alone."""

import hashlib
from collections.abc import Collection

from infra.errors import UserError


def _draw(ids: Collection[str], count: int, seed: int) -> list[str]:
    """The `count` ids with the smallest sha256 of "seed:id": new photographs seldom move old ones from split to split."""
    return sorted(ids, key=lambda each: hashlib.sha256(f"{seed}:{each}".encode()).digest())[:count]


def assign_splits(
    train_ids: Collection[str], val_ids: Collection[str], dev_fraction: float, seed: int, limit: int | None = None
) -> dict[str, str]:
    """Each photograph's split: "train", "dev" (drawn from `train_ids`: at least one, never all) or "val".

    With `limit`, only so many photographs of `train_ids` (dev among them) and of `val_ids`, drawn by seed. The ids must be
    distinct. Raises UserError where `train_ids` or the limit leave nothing to train on beside dev.
    """
    train, val = list(train_ids), list(val_ids)
    if limit is not None:
        train, val = _draw(train, limit, seed), _draw(val, limit, seed)
    if len(train) < 2:
        more = "" if limit is None else f", or raise data.limit ({limit})"
        raise UserError(
            f"photographs to train on: {len(train)}, and at least 2 are needed, as one is kept to follow the training by: "
            f"add some to the split{more}"
        )
    dev = set(_draw(train, min(max(1, round(dev_fraction * len(train))), len(train) - 1), seed))
    return {each: "dev" if each in dev else "train" for each in train} | dict.fromkeys(val, "val")
