"""Tables of classes and mask values: what is refused, and writing."""

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.importing.class_table import ClassTable, infer_table, read_table
from deconvnet.datasets.importing.dataset import ImportOptions
from deconvnet.datasets.importing.mask_values import MaskValues, blended_ids
from deconvnet.datasets.synthetic import generate
from infra.errors import UserError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("road, 7\nsky, 7", "line 2: the value 7 stands for two classes"),
        ("void, 7\n", "names no class"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        read_table(text, "table.txt")


@pytest.mark.parametrize(
    "text", ["road, 7\nvoid, 9\ntraffic light = 12\n", "64 128 64\tAnimal\n192 0 128\tArchway\n0 0 0\tVoid\n"]
)
def test_a_table_that_was_written_reads_the_same(text):
    table = read_table(text, "t")
    again = read_table(table.to_text(), "t")
    assert again.classes == table.classes and again.id_of_value == table.id_of_value


def test_ids_blended_by_resizing_are_told_from_classes():
    masks = np.concatenate([generate(i, 0, 120, 160)[1] for i in range(4)])
    assert blended_ids(masks) == []
    resized = Image.fromarray(np.where(masks == 255, 0, masks * 20)).resize((320, 960), Image.Resampling.BILINEAR)
    assert len(blended_ids(np.asarray(resized))) > 5
    rope = np.zeros((60, 60), np.uint8)
    rope[:, 30:] = 9
    rope[20] = 4  # a thin class: a rope across another one's edge
    assert blended_ids(rope) == []


def values(*pixels, **more):
    """The values of masks of ids, each given as a dictionary from value to number of pixels, by made-up addresses."""
    return {f"m{i}.png": MaskValues(False, each, **more) for i, each in enumerate(pixels)}


@pytest.mark.parametrize("name", ["null", "None", "bg", "other", "_background_", "__background__", "Background"])
def test_known_names_of_id_0_are_the_background(name):
    table = read_table(f"{name}, 0\nshirt, 1\n", "t")
    assert table.classes == ("background", "shirt") and table.id_of_value == {0: 0, 1: 1, 255: 255}
    assert bool(table.notes) == (name != "Background")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sky, 0\nroad, 1\n", "calls id 0 sky: which class is the background? It has sky (77% of the pixels), road (23% of"),
        ("sky 0 0 0\nroad 0 0 1\n", "calls #000000 sky: which class"),
        ("unlabeled, 0\nroad, 1\n", "calls id 0 unlabeled, which is void: which class"),
    ],
)
def test_an_unknown_name_of_id_0_is_asked_about(text, words):
    masks = list(values({0: 770, 1: 230}).values())
    with pytest.raises(UserError) as caught:
        read_table(text, "t", masks=masks)
    assert words in str(caught.value) and "--background none" in str(caught.value)
    name = text.split(",")[0].split()[0]
    table = read_table(text, "t", ImportOptions(background=name), masks)
    assert table.classes == (name, "road") and table.id_of_value[0] == 0
    table = read_table(text, "t", ImportOptions(background="none"), masks)
    assert table.classes == ("background", *(["sky"] if name == "sky" else []), "road")
    assert table.id_of_value[0] == (1 if name == "sky" else 255)


def test_the_background_can_be_named_by_its_value():
    text = "sky, 0\nroad, 1\nfloor, 7\n"
    for asked in ("floor", "7"):
        table = read_table(text, "t", ImportOptions(background=asked))
        assert table.classes == ("floor", "sky", "road") and table.id_of_value == {0: 1, 1: 2, 7: 0, 255: 255}
    assert read_table("a #102030\nb #405060", "t", ImportOptions(background="#405060")).classes == ("b", "a")
    with pytest.raises(UserError, match="--background wall is not in t, which has sky, road, floor"):
        read_table(text, "t", ImportOptions(background="wall"))
    with pytest.raises(UserError, match="--background none, but t has a class background"):
        read_table("background, 0\nroad, 1", "t", ImportOptions(background="none"))


def test_a_little_void_at_id_0_stays_void():
    masks = list(values({0: 100, 1: 900}).values())
    table = read_table("unlabeled, 0\nroad, 1\n", "t", masks=masks)
    assert table.id_of_value[0] == 255 and "no background" in table.notes[0]


def test_names_in_a_table_that_differ_by_case_alone_are_told_and_can_be_joined():
    table = read_table("Car, 1\ncar, 2\nroad, 3", "t")
    assert table.classes == ("background", "Car", "car", "road") and "Car, car differ only in case" in table.notes[0]
    table = read_table("Car, 1\ncar, 2\nroad, 3", "t", ImportOptions(fold_case=True))
    assert table.classes == ("background", "Car", "road") and table.id_of_value[2] == 1


@pytest.mark.parametrize(
    ("found", "names", "classes", "ids"),
    [
        ([{0: 9, 1: 9, 2: 9}], "road,crate,ball", "road,crate,ball", {0: 0, 1: 1, 2: 2}),
        ([{0: 9, 2: 9, 255: 9}], "background,crate,ball", "background,crate,ball", {0: 0, 1: 1, 2: 2, 255: 255}),
        ([{0: 9, 255: 9}], "background,crate", "background,crate", {0: 0, 255: 1}),
        ([{0: 9, 255: 9}, {0: 9}], "road,crate", "road,crate", {0: 0, 255: 1}),
        ([{0: 9, 255: 9}], "crate", "background,crate", {0: 0, 255: 1}),
        ([{0: 9, 1: 9}], "crate", "background,crate", {0: 0, 1: 1}),
        ([{0: 9, 1: 9}], "null,crate", "background,crate", {0: 0, 1: 1}),
        ([{0: 1, 1: 9, 2: 9}], "unlabeled,crate,ball", "background,crate,ball", {0: 255, 1: 1, 2: 2}),
        ([{0: 9, 1: 9}], "crate,background", "background,crate", {0: 1, 1: 0}),
    ],
)
def test_names_of_classes_are_those_of_the_ids_from_0(found, names, classes, ids):
    table = infer_table(values(*found), ImportOptions(classes=tuple(names.split(","))))
    assert table.classes == tuple(classes.split(",")) and ids.items() <= table.id_of_value.items()


@pytest.mark.parametrize(
    ("found", "names", "words"),
    [
        ([{0: 9, 1: 9, 2: 9}], "crate,ball", "names the ids 0 to 1 (crate = 0, ball = 1), and the masks have the values 0, 1, 2"),
        ([{0: 9, 5: 9}], "road,crate", "the masks have the values 0, 5: name all ids"),
        ([{0: 9, 255: 9}], "road,crate,ball", "the masks have the values 0, 255"),
        ([{0: 9, 1: 9}, {0: 9, 255: 9}], "background,crate", "1 masks have only the values 0 and 255, and others 0, 1"),
        ([{0: 9, 1: 9}], "background", "names no class beside background"),
    ],
)
def test_names_that_do_not_fit_the_values_are_refused(found, names, words):
    with pytest.raises(UserError) as caught:
        infer_table(values(*found), ImportOptions(classes=tuple(names.split(","))))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "found", [[{0: 9, 1: 9}, {0: 9, 255: 9}], [{0: 9, 1: 9, 2: 9}, {255: 9}], [{0: 9, 7: 9}, {0: 9}, {0: 9, 255: 9}]]
)
def test_255_that_may_be_a_class_or_void_is_asked_about(found):
    with pytest.raises(UserError, match="not clear whether 255 is a class or void"):
        infer_table(values(*found))
    with pytest.raises(UserError, match="not clear whether 255 is a class or void"):
        read_table("object, 1\nthing, 2\nother, 7\n", "t", masks=list(values(*found).values()))
    table = read_table("object, 1\nobject, 255\nthing, 2\nmore, 7\n", "t", masks=list(values(*found).values()))
    assert table.id_of_value[255] == 1
    assert infer_table(values({0: 9, 1: 9, 255: 9}, {0: 9, 255: 9})).id_of_value[255] == 255  # void occurs beside a class


def test_masks_without_any_class_are_refused():
    with pytest.raises(UserError, match="no mask has another value than 0"):
        infer_table(values({0: 9}, {0: 9}))


def test_the_background_of_inferred_classes_can_be_chosen():
    assert infer_table(values({0: 9, 3: 9, 7: 9}), ImportOptions(background="7")).classes == ("id_7", "id_0", "id_3")
    assert infer_table(values({0: 9, 3: 9, 7: 9}), ImportOptions(background="none")).classes == (
        "background",
        "id_0",
        "id_3",
        "id_7",
    )


@pytest.mark.parametrize("name", ["3", "a:5", "1:a", "# x", "#", 'say "no"', "lamp, lit", "100 b 7", "0 0 0", "#102030"])
def test_a_table_of_odd_names_is_written_so_that_it_reads_the_same(name):
    for rows in ({1: 1, 2: 2}, {0x102030: 1, 0x405060: 2}):
        table = ClassTable(("background", name, "other 2"), rows, 0x102030 in rows)
        again = read_table(table.to_text(), "t")
        assert again.classes == table.classes and again.id_of_value.items() >= rows.items()
