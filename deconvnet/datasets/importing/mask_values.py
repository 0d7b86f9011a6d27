"""Reading the values in mask files, which are ids or colours, and finding out which of them are classes.

Two values that are neither ids nor colours mark pixels with alpha. `HIDDEN` (-1) marks transparent pixels, whatever value they
have. `SOFT` (-2) marks half transparent pixels along edges, as antialiasing leaves them.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from deconvnet.datasets.importing.dataset import BACKGROUND, BACKGROUND_NAMES, ImportOptions
from deconvnet.datasets.importing.table_text import TableRow
from deconvnet.datasets.palette import VOC_CLASSES, VOC_PALETTE
from deconvnet.datasets.validation.lossy_masks import is_lossy
from infra.errors import BadInput, UserError
from proposals.image_codec import DAMAGE_ERRORS, decode_alpha, decode_image, decode_mask
from proposals.masks import VOID_ID, void_id

HIDDEN, SOFT = -1, -2
_NEAR_COLOURS = 3  # two colours that differ by at most this in each channel may be meant as one
_SQUARE = np.ones((3, 3), np.uint8)
_MIN_TRANSITION_PIXELS = 20  # fewer transition pixels are ignored
_TRANSITION_SHARE = 0.2  # larger shares of the borders are suspicious: CamVid and VOC have under 4 %, resized masks 30 % or more


@dataclass(frozen=True)
class MaskValues:
    """The values that occur in a mask file.

    Attributes:
        are_colours: True if the values are colours, False if they are ids.
        pixels: number of pixels by value, in ascending order of the values. They are ids, or colours as R·65536 + G·256 + B, or
            `HIDDEN` or `SOFT`.
        blended: values that look like blends of their neighbours along edges (see `blended_ids`), among them `SOFT`.
        filling: values that fill a square of 3×3 px somewhere.
        transition_ids: ids that form a border one pixel wide between a lower and a higher id, as after interpolation.
        lossy: True if the values may have been changed by lossy compression (JPEG, lossy WebP).
        palette: colour of each id of a paletted mask, as R·65536 + G·256 + B; empty if the palette has only grey levels, or none.
    """

    are_colours: bool
    pixels: dict[int, int]
    blended: frozenset[int] = frozenset()
    filling: frozenset[int] = frozenset()
    transition_ids: frozenset[int] = frozenset()
    lossy: bool = False
    palette: Mapping[int, int] = field(default_factory=dict)

    @property
    def classes(self) -> set[int]:
        """Return the values in the mask without `HIDDEN` and `SOFT`, which stand for pixels with alpha."""
        return {value for value in self.pixels if value >= 0}


def read_mask_values(data: bytes, max_pixels: int, opaque: bool = False, as_colours: bool = False) -> MaskValues:
    """Find the values that occur in a mask file.

    Args:
        data: encoded bytes of the mask.
        max_pixels: largest number of pixels that the mask may have.
        opaque: True to ignore transparency.
        as_colours: True to read colours even from grey and paletted masks, which otherwise have ids.

    Returns:
        The ids in the mask, or the colours if it is a colour image, with their numbers of pixels.

    Raises:
        BadInput: if the mask can't be decoded, or is wholly transparent and yet has several values.
    """
    mask = None
    if not as_colours:
        try:
            mask = read_ids(data, max_pixels, opaque)
        except BadInput:
            if _is_grey(data):
                raise
    are_colours = mask is None
    mask = read_colours(data, max_pixels, opaque) if mask is None else mask
    pixels = _count(mask)
    visible = np.maximum(mask, 0)
    channels = unpack_colours(visible) if are_colours else visible.astype(np.uint16 if max(pixels) > VOID_ID else np.uint8)
    blended, filling = _find_blended(channels, visible, None if are_colours else void_id(channels))
    lossy = is_lossy(data) and (are_colours or not set(pixels) <= {0, VOID_ID})
    palette = {} if are_colours else _read_palette(data, list(pixels))
    transition_ids = frozenset[int]() if are_colours else _find_transitions(visible, void_id(channels))
    return MaskValues(are_colours, pixels, blended | ({SOFT} & set(pixels)), filling, transition_ids, lossy, palette)


def pack_colours(colours: np.ndarray) -> np.ndarray:
    """Convert colours, an integer array (…, 3) of R, G, B from 0 to 255, to an int32 array (…) of R·65536 + G·256 + B."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue)


def unpack_colours(values: np.ndarray) -> np.ndarray:
    """Convert an integer array (…) of colours as R·65536 + G·256 + B to a uint8 array (…, 3) of R, G, B."""
    return np.stack([values >> 16, values >> 8 & 255, values & 255], axis=-1).astype(np.uint8)


def _count(values: np.ndarray) -> dict[int, int]:
    """Return how often each value occurs in an integer array, in ascending order of the values."""
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _read_palette(data: bytes, ids: Sequence[int]) -> dict[int, int]:
    """Return the colour (R·65536 + G·256 + B) of each of `ids` in the palette of a mask, whose encoded bytes are `data`.

    The result is empty if the mask has no palette, or if the palette has only grey levels.
    """
    image = Image.open(io.BytesIO(data))
    if image.mode != "P" or image.format == "GIF":  # a GIF is read by its grey levels
        return {}
    colours = pack_colours(np.array(image.getpalette()).reshape(-1, 3)).tolist()
    found = {i: colours[i] for i in ids if 0 <= i < len(colours)}  # not HIDDEN
    return {} if all(colour == i * 0x010101 for i, colour in found.items()) else found


def read_ids(data: bytes, max_pixels: int, opaque: bool = False) -> np.ndarray:
    """Decode a mask file to ids.

    The ids are palette indices or grey levels. A colour image is accepted if all its visible pixels are grey.

    Args:
        data: encoded bytes of the mask.
        max_pixels: largest number of pixels that the mask may have.
        opaque: True to ignore transparency.

    Returns:
        int32 array (H, W) of ids, with `HIDDEN` and `SOFT` where pixels are transparent.

    Raises:
        BadInput: if the mask can't be decoded, has colours, or is wholly transparent and yet has several values.
    """
    try:
        ids = decode_mask(data, max_pixels)
        return _without_hidden(ids, data, max_pixels, opaque)
    except BadInput:
        if _is_grey(data):
            raise
        with suppress(BadInput):
            colours = read_colours(data, max_pixels, opaque)
            ids = colours & 255
            if (colours[colours >= 0] == (ids * 0x010101)[colours >= 0]).all():
                return np.where(colours < 0, colours, ids)
        raise


def _is_grey(data: bytes) -> bool:
    """Return whether a file is a grey image. If its levels are refused as ids, they must not be read as colours instead."""
    with suppress(*DAMAGE_ERRORS):
        return Image.open(io.BytesIO(data)).mode == "L"
    return False


def read_colours(data: bytes, max_pixels: int, opaque: bool = False) -> np.ndarray:
    """Decode a mask file to colours.

    Args:
        data: encoded bytes of the mask.
        max_pixels: largest number of pixels that the mask may have.
        opaque: True to ignore transparency.

    Returns:
        int32 array (H, W) of colours as R·65536 + G·256 + B, with `HIDDEN` and `SOFT` where pixels are transparent.

    Raises:
        BadInput: if the mask can't be decoded, its values are fractions, or it is wholly transparent and yet has several values.
    """
    image = decode_image(data, max_pixels)
    if Image.open(io.BytesIO(data)).mode == "F":
        raise BadInput("its values are fractions, which are neither ids nor colours")
    return _without_hidden(pack_colours(image), data, max_pixels, opaque)


def _without_hidden(values: np.ndarray, data: bytes, max_pixels: int, opaque: bool) -> np.ndarray:
    """Replace the values of transparent pixels by `HIDDEN` and `SOFT`.

    In a paletted image, each colour of the palette has an alpha of its own. So no pixel becomes `SOFT` there, and pixels with the
    id 255 (void) keep it even where they are transparent.

    Args:
        values: integer array (H, W) of the values in the mask.
        data: encoded bytes of the mask.
        max_pixels: largest number of pixels that the mask may have.
        opaque: True to ignore transparency.

    Returns:
        int32 array (H, W) of the values. They are `HIDDEN` where alpha is 0. They are `SOFT` where alpha has a level below 255
        that occurs only along edges, as it fills no square of 3×3 px.

    Raises:
        BadInput: if the whole mask is transparent, and yet has several values.
    """
    values = values.astype(np.int32)
    alpha = None if opaque else decode_alpha(data, max_pixels)
    if alpha is None or alpha.shape != values.shape:
        return values
    hidden = alpha == 0
    if hidden.all() and (count := len(np.unique(values))) > 1:
        raise BadInput(
            f"it is transparent everywhere, though it has {count:,} values: save it without alpha, or see --transparent"
        )
    if Image.open(io.BytesIO(data)).mode == "P":
        return np.where(hidden & (values != VOID_ID), HIDDEN, values)
    filling = _find_blended(alpha, alpha, None)[1] | {255}
    return np.where(hidden, HIDDEN, np.where(np.isin(alpha, list(filling)), values, SOFT))


def blended_ids(mask: np.ndarray, min_pixels: int = 20) -> list[int]:
    """Find the ids in a mask that look like blends of their neighbours rather than like classes.

    Resizing with interpolation, antialiasing and JPEG leave such ids along edges. An id looks blended if it nowhere fills a
    square of 3×3 px, and if at least half of its pixels have both a lower and a higher id beside them.

    Args:
        mask: uint8 or uint16 array (H, W) of ids.
        min_pixels: ids with fewer pixels are not considered; neither is void.

    Returns:
        The ids that look blended, in ascending order.
    """
    return sorted(_find_blended(mask, mask, void_id(mask), min_pixels)[0])


def _find_blended(
    channels: np.ndarray, values: np.ndarray, void: int | None, min_pixels: int = 20
) -> tuple[frozenset[int], frozenset[int]]:
    """Find the values in a mask that look like blends of their neighbours (see `blended_ids`).

    For a colour, each channel in which neighbouring pixels differ must have both a lower and a higher level beside it.

    Args:
        channels: uint8 or uint16 array (H, W) of ids, or uint8 array (H, W, 3) of colours.
        values: integer array (H, W) with the id or colour of each pixel as one number.
        void: the id that is void, and never a blend; None for colours.
        min_pixels: values with fewer pixels are not considered.

    Returns:
        The values that look blended, and the values that fill a square of 3×3 px somewhere.
    """
    lowest = cv2.erode(channels, _SQUARE)  # void is the highest id, so it never counts here
    highest = cv2.dilate(channels if void is None else np.where(channels == void, 0, channels).astype(channels.dtype), _SQUARE)
    same, inside = lowest == highest, (lowest < channels) & (channels < highest)
    if channels.ndim == 3:
        same, inside = same.all(axis=-1), (same | inside).all(axis=-1) & ~same.all(axis=-1)
    area, filling = _count(values), frozenset(_count(values[same]))
    between = _count(values[inside]).items()
    blended = (i for i, count in between if i != void and i not in filling and area[i] >= min_pixels and 2 * count >= area[i])
    return frozenset(blended), filling


def _find_transitions(ids: np.ndarray, void: int) -> frozenset[int]:
    """Find the ids that lie one pixel wide between a lower and a higher id, as resizing by interpolation puts 1 between 0 and 2.

    Args:
        ids: int32 array (H, W) of ids.
        void: the id that is void, which is ignored.

    Returns:
        The ids. No ids if there are fewer than 20 such pixels, or 4 times as many adjacent pixels that differ by more than 1.
    """
    found, jumps = [], 0
    for mask in (ids, ids.T):
        left, middle, right = mask[:, :-2], mask[:, 1:-1], mask[:, 2:]
        between = ((left < middle) & (middle < right) & (right != void)) | ((left > middle) & (middle > right) & (left != void))
        found += middle[between].tolist()
        first, second = mask[:, :-1], mask[:, 1:]
        jumps += int(((np.abs(first - second) > 1) & (first != void) & (second != void)).sum())
    enough = len(found) >= _MIN_TRANSITION_PIXELS and len(found) > _TRANSITION_SHARE * (len(found) + jumps)
    return frozenset(found if enough else ())


def rows_of_colours(values: Sequence[int], background: str | None) -> tuple[list[TableRow], str]:
    """Infer the rows of a class table from the colours in the masks. Return them, and a sentence for the user that says how.

    If all are colours of VOC's palette, the classes are VOC's. Otherwise black is background, and each other colour is a class.

    Args:
        values: the colours as R·65536 + G·256 + B, in ascending order.
        background: the option `--background`, which names another background; None if not given. If given, black is a class too.
    """
    ids = [*range(len(VOC_CLASSES)), VOID_ID]
    colours = pack_colours(VOC_PALETTE[ids]).tolist()
    if set(values) <= set(colours):
        rows = [TableRow(name, colour, True) for name, colour in zip([*VOC_CLASSES, "void"], colours, strict=True)]
        return rows, "the colours are PASCAL VOC's, so its class names were taken"
    zero = "colour_000000" if background else BACKGROUND
    rows = [TableRow(f"colour_{value:06x}", value, True) for value in values if value]
    sentence = f"each colour found was taken for a class, black for {zero}"
    channels = unpack_colours(np.array(values)).astype(int)
    near = np.abs(channels[:, None] - channels[None]).max(axis=-1) <= _NEAR_COLOURS
    if pairs := np.argwhere(np.triu(near, 1)).tolist():
        first, second = (f"#{values[i]:06x}" for i in pairs[0])
        sentence += f"; {first} and {second} are almost equal: if they are one class, give its name to both by --table"
    return [TableRow(zero, 0, True), *rows], sentence


def rows_of_ids(values: Sequence[int], background: str | None) -> tuple[list[TableRow], str]:
    """Infer the rows of a class table from the ids in the masks. Return them, and a sentence for the user that says how.

    If the masks have no other ids than 0 and 255, then 255 is the only class. Otherwise 0 is background, 255 is void, and each
    other id is a class.

    Args:
        values: the ids, in ascending order.
        background: the option `--background`, which names another background; None if not given. If given, 0 is a class too.
    """
    zero = "id_0" if background else BACKGROUND
    if set(values) <= {0, VOID_ID}:
        rows = [TableRow(zero, 0, False), TableRow("object", VOID_ID, False)]
        return rows, "the masks have only the values 0 and 255: 255 was taken for the one class, not for void"
    rows = [TableRow(f"id_{value}", value, False) for value in values if value not in (0, VOID_ID)]
    return [TableRow(zero, 0, False), *rows], f"each id found was taken for a class, 0 for {zero}, 255 for void"


def rows_of_names(options: ImportOptions, values: Sequence[int]) -> list[TableRow]:
    """Make the rows of a class table from the option `--classes`, whose names belong to the ids 0, 1, 2 and so on.

    Args:
        options: options of the import; `classes` are the names, and `unknown_void` allows values without a name.
        values: the ids in the masks, in ascending order.

    Returns:
        The rows, a class name and its id each. If the masks have only the ids 0 and 255, the second of two names belongs to 255.
        If there is only one name, it belongs to the one other id beside 0, which must be 1 or 255.

    Raises:
        UserError: if there are only 0 and 255 for more than two names, or a value has no name. The latter is allowed if
            `unknown_void` is True or the first name means background.
    """
    names, found = options.classes, sorted({0, *values})
    binary = len(found) == 2 and len(names) <= 2 and found[1] in (1, VOID_ID)
    if binary:
        return [TableRow(name, value, False) for name, value in zip(names[::-1], found[::-1], strict=False)][::-1]
    rows = [TableRow(name, i, False) for i, name in enumerate(names)]
    unnamed = [value for value in values if value >= len(names) and value != VOID_ID]
    only_void = found == [0, VOID_ID]
    if only_void or (unnamed and not options.unknown_void and names[0].lower() not in BACKGROUND_NAMES):
        shown = ", ".join(map(str, values[:20])) + (", …" if len(values) > 20 else "")
        raise UserError(
            f"--classes names the ids 0 to {len(names) - 1} ({', '.join(f'{name} = {i}' for i, name in enumerate(names[:20]))}), "
            f"and the masks have the values {shown}: name all ids from 0 on, background included, or give --table"
        )
    return rows
