"""Texts of class tables: names with numbers, headings, colours, and what has two readings."""

import csv
import io
import re
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deconvnet.datasets.importing.table_text import parse_rows, parse_value
from infra.errors import UserError
from tests.examples import examples


def read(text):
    return [(row.name, row.value) for row in parse_rows(text, "t.txt")]


GRADES = [("Grade 1", 1), ("Grade 2", 2)]


@pytest.mark.parametrize(
    "text",
    [
        "Grade 1, 1\nGrade 2, 2\n",
        "Grade 1,1\nGrade 2,2",
        "1, Grade 1\n2, Grade 2",
        "1,Grade 1\n2,Grade 2",
        "Grade 1;1\nGrade 2;2",
        "Grade 1\t1\nGrade 2\t2",
        "1\tGrade 1\r\n2\tGrade 2\r\n",
        "Grade 1: 1\nGrade 2: 2",
        "1: Grade 1\n2: Grade 2",
        "Grade 1 = 1\nGrade 2=2",
        '"Grade 1", 1\n"Grade 2", 2',
        "id name\n1 Grade 1\n2 Grade 2",
        "name id\nGrade 1 1\nGrade 2 2",
        "Pixel Value, Class\n1, Grade 1\n2, Grade 2",
        "label,name\n1,Grade 1\n2,Grade 2",
        "Class Index;Class Name\n1;Grade 1\n2;Grade 2",
        "Mask_Value\tCategory\n1\tGrade 1\n2\tGrade 2",
        ",class,id,comment\n0,Grade 1,1,\n1,Grade 2,2,the worst",
        "# the grades\n\n1, Grade 1\n# 3, Grade 3\n2, Grade 2",
    ],
)
def test_numbers_in_names_stay_in_the_names(text):
    assert read(text) == GRADES


@pytest.mark.parametrize(
    "text",
    [
        "# label:color_rgb:parts:actions\ntype 1:250,50,83::\ntype 2:1,2,3:head,hand:walk",
        "type 1:250,50,83::\ntype 2:1,2,3::",
        "name,r,g,b\ntype 1,250,50,83\ntype 2,1,2,3",
        "r;g;b;name\n250;50;83;type 1\n1;2;3;type 2",
        "type 1,250,50,83\ntype 2,1,2,3",
        "250 50 83\ttype 1\n1 2 3\t\ttype 2",
        "type 1 250 50 83\ntype 2 1 2 3",
        "250 50 83 type 1\n1 2 3 type 2\n0 0 0 void\n",
        "#fa3253 type 1\ntype 2, #010203",
        'name,color\ntype 1,"(250, 50, 83)"\ntype 2,"[1, 2, 3]"',
    ],
)
def test_colours_and_numbers_in_names_are_told_apart(text):
    assert read(text)[:2] == [("type 1", 250 << 16 | 50 << 8 | 83), ("type 2", 1 << 16 | 2 << 8 | 3)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 Grade 1\n2 Grade 2", "line 1: '1 Grade 1' can be read as '1 Grade' with the id 1 or as 'Grade 1' with the id 1"),
        ("3, 7\n4, 8", "line 1: '3, 7' can be read as '3' with the id 7 or as '7' with the id 3: write a heading"),
        ("3 a:5", "can be read as '3 a' with the id 5 or as 'a:5' with the id 3"),
        ("Zone 1 1 0\nZone 1 2 1\nZone 2 1 2", "can be read as 'Zone 1 1' with the id 0 or as 'Zone' with the colour #010100"),
        ("flat, road, 7\nflat, sky, 8", "line 1: 'flat, road, 7' is not a class and a value"),
        ("road, 7, flat, 0", "is not a class and a value"),
        ("road, 300 0 0", "line 1: 'road, 300 0 0' is not a class and a value"),
        ("300 0 0 road", "is not a class and a value"),
        ("road, 7\nroad\n", "line 2: 'road' is not a class and a value"),
        ("road, 7\nsky, 1 2 3", "mixes ids and colours"),
        ("name,id,trainId,color\nroad,7,0,#804080", "names several columns of names or values"),
        ("name,id,train_id\nroad,7,0", "names several columns of names or values"),
        (
            "name,id\nlamp, lit,7",
            "line 2: 'lamp, lit,7' has 3 columns, and the heading 2: put names that contain the separator in",
        ),
        ("name,id\nroad,seven", "line 2: 'road,seven' is not a class and a value"),
        ("name,id\n", "no line with a class and its value"),
        ("", "no line with a class and its value"),
    ],
)
def test_what_has_two_readings_or_none_is_refused(text, words):
    with pytest.raises(UserError) as caught:
        read(text)
    assert words in str(caught.value) and str(caught.value).startswith("t.txt")


def test_separators_in_names():
    assert read('"lamp, lit", 7\n"a ""b""", 8') == [("lamp, lit", 7), ('a "b"', 8)]
    assert read("lamp, lit, 7\nroad, 8") == [("lamp, lit", 7), ("road", 8)]
    assert read("a:5 3\nb:6 4") == [("a:5", 3), ("b:6", 4)]
    assert read("2 wheeler:7\nroad:8") == [("2 wheeler", 7), ("road", 8)]


def test_lines_of_several_kinds_are_read_one_by_one():
    assert read("road, 7\nvoid, 9\ntraffic light = 12\n8 sky\n") == [("road", 7), ("void", 9), ("traffic light", 12), ("sky", 8)]


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", (7, False)), ("#804080", (0x804080, True)), ("128,64,128", (0x804080, True)), ("256 0 0", None), ("-1", None)],
)
def test_values_are_ids_or_colours(text, value):
    assert parse_value(text) == value


LETTERS = "ab1234 ,;:=#_-()'é"
IDS = st.integers(0, 65535).map(str)
CHANNEL = st.integers(0, 255)


@st.composite
def tables(draw):
    """A table as a list of names and values, and its text in some program's dialect."""
    kind = draw(st.sampled_from(["id", "small id", "hex", "channels", "columns"]))
    separator = draw(st.sampled_from([",", ", ", ";", "\t", ":", ": ", "=", " = ", " "]))
    value_first, quoted, heading = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    quoted = quoted and separator in (",", ";", "\t")
    name = st.text(LETTERS + '"' * quoted, min_size=1, max_size=9).map(lambda name: name.strip(" #" if quoted else " #,;:="))
    if separator == " ":  # `1,a 2` is read as the value 1 of the class `a 2`, not as the value 2 of the class `1,a`
        name = name.filter(lambda name: not re.search(r"^\d+[,;:=]|[,;:=] | [,;:=]", name))
    elif not quoted:
        name = name.filter(lambda name: separator.strip() not in name)
    names = draw(st.lists(name.filter(bool), min_size=1, max_size=6, unique=True))
    truth, lines = [], []
    if heading:
        columns = ["r", "g", "b"] if kind == "columns" else ["id" if "id" in kind else "color"]
        lines.append(separator.join([*columns, "name"] if value_first else ["name", *columns]))
    for number, name in enumerate(names):
        rgb = draw(st.tuples(CHANNEL, CHANNEL, CHANNEL))
        channels = "," if separator.strip() == ":" else " "
        fields = {
            "id": [draw(IDS)],
            "small id": [str(number)],
            "hex": [f"#{rgb[0] << 16 | rgb[1] << 8 | rgb[2]:06x}"],
            "channels": [channels.join(map(str, rgb))],
            "columns": list(map(str, rgb)),
        }[kind]
        truth.append((name, int(fields[0]) if "id" in kind else rgb[0] << 16 | rgb[1] << 8 | rgb[2]))
        row = [*fields, name] if value_first else [name, *fields]
        if quoted:
            sink = io.StringIO()
            csv.writer(sink, delimiter=separator, lineterminator="").writerow(row)
            lines.append(sink.getvalue())
        else:
            lines.append(separator.join(row))
    return truth, "\n".join(lines) + "\n"


def test_a_table_is_read_as_it_was_meant_or_refused_and_most_are_read():
    outcomes = Counter()

    @examples(100)
    @given(tables())
    def check(table):
        truth, text = table
        try:
            found = read(text)
        except UserError:
            outcomes["refused"] += 1
            return
        assert found == [(" ".join(name.split()), value) for name, value in truth]
        outcomes["read"] += 1

    check()
    assert outcomes["read"] > 0.7 * outcomes.total()  # usually 0.9


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("heading", ["name{0}id\n", ""])
def test_plain_tables_are_not_refused(separator, heading):
    names = ["Grade 1", "type-2", "lamp (lit)", "it's 3", "Grade 10 b"]
    lines = [f"{name}{separator}{i}" for i, name in enumerate(names)]
    assert read(heading.format(separator) + "\n".join(lines)) == [(name, i) for i, name in enumerate(names)]


@given(st.text(alphabet='ab 037",;:=\t\n', max_size=30))
@example('3 a "" a:5')
@examples(100)
def test_any_text_is_read_or_refused_in_a_sentence(text: str) -> None:
    try:
        rows = parse_rows(text, "t")
    except UserError:
        return
    assert all(row.name.strip() for row in rows)


@pytest.mark.parametrize("text", ['"a, b": 3\n"c": 4', '"a, b" = 3\n"c" = 4', '"a, b",3\n"c",4'])
def test_the_quotes_around_a_name_are_not_part_of_it(text: str) -> None:
    assert [(row.name, row.value) for row in parse_rows(text, "t")] == [("a, b", 3), ("c", 4)]
