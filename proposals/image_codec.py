"""Decode and encode images and masks.

`decode_image` and `decode_mask` read files of any origin. They use Pillow, because it keeps the indices of paletted PNGs, reads
EXIF, CMYK and 16-bit files, and reports truncated files. `decode_example` reads training crops, which this package has written
itself. It uses OpenCV, which gives the same pixels 1.4 to 2.7 times as fast but accepts truncated files.
"""

import io
import struct
import warnings
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from infra.errors import BadInput
from proposals.masks import VOID_ID, VOID_ID_16BIT, check_image

_WHITES = (255, 1023, 4095, 65535)  # brightest values of images of 8, 10, 12 and 16 bits
_BUGS = (TypeError, AttributeError, ArithmeticError, RuntimeError)  # Pillow's own, for damaged metadata and AVIF files
DAMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, *_BUGS)
"""What Pillow raises for damaged files."""
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit; ours is an argument, checked before decoding


def decode_image(data: bytes, max_pixels: int | None = None) -> np.ndarray:
    """Decode an image as it should be displayed.

    The EXIF orientation is applied. Grey, CMYK and 16-bit images are converted to RGB, and transparency is dropped. Grey values
    of more than 8 bits are scaled to 0–255 from the smallest usual range that holds them: 8, 10, 12 or 16 bits, or 0 to 1.

    Args:
        data: content of the file, in any format that Pillow reads.
        max_pixels: largest number of pixels that is accepted; None for no limit.

    Returns:
        uint8 array (H, W, 3), RGB.

    Raises:
        BadInput: if the file is not an image, is damaged or is too large, or it is unclear which of its values means white. The
            message says which.
    """
    image = _open(data, max_pixels)
    deep = _has_16_bit_colours(image)
    _load(image)
    return _to_rgb(_turn_upright(image), deep)


def image_size(data: bytes, max_pixels: int | None = None) -> tuple[int, int]:
    """Return the width and height of an image as displayed, after checking that `decode_image` can decode it.

    The file is read to its end to find damage. JPEGs are decoded at an eighth of their size, so that large ones take little
    memory.

    Args:
        data: content of the file.
        max_pixels: largest number of pixels that is accepted; None for no limit.

    Returns:
        (width, height) in pixels, after the EXIF orientation has been applied.

    Raises:
        BadInput: whenever `decode_image` would raise it.
    """
    image = _open(data, max_pixels)
    deep = _has_16_bit_colours(image)
    width, height = image.size
    image.draft(None, (max(1, width // 8), max(1, height // 8)))
    _load(image)
    probe = Image.new("L", (1, 2))  # is turned in place of the image, whose pixels are not needed
    probe.info |= image.info
    rotated = _turn_upright(probe).size == (2, 1)
    if deep or image.mode.startswith(("I", "F")):
        _to_rgb(image, deep)
    if image.mode == "LAB":
        raise BadInput("its colours are LAB; save it as RGB")
    if image.format == "TIFF":
        return image.size  # Pillow has applied the orientation already
    return (height, width) if rotated else (width, height)


def decode_mask(data: bytes, max_pixels: int | None = None) -> np.ndarray:
    """Decode a mask of ids, which are the palette indices or grey levels of the image.

    For a GIF, the ids are always the grey levels, because programs that write GIFs renumber the palette. The orientation of a
    TIFF is applied; EXIF data of other files are ignored.

    Args:
        data: content of the file, a paletted or grey image.
        max_pixels: largest number of pixels that is accepted; None for no limit.

    Returns:
        uint8 array (H, W), or uint16 for 16-bit files.

    Raises:
        BadInput: if the file is not an image, is damaged or too large, holds colours instead of ids or ids beyond 16 bits, or is
            grey with 2 or 4 bits and has other values than 0. The message says which.
    """
    image = _open(data, max_pixels)
    bits = next((few for few in (2, 4) if _is_stored_as(image, f"L;{few}")), None)
    _load(image)
    if bits and image.getextrema() != (0, 0):
        # Pillow scales the values to 0–255, as the format demands, but some programs store ids, and others reduce 8-bit ids.
        ids, step = 2**bits - 1, 255 // (2**bits - 1)
        raise BadInput(
            f"it is grey with {bits} bits, so its ids may be 0, 1, … {ids} or 0, {step}, … 255: save it with 8 bits, or paletted"
        )
    if image.format == "GIF" and image.mode == "P":
        colours = np.asarray(image.convert("RGB"))
        if (colours != colours[..., :1]).any():
            raise BadInput("a GIF mask must be grey, this one has colours")
        return colours[..., 0].copy()
    if image.mode in ("P", "L"):
        return np.asarray(image).copy()
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode.startswith("I"):
        ids = np.asarray(image)
        if ids.min(initial=0) < 0 or ids.max(initial=0) > VOID_ID_16BIT:
            raise BadInput(f"its ids run from {ids.min()} to {ids.max()}, and 0 to {VOID_ID_16BIT:,} are possible")
        return ids.astype(np.uint16)
    if image.mode == "F":
        floats = np.asarray(image)
        if not ((floats >= 0) & (floats <= VOID_ID_16BIT) & (floats == np.rint(floats))).all():
            raise BadInput("its values are floats, and not all are whole numbers from 0 to 65,535, which ids are")
        return floats.astype(np.uint8 if floats.max(initial=0) <= VOID_ID else np.uint16)
    raise BadInput(f"a mask must be a paletted or grey PNG, this one is {image.mode}")


def decode_alpha(data: bytes, max_pixels: int | None = None) -> np.ndarray | None:
    """Decode the transparency of an image, with its EXIF orientation applied.

    A file stores transparency as an alpha channel, as the alpha of each colour of its palette, or as one transparent colour.

    Args:
        data: content of the file.
        max_pixels: largest number of pixels that is accepted; None for no limit.

    Returns:
        uint8 array (H, W), 0 where the image is transparent and 255 where it is opaque. None if the file has no transparency.

    Raises:
        BadInput: if the file is not an image, is damaged or is too large.
    """
    image = _open(data, max_pixels)
    if not image.has_transparency_data or image.mode.startswith("I"):
        return None
    _load(image)
    return np.asarray(_turn_upright(image).convert("RGBA"))[..., 3].copy()


def decode_example(image: bytes, mask: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decode a training crop and its mask from a row of an `examples` table (the table of training crops).

    Args:
        image: content of the crop's JPEG file.
        mask: content of the mask's PNG file.

    Returns:
        image: uint8 array (S, S, 3), RGB.
        mask: uint8 array (S, S) of class ids.

    Raises:
        BadInput: if they cannot be decoded or differ in size.
    """
    try:
        rgb = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
        ids = cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # raised for no bytes at all; other damage gives None
        rgb = ids = None
    if rgb is None or ids is None or ids.ndim != 2 or ids.dtype != np.uint8 or ids.shape != rgb.shape[:2]:
        raise BadInput("an example's image and mask cannot be decoded to the same size")
    return rgb, ids


def encode_mask(mask: np.ndarray, palette: np.ndarray | None = None, comment: str = "", level: int = 6) -> bytes:
    """Encode a mask of ids as a PNG file.

    Args:
        mask: uint8 or uint16 array (H, W).
        palette: uint8 array (256, 3) of RGB colours by id, to make a paletted PNG (uint8 masks only); None to make a grey one.
        comment: text to store in the file.
        level: compression level of zlib, from 0 to 9 (slow).

    Returns:
        The content of the file.

    Raises:
        ValueError: if the mask has another dtype or shape, or a palette is given for a uint16 mask.
    """
    if mask.ndim != 2 or mask.dtype not in (np.uint8, *(() if palette is not None else (np.uint16,))):
        expected = "uint8 or uint16" if palette is None else "uint8, as palettes have 256 colours,"
        raise ValueError(f"mask is {mask.dtype} {mask.shape}; expected ids, {expected} (H, W)")
    image = Image.fromarray(mask)
    if palette is not None:
        image = image.convert("P") if image.mode != "P" else image
        image.putpalette(palette.astype(np.uint8).tobytes())
    info = PngInfo()
    if comment:
        info.add_text("Comment", comment)
    return _file_content(image, "PNG", pnginfo=info, compress_level=level)


def encode_png(image: np.ndarray) -> bytes:
    """Encode an image as a PNG file, without loss.

    Args:
        image: uint8 array (H, W, 3), RGB.

    Returns:
        The content of the file.

    Raises:
        ValueError: if the image has another dtype or shape.
    """
    check_image(image)
    return _file_content(Image.fromarray(image), "PNG")


def encode_jpeg(image: np.ndarray, quality: int = 95, comment: str = "") -> bytes:
    """Encode an image as a JPEG file without chroma subsampling.

    Args:
        image: uint8 array (H, W, 3), RGB.
        quality: JPEG quality from 1 to 100.
        comment: text to store in the file.

    Returns:
        The content of the file.

    Raises:
        ValueError: if the image has another dtype or shape.
    """
    check_image(image)
    return _file_content(Image.fromarray(image), "JPEG", quality=quality, subsampling=0, comment=comment)


def _file_content(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return the content of a file that holds an image, in a format and with options as Pillow's `Image.save` takes them."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _open(data: bytes, max_pixels: int | None) -> Image.Image:
    """Read the header of an image file, without decoding its pixels.

    Args:
        data: content of the file.
        max_pixels: largest number of pixels that is accepted; None for no limit.

    Returns:
        The image; its pixels are decoded later, by `_load`.

    Raises:
        BadInput: if the file is empty, is not an image, or has too many pixels or several frames.
    """
    if not data:
        raise BadInput("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            frames = _count_frames(data, image.format)
    except UnidentifiedImageError:
        raise BadInput("not an image") from None
    except DAMAGE_ERRORS as error:
        raise BadInput(f"can't be opened: {error}") from None
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise BadInput(f"{image.width}×{image.height} is larger than {max_pixels:,} pixels")
    if frames > 1:
        raise BadInput(f"a {image.format} of {frames} frames; save the frame that is meant as PNG")
    return image


def _count_frames(data: bytes, kind: str | None) -> int:
    """Return the number of frames of a GIF, TIFF, PNG, WebP or AVIF. `kind` is the format of the file.

    The result is 1 for a TIFF whose second frame has another size, because that is a thumbnail. It is also 1 for damaged files,
    and for files of other formats, such as a camera's JPEG with a preview.
    """
    if kind not in ("GIF", "TIFF", "PNG", "WEBP", "AVIF"):
        return 1
    image = Image.open(io.BytesIO(data))  # a damaged frame would change the state of the image that is to be decoded
    try:
        frames, size = int(getattr(image, "n_frames", 1)), image.size
        if frames > 1 and kind == "TIFF":
            image.seek(1)
            frames = frames if image.size == size else 1
    except DAMAGE_ERRORS:
        return 1
    return frames


def _has_16_bit_colours(image: Image.Image) -> bool:
    """Tell whether an opened image, not loaded yet, has 16 bits per colour channel. Pillow keeps only the upper 8 of them."""
    return not image.mode.startswith("I") and _is_stored_as(image, ";16")


def _is_stored_as(image: Image.Image, raw_mode: str) -> bool:
    """Return whether the pixel mode in an image's file has a name that contains `raw_mode`. The image must not be loaded yet."""
    return any(raw_mode in str(tile[3]) for tile in getattr(image, "tile", ()))


def _turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of an image. Raise BadInput if its EXIF data, which is rewritten for this, is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGE_ERRORS as error:
        raise BadInput(f"damaged EXIF data: {error}") from None


def _to_rgb(image: Image.Image, deep: bool) -> np.ndarray:
    """Convert a decoded image to RGB.

    Args:
        image: image with its pixels in memory.
        deep: True if the file has 16 bits per colour channel, of which Pillow has kept only the upper 8.

    Returns:
        uint8 array (H, W, 3), RGB.

    Raises:
        BadInput: if it is unclear which of the image's values means white.
    """
    if not image.mode.startswith(("I", "F")):
        rgb = np.asarray(image.convert("RGB")).copy()
        if deep and 0 < rgb.max(initial=0) <= 4095 >> 8:
            raise BadInput(
                "its colours have 16 bits and use 12 of them at most, so it would be black: save it with 8 bits a colour"
            )
        return rgb
    grey = np.asarray(image).astype(np.float64)
    low, high = float(grey.min(initial=0)), float(grey.max(initial=0))
    fractions = image.mode.startswith("F") and high <= 1.001
    white = 1 if fractions else next((white for white in _WHITES if high <= white), None)
    unclear = image.mode.startswith("F") and not fractions and high < 16  # neither 0–1 nor 0–255
    if white is None or unclear or low < (-0.001 if fractions else 0) or not np.isfinite(grey).all():
        raise BadInput(f"its values run from {low:g} to {high:g}, so it is unclear which is white: save it with 8 bits a colour")
    return np.repeat(np.clip(np.rint(grey * (255 / white)), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _load(image: Image.Image) -> None:
    """Decode the pixels of an image opened by `_open`, in place. Raise BadInput if the file is truncated or damaged."""
    try:
        image.load()
    except DAMAGE_ERRORS as error:
        raise BadInput(f"truncated or damaged: {error}") from None
