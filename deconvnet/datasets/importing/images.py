"""Read the files of a data set that is imported: images, texts and JSON."""

import json
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from infra import storage
from infra.errors import BadInput
from proposals.image_codec import decode_image, encode_png

_SAME_COLOUR = 24  # difference of two mean colours (0 to 255) that compressing an image again may cause
_COPIED = (".jpg", ".jpeg", ".png")  # images of these suffixes are copied byte for byte


class SourceImage(NamedTuple):
    """An image file of the source.

    Attributes:
        data: encoded bytes of the image.
        name: file name, whose suffix tells the format.
        remark: phrase about the image for the user, as in `AnnotatedImage`; "" if there is none.
    """

    data: bytes
    name: str
    remark: str = ""


def read_input(uri: str) -> bytes:
    """Read a file that belongs to one image. If that is impossible, raise BadInput, so that only this image is left out.

    Args:
        uri: path or URI of the file.

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
    """Read a text file. Its encoding is UTF-8, UTF-16, UTF-32 or one that the user named.

    Args:
        uri: path or URI of the file.
        encoding: name of the encoding of files that are in none of the three, such as "gbk". None to refuse such files.

    Returns:
        The text, without a byte order mark.

    Raises:
        BadInput: if the file can't be read, or has another encoding.
    """
    data = read_input(uri)
    unicode = json.detect_encoding(data)  # it looks at the byte order mark, or at the zeros of UTF-16 and UTF-32
    for name in filter(None, (unicode, encoding)):
        try:
            return data.decode(name)
        except UnicodeDecodeError as error:
            problem = f"byte {error.start} is not text in {name.removesuffix('-sig').upper()}"
    raise BadInput(f"{problem}: save the file in UTF-8, or name its encoding by --encoding (gbk, big5, cp1252 …)")


def read_json(uri: str, encoding: str | None = None) -> Any:
    """Read a JSON file.

    Args:
        uri: path or URI of the file.
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


def same_image(one: bytes, other: bytes) -> bool:
    """Return whether two files hold the same image. One of them may have been compressed again or turned upright.

    Args:
        one: encoded bytes of an image.
        other: encoded bytes of another image.

    Returns:
        True if the images have the same size as displayed, and the mean colours of all blocks of about 8×8 pixels are alike.
        False if one of them can't be decoded.
    """
    try:
        pictures = [Image.fromarray(decode_image(data)) for data in (one, other)]
    except BadInput:
        return False
    if pictures[0].size != pictures[1].size:
        return False
    grid = [max(1, side // 8) for side in pictures[0].size]
    blocks = [np.asarray(picture.resize((grid[0], grid[1]), Image.Resampling.BOX), np.int16) for picture in pictures]
    return bool(np.abs(blocks[0] - blocks[1]).max() <= _SAME_COLOUR)


def as_layout_file(image: bytes, name: str) -> tuple[bytes, str]:
    """Convert an image file to PNG unless its format is allowed in VOC's layout. Raise BadInput if it can't be decoded for this.

    Args:
        image: encoded bytes of the image.
        name: file name of the image, whose suffix tells its format.

    Returns:
        The bytes, unchanged for JPEG and PNG files, and their suffix in lower case: ".jpg", ".jpeg" or ".png".
    """
    suffix = PurePosixPath(name).suffix.lower()
    return (image, suffix) if suffix in _COPIED else (encode_png(decode_image(image)), ".png")
