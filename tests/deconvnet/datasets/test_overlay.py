"""Class masks painted over an image."""

import numpy as np
import pytest

from deconvnet.datasets.overlay import overlay, side_by_side
from deconvnet.datasets.palette import VOC_PALETTE, class_palette

CLASSES = ("background", "cat", "dog")


def test_background_stays_and_classes_are_half_transparent(rng: np.random.Generator) -> None:
    image = rng.integers(0, 255, (120, 160, 3)).astype(np.uint8)
    mask = np.zeros((120, 160), np.uint8)
    mask[40:110, 60:150] = 2
    found = overlay(image, mask, CLASSES)
    assert found.dtype == np.uint8 and found.shape == image.shape
    np.testing.assert_array_equal(found[:, :55], image[:, :55])
    np.testing.assert_array_equal(found[45, 65], (image[45, 65] * 0.5 + VOC_PALETTE[2] * 0.5).astype(np.uint8))
    np.testing.assert_array_equal(found[40, 60], VOC_PALETTE[2])  # the outline
    assert found[40:110, 60:150].min(axis=-1).max() > 200, "the name is written in it, white"


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (17, 16)])
def test_images_of_any_size_and_ids_without_a_name_are_painted(shape: tuple[int, int]) -> None:
    image, mask = np.zeros((*shape, 3), np.uint8), np.full(shape, 7, np.uint8)
    assert overlay(image, mask, CLASSES).shape == image.shape
    np.testing.assert_array_equal(overlay(image, mask * 0, CLASSES), image)


@pytest.mark.parametrize("corner", [np.s_[:12, :12], np.s_[-12:, -12:]])
def test_a_name_that_would_cross_the_edge_is_moved_inside(corner: tuple[slice, slice]) -> None:
    mask = np.zeros((120, 160), np.uint8)
    mask[corner] = 1
    white = overlay(np.zeros((120, 160, 3), np.uint8), mask, ("background", "a very long name")).min(axis=-1) > 200
    rows, columns = np.nonzero(white)
    assert np.ptp(columns) > 60 and columns.min() > 0 and columns.max() < 159 and rows.min() > 0 and rows.max() < 119


def test_a_name_is_written_in_the_largest_piece_of_its_class() -> None:
    mask = np.zeros((120, 160), np.uint8)
    mask[5:15, 5:15], mask[60:100, 100:140] = 1, 1
    rows, columns = np.nonzero(overlay(np.zeros((120, 160, 3), np.uint8), mask, CLASSES).min(axis=-1) > 200)
    assert rows.size and rows.min() >= 60 and rows.max() < 100 and columns.min() >= 100 and columns.max() < 140


def test_without_a_background_class_0_is_painted_and_named(rng: np.random.Generator) -> None:
    image, mask = rng.integers(0, 100, (120, 160, 3)).astype(np.uint8), np.zeros((120, 160), np.uint8)
    found, colour = overlay(image, mask, ("sky", "road"), background=False), class_palette(background=False)[0]
    np.testing.assert_array_equal(found[5, 5], (image[5, 5] * 0.5 + colour * 0.5).astype(np.uint8))
    assert found[40:80].min(axis=-1).max() > 200, "the name is written in it, white"


def test_void_is_painted_without_a_name(rng: np.random.Generator) -> None:
    image = rng.integers(0, 100, (120, 160, 3)).astype(np.uint8)
    found = overlay(image, np.full((120, 160), 255, np.uint8), CLASSES)
    np.testing.assert_array_equal(found, (image * 0.5 + VOC_PALETTE[255] * 0.5).astype(np.uint8))


def test_an_image_stands_beside_its_annotation_and_its_prediction() -> None:
    image, truth = np.full((100, 400, 3), 60, np.uint8), np.zeros((100, 400), np.uint8)
    truth[:, :100] = 255
    prediction = np.full_like(truth, 2)
    found = side_by_side(image, (truth, prediction), CLASSES)
    assert found.shape == (80, 960, 3), "scaled to 320 px each"
    assert (found[:, :320] == 60).all() and (found[:, 410:640] == 60).all()
    np.testing.assert_array_equal(found[40, 330], VOC_PALETTE[255] // 2 + 30)
    np.testing.assert_array_equal(found[40, 650], VOC_PALETTE[2] // 2 + 30)
    with pytest.raises(ValueError, match="height and width"):
        side_by_side(image, (truth.T,), CLASSES)
