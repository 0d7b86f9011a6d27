"""Decoding photographs and masks of any kind, or saying why not.

Pillow, because it keeps a paletted PNG's indices and reads EXIF, CMYK and 16-bit files; numpy arrays come out.
"""

import io
import struct
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from infra.errors import BadInput

_EXIF_FAULTS = (struct.error, TypeError, OSError, ValueError, SyntaxError)
Image.MAX_IMAGE_PIXELS = None  # the bound is ours, a setting, and is checked before decoding


def _open(data: bytes, max_pixels: int | None) -> Image.Image:
    if not data:
        raise BadInput("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise BadInput("not an image") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise BadInput(f"can't be opened: {error}") from None
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise BadInput(f"{image.width}×{image.height} is larger than {max_pixels:,} pixels")
    return image


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadInput(f"truncated or damaged: {error}") from None


def decode_image(data: bytes, max_pixels: int | None = None) -> np.ndarray:
    """A photograph's bytes as displayed: uint8 H×W×3, RGB, EXIF orientation applied; grey, CMYK, 16-bit and alpha converted.

    Raises BadInput with the reason.
    """
    image = _open(data, max_pixels)
    _load(image)
    try:
        image = ImageOps.exif_transpose(image)
    except _EXIF_FAULTS as error:
        raise BadInput(f"damaged EXIF data: {error}") from None
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image).astype(np.float64)
        peak = 65535.0 if grey.max(initial=0) > 255 else 255.0
        return np.repeat(np.clip(np.rint(grey * (255 / peak)), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB")).copy()


def image_size(data: bytes, max_pixels: int | None = None) -> tuple[int, int]:
    """Width and height of a photograph as displayed, having read it to its end. Raises BadInput as `decode_image` would.

    JPEGs are decoded at an eighth of their size, so a large one costs little memory.
    """
    image = _open(data, max_pixels)
    width, height = image.size
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        # Turned or not, what `decode_image` will do must be possible, so it is tried on a small copy.
        small = Image.new("L", (1, 1))
        small.info |= image.info
        ImageOps.exif_transpose(small)
    except _EXIF_FAULTS as error:
        raise BadInput(f"damaged EXIF data: {error}") from None
    image.draft(None, (max(1, width // 8), max(1, height // 8)))
    _load(image)
    if image.mode == "LAB":
        raise BadInput("its colours are LAB; save it as RGB")
    return (height, width) if turned else (width, height)


def decode_mask(data: bytes, max_pixels: int | None = None) -> np.ndarray:
    """A mask's ids: uint8 or uint16 H×W (palette indices or grey levels).

    Raises BadInput with the reason: damaged, or a colour image whose colours are no ids.
    """
    image = _open(data, max_pixels)
    _load(image)
    if image.mode in ("P", "L"):
        return np.asarray(image).copy()
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)
    raise BadInput(f"a mask must be a paletted or grey PNG, this one is {image.mode}")


def encode_mask(mask: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """PNG of uint8 or uint16 ids H×W; with `palette` (uint8 256×3, RGB; uint8 ids only) a paletted one."""
    image = Image.fromarray(mask)
    if palette is not None:
        image = image.convert("P") if image.mode != "P" else image
        image.putpalette(palette.astype(np.uint8).tobytes())
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """JPEG (no chroma subsampling) of uint8 H×W×3, RGB."""
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=quality, subsampling=0)
    return sink.getvalue()
