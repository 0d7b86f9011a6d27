"""The table that says which class each value in a folder of masks stands for. It is read from a file or inferred from the masks.

The file is text. Each line has a class name and its value, in either order. The value is an id or a colour:

    road, 7
    road: 128,64,128
    128 64 128 road
    road #804080

CVAT's labelmap.txt and CamVid's label_colors.txt can be read as they are. Empty lines, comments (# and a blank) and the heading
`name,id` are ignored. The name `void` (or unlabelled, ignore) means void, and `background` means id 0. The other classes get ids
from 1, in the order of the lines.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deconvnet.datasets.importing.dataset import BACKGROUND
from deconvnet.datasets.importing.mask_values import MaskValues, read_colours, read_ids
from deconvnet.datasets.palette import VOC_CLASSES, VOC_PALETTE
from infra.errors import BadInput, UserError
from proposals.masks import VOID_ID

_VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore", "__ignore__", "ignored")
_COLOUR = r"\#[0-9a-fA-F]{6}|\d{1,3}[\s,;]+\d{1,3}[\s,;]+\d{1,3}"
_NAME_FIRST = re.compile(rf"(?P<name>.*?[^\s,;:=])[\s,;:=]+(?P<value>{_COLOUR}|\d{{1,5}})\s*(?:[:,;].*)?")
_VALUE_FIRST = re.compile(rf"(?P<value>{_COLOUR}|\d{{1,5}})[\s,;:=]+(?P<name>\D.*?)\s*")
_HEADINGS = ("name,id", "name,value")


@dataclass(frozen=True)
class ClassTable:
    """The class id of each value that occurs in masks.

    Attributes:
        classes: class names by id; the first is background.
        id_of_value: class id (255 for void) by mask value. The values are ids, or colours as R·65536 + G·256 + B.
        has_colours: True if the values are colours, False if they are ids.
        inferred: sentence for the user that tells how the table was inferred; empty if it was given.
    """

    classes: tuple[str, ...]
    id_of_value: Mapping[int, int]
    has_colours: bool
    inferred: str = ""

    def read_class_mask(self, data: bytes, unknown_void: bool, max_pixels: int) -> np.ndarray:
        """Decode a mask file and convert its values to class ids.

        Args:
            data: encoded bytes of the mask.
            unknown_void: True to turn values that are not in the table into void, False to refuse them.
            max_pixels: most pixels that the mask may have.

        Returns:
            uint8 array (H, W) of class ids; 255 is void.

        Raises:
            BadInput: if the mask can't be decoded, or a value is refused.
        """
        mask = read_colours(data, max_pixels) if self.has_colours else read_ids(data, max_pixels)
        values = np.array(sorted(self.id_of_value), np.int64)
        ids = np.array([self.id_of_value[value] for value in values.tolist()], np.uint8)
        index = np.searchsorted(values, mask).clip(max=len(values) - 1)
        known = values[index] == mask
        if not unknown_void and not known.all():
            raise BadInput(self._describe_unknown(mask[~known], mask.size))
        return np.where(known, ids[index], VOID_ID).astype(np.uint8)

    def _describe_unknown(self, unknown: np.ndarray, pixels: int) -> str:
        """Describe the pixels of a mask whose values are not in the table.

        Args:
            unknown: array (N,) with the values of these pixels; at least one.
            pixels: number of pixels of the whole mask, from which the share is computed.

        Returns:
            A sentence for the user with their share of the mask and their commonest value.
        """
        values, counts = np.unique(unknown, return_counts=True)
        commonest = self._format_value(int(values[counts.argmax()]))
        more = f" and {len(values) - 1} more" if len(values) > 1 else ""
        question = " (has it been resized, or saved as JPEG?)" if len(values) > 3 else ""
        return f"{100 * unknown.size / pixels:.2g} % of the mask has no class: {commonest}{more}{question}"

    def _format_value(self, value: int) -> str:
        """Write a mask value as text for the user.

        Args:
            value: an id, or a colour as R·65536 + G·256 + B.

        Returns:
            The text, such as "id 7" or "#804080".
        """
        return f"#{value:06x}" if self.has_colours else f"id {value}"

    def to_text(self) -> str:
        """Write the table as text that `read_table` can read.

        Returns:
            One line for each mask value, with its class name and the value.
        """
        names = {**dict(enumerate(self.classes)), VOID_ID: "void"}
        rows = sorted((class_id, value) for value, class_id in self.id_of_value.items())
        return "".join(f"{names[class_id]}, {self._format_value(value).removeprefix('id ')}\n" for class_id, value in rows)


def read_table(text: str, name: str) -> ClassTable:
    """Read a class table from the text of a file.

    Args:
        text: content of the file, in the form described at the top of this module.
        name: name of the file, for error messages.

    Returns:
        The table. If its values are ids, then 0 is background and 255 is void, unless the text gives them another class.

    Raises:
        UserError: if a line is not a class and a value, a value has two classes, ids and colours are mixed, there is no class
            beside background and void, or there are more than 255 classes.
    """
    classes = [BACKGROUND]
    id_of_value: dict[int, int] = {}
    kinds: set[bool] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line == "#" or line.startswith(("# ", "#\t")) or line.lower().replace(" ", "") in _HEADINGS:
            continue
        match = _NAME_FIRST.fullmatch(line) or _VALUE_FIRST.fullmatch(line)
        parsed = _parse_value(match["value"]) if match else None
        if match is None or parsed is None:
            raise UserError(f"{name}, line {number}: {line!r} is no class and value; write `road, 7` or `road, 128 64 128`")
        value, is_colour = parsed
        kinds.add(is_colour)
        class_id = _class_id(match["name"].strip(), classes)
        if id_of_value.setdefault(value, class_id) != class_id:
            raise UserError(f"{name}, line {number}: the value {match['value']} stands for two classes")
    if len(kinds) != 1 or len(classes) < 2:
        what = "mixes ids and colours" if len(kinds) > 1 else "names no class beside background and void"
        raise UserError(f"{name} {what}: each line is a class and its id, or each a class and its colour")
    if len(classes) > VOID_ID:
        raise UserError(f"{name} names {len(classes)} classes, at most {VOID_ID} are possible")
    has_colours = kinds.pop()
    if not has_colours:
        id_of_value = {0: 0, VOID_ID: VOID_ID, **id_of_value}
    return ClassTable(tuple(classes), id_of_value, has_colours)


def _parse_value(text: str) -> tuple[int, bool] | None:
    """Parse a value of a class table, which is an id or a colour.

    Args:
        text: the value: an id as "7", or a colour as "#804080" or "128,64,128".

    Returns:
        The value (a colour as R·65536 + G·256 + B), and whether it is a colour (True) or an id (False). None if a channel of the
        colour is over 255.
    """
    if text.startswith("#"):
        return int(text[1:], 16), True
    numbers = [int(each) for each in re.findall(r"\d+", text)]
    if len(numbers) == 1:
        return numbers[0], False
    return (numbers[0] << 16 | numbers[1] << 8 | numbers[2], True) if max(numbers) < 256 else None


def _class_id(name: str, classes: list[str]) -> int:
    """Return the id of a class, and append the class to the list if it is new.

    Args:
        name: name of the class; names of void, such as "ignore", give 255, and "background" gives 0.
        classes: class names by id, background first; a new name is appended.

    Returns:
        The class id.
    """
    if name.lower() in _VOID_NAMES:
        return VOID_ID
    if name.lower() == BACKGROUND:
        return 0
    if name not in classes:
        classes.append(name)
    return classes.index(name)


def infer_table(masks: Sequence[MaskValues], names: Sequence[str]) -> ClassTable:
    """Infer the class table from the values of all masks.

    Args:
        masks: the set of values that occur in each mask.
        names: class names by id, background first, if the user gave them. If empty, the names are inferred as well.

    Returns:
        The table. Unless `names` were given, it has a sentence for the user that tells how it was inferred.

    Raises:
        UserError: if names are given and the masks have colours, or if the values don't look like those of classes.
    """
    has_colours = any(mask.are_colours for mask in masks)
    # A mask that is all 0 is read as ids; among colour masks it is black.
    values = sorted({int(v) for mask in masks if mask.are_colours == has_colours or not mask.values.any() for v in mask.values})
    if names:
        if has_colours:
            raise UserError("the masks are colour images: give the colour of each class by --table (`road, 128 64 128`)")
        return ClassTable(tuple(names), {**{i: i for i in range(len(names))}, VOID_ID: VOID_ID}, False)
    if len(values) > 255 or 2 * sum(mask.blended for mask in masks) > len(masks):
        raise UserError(
            f"the masks have {len(values):,} {'colours' if has_colours else 'ids'}, too many for classes, or values such as blending "
            "along edges leaves: were they resized, or saved as JPEG? Name the classes by --table, and see --strange"
        )
    return _infer_from_colours(values) if has_colours else _infer_from_ids(values)


def _infer_from_colours(values: Sequence[int]) -> ClassTable:
    """Infer a class table from the colours in the masks.

    If all are colours of VOC's palette, the classes are VOC's. Otherwise black is background, and each other colour is a class.

    Args:
        values: the colours as R·65536 + G·256 + B, in ascending order.

    Returns:
        The table, with a sentence for the user that tells how it was inferred.
    """
    ids = [*range(len(VOC_CLASSES)), VOID_ID]
    voc = {int(r) << 16 | int(g) << 8 | int(b): i for i, (r, g, b) in zip(ids, VOC_PALETTE[ids].tolist(), strict=True)}
    if set(values) <= set(voc):
        return ClassTable(VOC_CLASSES, voc, True, "the colours are PASCAL VOC's, so its class names were taken")
    names = {value: f"colour_{value:06x}" for value in values if value}
    return _one_class_each(names, {0: 0}, True, "each colour found was taken for a class, black for background")


def _infer_from_ids(values: Sequence[int]) -> ClassTable:
    """Infer a class table from the ids in the masks.

    If the masks have no other ids than 0 and 255, then 255 is the only class. Otherwise 0 is background, 255 is void, and each
    other id is a class.

    Args:
        values: the ids, in ascending order.

    Returns:
        The table, with a sentence for the user that tells how it was inferred.
    """
    if set(values) <= {0, VOID_ID}:
        sentence = "the masks have only the values 0 and 255: 255 was taken for the one class, not for void"
        return _one_class_each({VOID_ID: "object"}, {0: 0}, False, sentence)
    names = {value: f"id_{value}" for value in values if value not in (0, VOID_ID)}
    sentence = "each id found was taken for a class, 0 for background, 255 for void"
    return _one_class_each(names, {0: 0, VOID_ID: VOID_ID}, False, sentence)


def _one_class_each(names: Mapping[int, str], others: Mapping[int, int], has_colours: bool, inferred: str) -> ClassTable:
    """Make a table in which each of some values is a class of its own. The classes get ids from 1, in the order of the values.

    Args:
        names: class name by value.
        others: id (0 for background or 255 for void) of the values that are no class.
        has_colours: True if the values are colours, False if they are ids.
        inferred: sentence for the user that tells how the table was inferred.
    """
    id_of_value = {**others, **{value: i for i, value in enumerate(names, start=1)}}
    return ClassTable((BACKGROUND, *names.values()), id_of_value, has_colours, inferred)
