"""The table that says which class each value in a folder of masks stands for. It is read from a file or inferred from the masks.

The module `table_text` describes the text of the file. A class named `void`, `unlabelled` or `ignore` becomes void (255), which
is ignored in training and evaluation. One class may be the background. The others get ids from 1, in the order of the lines.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deconvnet.datasets.importing.dataset import (
    BACKGROUND,
    BACKGROUND_NAMES,
    ImportOptions,
    case_folded,
    check_class_names,
    describe_variants,
)
from deconvnet.datasets.importing.mask_values import (
    HIDDEN,
    SOFT,
    MaskValues,
    read_colours,
    read_ids,
    read_mask_values,
    rows_of_colours,
    rows_of_ids,
    rows_of_names,
    unpack_colours,
)
from deconvnet.datasets.importing.table_text import TableRow, parse_rows, parse_value
from deconvnet.datasets.validation.lossy_masks import find_certain, has_near_values, is_lossy
from infra.errors import BadInput, UserError
from proposals.masks import VOID_ID

_VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore", "__ignore__", "ignored")
_NO_CLASS_NAMES = ("null", "none", "nothing", "bg", "no label", "no_label", "no class", "other", "others")
"""Names that mean background if the class has id 0 (or is black), or if no class has id 0."""
_MUCH_VOID = 0.5  # share of the pixels; a class with more of them is more likely the background than void
_BLENDS = 3  # this many values that look like blends are taken for blends; one or two may be thin classes
_DEFAULTS = ImportOptions()
_JPEG = "was saved as JPEG or WebP, which changes values along edges: export PNG, or give --table and --strange void"


@dataclass(frozen=True)
class ClassTable:
    """The class id of each value that occurs in masks.

    Attributes:
        classes: class names by id; the first is background.
        id_of_value: class id (255 for void) by mask value. The values are ids, or colours as R·65536 + G·256 + B.
        has_colours: True if the values are colours, False if they are ids.
        notes: sentences for the user, such as how the table was inferred and which class is the background.
    """

    classes: tuple[str, ...]
    id_of_value: Mapping[int, int]
    has_colours: bool
    notes: tuple[str, ...] = ()

    def read_class_mask(self, data: bytes, options: ImportOptions) -> tuple[np.ndarray, str]:
        """Decode a mask file and convert its values to class ids.

        Args:
            data: encoded bytes of the mask.
            options: options of the import: `unknown_void` (whether values that are not in the table become void or are refused),
                `transparent` (what transparent pixels become) and `max_pixels` (largest number of pixels of the mask) apply.

        Returns:
            uint8 array (H, W) of class ids, where 255 is void. Also a phrase for the user, such as "has a mask with values of no
            class, which became void"; it is empty if all values are in the table.

        Raises:
            BadInput: if the mask can't be decoded. Unless `unknown_void` is True, also if a value is not in the table, or lossy
                compression may have changed values.
        """
        read = read_colours if self.has_colours else read_ids
        lossy = is_lossy(data)
        if not options.unknown_void and lossy and read_mask_values(data, options.max_pixels).lossy:
            raise BadInput(f"the mask {_JPEG}")
        mask = read(data, options.max_pixels, options.transparent == "opaque")
        table = {**self.id_of_value, HIDDEN: VOID_ID if options.transparent == "void" else 0}
        values = np.array(sorted(table), np.int32)
        ids = np.array([table[value] for value in values.tolist()], np.uint8)
        index = np.searchsorted(values, mask).clip(max=len(values) - 1)
        known = values[index] == mask
        if not options.unknown_void and not known.all():
            raise BadInput(self._describe_unknown(mask[~known], mask.size))
        remark = "" if known.all() else "has a mask with values that are not in the class table and became void"
        if lossy and options.unknown_void and self._has_near_values():
            known &= find_certain(data, mask)
            remark = "has a mask saved as JPEG or WebP, of which 3 px along edges and details under 7 px became void"
        return np.where(known, ids[index], VOID_ID).astype(np.uint8), remark

    def _has_near_values(self) -> bool:
        """Return whether lossy compression can mix up the values of two classes."""
        values, classes = (np.array(each, np.int32) for each in (list(self.id_of_value), list(self.id_of_value.values())))
        return has_near_values(unpack_colours(values) if self.has_colours else values[:, None], classes)

    def _describe_unknown(self, unknown: np.ndarray, pixels: int) -> str:
        """Describe the pixels of a mask whose values are not in the table.

        Args:
            unknown: array (N,) with the values of these pixels; at least one.
            pixels: number of pixels of the whole mask, from which the share is computed.

        Returns:
            A sentence for the user with the share of these pixels in the mask and their commonest value.
        """
        values, counts = np.unique(unknown, return_counts=True)
        commonest = _format_value(int(values[counts.argmax()]), self.has_colours)
        more = f" and {len(values) - 1} more" if len(values) > 1 else ""
        question = " (has it been resized, or saved as JPEG?)" if len(values) > 3 else ""
        return f"{100 * unknown.size / pixels:.2g} % of the mask has no class: {commonest}{more}{question}"

    def to_text(self) -> str:
        """Write the table as text that `read_table` can read: a line for each mask value, with its class name and the value."""
        names = {**dict(enumerate(self.classes)), VOID_ID: "void"}
        rows = [TableRow(names[i], value, self.has_colours) for i, value in sorted((i, v) for v, i in self.id_of_value.items())]
        lines = []
        for row in rows:
            name = '"' + row.name.replace('"', '""') + '"' if set(row.name) & set(',"#') else row.name
            lines.append(f"{name}, {_format_value(row.value, self.has_colours).removeprefix('id ')}\n")
        text = "".join(lines)
        try:
            clear = [row[:3] for row in parse_rows(text, "")] == [row[:3] for row in rows]
        except UserError:
            clear = False
        return text if clear else f"name, {'colour' if self.has_colours else 'id'}\n{text}"


def _format_value(value: int, is_colour: bool) -> str:
    """Write a mask value as text for the user, such as "id 7", "#804080" or "half transparent edges" (for `SOFT`)."""
    if value == SOFT:
        return "half transparent edges"
    return f"#{value:06x}" if is_colour else f"id {value}"


def read_table(text: str, name: str, options: ImportOptions = _DEFAULTS, masks: Sequence[MaskValues] = ()) -> ClassTable:
    """Read a class table from the text of a file.

    Args:
        text: content of the file, in the form that `table_text` describes.
        name: name of the file, for error messages.
        options: options of the import; `background` and `fold_case` apply.
        masks: the values of some masks, which show whether the table can be right.

    Returns:
        The table. If its values are ids, then 0 is background and 255 is void, unless the text gives them another class.

    Raises:
        UserError: if the text can't be read (see `parse_rows`), a value has two classes, it is not clear which class is the
            background or whether 255 is void, there is no class beside background and void, there are more than 255 classes, or
            resizing seems to have changed the ids of most masks.
    """
    return _make_table(parse_rows(text, name), name, options, masks)


def infer_table(masks_by_uri: Mapping[str, MaskValues], options: ImportOptions = _DEFAULTS) -> ClassTable:
    """Infer the class table from the values of all masks.

    Args:
        masks_by_uri: the values that occur in each mask, by the address of its file.
        options: options of the import; `classes` (names by id from 0), `background`, `fold_case` and `unknown_void` apply.

    Returns:
        The table. Its notes tell how it was inferred.

    Raises:
        UserError: if names are given and don't fit the values, or the values don't look like class values, for example after
            lossy compression or resizing.
    """
    masks = list(masks_by_uri.values())
    has_colours = any(mask.are_colours for mask in masks)
    # A mask that is all 0 is read as ids; among colour masks it is black.
    values = sorted({v for mask in masks if mask.are_colours == has_colours or not any(mask.classes) for v in mask.classes})
    if lossy := [uri for uri, mask in masks_by_uri.items() if mask.lossy]:
        raise UserError(f"{len(lossy):,} of {len(masks):,} masks can't be used, the first is {lossy[0]}: each {_JPEG}")
    if options.classes:
        if has_colours:
            raise UserError("the masks are colour images: give the colour of each class by --table (`road, 128 64 128`)")
        rows = rows_of_names(options, values)
        named = any(name.lower() in BACKGROUND_NAMES for name in options.classes)
        if rows[0].value == 0 and not named and rows[0].name.lower() not in (*_VOID_NAMES, *_NO_CLASS_NAMES):
            options = replace(options, background=options.background or rows[0].name)  # the user named id 0: it is the background
        return _make_table(rows, "--classes", options, masks)
    blended = set[int]().union(*(mask.blended for mask in masks)) - set[int]().union(*(mask.filling for mask in masks))
    if len(values) > 255 or len(blended) >= _BLENDS or 2 * sum(bool(mask.blended) for mask in masks) > len(masks):
        raise UserError(
            f"the masks (the first is {next(iter(masks_by_uri))}) have {len(values):,} {'colours' if has_colours else 'ids'}, "
            "which are too many for classes, or values as blending along edges leaves them. If the masks were resized or saved "
            "as JPEG, export them again, or name the classes by --table and give --strange void"
        )
    if not any(values):
        raise UserError(
            f"no mask has another value than 0, or none can be read (the first is {next(iter(masks_by_uri), 'missing')}): no "
            "class is annotated, or the classes are in the alpha channel"
        )
    if has_colours:
        rows, sentence = rows_of_colours(values, options.background)
    else:
        rows, sentence = rows_of_ids(values, options.background)
    return _make_table(rows, "the masks", options, masks, (sentence,))


def _make_table(
    rows: Sequence[TableRow], source: str, options: ImportOptions, masks: Sequence[MaskValues], notes: tuple[str, ...] = ()
) -> ClassTable:
    """Make a class table from rows of names and mask values: find the background, and number the other classes.

    Args:
        rows: the rows; their values are all ids or all colours.
        source: name of their origin, such as a file, for error messages.
        options: options of the import; `background`, `fold_case` and `unknown_void` apply.
        masks: the values of some or all masks.
        notes: sentences for the user, which the table gets before its own.

    Returns:
        The table.

    Raises:
        UserError: for the reasons that `read_table` lists, except that the text can't be read.
    """
    key = case_folded if options.fold_case else str
    has_colours = rows[0].is_colour
    background, title, note = _find_background(rows, source, options, masks)
    ids = dict.fromkeys(map(key, background), 0)
    classes = [title]
    id_of_value: dict[int, int] = {}
    for row in rows:
        if key(row.name) not in ids:
            void = row.name.lower() in _VOID_NAMES
            ids[key(row.name)] = VOID_ID if void else len(classes)
            classes += [] if void else [row.name]
        class_id, shown = ids[key(row.name)], _format_value(row.value, has_colours).removeprefix("id ")
        if id_of_value.setdefault(row.value, class_id) != class_id:
            raise UserError(f"{source}{f', line {row.line}' * (row.line > 0)}: the value {shown} stands for two classes")
    if len(classes) < 2:
        raise UserError(f"{source} names no class beside background and void")
    check_class_names(classes[1:])
    if not has_colours:
        filling = set[int]().union(*(mask.filling for mask in masks))
        resized = sum(not mask.lossy and not filling.isdisjoint(mask.transition_ids) for mask in masks)
        if not options.unknown_void and 2 * resized > len(masks):
            raise UserError(
                "in most masks, ids rise in steps along edges (0, 1, 2), as after resizing with interpolation: the ids in "
                "between are wrong. Resize the masks by nearest neighbour, or import them unchanged with --strange void"
            )
        if VOID_ID not in id_of_value:
            _check_void(masks)
        id_of_value = {0: 0, VOID_ID: VOID_ID, **id_of_value}
    hidden = sum(HIDDEN in mask.pixels for mask in masks)
    alpha = f"{hidden:,} masks have transparent pixels, which become {options.transparent}: see --transparent" if hidden else ""
    notes += tuple(filter(None, [note, alpha, *describe_variants([row.name for row in rows], options.fold_case)]))
    return ClassTable(tuple(classes), id_of_value, has_colours, notes)


def _check_void(masks: Sequence[MaskValues]) -> None:
    """Check that the id 255 means void, and not a class, if the table does not list it.

    It may be a class if some masks have only 0 and 255, others have other ids, and none has 255 together with such an id.

    Args:
        masks: the values of some or all masks. Masks with colours are ignored.

    Raises:
        UserError: if 255 may be a class.
    """
    objects = [mask.classes - {0} for mask in masks if not mask.are_colours]
    others = set[int]().union(*objects) - {VOID_ID}
    if {VOID_ID} in objects and others and not any(VOID_ID in found and len(found) > 1 for found in objects):
        count = objects.count({VOID_ID})
        raise UserError(
            f"{count:,} masks have only the values 0 and 255, and others {', '.join(map(str, sorted({0, *others})[:20]))}: it is "
            "not clear whether 255 is a class or void. Say it by --table: by a line `void, 255`, or `object, 255` and `object, 1`"
        )


def _find_background(
    rows: Sequence[TableRow], source: str, options: ImportOptions, masks: Sequence[MaskValues]
) -> tuple[list[str], str, str]:
    """Find out which class is the background.

    Args:
        rows: the rows of the table.
        source: name of their origin, for error messages.
        options: options of the import; `background` and `fold_case` apply.
        masks: the values of some or all masks, for the shares of the classes.

    Returns:
        background: the class names that mean background, which may be none.
        title: the name of class 0 in the data set.
        note: a sentence for the user about the choice, or "".

    Raises:
        UserError: if the class that the user named is not in the table, or it is not clear which class is the background.
    """
    key = case_folded if options.fold_case else str
    named = [row.name for row in rows if row.name.lower() in BACKGROUND_NAMES]
    zero = next((row for row in rows if row.value == 0), None)
    if options.background == "none":
        if named:
            raise UserError(f"--background none, but {source} has a class {named[0]}: leave out the option, or rename the class")
        return [], BACKGROUND, "no class is the background"
    if options.background:
        value = parse_value(options.background)
        asked = [row.name for row in rows if key(row.name) == key(options.background)]
        asked = asked or [row.name for row in rows if value and row.value == value[0]]
        if not asked:
            raise UserError(f"--background {options.background} is not in {source}, which has {_list_shares(rows, masks)}")
        return [*named, asked[0]], BACKGROUND if named else asked[0], f"{asked[0]} is the background"
    if named:
        return named, BACKGROUND, "" if named[0].lower() == BACKGROUND else f"{named[0]} is the background"
    candidates = [row for row in rows if row.name.lower() in _NO_CLASS_NAMES and (row is zero or not zero)]
    if len(candidates) == 1:
        meant = f"{candidates[0].name} ({_format_value(candidates[0].value, candidates[0].is_colour)})"
        return [candidates[0].name], BACKGROUND, f"{meant} is the background: --background names another class"
    zero_is_void = zero is not None and zero.name.lower() in _VOID_NAMES
    if zero and (not zero_is_void or _shares(rows, masks)[zero.name] > _MUCH_VOID):
        raise UserError(
            f"{source} has no class background, and calls {_format_value(0, zero.is_colour)} {zero.name}"
            f"{', which is void' * zero_is_void}: which class is the background? It has {_list_shares(rows, masks)}. "
            f"Give --background {zero.name}, or another class, or --background none if all classes are objects"
        )
    if zero_is_void or rows[0].is_colour:
        return [], BACKGROUND, "the table has no background: no pixel will be of the class background"
    return [], BACKGROUND, ""


def _shares(rows: Sequence[TableRow], masks: Sequence[MaskValues]) -> dict[str, float]:
    """Return the share of the pixels of all `masks`, in [0, 1], by class name. `rows` map each mask value to its class."""
    pixels: Counter[int] = Counter()
    for mask in masks:
        pixels.update(mask.pixels)
    values = {row.value: row.name for row in rows}
    return {name: sum(pixels[v] for v in values if values[v] == name) / max(1, pixels.total()) for name in values.values()}


def _list_shares(rows: Sequence[TableRow], masks: Sequence[MaskValues]) -> str:
    """Return the names of the ten most common classes of a table as text for the user, separated by commas.

    Args:
        rows: rows of the class table: a class name and its mask value each.
        masks: the values in each mask. If there are any masks, each class name is followed by its share of their pixels.
    """
    shares = _shares(rows, masks)
    names = [f"{name} ({shares[name]:.0%} of the pixels)" if masks else name for name in sorted(shares, key=lambda n: -shares[n])]
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
