"""Images and masks in PASCAL VOC's layout, in a folder, local or in a bucket.

    JPEGImages/<id>.jpg                     the image; the suffix may also be .jpeg or .png, in upper or lower case
    SegmentationClass/<id>.png              its class mask
    SegmentationObject/<id>.png             its object mask, optional
    ImageSets/Segmentation/<split>.txt      the ids of the images of a split, one on each line

If the folder itself can't be used, UserError is raised. If an image can't be used, it becomes a Reject, which records the reason.
Files outside the folder are never opened.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np

from deconvnet.datasets.objects import make_object_mask
from infra import storage
from infra.errors import BadInput, UserError
from infra.storage.tables import Reject
from proposals.image_codec import decode_mask, encode_mask, image_size
from proposals.masks import VOID_ID

IMAGES_DIR, CLASS_MASKS_DIR, OBJECT_MASKS_DIR = "JPEGImages", "SegmentationClass", "SegmentationObject"
FOLDERS = (IMAGES_DIR, CLASS_MASKS_DIR, OBJECT_MASKS_DIR)
# Suffixes in lower case of the files in each folder. If an image has several files, the first of these suffixes is taken.
_SUFFIXES = {IMAGES_DIR: (".jpg", ".jpeg", ".png"), CLASS_MASKS_DIR: (".png",), OBJECT_MASKS_DIR: (".png",)}
MIN_SIDE = 16  # px; VGG's five poolings would leave less than one cell of a smaller image, and its crops are not worth enlarging
STAGE = "prepare"


@dataclass(frozen=True, slots=True)
class VocFile:
    """A file of the data set.

    Attributes:
        name: path of the file relative to the data set's folder.
        size: size in bytes.
        mtime_ns: time of the last modification, in nanoseconds since 1970; 0 if it is not known.
    """

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class VocImageFiles:
    """The files of one image.

    The suffixes, sizes and times are kept as one string, which takes a third of the memory of three `VocFile` objects. A data set
    may have a million images.

    Attributes:
        image_id: id of the image, which is the name of its files without suffix.
        listing: a line for each of the folders in `FOLDERS`: suffix, size and time of the file in it, separated by spaces. The
            line is empty, or missing, if there is no such file.
    """

    image_id: str
    listing: str

    @property
    def image(self) -> VocFile:
        """Return the file of the image."""
        return cast(VocFile, self._file(0))

    @property
    def class_mask(self) -> VocFile:
        """Return the file of the image's class mask."""
        return cast(VocFile, self._file(1))

    @property
    def object_mask(self) -> VocFile | None:
        """Return the file of the image's object mask; None if there is none."""
        return self._file(2)

    def _file(self, number: int) -> VocFile | None:
        """Return the file in a folder.

        Args:
            number: position of the folder in `FOLDERS`.
        """
        lines = self.listing.split("\n")
        if number >= len(lines) or not lines[number]:
            return None
        suffix, size, mtime_ns = lines[number].rsplit(" ", 2)
        return VocFile(f"{FOLDERS[number]}/{self.image_id}{suffix}", int(size), int(mtime_ns))


def split_path(root: str, split: str) -> str:
    """Return the path of the file that lists the image ids of a split.

    Args:
        root: folder in VOC's layout.
        split: name of the split, such as "train".

    Returns:
        `root`/ImageSets/Segmentation/`split`.txt.
    """
    return storage.join(root, "ImageSets", "Segmentation", f"{split}.txt")


def read_split(root: str, split: str) -> list[str]:
    """Read the list of the image ids of a split.

    Args:
        root: folder in VOC's layout.
        split: name of the split, such as "train".

    Returns:
        The ids in the order of the file, at least one. They are not checked, so they may repeat or be invalid.

    Raises:
        UserError: if there is no such file, it is not text in UTF-8, or it lists no id.
    """
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


def invalid_id_reason(image_id: str) -> str | None:
    """Check that an image id can be used as the name of a file in the data set.

    Args:
        image_id: the id.

    Returns:
        None if it can; otherwise a sentence for the user that says why it can't.
    """
    if "/" in image_id or "\\" in image_id or image_id in (".", ".."):
        return "an id must be a plain file name, without a path"
    if not image_id.isprintable():
        return "the id has unprintable characters"
    if len(image_id.encode()) > storage.MAX_STEM_BYTES:
        return f"the id is longer than {storage.MAX_STEM_BYTES} bytes, so names of files would be too long"
    return None


class VocDataset:
    """A data set in VOC's layout. The files in its folders are listed once, when the object is created.

    Attributes:
        root: absolute path or URI of the folder.
    """

    def __init__(self, root: str) -> None:
        """List the files of a data set.

        Args:
            root: path or URI of a folder in VOC's layout.

        Raises:
            UserError: if there is no such folder, or it has no images or no class masks.
        """
        self.root = storage.absolute(root)
        if not storage.exists(self.root):
            raise UserError(f"there is no data folder {self.root}: name one in VOC's layout in data.root, or leave that empty")
        self._listings: dict[str, str] = {}  # by image id, as in VocImageFiles
        for number, folder in enumerate(FOLDERS):
            files = list_files(self.root, folder, dangling=True)  # `read_row` rejects the images of broken links, with the reason
            if not files and folder != OBJECT_MASKS_DIR:
                suffixes = " or ".join(_SUFFIXES[folder])
                raise UserError(
                    f"{storage.join(self.root, folder)} is missing or empty ({suffixes} files): data.root must have VOC's layout"
                )
            for image_id, line in files.items():
                before = self._listings.get(image_id, "")
                self._listings[image_id] = before + "\n" * (number - before.count("\n")) + line

    def find(self, image_id: str) -> VocImageFiles | Reject:
        """Find the files of an image.

        Args:
            image_id: id of the image.

        Returns:
            The files, or a Reject with the reason if the image or its class mask is missing.
        """
        image, mask, *_ = [*self._listings.get(image_id, "").split("\n"), ""]
        if not image:
            reason = f"no file of this id in {IMAGES_DIR} ({', '.join(_SUFFIXES[IMAGES_DIR])})"
            return Reject(image_id, storage.join(self.root, IMAGES_DIR, f"{image_id}.jpg"), STAGE, reason)
        if not mask:
            path = storage.join(self.root, CLASS_MASKS_DIR, f"{image_id}.png")
            return Reject(image_id, path, STAGE, f"no mask in {CLASS_MASKS_DIR}")
        return VocImageFiles(image_id, self._listings[image_id])

    def split(self, name: str, taken: Mapping[str, str] | None = None) -> tuple[list[VocImageFiles], list[Reject]]:
        """Find the files of all images of a split.

        Args:
            name: name of the split, such as "train".
            taken: ids to reject because they belong to another split, each with the name of that split. None rejects no id for
                this reason.

        Returns:
            The images in the order of the split's list, and a Reject with the reason for each id that can't be used, and for each
            that is listed repeatedly.

        Raises:
            UserError: if the list can't be read.
        """
        path = split_path(self.root, name)
        images: list[VocImageFiles] = []
        rejects: list[Reject] = []
        for image_id, lines in Counter(read_split(self.root, name)).items():
            if lines > 1:
                repeated = f"the id is in the split more than once, on {lines:,} lines; the first one counts"
                rejects.append(Reject(image_id, path, STAGE, repeated))
            if reason := invalid_id_reason(image_id):
                found: VocImageFiles | Reject = Reject(image_id, path, STAGE, reason)
            elif taken and image_id in taken:
                found = Reject(image_id, path, STAGE, f"the id is in the split {taken[image_id]} too, where it stays")
            else:
                found = self.find(image_id)
            if isinstance(found, Reject):
                rejects.append(found)
            else:
                images.append(found)
        return images, rejects


def list_files(root: str, folder: str, dangling: bool = False) -> dict[str, str]:
    """List the images or the masks that lie directly in a folder of the data set.

    Args:
        root: path or URI of the data set.
        folder: name of the folder, one of `FOLDERS`.
        dangling: True to list broken symbolic links as well, with a size of 0. Reading them raises FileNotFoundError.

    Returns:
        For each image id a line as in `VocImageFiles.listing`. If an image id has several files, .jpg is preferred to .jpeg, and
        .jpeg to .png. If the suffixes differ only in case, the first file by name is taken. The dict is empty if there is no such
        folder.
    """
    found: list[tuple[bool, int, str, str]] = []
    for file in storage.list_sizes(storage.join(root, folder), recursive=False):
        suffix = PurePosixPath(file.name).suffix
        if suffix.lower() in _SUFFIXES[folder] and (dangling or not file.dangling):
            line = f"{suffix} {file.size} {file.mtime_ns}"
            found.append((file.dangling, _SUFFIXES[folder].index(suffix.lower()), file.name, line))
    return {PurePosixPath(name).stem: line for *_, name, line in sorted(found, reverse=True)}  # the last of a stem stays


def read_row(
    root: str, files: VocImageFiles, split: str, num_classes: int, max_pixels: int, background: bool = True
) -> dict[str, Any] | Reject:
    """Read an image and its masks as a row of the `images` table.

    Args:
        root: folder of the data set.
        files: the files of the image.
        split: value for the column `split`: "train", "dev", "val" or "test".
        num_classes: number of classes, background included. A class mask with a higher id (other than 255, void) is rejected.
        max_pixels: an image or a mask with more pixels is rejected.
        background: whether class 0 is the background.

    Returns:
        A row as in `proposals.schemas.IMAGES`, or a Reject with the reason if the image can't be used, for example because a side
        is shorter than 16 px. The row holds the bytes of the image file unchanged. Its width and height are those of the image as
        displayed (EXIF orientation applied). Its masks are PNG files. Its object mask is made by `make_object_mask`, so it agrees
        with the class mask even if the data set has no object mask or one that contradicts the class mask.
    """
    file = files.image
    try:
        data = storage.read_bytes(storage.join(root, file.name))
        width, height = image_size(data, max_pixels)
        if min(width, height) < MIN_SIDE:
            raise BadInput(f"{width}×{height} is too small: its shorter side must have {MIN_SIDE} px or more")
        file = files.class_mask
        class_mask = _read_mask(storage.join(root, file.name), width, height, max_pixels)
        _check_classes(class_mask, num_classes)
        class_mask = class_mask.astype(np.uint8)
        object_mask = None
        if files.object_mask:
            file = files.object_mask
            object_mask = _read_mask(storage.join(root, file.name), width, height, max_pixels)
        object_mask = make_object_mask(class_mask, object_mask, background)
    except BadInput as error:
        reason = str(error)
    except FileNotFoundError:
        reason = "the file disappeared while it was read, or it is a broken link"
    except PermissionError:
        reason = "no permission to read the file"
    else:
        return {
            "image_id": files.image_id,
            "split": split,
            "width": width,
            "height": height,
            "image": data,
            "class_mask": encode_mask(class_mask),
            "object_mask": encode_mask(object_mask),
        }
    return Reject(files.image_id, storage.join(root, file.name), STAGE, reason)


def _read_mask(uri: str, width: int, height: int, max_pixels: int) -> np.ndarray:
    """Read a mask and check its size.

    Args:
        uri: path or URI of the file.
        width: width that the mask must have, in px.
        height: height that the mask must have, in px.
        max_pixels: largest number of pixels that a mask may have.

    Returns:
        uint8 or uint16 array (H, W).

    Raises:
        BadInput: if the mask can't be decoded or has another size.
    """
    mask = decode_mask(storage.read_bytes(uri), max_pixels)
    if mask.shape != (height, width):
        raise BadInput(f"the mask is {mask.shape[1]}×{mask.shape[0]}, the image {width}×{height} as displayed")
    return mask


def _check_classes(mask: np.ndarray, num_classes: int) -> None:
    """Check that all ids in a class mask are ids of classes or void (255).

    Args:
        mask: array (H, W) of class ids.
        num_classes: number of classes, background included; their ids are 0 to `num_classes` - 1.

    Raises:
        BadInput: if the mask has another id.
    """
    unknown = mask[(mask >= num_classes) & (mask != VOID_ID)]
    if unknown.size:
        raise BadInput(
            f"class id {int(unknown.min())} in the mask, and the list has {num_classes} classes (0–{num_classes - 1}; 255 is "
            "void)"
        )
