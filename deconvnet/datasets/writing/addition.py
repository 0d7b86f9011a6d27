"""Adding annotated images to a folder in VOC's layout: new images with masks, or new masks for images that the folder has.

First, all images are compared with those of the folder, and files that differ are written to a temporary folder. Then the data
set is changed: masks, then images, then lists, each file in one step. So after an interruption the data set can still be used,
and adding the same images again completes the addition.
"""

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from deconvnet.datasets import voc
from deconvnet.datasets.importing.dataset import BACKGROUND, BACKGROUND_NAMES, AnnotatedImage
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.datasets.writing.new_folder import locked_folder
from deconvnet.datasets.writing.voc_writer import REJECTS_FILE, REJECTS_HEADING, ImportSummary
from infra import storage
from infra.errors import BadInput, UserError
from infra.storage.lock import Lock
from proposals.image_codec import decode_image, decode_mask, encode_mask

ADDED, REPLACED, UNCHANGED, REFUSED = "added", "replaced", "unchanged", "refused"
_BOTH = "trainval"
_TEMPORARY, _LOCK = ".adding", ".adding.lock"


class Addition:
    """The difference between annotated images and a data set on disk.

    Attributes:
        splits: name of the list (split) that contains each image of the data set, by image id.
        outcomes: the outcome for each compared image, by image id: `ADDED` (the data set did not list it), `REPLACED` (its masks
            in the data set differ), `UNCHANGED`, or `REFUSED` (the data set has a different image of this name).
    """

    def __init__(self, root: Path, train: str = "train", val: str = "val") -> None:
        """Read the lists of a data set and its rejects.csv, and list its images.

        Args:
            root: folder in VOC's layout.
            train: name of the list of the training images.
            val: name of the list of the validation images.

        Raises:
            UserError: if a list or rejects.csv can't be read.
        """
        self._root = root
        # All that `apply` needs to know is read before it changes anything.
        both = Path(voc.split_path(str(root), _BOTH))
        self._in_both: list[str] | None = None
        if both.exists():
            self._in_both = voc.read_split(str(root), _BOTH) if both.read_bytes().strip() else []
        self._rejects = _read_rejects(root / REJECTS_FILE)
        self._names = {"train": train, "val": val}
        self._images = {
            image_id: root / voc.IMAGES_DIR / f"{image_id}{line.rsplit(' ', 2)[0]}"
            for image_id, line in voc.list_files(str(root), voc.IMAGES_DIR).items()
        }
        others = {path.stem for path in Path(voc.split_path(str(root), train)).parent.glob("*.txt") if path.read_bytes().strip()}
        self.splits: dict[str, str] = {}
        for name in (val, train, *sorted(others - {val, train, _BOTH})):
            for image_id in voc.read_split(str(root), name):
                self.splits.setdefault(image_id, name)
        self.outcomes: dict[str, str] = {}
        self._stale: list[Path] = []

    def compare(self, image_id: str, image: AnnotatedImage, temporary: Path | None) -> None:
        """Compare an image with the data set, and record its outcome. Several threads may call this.

        Args:
            image_id: id of the image.
            image: the image with its masks.
            temporary: folder that gets the files that are missing in the data set or differ there. None to write nothing.

        Raises:
            OSError: if a file can't be read or written.
        """
        known = self._images.get(image_id)
        if known and not _is_same_image(known, image):
            self.outcomes[image_id] = REFUSED
            return
        class_mask, object_mask = (
            self._root / folder / f"{image_id}.png" for folder in (voc.CLASS_MASKS_DIR, voc.OBJECT_MASKS_DIR)
        )
        files: dict[Path, bytes] = {}
        if not _is_same(class_mask, image.class_mask):
            files[class_mask] = encode_mask(image.class_mask, VOC_PALETTE)
            if image.object_mask is None and object_mask.exists():
                self._stale.append(object_mask)
        if image.object_mask is not None and not _is_same(object_mask, image.object_mask):
            files[object_mask] = encode_mask(image.object_mask, VOC_PALETTE if image.object_mask.itemsize == 1 else None)
        if not known:
            files[self._root / voc.IMAGES_DIR / f"{image_id}{image.suffix}"] = image.image
        if temporary:
            for path, content in files.items():
                storage.write_bytes(str(temporary / path.relative_to(self._root)), content)
        listed = image_id in self.splits and known
        self.outcomes[image_id] = ADDED if not listed else REPLACED if files else UNCHANGED

    @property
    def refused(self) -> list[str]:
        """Return the sorted ids of the images that were refused."""
        return sorted(image_id for image_id, outcome in self.outcomes.items() if outcome == REFUSED)

    def describe_kept(self, splits: Mapping[str, str]) -> list[str]:
        """Describe the images that stay in their list of the data set, although they are given for another split.

        Args:
            splits: the given split of each image, "train" or "val", by image id.

        Returns:
            A sentence for each list that has such images.
        """
        kept = Counter(
            self.splits[each] for each, split in splits.items() if self.splits.get(each, self._names[split]) != self._names[split]
        )
        return [f"{count:,} images of {name} are given for another split, but stay in {name}" for name, count in kept.items()]

    def check_refused(self) -> None:
        """Raise UserError if the data set has other images of the same names. The message names all of them."""
        if self.refused:
            raise UserError(
                f"{len(self.refused):,} new images have the names of different images in {self._root}: "
                f"{', '.join(self.refused)}. Rename the new images, and predict or annotate them again. Nothing was written"
            )

    def describe(self, splits: Mapping[str, str]) -> str:
        """Return the number of images by outcome as text, such as "added: 2 (1 train, 1 val); replaced: 0; …".

        Args:
            splits: "train" or "val" by image id, for images that no list names.
        """
        counts = Counter(self.outcomes.values())
        new = Counter(self._split(each, splits) for each, outcome in self.outcomes.items() if outcome == ADDED)
        by_split = f" ({', '.join(f'{number:,} {split}' for split, number in new.items())})" if new else ""
        parts = [f"{ADDED}: {counts[ADDED]:,}{by_split}", f"masks {REPLACED}: {counts[REPLACED]:,}"]
        return "; ".join([*parts, *(f"{each}: {counts[each]:,}" for each in (UNCHANGED, REFUSED))])

    def _split(self, image_id: str, splits: Mapping[str, str]) -> str:
        """Return the name of the list that has an image, or of the list that gets it."""
        return self.splits.get(image_id) or self._names[splits[image_id]]

    def apply(self, temporary: Path, splits: Mapping[str, str], summary: ImportSummary, lock: Lock) -> None:
        """Put the compared images into the data set. An image that a list names stays in that list.

        Args:
            temporary: the folder to which `compare` wrote.
            splits: "train" or "val" by image id, for images that no list names.
            summary: what was imported and what was not; the latter is added to rejects.csv.
            lock: lock of the data set.

        Raises:
            UserError: if a file can't be written.
            Interrupted: if the lock is lost.
        """
        # These object masks belong to class masks that are replaced next. If they were removed later and the run were killed in
        # between, they would be taken for the objects of the new class masks.
        for path in self._stale:
            lock.check()
            storage.remove(str(path))
        for folder in (voc.OBJECT_MASKS_DIR, voc.CLASS_MASKS_DIR, voc.IMAGES_DIR):
            for name in storage.list_files(str(temporary / folder)):
                lock.check()
                storage.copy_file(str(temporary / folder / name), str(self._root / folder / name))
        lock.check()
        self._append_rejects(summary)
        new = {
            split: [each for each in self.outcomes if each not in self.splits and splits[each] == split] for split in self._names
        }
        for split, ids in new.items():
            self._append_ids(self._names[split], ids)
        if self._in_both is not None:
            listed = {
                *new["train"],
                *new["val"],
                *(each for each in self.outcomes if self.splits.get(each) in self._names.values()),
            }
            self._append_ids(_BOTH, listed - {*self._in_both})

    def _append_ids(self, name: str, ids: Collection[str]) -> None:
        """Append image ids to a list of the data set, in one step."""
        path = voc.split_path(str(self._root), name)
        before = storage.read_bytes(path)
        if ids:
            storage.write_bytes(path, b"\n".join([before.rstrip(), *(each.encode() for each in sorted(ids)), b""]))

    def _append_rejects(self, summary: ImportSummary) -> None:
        """Append what was not imported to rejects.csv, without repeating its rows."""
        known = set(self._rejects)
        if more := [row for row in summary.reject_rows() if row not in known]:
            text = io.StringIO(newline="")
            csv.writer(text).writerows([*(self._rejects or [REJECTS_HEADING]), *more])
            storage.write_bytes(str(self._root / REJECTS_FILE), text.getvalue().encode())


def _read_rejects(path: Path) -> list[tuple[str, ...]]:
    """Read the rows of rejects.csv, the heading included.

    Args:
        path: path of the file.

    Returns:
        The rows; none if there is no such file.

    Raises:
        UserError: if the file is not a table in UTF-8, for example because a spreadsheet program has saved it.
    """
    try:
        return [tuple(row) for row in csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline=""))]
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read ({error}): save it as CSV in UTF-8, or delete it. Nothing was written") from None


def check_same_classes(found: Collection[str], known: Collection[str], root: Path) -> None:
    """Raise UserError unless the classes of new images are those of the data set, in the same order.

    Args:
        found: names of the classes of the images to add, background first.
        known: names of the classes of the data set, background first.
        root: folder of the data set.
    """
    first, *others = known
    if tuple(found) != (BACKGROUND if first.lower() in BACKGROUND_NAMES else first, *others):
        raise UserError(
            f"the annotations have the classes {', '.join(found)}, and {root} has {', '.join(known)}: only annotations of the "
            "same classes in the same order can be added (--classes names them, for masks also --table)"
        )


@contextmanager
def temporary_folder(root: Path) -> Iterator[tuple[Path, Lock]]:
    """Hold the lock of a data set, and delete the temporary folder for the files to add at the end.

    Args:
        root: folder of the data set.

    Yields:
        The folder, which does not exist yet, and the lock.

    Raises:
        Locked: if another import adds images to the data set at this time.
    """
    with locked_folder(root / _TEMPORARY, root / _LOCK) as lock:
        yield root / _TEMPORARY, lock


def _is_same_image(path: Path, image: AnnotatedImage) -> bool:
    """Return whether a file holds an image: the same bytes, or the same pixels if both are PNG.

    Another version of Pillow or zlib writes other bytes for the same pixels when an image of another format becomes PNG.
    """
    data = path.read_bytes()
    if data == image.image or not path.suffix.lower() == image.suffix == ".png":
        return data == image.image
    try:
        return np.array_equal(decode_image(data), decode_image(image.image))
    except BadInput:
        return False


def _is_same(path: Path, mask: np.ndarray) -> bool:
    """Return whether a file holds a mask: the same ids, however they are encoded. False if there is no such file."""
    try:
        return np.array_equal(decode_mask(path.read_bytes()), mask)
    except (FileNotFoundError, BadInput):
        return False
