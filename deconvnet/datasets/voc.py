"""Photographs and masks in PASCAL VOC's layout, in a local folder or at s3://.

JPEGImages/<id>.jpg (or .jpeg, .png, in any letter case), SegmentationClass/<id>.png, SegmentationObject/<id>.png where there is
one, ImageSets/Segmentation/<split>.txt with one id a line. A folder that can't be read is refused (UserError); a photograph
that can't be used is set aside with the reason (Reject), and no file outside the folder is ever opened.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from deconvnet.datasets.objects import make_object_mask
from infra import storage
from infra.errors import BadInput, UserError
from infra.storage.tables import Reject
from proposals.image_codec import decode_mask, encode_mask, image_size
from proposals.masks import VOID_ID

IMAGES_DIR, CLASS_MASKS_DIR, OBJECT_MASKS_DIR = "JPEGImages", "SegmentationClass", "SegmentationObject"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # in order of preference, should one id have several files
MIN_SIDE = 16  # px: under this VGG's five poolings leave less than one cell, and there is no crop worth resizing
STAGE = "prepare"


@dataclass(frozen=True)
class VocFile:
    """A file below the folder: its relative name, size in bytes and time of change in ns."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class VocImageFiles:
    """One labelled photograph's files."""

    image_id: str
    image: VocFile
    class_mask: VocFile
    object_mask: VocFile | None


def split_path(root: str, split: str) -> str:
    """Where the ids of `split` are listed."""
    return storage.join(root, "ImageSets", "Segmentation", f"{split}.txt")


def read_split(root: str, split: str) -> list[str]:
    """The ids of `split` as they stand in its file. Raises UserError: no such file, not text, or no id in it."""
    path = split_path(root, split)
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no split file {path}: list the ids there, one a line, or name another split") from None
    except UnicodeDecodeError:
        raise UserError(f"the split file {path} is not text: it must list one id a line, in UTF-8") from None
    if not (ids := [line.strip() for line in text.splitlines() if line.strip()]):
        raise UserError(f"the split file {path} lists no id: put one a line")
    return ids


def _files(root: str, folder: str) -> dict[str, list[VocFile]]:
    """The files directly in `folder` below `root`, by their names without suffix; {} where it is absent."""
    fs, path = storage.filesystem(storage.join(root, folder))
    found: dict[str, list[VocFile]] = {}
    for info in fs.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        if info.type == pafs.FileType.File:
            file = VocFile(f"{folder}/{info.base_name}", info.size, info.mtime_ns or 0)
            found.setdefault(PurePosixPath(info.base_name).stem, []).append(file)
    return found


def _best(files: Iterable[VocFile], suffixes: Sequence[str]) -> VocFile | None:
    ranked = [(suffixes.index(s), f.name, f) for f in files if (s := PurePosixPath(f.name).suffix.lower()) in suffixes]
    return min(ranked, key=lambda each: each[:2])[2] if ranked else None


class VocDataset:
    """A folder in VOC's layout, listed once.

    Raises UserError where `root` or a folder that it must have is missing.
    """

    def __init__(self, root: str) -> None:
        self.root = storage.absolute(root)
        if not storage.exists(self.root):
            raise UserError(f"there is no data folder {self.root}: name one in VOC's layout in data.root, or leave that empty")
        self._images, self._classes, self._objects = (
            _files(self.root, f) for f in (IMAGES_DIR, CLASS_MASKS_DIR, OBJECT_MASKS_DIR)
        )
        for folder, files in ((IMAGES_DIR, self._images), (CLASS_MASKS_DIR, self._classes)):
            if not files:
                raise UserError(f"{storage.join(self.root, folder)} is missing or empty: data.root must have VOC's layout")

    def find(self, image_id: str) -> VocImageFiles | Reject:
        """The files of `image_id`, or why there are none."""
        image = _best(self._images.get(image_id, ()), _IMAGE_SUFFIXES)
        if image is None:
            reason = f"no file of this id in {IMAGES_DIR} ({', '.join(_IMAGE_SUFFIXES)})"
            return Reject(image_id, storage.join(self.root, IMAGES_DIR, f"{image_id}.jpg"), STAGE, reason)
        mask = _best(self._classes.get(image_id, ()), (".png",))
        if mask is None:
            return Reject(
                image_id, storage.join(self.root, CLASS_MASKS_DIR, f"{image_id}.png"), STAGE, f"no mask in {CLASS_MASKS_DIR}"
            )
        return VocImageFiles(image_id, image, mask, _best(self._objects.get(image_id, ()), (".png",)))

    def split(self, name: str, taken: Mapping[str, str] | None = None) -> tuple[list[VocImageFiles], list[Reject]]:
        """The photographs of the split `name`, and the lines of its file that give none.

        `taken` maps ids that another split has to its name: they are rejected here.
        """
        path = split_path(self.root, name)
        photographs: list[VocImageFiles] = []
        rejects: list[Reject] = []
        seen: set[str] = set()
        for image_id in read_split(self.root, name):
            if reason := invalid_id_reason(image_id):
                found: VocImageFiles | Reject = Reject(image_id, path, STAGE, reason)
            elif image_id in seen:
                found = Reject(image_id, path, STAGE, "the id is in the split more than once; its first line counts")
            elif taken and image_id in taken:
                found = Reject(image_id, path, STAGE, f"the id is in the split {taken[image_id]} too, where it stays")
            else:
                found = self.find(image_id)
            seen.add(image_id)
            if isinstance(found, Reject):
                rejects.append(found)
            else:
                photographs.append(found)
        return photographs, rejects


def invalid_id_reason(image_id: str) -> str | None:
    """Why `image_id` can't be a file's name, or None."""
    if "/" in image_id or "\\" in image_id or image_id in (".", ".."):
        return "an id must be a plain file name, without a path"
    if not image_id.isprintable():
        return "the id has unprintable characters"
    return None


def read_row(root: str, photograph: VocImageFiles, split: str, num_classes: int, max_pixels: int) -> dict[str, Any] | Reject:
    """A row of the `images` table (proposals.schemas.IMAGES), or why this photograph can't be used.

    The image is the file as it is; width and height are as displayed (EXIF orientation applied), and the masks must have that
    size. The class mask is 8-bit; the object mask is tidied or derived by `make_object_mask`.
    """
    file = photograph.image
    try:
        data = storage.read_bytes(storage.join(root, file.name))
        width, height = image_size(data, max_pixels)
        if min(width, height) < MIN_SIDE:
            raise BadInput(f"{width}×{height} is too small: its shorter side must have {MIN_SIDE} px or more")
        file = photograph.class_mask
        classes = _read_mask(storage.join(root, file.name), width, height, max_pixels)
        _check_classes(classes, num_classes)
        classes = classes.astype(np.uint8)
        objects = None
        if photograph.object_mask:
            file = photograph.object_mask
            objects = _read_mask(storage.join(root, file.name), width, height, max_pixels)
        ids = make_object_mask(classes, objects)
    except BadInput as error:
        return Reject(photograph.image_id, storage.join(root, file.name), STAGE, str(error))
    except FileNotFoundError:
        return Reject(photograph.image_id, storage.join(root, file.name), STAGE, "the file disappeared while it was read")
    except PermissionError:
        return Reject(photograph.image_id, storage.join(root, file.name), STAGE, "no permission to read the file")
    return {
        "image_id": photograph.image_id,
        "split": split,
        "width": width,
        "height": height,
        "image": data,
        "class_mask": encode_mask(classes),
        "object_mask": encode_mask(ids),
    }


def _read_mask(uri: str, width: int, height: int, max_pixels: int) -> np.ndarray:
    mask = decode_mask(storage.read_bytes(uri), max_pixels)
    if mask.shape != (height, width):
        raise BadInput(f"the mask is {mask.shape[1]}×{mask.shape[0]}, the image {width}×{height} as displayed")
    return mask


def _check_classes(mask: np.ndarray, num_classes: int) -> None:
    """Raise BadInput if a pixel's class is neither in the list nor void."""
    strange = mask[(mask >= num_classes) & (mask != VOID_ID)]
    if strange.size:
        raise BadInput(
            f"class id {int(strange.min())} in the mask, and the list has {num_classes} classes (0–{num_classes - 1}; 255 is void)"
        )
