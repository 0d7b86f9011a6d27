"""Object masks made consistent with class masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deconvnet.datasets.objects import make_object_mask
from infra.errors import BadInput


def grid(text: str) -> np.ndarray:
    return np.array([[255 if c == "x" else int(c) for c in row] for row in text.split()], np.uint8)


def test_without_an_object_mask_components_of_each_class_become_objects():
    classes = grid("1100x 110x2 00022 1x022")
    assert make_object_mask(classes).tolist() == grid("1100x 110x3 00033 2x033").tolist()


def test_diagonal_neighbours_are_one_object_and_touching_classes_are_two():
    assert make_object_mask(grid("100 010 220")).tolist() == [[1, 0, 0], [0, 1, 0], [2, 2, 0]]


def test_a_consistent_object_mask_is_kept():
    classes, ids = grid("11022 1xx22 00011"), grid("77033 7xx33 00099")
    assert np.array_equal(make_object_mask(classes, ids), ids)


def test_an_object_id_with_two_classes_is_split_and_the_larger_part_keeps_it():
    classes, ids = grid("11122 11122 00000 33300"), grid("44444 44444 00000 55500")
    assert make_object_mask(classes, ids).tolist() == grid("44466 44466 00000 55500").tolist()
    classes = grid("22211 22211 00000 33300")  # the larger part is of the class with the higher id
    assert make_object_mask(classes, ids).tolist() == grid("44466 44466 00000 55500").tolist()
    assert make_object_mask(grid("2211"), grid("4444")).tolist() == [[5, 5, 4, 4]]


def test_annotated_pixels_without_an_object_become_objects():
    assert make_object_mask(grid("11022"), grid("11000")).tolist() == [[1, 1, 0, 2, 2]]


def test_void_of_either_mask_is_void_and_background_has_no_object():
    assert make_object_mask(grid("1x0001"), grid("11x011")).tolist() == [[1, 255, 255, 0, 0, 1]]


def test_more_than_254_objects_need_16_bits():
    classes = np.zeros((40, 60), np.uint8)
    classes[::2, ::2] = 1
    classes[1, 1] = 255
    ids = make_object_mask(classes)
    assert ids.dtype == np.uint16 and ids[1, 1] == 65535
    assert len(np.unique(ids)) == 600 + 2
    again = make_object_mask(classes, ids)
    assert np.array_equal(again, ids)


def test_too_many_objects_are_refused():
    classes = np.zeros((600, 600), np.uint8)
    classes[::2, ::2] = 1
    with pytest.raises(BadInput, match="objects"):
        make_object_mask(classes)


@settings(max_examples=60)
@given(
    arrays(np.uint8, (9, 11), elements=st.sampled_from([0, 1, 2, 3, 255])),
    st.none() | arrays(np.uint8, (9, 11), elements=st.sampled_from([0, 1, 2, 9, 255])),
)
def test_every_object_has_one_class_and_every_annotated_pixel_an_object(classes, given_ids):
    ids = make_object_mask(classes, given_ids)
    void = classes == 255 if given_ids is None else (classes == 255) | (given_ids == 255)
    assert np.array_equal(ids == 255, void)
    assert np.array_equal((ids > 0) & ~void, (classes > 0) & ~void)
    for object_id in set(np.unique(ids)) - {0, 255}:
        assert len(np.unique(classes[ids == object_id])) == 1


def test_without_a_background_only_annotated_objects_are_objects_and_class_0_may_have_them():
    classes = grid("0011x 0011x 22222")
    assert make_object_mask(classes, background=False).tolist() == grid("0000x 0000x 00000").tolist()
    assert make_object_mask(classes, grid("77000 77000 00330"), background=False).tolist() == grid("7700x 7700x 00330").tolist()
    split = make_object_mask(classes, grid("77700 77700 00000"), background=False)
    assert split.tolist() == grid("7780x 7780x 00000").tolist()  # an object of two classes becomes two
