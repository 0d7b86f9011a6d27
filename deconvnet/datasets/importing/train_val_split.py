"""Splitting an imported data set into train and val: as the source says, by lists of names, or at random."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from deconvnet.datasets.importing.dataset import STAGE, AnnotatedDataset, image_id_of
from deconvnet.datasets.importing.image_index import NameIndex, normalise
from deconvnet.datasets.importing.images import read_text
from infra.errors import BadInput, UserError
from infra.storage.tables import Reject


def read_split_list(uri: str, setting: str, encoding: str | None = None) -> list[str]:
    """Read a list of images from a text file with one name or id on each line.

    Args:
        uri: path or URI of the file.
        setting: name of the setting that names this file, for the error message.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.

    Returns:
        The lines without surrounding blanks; empty lines are left out.

    Raises:
        UserError: if there is no such file, or it is not text.
    """
    try:
        lines = read_text(uri, encoding).splitlines()
    except BadInput as error:
        raise UserError(
            f"--{setting} {uri} can't be read: {error}; it must be a text file with the name of an image a line"
        ) from None
    return [line.strip() for line in lines if line.strip()]


def draw_val(ids: Collection[str], share: float, seed: int) -> set[str]:
    """Choose images at random for val.

    An image is chosen if the SHA-256 of "seed:val:id", read as a number in [0, 1), is less than `share`. So an image stays in its
    split when other images are added or removed.

    Args:
        ids: ids of all images.
        share: share of the images to choose, in [0, 1).
        seed: seed of the random choice.

    Returns:
        The ids chosen: none if the share is 0. Otherwise, of two or more images, at least one is chosen and at least one is not.
        A single image is not chosen.
    """
    if share == 0:
        return set()
    hashes = {
        image_id: int.from_bytes(hashlib.sha256(f"{seed}:val:{image_id}".encode()).digest()[:8], "big") / 2**64
        for image_id in ids
    }
    ranked = sorted(hashes, key=lambda image_id: hashes[image_id])
    count = sum(value < share for value in hashes.values())
    return set(ranked[: min(max(count, 1), len(ranked) - 1)]) if len(ranked) > 1 else set()


def split_images(
    dataset: AnnotatedDataset,
    train_list: Sequence[str] | None = None,
    val_list: Sequence[str] | None = None,
    val_share: float = 0.2,
    seed: int = 0,
    existing_ids: Collection[str] = (),
) -> dict[str, str]:
    """Assign each image of a data set to train or val.

    If the user gave lists, they decide. With one list, images that are not on it go to the other split. With two lists, images on
    neither are left out, and images on both go to val. Without a list, the splits of the source are used if it assigns any
    image to train or val; its images without a split go to train. Otherwise val is chosen at random. Images that the source
    assigns to test are left out if they are on no list.

    Args:
        dataset: the data set. Names on the lists that fit no image are added to its `rejects`. The numbers of images on both
            lists, of those on neither list, and of those in test are added to its `notes`.
        train_list: names or ids of the images of train; None if the user gave no such list.
        val_list: names or ids of the images of val; None if the user gave no such list.
        val_share: share of the images to choose for val if it is chosen at random, in [0, 1).
        seed: seed of the random choice.
        existing_ids: ids of the images of the existing data set, if these images are added to one. They take part in the draw,
            so that a few new images get the splits that they would get if all images were imported at once.

    Returns:
        "train" or "val" by image id. Images that are left out are missing.
    """
    has_lists = train_list is not None or val_list is not None
    splits = _listed_splits(dataset, train_list or (), val_list or ()) if has_lists else {}
    unlisted = [entry for entry in dataset.entries if entry.image_id not in splits]
    others = {entry.image_id: entry.split for entry in unlisted if entry.split != "test"}
    if train_list is not None and val_list is not None:
        if others:
            dataset.notes.append(f"{len(others):,} annotated images are in neither list and are left out")
    elif has_lists:
        splits |= dict.fromkeys(others, "train" if train_list is None else "val")
    elif dataset.has_splits:
        splits = {image_id: split or "train" for image_id, split in others.items()}
    else:
        drawn = draw_val({*others, *existing_ids}, val_share, seed)
        splits = {image_id: "val" if image_id in drawn else "train" for image_id in others}
    if tests := [entry.image_id for entry in unlisted if entry.split == "test"]:
        dataset.notes.append(f"{len(tests):,} images that belong to test are left out, such as {tests[0]}")
    return splits


def _listed_splits(dataset: AnnotatedDataset, train_list: Sequence[str], val_list: Sequence[str]) -> dict[str, str]:
    """Return "train" or "val" by image id for the images that the user lists. For the arguments see `split_images`."""
    ids = [entry.image_id for entry in dataset.entries]
    known = {normalise(image_id): image_id for image_id in ids}
    by_stem = {_stem(dataset.source_names[image_id]): image_id for image_id in ids}
    index = NameIndex(list(by_stem), "")
    splits: dict[str, str] = {}
    both: dict[str, None] = {}
    for split, names in (("val", val_list), ("train", train_list)):
        for name in names:
            image_id = known.get(normalise(name)) or known.get(normalise(image_id_of(name)))
            if image_id is None and (stem := index.find(_stem(name))):
                image_id = by_stem[stem]
            if image_id is None:
                dataset.rejects.append(
                    Reject(name, f"{split}_list", STAGE, "listed, but no annotated image, or more than one, has this name")
                )
            elif splits.setdefault(image_id, split) != split:
                both[image_id] = None
    if both:
        dataset.notes.append(f"{len(both):,} images are on both lists and go to val, such as {next(iter(both))}")
    return splits


def _stem(name: str) -> str:
    """Return a path, whose folders are separated by "/" or "\\", without the suffix of its file name."""
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path.parent / path.stem)
