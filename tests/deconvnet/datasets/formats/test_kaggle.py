"""Tables of run lengths of several competitions: the masks they give, and what is refused or rejected."""

import numpy as np
import pytest

from deconvnet.datasets.formats.kaggle import read_kaggle
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from infra.errors import UserError
from tests.deconvnet.datasets.formats.inputs import (
    HEIGHT,
    WIDTH,
    rejection_reason,
    scene_mask,
    starts_and_lengths,
    write_image,
    write_text,
)

SCENE = scene_mask()


def runs(mask, order="columns"):
    """The run lengths of a bool mask, as text."""
    return starts_and_lengths(mask.T if order == "columns" else mask)


def read(folder, text, *images, **rules):
    for name in images or ("a.jpg",):
        write_image(folder / f"images/{name}")
    write_text(folder / "train.csv", text)
    return read_kaggle([AnnotationSource(str(folder / "images"), str(folder / "train.csv"))], ImportOptions(**rules))


CRATE, BALL = runs(SCENE == 1), runs(SCENE == 2)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (f"ImageId,ClassId,EncodedPixels\na.jpg,1,{CRATE}\na.jpg,2,{BALL}\n", ("1", "2")),
        (f"ImageId_ClassId,EncodedPixels\na.jpg_1,{CRATE}\na.jpg_2,{BALL}\na.jpg_3,\n", ("1", "2", "3")),
        (f"Image_Label,EncodedPixels\na.jpg_Crate,{CRATE}\na.jpg_Dot,{BALL}\n", ("Crate", "Dot")),
        (f"ImageId,EncodedPixels,Height,Width,ClassId\na,{CRATE},40,60,6\na,{BALL},40,60,10\n", ("6", "10")),
        (f"id;width;height;class;rle\na;60;40;b;{CRATE}\na;60;40;d;{BALL}\n", ("b", "d")),
        (
            f"id,annotation,width,height,cell_type\r\na,{runs(SCENE == 1, 'rows')},60,40,astro\r\n"
            f'a,"{runs(SCENE == 2, "rows")}",60,40,cort\r\n',
            ("astro", "cort"),
        ),
    ],
    ids=["Severstal", "one column", "clouds", "iMaterialist", "semicolons", "Sartorius"],
)
def test_tables_of_competitions(tmp_path, text, classes):
    dataset = read(tmp_path, text)
    assert dataset.classes == ("background", *classes) and not dataset.rejects
    np.testing.assert_array_equal(dataset.entries[0].load().class_mask, SCENE)


@pytest.mark.parametrize("nothing", ["", "-1", "NaN"])
def test_images_without_an_object_are_background(tmp_path, nothing):
    dataset = read(tmp_path, f"ImageId,EncodedPixels\na.jpg,{runs(SCENE > 0)}\nb.jpg,{nothing}\n", "a.jpg", "b.jpg", "c.jpg")
    assert dataset.classes == ("background", "object") and "1 images" in dataset.notes[-1]
    assert [int(entry.load().class_mask.max()) for entry in dataset.entries] == [1, 0]


def test_the_one_class_can_be_named(tmp_path):
    dataset = read(tmp_path, f"ImageId,EncodedPixels\na.jpg,{runs(SCENE == 1)}\na.jpg,{runs(SCENE == 2)}\n", classes=("ship",))
    image = dataset.entries[0].load()
    assert dataset.classes == ("background", "ship") and set(np.unique(image.object_mask)) == {0, 1, 2}


def test_the_order_of_pixels_can_be_given_and_is_refused_if_it_makes_stripes(tmp_path):
    text = f"ImageId,EncodedPixels\na.jpg,{runs(SCENE > 0, 'rows')}\n"
    assert "stripes when the pixels are counted along the columns: see --run_order" in rejection_reason(read(tmp_path, text))
    image = read(tmp_path, text, run_order="rows").entries[0].load()
    np.testing.assert_array_equal(image.class_mask, SCENE > 0)
    assert any("counted along the rows" in note for note in read(tmp_path, text, run_order="rows").notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 3 10", "line 2: its run lengths have 3 numbers"),
        ("0 3", "starts count from 1"),
        ("5 3 6 4", "not in ascending order"),
        ("20 3 9 4", "not in ascending order"),
        ("5 0", "not in ascending order"),
        (f"{HEIGHT * WIDTH - 1} 3", "end at pixel 2,401, the image has 2,400 (60×40)"),
        ("1 x", "not whole numbers"),
        ("1 99999999999999999999", "not whole numbers"),
    ],
)
def test_malformed_run_lengths_reject_their_image(tmp_path, text, words):
    assert words in rejection_reason(read(tmp_path, f"ImageId,EncodedPixels\na.jpg,{text}\n"))


def test_run_lengths_without_a_class_reject_their_image(tmp_path):
    assert "line 2: it has run lengths and no class" in rejection_reason(
        read(tmp_path, "ImageId,ClassId,EncodedPixels\na.jpg,,1 3\nb.jpg,2,1 3\n", "a.jpg", "b.jpg")
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,60,40,crate,1,2,3,4\n", "is not a table of run lengths"),
        ("", "is not a table of run lengths"),
        ("ImageId,EncodedPixels\na.jpg,1 3,4 5\n", "line 2: 3 fields, and the heading has 2"),
        ("ImageId,EncodedPixels\na.jpg,\n", "has no line with run lengths"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path, text)


def test_lines_that_name_an_image_in_two_ways_are_of_one_image(tmp_path):
    dataset = read(tmp_path, f"ImageId,ClassId,EncodedPixels\na.jpg,1,{CRATE}\na,2,{BALL}\n")
    assert len(dataset.entries) == 1 and not dataset.rejects
    np.testing.assert_array_equal(dataset.entries[0].load().class_mask, SCENE)


@pytest.mark.parametrize("name", ["./a.jpg", "b/../a.jpg", "a.jpg"])
def test_all_spellings_of_one_path_are_one_image(tmp_path, name):
    dataset = read(tmp_path, f"ImageId,ClassId,EncodedPixels\na.jpg,1,{CRATE}\n{name},2,{BALL}\n")
    assert len(dataset.entries) == 1 and not dataset.rejects
    np.testing.assert_array_equal(dataset.entries[0].load().class_mask, SCENE)


def test_ids_name_images_in_subfolders(tmp_path):
    """As in the Data Science Bowl 2018, where the image of the id 0b is stage1_train/0b/images/0b.png."""
    images = [f"{name}/{folder}.png" for name in ("0b", "c7") for folder in (f"images/{name}", f"masks/{name}f1")]
    dataset = read(tmp_path, f"ImageId,EncodedPixels\n0b,{CRATE}\n0b,{BALL}\nc7,{BALL}\n", *images)
    assert [entry.image_id for entry in dataset.entries] == ["0b_images_0b", "c7_images_c7"] and not dataset.rejects
    assert [int(entry.load().class_mask.sum()) for entry in dataset.entries] == [int((SCENE > 0).sum()), int((SCENE == 2).sum())]


def test_images_that_are_not_there_are_rejected(tmp_path):
    dataset = read(tmp_path, f"ImageId,EncodedPixels\na,{CRATE}\ngone.jpg,{CRATE}\n")
    assert len(dataset.entries) == 1 and "no such image" in dataset.rejects[0].reason


def test_long_run_lengths_are_read(tmp_path):
    text = " ".join(f"{start} 1" for start in range(1, 2400, 2)) + " " * 200_000
    assert read(tmp_path, f"ImageId,EncodedPixels\na.jpg,{text}\n").entries[0].load().class_mask.sum() == 1200
