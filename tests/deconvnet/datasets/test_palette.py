"""VOC's palette."""

import numpy as np

from deconvnet.datasets.palette import VOC_PALETTE, class_palette, colourise


def test_the_palette_is_that_of_vocs_development_kit():
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert VOC_PALETTE.shape == (256, 3) and VOC_PALETTE.dtype == np.uint8
    for class_id, colour in known.items():
        assert tuple(VOC_PALETTE[class_id]) == colour


def test_colourise_paints_every_pixel():
    image = colourise(np.array([[0, 15], [255, 1]], np.uint8))
    assert image.tolist() == [[[0, 0, 0], [192, 128, 128]], [[224, 224, 192], [128, 0, 0]]]


def test_without_a_background_no_class_is_black_and_void_stays_cream():
    assert class_palette() is VOC_PALETTE
    colours = class_palette(background=False)
    assert colours.shape == (256, 3) and colours[:254].any(axis=1).all()
    np.testing.assert_array_equal(colours[[0, 19, 255]], VOC_PALETTE[[1, 20, 255]])
    assert colourise(np.array([[0, 255]], np.uint8), colours).tolist() == [[[128, 0, 0], [224, 224, 192]]]
