"""Tables of classes and mask values: what is refused, and writing."""

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.importing.class_table import read_table
from deconvnet.datasets.importing.mask_values import blended_ids
from deconvnet.datasets.synthetic import generate
from infra.errors import UserError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("road, 7\nroad\n", "line 2: 'road' is no class and value"),
        ("road, 7\nsky, 7", "line 2: the value 7 stands for two classes"),
        ("road, 7\nsky, 1 2 3", "mixes ids and colours"),
        ("void, 7\n", "names no class"),
        ("road, 300 0 0", "line 1"),
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
