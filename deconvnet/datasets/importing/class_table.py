"""What the values in masks mean: a table of class names by id or by colour, given, or inferred from the masks.

A line names a class and its value, in either order: `road, 7`, `road: 128,64,128`, `128 64 128 road`, `road #804080`. CVAT's
labelmap.txt and CamVid's label_colors.txt read as they are. Empty lines and those that begin with # are passed over; the class
`void` (or unlabelled, ignore) is void, `background` is id 0, and the others count from 1 in the order of the lines.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deconvnet.datasets.importing.source import BACKGROUND
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.datasets.validation.measure import soft_ids
from infra.errors import BadInput, UserError
from proposals.image_codec import decode_image, decode_mask
from proposals.masks import VOID_ID

_VOIDS = ("void", "unlabelled", "unlabeled", "ignore", "__ignore__", "ignored")
_COLOUR = r"\#[0-9a-fA-F]{6}|\d{1,3}[\s,;]+\d{1,3}[\s,;]+\d{1,3}"
_NAME_FIRST = re.compile(rf"(?P<name>.*?[^\s,;:=])[\s,;:=]+(?P<value>{_COLOUR}|\d{{1,5}})\s*(?:[:,;].*)?")
_VALUE_FIRST = re.compile(rf"(?P<value>{_COLOUR}|\d{{1,5}})[\s,;:=]+(?P<name>\D.*?)\s*")
_VOC_COLOURS = 21


@dataclass(frozen=True)
class Labels:
    """Classes (background first) and what each mask value is: an id 0–254, or 255 for void.

    values: int64 (n,), rising: ids, or colours as R·65536 + G·256 + B; ids: uint8 (n,); colours: which of the two; inferred: how,
    in words for a person, empty where the table was given.
    """

    classes: tuple[str, ...]
    values: np.ndarray
    ids: np.ndarray
    colours: bool
    inferred: str = ""

    @classmethod
    def of(cls, classes: Sequence[str], meaning: Mapping[int, int], colours: bool, inferred: str = "") -> "Labels":
        values = np.array(sorted(meaning), np.int64)
        return cls(tuple(classes), values, np.array([meaning[v] for v in values.tolist()], np.uint8), colours, inferred)

    def classes_of(self, data: bytes, strange_void: bool, max_pixels: int) -> np.ndarray:
        """The class mask (uint8 H×W, 255 void) of a mask file. Raises BadInput; `strange_void` makes unknown values void."""
        raw = _colours(data, max_pixels) if self.colours else _ids(data, max_pixels)
        place = np.searchsorted(self.values, raw).clip(max=len(self.values) - 1)
        known = self.values[place] == raw
        if not strange_void and not known.all():
            values, counts = np.unique(raw[~known], return_counts=True)
            most, share = int(values[counts.argmax()]), (~known).mean()
            more = f" and {len(values) - 1} more" if len(values) > 1 else ""
            raise BadInput(
                f"{100 * share:.2g} % of the mask has no class: {self.shown(most)}{more}"
                f"{' (has it been resized, or saved as JPEG?)' if len(values) > 3 else ''}"
            )
        return np.where(known, self.ids[place], VOID_ID).astype(np.uint8)

    def shown(self, value: int) -> str:
        """A value as a person writes it."""
        return f"#{value:06x}" if self.colours else f"id {value}"

    def table(self) -> str:
        """The table as a file that `read_table` takes."""
        names = {**dict(enumerate(self.classes)), VOID_ID: "void"}
        order = sorted(range(len(self.values)), key=lambda i: (self.ids[i], self.values[i]))
        return "".join(f"{names[int(self.ids[i])]}, {self.shown(int(self.values[i])).removeprefix('id ')}\n" for i in order)


def read_table(text: str, name: str) -> Labels:
    """The table in `text`. Raises UserError, naming the line; `name` is the file's."""
    classes = [BACKGROUND]
    meaning: dict[int, int] = {}
    kinds: set[bool] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if (
            not line
            or line.startswith(("# ", "#\t"))
            or line == "#"
            or line.lower().replace(" ", "") in ("name,id", "name,value")
        ):
            continue
        match = _NAME_FIRST.fullmatch(line) or _VALUE_FIRST.fullmatch(line)
        value = _value(match["value"]) if match else None
        if match is None or value is None:
            raise UserError(f"{name}, line {number}: {line!r} is no class and value; write `road, 7` or `road, 128 64 128`")
        kinds.add(value[1])
        class_name = match["name"].strip()
        if meaning.setdefault(value[0], _id(class_name, classes)) != _id(class_name, classes):
            raise UserError(f"{name}, line {number}: the value {match['value']} stands for two classes")
    if len(kinds) != 1 or len(classes) < 2:
        what = "mixes ids and colours" if len(kinds) > 1 else "names no class beside background and void"
        raise UserError(f"{name} {what}: each line is a class and its id, or each a class and its colour")
    if len(classes) > VOID_ID:
        raise UserError(f"{name} names {len(classes)} classes, at most {VOID_ID} are possible")
    colours = kinds.pop()
    if not colours:
        meaning.setdefault(VOID_ID, VOID_ID)
        meaning.setdefault(0, 0)
    return Labels.of(classes, meaning, colours)


def _value(text: str) -> tuple[int, bool] | None:
    """A value, and whether it is a colour; None for a colour that is none."""
    if text.startswith("#"):
        return int(text[1:], 16), True
    numbers = [int(each) for each in re.findall(r"\d+", text)]
    if len(numbers) == 1:
        return numbers[0], False
    return (numbers[0] << 16 | numbers[1] << 8 | numbers[2], True) if max(numbers) < 256 else None


def _id(name: str, classes: list[str]) -> int:
    """The id of a class, which is added to `classes` where it is new."""
    if name.lower() in _VOIDS:
        return VOID_ID
    if name.lower() == BACKGROUND:
        return 0
    if name not in classes:
        classes.append(name)
    return classes.index(name)


def _ids(data: bytes, max_pixels: int) -> np.ndarray:
    """The ids of a mask file, int64 H×W; a colour image that is all grey counts by its levels."""
    try:
        return decode_mask(data, max_pixels).astype(np.int64)
    except BadInput:
        image = decode_image(data, max_pixels)
        if (image != image[..., :1]).any():
            raise
        return image[..., 0].astype(np.int64)


def _colours(data: bytes, max_pixels: int) -> np.ndarray:
    """The colours of a mask file, int64 H×W: R·65536 + G·256 + B."""
    image = decode_image(data, max_pixels).astype(np.int64)
    return image[..., 0] << 16 | image[..., 1] << 8 | image[..., 2]


@dataclass(frozen=True)
class Found:
    """What a mask holds: whether it is a colour image, its values (int64, rising), and whether ids look blended along edges."""

    colours: bool
    values: np.ndarray
    soft: bool


def values_of(data: bytes, max_pixels: int) -> Found:
    """The values of a mask file. Raises BadInput."""
    try:
        raw = _ids(data, max_pixels)
    except BadInput:
        return Found(True, np.unique(_colours(data, max_pixels)), False)
    return Found(False, np.unique(raw), bool(soft_ids(raw.astype(np.uint16 if raw.max(initial=0) > VOID_ID else np.uint8))))


def infer(found: Sequence[Found], names: Sequence[str], voc_names: Sequence[str]) -> Labels:
    """A table from the values of all masks. names: classes by id, background first, where they are known.

    Raises UserError where the values don't look like classes.
    """
    colours = any(each.colours for each in found)
    values = sorted({int(v) for each in found if each.colours == colours or not each.values.any() for v in each.values})
    if names:
        if colours:
            raise UserError("the masks are colour images: say which colour is which class by --table (`road, 128 64 128`)")
        return Labels.of(names, {**{i: i for i in range(len(names))}, VOID_ID: VOID_ID}, False)
    if len(values) > 255 or 2 * sum(each.soft for each in found) > len(found):
        raise UserError(
            f"the masks have {len(values):,} {'colours' if colours else 'ids'}, too many for classes or such as blending along edges "
            "leaves: were they resized, or saved as JPEG? Name the classes by --table, and see --strange"
        )
    if not colours:
        return _infer_ids(values)
    palette = {int(r) << 16 | int(g) << 8 | int(b): i for i, (r, g, b) in enumerate(VOC_PALETTE.tolist())}
    if set(values) <= {c for c, i in palette.items() if i < _VOC_COLOURS or i == VOID_ID}:
        known = {c: i for c, i in palette.items() if i < _VOC_COLOURS or i == VOID_ID}
        return Labels.of(voc_names, known, True, "the colours are PASCAL VOC's, and so are the classes' names")
    painted = [v for v in values if v]
    classes = [BACKGROUND, *(f"colour_{v:06x}" for v in painted)]
    meaning = {0: 0, **{v: i for i, v in enumerate(painted, start=1)}}
    return Labels.of(classes, meaning, True, "the colours found were taken for a class each, black for background")


def _infer_ids(values: Sequence[int]) -> Labels:
    if set(values) <= {0, VOID_ID}:
        words = "the masks have 0 and 255 alone: 255 was taken for the one class, not for void"
        return Labels.of([BACKGROUND, "object"], {0: 0, VOID_ID: 1}, False, words)
    painted = [v for v in values if v not in (0, VOID_ID)]
    classes = [BACKGROUND, *(f"id_{v}" for v in painted)]
    meaning = {0: 0, VOID_ID: VOID_ID, **{v: i for i, v in enumerate(painted, start=1)}}
    return Labels.of(classes, meaning, False, "the ids found were taken for a class each, 0 for background, 255 for void")
