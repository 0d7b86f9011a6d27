"""The split of an imported data set into train and val: given by the source, by lists of names, or drawn."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deconvnet.datasets.importing.dataset import STAGE, AnnotatedDataset, image_id_of
from infra import storage
from infra.errors import UserError
from infra.storage.tables import Reject


@dataclass(frozen=True)
class SplitRules:
    """How images are split if the source does not give their splits.

    Attributes:
        train: names or ids of the images of train; None if there is no such list.
        val: names or ids of the images of val; None if there is no such list.
        val_share: share of the images to draw for val, in (0, 1), if there is no list.
        seed: seed of that draw.
    """

    train: Sequence[str] | None = None
    val: Sequence[str] | None = None
    val_share: float = 0.2
    seed: int = 0


def read_split_list(uri: str, setting: str) -> list[str]:
    """Read a list of images, one name or id a line.

    Args:
        uri: path or s3:// address of the text file.
        setting: name of the setting that names it, for the error message.

    Returns:
        The lines, without those that are empty.

    Raises:
        UserError: if there is no such file, or it is not text.
    """
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        raise UserError(f"--{setting} {uri} can't be read: it must be a text file with the name of an image a line") from None
    return [line.strip() for line in lines if line.strip()]


def draw_val(ids: Collection[str], share: float, seed: int) -> set[str]:
    """Draw the images to validate on.

    An image is drawn if the SHA-256 of "seed:val:id", as a number in [0, 1), is less than `share`. So it keeps its split when
    other images are added or removed.

    Args:
        ids: ids of all images.
        share: share to draw, in (0, 1).
        seed: another seed draws other images.

    Returns:
        The ids drawn; of two or more at least one, and never all.
    """
    hashes = {
        image_id: int.from_bytes(hashlib.sha256(f"{seed}:val:{image_id}".encode()).digest()[:8], "big") / 2**64
        for image_id in ids
    }
    ranked = sorted(hashes, key=lambda image_id: hashes[image_id])
    count = sum(value < share for value in hashes.values())
    return set(ranked[: min(max(count, 1), len(ranked) - 1)]) if len(ranked) > 1 else set()


def split_images(dataset: AnnotatedDataset, rules: SplitRules) -> dict[str, str]:
    """Decide the split of each image of a data set.

    Splits given by the source come first, then the lists of names, else val is drawn. With one list, all images that are not on
    it belong to the other split. With two, images on neither are left out, and images on both belong to val.

    Args:
        dataset: the data set. Lines of the lists that fit no image are added to its `rejects`, and images on neither list are
            counted in its `notes`.
        rules: the lists, or how to draw val.

    Returns:
        "train" or "val" by image id, for the images to import.
    """
    ids = [entry.image_id for entry in dataset.entries]
    if any(entry.split for entry in dataset.entries):
        return {entry.image_id: entry.split or "train" for entry in dataset.entries}
    if rules.train is None and rules.val is None:
        drawn = draw_val(ids, rules.val_share, rules.seed)
        return {image_id: "val" if image_id in drawn else "train" for image_id in ids}
    known, by_file_name = set(ids), {_file_name(name): image_id for image_id, name in dataset.source_names.items()}
    splits: dict[str, str] = {}
    for split, names in (("val", rules.val), ("train", rules.train)):
        for name in names or ():
            candidates = (name, image_id_of(name), by_file_name.get(_file_name(name)))
            image_id = next((candidate for candidate in candidates if candidate in known), None)
            if image_id is None:
                dataset.rejects.append(Reject(name, f"{split}_list", STAGE, "listed, but there is no such annotated image"))
            elif splits.setdefault(image_id, split) != split:
                dataset.rejects.append(Reject(image_id, f"{split}_list", STAGE, "listed in both splits; it stays in val"))
    if rules.train is None or rules.val is None:
        return {image_id: splits.get(image_id, "val" if rules.val is None else "train") for image_id in ids}
    if left_out := len(ids) - len(splits):
        dataset.notes.append(f"{left_out:,} annotated images are in neither list and are left out")
    return splits


def _file_name(path: str) -> str:
    """Return the last part of a path with "/" or "\\" between folders."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]
