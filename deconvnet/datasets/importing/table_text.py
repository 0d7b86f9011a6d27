"""Parsing the text of a class table, which says which class each value in masks stands for.

Each line has a class name and its value, in either order. The value is an id or a colour:

    road, 7
    road: 128,64,128
    128 64 128 road
    road #804080

A heading names the columns: `name,id`, `name,r,g,b`, `Pixel Value, Class`. CVAT's labelmap.txt, CamVid's label_colors.txt,
Roboflow's _classes.csv and class_dict.csv can be read as they are. Empty lines and comments (# and a blank) are ignored.

Names may contain numbers and separators, so a line such as `3, 7` is ambiguous. An interpretation of a line is a separator, the
order of name and value, and the kind of value (id or colour). If one interpretation fits all lines, the table is read with it.
The table is refused if several interpretations fit all lines and give different tables. If none fits all lines, each line is read
by itself, and the table is refused if a line has several interpretations that differ.
"""

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from infra.errors import UserError

_SEPARATORS = ("\t", ",", ";", ":", "=", " ")  # " " stands for any run of blanks
_RANK = {"\t": 0, ",": 1, ";": 1, ":": 2, "=": 2, " ": 3}  # a lower rank is more surely a separator, not part of a name
_ID = re.compile(r"\d{1,5}")
_HEX_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_COLOUR = re.compile(r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})")
_LABEL_MAPS = ([True, None], [True, None, None])  # fields after a name in CVAT's label map: True for a colour, None for no value
_NAME_HEADINGS = ("name", "names", "classname", "labelname", "categoryname", "category", "title")
_EITHER_HEADINGS = ("class", "label")  # heading of the names, or of the ids if another column has the names
_ID_HEADINGS = (
    *("id", "value", "pixelvalue", "pixel", "index", "idx", "classid", "labelid", "categoryid", "classindex", "labelvalue"),
    *("maskvalue", "gray", "grey", "grayvalue", "greyvalue", "trainid"),
)
_COLOUR_HEADINGS = ("color", "colour", "rgb", "colorrgb", "hex", "hexcolor")
_CHANNEL_HEADINGS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}


class TableRow(NamedTuple):
    """A line of a class table.

    Attributes:
        name: name of the class; a run of blanks in it is made one.
        value: its value in masks, an id or a colour as R·65536 + G·256 + B.
        is_colour: True if the value is a colour, False if it is an id.
        line: number of the line, counted from 1; 0 if the row is from no file.
    """

    name: str
    value: int
    is_colour: bool
    line: int = 0


class _Interpretation(NamedTuple):
    """How a line is read: its separator, whether the value comes first, and whether the value is a colour."""

    separator: str
    value_first: bool
    is_colour: bool


class _Columns(NamedTuple):
    """The columns that a heading names: their separator, how many they are, and which of them have the name and the value."""

    separator: str
    width: int  # number of columns
    name: int  # index of the column of names
    value: tuple[int, ...]  # index of the column of values, or the indices of red, green and blue
    is_colour: bool  # True if the values are colours, False if they are ids


def parse_rows(text: str, source: str) -> list[TableRow]:
    """Parse the text of a class table.

    Args:
        text: content of the file, in the form described at the top of this module.
        source: name of the file, for error messages.

    Returns:
        The rows, in the order of the lines. Their values are all ids or all colours.

    Raises:
        UserError: if a line is not a class and a value, the text is ambiguous, ids and colours are mixed, or the text has no
            line.
    """
    lines: dict[int, str] = {}
    comments: list[str] = []  # comments above the first line; one of them may be a heading, as in CVAT's files
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if line and not f"{line} ".startswith(("# ", "#\t")):
            lines[number] = line
        elif not lines:
            comments.append(line.removeprefix("#"))
    columns = _read_heading(next(iter(lines.values()), ""), source)
    if columns:
        del lines[min(lines)]
    if not lines:
        raise UserError(f"{source} has no line with a class and its value, such as `road, 7`")
    rows = _read_columns(lines, columns, source) if columns else None
    for comment in comments:
        with suppress(UserError):  # most comments are not headings
            if not rows and (columns := _read_heading(comment, source)):
                rows = _read_columns(lines, columns, source)
    rows = rows or _read_without_heading(lines, source)
    if len({row.is_colour for row in rows}) > 1:
        raise UserError(f"{source} mixes ids and colours: each line is a class and its id, or each a class and its colour")
    return rows


def parse_value(text: str) -> tuple[int, bool] | None:
    """Parse a value of a class table, which is an id or a colour.

    Args:
        text: the value: an id such as "7", or a colour such as "#804080" or "128,64,128".

    Returns:
        The value (a colour as R·65536 + G·256 + B), and whether it is a colour (True) or an id (False). None if it is neither.
    """
    if _ID.fullmatch(text):
        return int(text), False
    if _HEX_COLOUR.fullmatch(text):
        return int(text[1:], 16), True
    match = _COLOUR.fullmatch(text[1:-1].strip() if text[:1] + text[-1:] in ("()", "[]") else text)
    channels = [int(each) for each in match.groups()] if match else [256]
    return (channels[0] << 16 | channels[1] << 8 | channels[2], True) if max(channels) < 256 else None


def _split(line: str, separator: str) -> list[str]:
    """Split a line into fields without surrounding blanks. A field in double quotes may contain the separator, except : and =."""
    if separator in ":=":
        return [re.sub('^"(.*)"$', r"\1", field.strip()) for field in line.split(separator)]
    blanks = separator == " "
    text = " ".join(line.split()) if blanks else line
    try:
        fields = next(csv.reader([text], delimiter=separator, skipinitialspace=not blanks, strict=True))
    except csv.Error:
        return []
    return [field.strip() for field in fields]


def _read_heading(line: str, source: str) -> _Columns | None:
    """Read a line that may be a heading. Return the columns that it names, or None if it is not a heading.

    Args:
        line: the line.
        source: name of the file, for error messages.

    Raises:
        UserError: if several columns may have the names, or several the values, such as a column of ids and one of colours.
    """
    for separator in _SEPARATORS:
        heads = [re.sub(r"[\s_-]", "", field.lower()) for field in _split(line, separator)]
        names, either, ids, colours = (
            [i for i, head in enumerate(heads) if head in known]
            for known in (_NAME_HEADINGS, _EITHER_HEADINGS, _ID_HEADINGS, _COLOUR_HEADINGS)
        )
        names, ids = (names, [*ids, *either]) if names else (either, ids)
        channels = sorted((_CHANNEL_HEADINGS[head], i) for i, head in enumerate(heads) if head in _CHANNEL_HEADINGS)
        values = [(i,) for i in [*ids, *colours]] + ([tuple(i for _, i in channels)] if len(channels) == 3 else [])
        if len(names) == 1 and len(values) == 1:
            return _Columns(separator, len(heads), names[0], values[0], not ids)
        if names and values:
            raise UserError(
                f"{source}: its heading {line!r} names several columns of names or values: keep the one that the masks hold"
            )
    return None


def _read_columns(lines: Mapping[int, str], columns: _Columns, source: str) -> list[TableRow]:
    """Read the lines below a heading, and return a row for each.

    Args:
        lines: the lines, by their number in the file.
        columns: the columns that the heading names.
        source: name of the file, for error messages.

    Raises:
        UserError: if a line does not have these columns.
    """
    rows = []
    for number, line in lines.items():
        fields = _split(line, columns.separator)
        if columns.separator == " " and len(fields) > columns.width:  # names may have blanks
            name = slice(columns.name, columns.name + len(fields) - columns.width + 1)
            fields[name] = [" ".join(fields[name])]
        while len(fields) > columns.width and not fields[-1]:
            fields.pop()
        if len(fields) > columns.width or len(fields) <= max(columns.name, *columns.value):
            raise UserError(
                f"{source}, line {number}: {line!r} has {len(fields)} columns, and the heading {columns.width}: put names that "
                "contain the separator in double quotes"
            )
        value = parse_value(" ".join(fields[i] for i in columns.value))
        if value is None or value[1] != columns.is_colour or not fields[columns.name]:
            raise _unreadable(number, line, source)
        rows.append(TableRow(" ".join(fields[columns.name].split()), *value, number))
    return rows


def _read_without_heading(lines: Mapping[int, str], source: str) -> list[TableRow]:
    """Read lines without a heading, and return a row for each.

    If one interpretation fits all lines, all are read with it. Otherwise each line is read by itself.

    Args:
        lines: the lines, by their number in the file; at least one.
        source: name of the file, for error messages.

    Raises:
        UserError: if a line can't be read, or the interpretation is ambiguous.
    """
    possible = [_interpretations(line) for line in lines.values()]
    single = {each for of_line in possible for each, (_, names) in of_line.items() if len(names) == 1}
    readings = [_most_likely(of_line, single) for of_line in possible]
    for (number, line), found in zip(lines.items(), readings, strict=True):
        if not found:
            raise _unreadable(number, line, source)
    common = [each for each in readings[0] if all(each in found for found in readings)]
    if common:
        return _choose(lines, {each: [found[each] for found in readings] for each in common}, source)
    rows = []
    for (number, line), found in zip(lines.items(), readings, strict=True):
        rows += _choose({number: line}, {each: [row] for each, row in found.items()}, source)
    return rows


def _choose(lines: Mapping[int, str], tables: Mapping[_Interpretation, list[TableRow]], source: str) -> list[TableRow]:
    """Choose the interpretation of some lines, and return its rows.

    A line such as `road 128 64 128` is taken for a class `road` with a colour, not for a class `road 128 64` with the id 128. It
    is ambiguous only if two lines would have the same name with colours, and the last numbers of the lines are consecutive.

    Args:
        lines: the lines, by their number in the file.
        tables: rows of each interpretation of the lines; at least one interpretation.
        source: name of the file, for error messages.

    Raises:
        UserError: if several interpretations are possible and give different rows.
    """
    left = []
    for each, rows in tables.items():
        names = [row.name for row in tables.get(_Interpretation(each.separator, each.value_first, True), ())]
        ids = sorted(row.value for row in rows)
        counting = ids == list(range(ids[0], ids[0] + len(ids)))
        if each.is_colour or not names or (counting and len(set(names)) < len(names)):
            left.append(rows)
    for others in left[1:]:
        for (number, line), one, other in zip(lines.items(), left[0], others, strict=True):
            if one != other:
                raise UserError(
                    f"{source}, line {number}: {line!r} can be read as {_describe(one)} or as {_describe(other)}: write a "
                    "heading such as `name,id` or `id,name` above all lines, and commas between the columns"
                )
    return [row._replace(line=number) for number, row in zip(lines, left[0], strict=True)]


def _interpretations(line: str) -> dict[_Interpretation, tuple[TableRow, list[str]]]:
    """Find all interpretations of a line as a name and a value.

    Returns:
        For each interpretation, its row, and the fields (texts between separators) that make up the name.
    """
    found = {}
    for separator in _SEPARATORS:
        for value_first in (False, True):
            text = line if value_first else line.rstrip(f"{separator} ")
            fields = _split(text, separator)
            if separator == "\t":  # several tabs may align a column
                fields = [field for field in fields if field]
            values = [parse_value(field) for field in fields]
            if separator == ":" and len(values) in (3, 4) and [value and value[1] for value in values[1:]] in _LABEL_MAPS:
                fields = fields[:2]
            for width in (1, 3):
                names = fields[width:] if value_first else fields[:-width]
                value = parse_value(" ".join(fields[:width] if value_first else fields[-width:]))
                if not value or not any(names) or _has_further_value(fields, names, separator, value_first):
                    continue
                name = " ".join(names)
                if len(names) > 1 and separator != " ":
                    name = text.split(separator, width)[-1] if value_first else text.rsplit(separator, width)[0]
                found[_Interpretation(separator, value_first, value[1])] = TableRow(" ".join(name.split()), *value), names
    return found


def _has_further_value(fields: Sequence[str], names: Sequence[str], separator: str, value_first: bool) -> bool:
    """Return whether a name can't be right, because the line was divided at the wrong place.

    That is so if the name holds another value or a part of the value, or if a further separator stands between name and value.

    Args:
        fields: all fields of the line.
        names: the fields that were taken for the name.
        separator: the separator of the fields.
        value_first: True if the name is at the end of the line, False if it is at the beginning.
    """
    values = [value for name in names if (value := parse_value(name.strip(",;:=")))]
    beside = (names[0] or "=")[0] if value_first else (names[-1] or "=")[-1]
    if separator != " ":
        columns = len(names) > 1 and bool(values)
        return columns or (separator in ":=" and beside in ",;:=")
    three = fields[:3] if value_first else fields[-3:]
    no_colour = all(map(str.isdecimal, three)) and not parse_value(" ".join(three))  # such as road 300 0 0
    return no_colour or beside in ",;:=" or any(is_colour or _is_cut(names) for _, is_colour in values)


def _is_cut(names: Sequence[str]) -> bool:
    """Return whether a field begins or ends with a separator: `flat, road` split at blanks may be two columns, not one name."""
    return any(name[:1] in ",;:=" or name[-1] in ",;:=" for name in names)  # an empty field counts too


def _most_likely(
    possible: Mapping[_Interpretation, tuple[TableRow, list[str]]], single: Collection[_Interpretation]
) -> dict[_Interpretation, TableRow]:
    """Drop the interpretations of a line that are less likely than another. Return the row of each remaining one.

    Args:
        possible: the interpretations of the line, as `_interpretations` returns them.
        single: interpretations in which at least one line of the text has a name of one field. In the others, all lines may have
            three columns (`flat, road, 7`), and it is unknown which of them is the name. So they are dropped, unless the
            separator is a blank.
    """
    likely = {}
    for each, (row, names) in possible.items():
        surer = [other for other in possible if _RANK[other.separator] < _RANK[each.separator]]
        # The comma separates `1,Grade 1` and `road,128 64 128`. But `3 a:5` may be a:5 with the value 3, or 3 a with the value 5,
        # and `16:9 3` may be 16:9 with the value 3.
        blank, letters = each.separator == " ", any(map(str.isalpha, row.name))
        less_likely = any(other.value_first == each.value_first or (other.value_first and blank and letters) for other in surer)
        cut = blank and (_is_cut(names) if surer else not letters)
        if not less_likely and not cut and (blank or each in single):
            likely[each] = row
    return likely


def _describe(row: TableRow) -> str:
    """Describe a row for the user, such as "'road' with the id 7"."""
    return f"{row.name!r} with the {f'colour #{row.value:06x}' if row.is_colour else f'id {row.value}'}"


def _unreadable(number: int, line: str, source: str) -> UserError:
    """Return the error to raise for a line that is not a class name with a value. `number` is its number in the file."""
    return UserError(
        f"{source}, line {number}: {line!r} is not a class and a value; write `road, 7` or `road, 128 64 128`, or name the "
        "columns by a heading such as `name,id`"
    )
