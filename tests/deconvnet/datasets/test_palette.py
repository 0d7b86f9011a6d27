"""VOC's palette."""

import numpy as np

from deconvnet.datasets.palette import VOC_PALETTE, colourise


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
