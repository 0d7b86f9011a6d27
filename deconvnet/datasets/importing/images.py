"""Finding and reading the images of a data set that is imported, and handling their size and EXIF orientation."""

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
    """A list of all images in a folder or s3:// prefix and its subfolders, for finding images by the names in annotations.

    Attributes:
        folder: the folder or prefix.
        names: paths of the images relative to the folder, sorted.
    """

    def __init__(self, folder: str) -> None:
        """List the images of a folder and its subfolders.

        Args:
            folder: path of the folder, or s3:// prefix.

        Raises:
            UserError: if there is no such folder, or no image in it.
        """
        self.folder = folder
        self.names = [file.name for file in list_image_files(folder)]
        self._paths = set(self.names)
        self._by_file_name: dict[str, list[str]] = {}
        for name in self.names:
            self._by_file_name.setdefault(PurePosixPath(name).name, []).append(name)

    def find(self, name: str) -> str | None:
        """Find an image by the name that an annotation gives it.

        Args:
            name: path relative to the folder, or any other path whose file name occurs only once in the folder. Folders are
                separated by "/" or "\\".

        Returns:
            The path of the image relative to the folder. None if no image or more than one fits.
        """
        path = name.replace("\\", "/")
        if path in self._paths:
            return path
        candidates = self._by_file_name.get(PurePosixPath(path).name, [])
        return candidates[0] if len(candidates) == 1 else None

    def read(self, name: str) -> bytes:
        """Read an image file.

        Args:
            name: path of the image relative to the folder.

        Returns:
            The bytes of the file.

        Raises:
            BadInput: if there is no such file, or no permission to read it.
        """
        return read_input(storage.join(self.folder, name))


def read_input(uri: str) -> bytes:
    """Read a file of one image. If that is impossible, raise BadInput, so that the import rejects only this image.

    Args:
        uri: path or s3:// address of the file.

    Returns:
        The bytes of the file.

    Raises:
        BadInput: if there is no such file, or no permission to read it.
    """
    try:
        return storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"there is no file {uri}") from None
    except PermissionError:
        raise BadInput(f"no permission to read {uri}") from None


def read_text(uri: str, encoding: str | None = None) -> str:
    """Read a text file in UTF-8, in UTF-16 or UTF-32, or in an encoding that the user named.

    Args:
        uri: path or s3:// address of the file.
        encoding: name of the encoding of files that are not in UTF-8, such as "gbk"; None to refuse them.

    Returns:
        The text, without a byte order mark.

    Raises:
        BadInput: if the file can't be read, or has another encoding.
    """
    data = read_input(uri)
    unicode = json.detect_encoding(data)  # by the byte order mark, or the zeros of UTF-16 and UTF-32
    for name in filter(None, (unicode, encoding)):
        try:
            return data.decode(name)
        except UnicodeDecodeError as error:
            problem = f"byte {error.start} is no text in {name.removesuffix('-sig').upper()}"
    raise BadInput(f"{problem}: save the file in UTF-8, or name its encoding by --encoding (gbk, big5, cp1252 …)")


def read_json(uri: str, encoding: str | None = None) -> Any:
    """Read a JSON file.

    Args:
        uri: path or s3:// address of the file.
        encoding: name of the encoding of files that are not in UTF-8, as for `read_text`.

    Returns:
        The content of the file as Python objects: usually a dictionary or a list.

    Raises:
        BadInput: if the file can't be read or is not JSON.
    """
    text = read_text(uri, encoding)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}") from None


def displayed_size(image: bytes, max_pixels: int) -> tuple[int, int]:
    """Return the width and height of an image as displayed, that is, with its EXIF orientation applied.

    Args:
        image: encoded bytes of the image.
        max_pixels: most pixels that the image may have.

    Returns:
        Width and height in px.

    Raises:
        BadInput: if the image is damaged, has too many pixels, or is too small for training.
    """
    width, height = image_size(image, max_pixels)
    if min(width, height) < MIN_SIDE:
        raise BadInput(f"{width}×{height} is too small: its shorter side must have {MIN_SIDE} px or more")
    return width, height


def annotated_as_stored(image: bytes, size: tuple[int, int], max_pixels: int) -> bool:
    """Tell whether an image was annotated as it is stored, or as it is displayed.

    If EXIF orientation turns the image by 90°, width and height are exchanged when it is displayed. So the size that the
    annotations give tells which of the two was annotated.

    Args:
        image: encoded bytes of the image.
        size: width and height, in px, that the annotations give for the image.
        max_pixels: most pixels that the image may have.

    Returns:
        True if the image was annotated as stored, so its masks must be turned by `apply_orientation`. False if the masks fit the
        image as displayed.

    Raises:
        BadInput: if the image is unusable, or `size` is neither its stored nor its displayed size.
    """
    width, height = displayed_size(image, max_pixels)
    if size == (width, height):
        return False
    if size == (height, width) and _orientation(image) in (5, 6, 7, 8):
        return True
    raise BadInput(f"its annotations are for {size[0]}×{size[1]}, the image is {width}×{height} as displayed")


def apply_orientation(image: bytes, mask: np.ndarray) -> np.ndarray:
    """Rotate and mirror a mask in the way that the EXIF orientation of its image demands.

    Args:
        image: encoded bytes of the image.
        mask: uint8 or uint16 array (H, W) that fits the image as stored.

    Returns:
        Array of the same dtype that fits the image as displayed.
    """
    picture = Image.open(io.BytesIO(encode_mask(mask)))
    picture.getexif()[ExifTags.Base.Orientation] = _orientation(image)
    return np.asarray(ImageOps.exif_transpose(picture)).astype(mask.dtype)


def _orientation(image: bytes) -> int:
    """Read the EXIF orientation of an image.

    Args:
        image: encoded bytes of the image.

    Returns:
        A number from 1 to 8. It is 1 (displayed as stored) if the image has no EXIF orientation.
    """
    return int(Image.open(io.BytesIO(image)).getexif().get(ExifTags.Base.Orientation, 1))


def as_layout_file(image: bytes, name: str) -> tuple[bytes, str]:
    """Convert an image file to PNG unless its format is allowed in VOC's layout.

    Args:
        image: encoded bytes of the image.
        name: file name of the image, whose suffix tells its format.

    Returns:
        The bytes, unchanged for JPEG and PNG files, and their suffix in lower case: ".jpg", ".jpeg" or ".png".
    """
    suffix = PurePosixPath(name).suffix.lower()
    return (image, suffix) if suffix in _COPIED else (encode_mask(decode_image(image)), ".png")
