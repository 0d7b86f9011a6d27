"""Reading the images of a data set that is being imported: finding them, their displayed size, EXIF orientation."""

import io
import json
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from deconvnet.datasets.image_folder import list_image_files
from deconvnet.datasets.voc import MIN_SIDE
from infra import storage
from infra.errors import BadInput
from proposals.image_codec import decode_image, encode_mask, image_size

_COPIED = (".jpg", ".jpeg", ".png")  # images of these suffixes are copied byte for byte


class ImageIndex:
    """The images below a folder or s3:// prefix, listed once, to be found by the names that annotations give them.

    Attributes:
        folder: the folder or prefix.
        names: paths of the images relative to it, sorted.
    """

    def __init__(self, folder: str) -> None:
        """List the images of `folder`. Raises UserError if it does not exist or has no image."""
        self.folder = folder
        self.names = [file.name for file in list_image_files(folder)]
        self._paths = set(self.names)
        self._by_file_name: dict[str, list[str]] = {}
        for name in self.names:
            self._by_file_name.setdefault(PurePosixPath(name).name, []).append(name)

    def find(self, name: str) -> str | None:
        """Find an image by the name that an annotation gives it.

        Args:
            name: relative path, or any path whose file name is unique in the folder; "/" or "\\" between folders.

        Returns:
            The image's path relative to the folder, or None if there is no such image or several.
        """
        path = name.replace("\\", "/")
        if path in self._paths:
            return path
        candidates = self._by_file_name.get(PurePosixPath(path).name, [])
        return candidates[0] if len(candidates) == 1 else None

    def read(self, name: str) -> bytes:
        """Read an image.

        Args:
            name: path relative to the folder.

        Returns:
            The bytes of the file.

        Raises:
            BadInput: if it can't be read.
        """
        return read_input(storage.join(self.folder, name))


def read_input(uri: str) -> bytes:
    """Read a file.

    Args:
        uri: path or s3:// address.

    Returns:
        Its bytes.

    Raises:
        BadInput: if there is no such file, or no permission to read it.
    """
    try:
        return storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"there is no file {uri}") from None
    except PermissionError:
        raise BadInput(f"no permission to read {uri}") from None


def read_json(uri: str) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark.

    Args:
        uri: path or s3:// address.

    Returns:
        Its content as Python objects.

    Raises:
        BadInput: if the file can't be read or is not JSON.
    """
    try:
        return json.loads(read_input(uri).decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}") from None


def displayed_size(image: bytes, max_pixels: int) -> tuple[int, int]:
    """Return the width and height of an image as displayed, with its EXIF orientation applied.

    Args:
        image: encoded bytes.
        max_pixels: most pixels an image may have.

    Returns:
        Width and height in px.

    Raises:
        BadInput: if the image is damaged, too large or too small for the training pipeline.
    """
    width, height = image_size(image, max_pixels)
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"{width}×{height} is too small: its shorter side must have {MIN_SIDE} px or more")
    return width, height


def annotated_as_stored(image: bytes, size: tuple[int, int], max_pixels: int) -> bool:
    """Decide whether annotations were made on an image as it is stored or as it is displayed.

    The two differ where EXIF orientation turns the image by a quarter; then the annotations' size shows which one it was.

    Args:
        image: encoded bytes.
        size: width and height of the image that was annotated.
        max_pixels: most pixels an image may have.

    Returns:
        True if the annotations must be turned like the image (`apply_orientation`); False if they fit it as displayed.

    Raises:
        BadInput: if the image is unusable, or the size is neither that as stored nor that as displayed.
    """
    width, height = displayed_size(image, max_pixels)
    if size == (width, height):
        return False
    if size == (height, width) and _orientation(image) in (5, 6, 7, 8):
        return True
    raise BadInput(f"its annotations are for {size[0]}×{size[1]}, the image is {width}×{height} as displayed")


def apply_orientation(image: bytes, mask: np.ndarray) -> np.ndarray:
    """Turn a mask by the EXIF orientation of its image.

    Args:
        image: encoded bytes whose EXIF orientation is applied.
        mask: uint8 or uint16 array (H, W) that fits the image as stored.

    Returns:
        Array of the same dtype that fits the image as displayed.
    """
    picture = Image.open(io.BytesIO(encode_mask(mask)))
    picture.getexif()[ExifTags.Base.Orientation] = _orientation(image)
    return np.asarray(ImageOps.exif_transpose(picture)).astype(mask.dtype)


def _orientation(image: bytes) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (displayed as stored) if it has none."""
    return int(Image.open(io.BytesIO(image)).getexif().get(ExifTags.Base.Orientation, 1))


def as_layout_file(image: bytes, name: str) -> tuple[bytes, str]:
    """Return an image file as VOC's layout takes it: JPEG and PNG files unchanged, others converted to PNG.

    Args:
        image: encoded bytes.
        name: file name, whose suffix tells the format.

    Returns:
        The bytes, and their suffix in lower case: ".jpg", ".jpeg" or ".png".
    """
    suffix = PurePosixPath(name).suffix.lower()
    return (image, suffix) if suffix in _COPIED else (encode_mask(decode_image(image)), ".png")
