"""The channels that a structured forest reads its features from: they are OpenCV's."""

import cv2
import numpy as np
import pytest

from proposals.edges.channels import CHANNELS, FEATURES, MAPS, _raw_channels, feature_channels, feature_table
from proposals.image_codec import decode_image


def opencv_channels(image: np.ndarray) -> np.ndarray:
    """OpenCV's channels (13, H / 2, W / 2), before they are smoothed."""
    raw = np.empty((image.shape[0] // 2, image.shape[1] // 2, CHANNELS), np.float32)
    cv2.ximgproc.createRFFeatureGetter().getFeatures(image.astype(np.float32) / 255, raw, 4, 0, 2, CHANNELS, 4)
    return raw.transpose(2, 0, 1)


def compare(image: np.ndarray) -> None:
    """Check that the channels are OpenCV's. Only averages in the last three columns are rounded in another order."""
    ours, theirs = _raw_channels(image), opencv_channels(image)
    np.testing.assert_array_equal(ours[..., :-3], theirs[..., :-3])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_channels_of_real_images_are_those_of_opencv(voc_rows):
    for row in voc_rows:
        image = decode_image(row["image"])
        compare(np.ascontiguousarray(image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255), (128, 128, 128), (12, 200, 90)])
def test_an_image_of_one_colour_has_the_channels_of_opencv(colour):
    """All its patches would go another way through a tree if one rounding differed."""
    image = np.full((48, 64, 3), colour, np.uint8)
    np.testing.assert_array_equal(_raw_channels(image), opencv_channels(image))


@pytest.mark.parametrize("width", [64, 70, 78, 94])
def test_smoothing_is_that_of_opencvs_interleaved_channels(width, rng):
    image = rng.integers(0, 256, (48, width, 3), dtype=np.uint8)
    raw = _raw_channels(cv2.copyMakeBorder(image, 8, 8, 8, 8, cv2.BORDER_REFLECT)).transpose(1, 2, 0)
    maps = feature_channels(image)
    for first, radius in ((0, 1), (CHANNELS, 4)):
        ramp = np.minimum(np.arange(1, 2 * radius + 2), np.arange(2 * radius + 1, 0, -1)).astype(np.float32)
        kernel = ramp / np.float32((radius + 1) ** 2)
        expected = cv2.sepFilter2D(np.ascontiguousarray(raw), -1, kernel, kernel).transpose(2, 0, 1)
        np.testing.assert_array_equal(maps[first : first + CHANNELS, :, :-1], expected[..., :-1])


@pytest.mark.parametrize("degrees", range(0, 180, 15))
def test_orientations_are_those_of_opencv(degrees):
    y, x = np.mgrid[:64, :64]
    wave = np.sin((x * np.cos(np.radians(degrees)) + y * np.sin(np.radians(degrees))) / 3)
    compare(np.dstack([np.uint8(120 + 100 * wave)] * 3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 9), (3, 200), (41, 40)])
def test_small_images_have_channels_of_half_their_size_with_a_margin(shape, rng):
    maps = feature_channels(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    assert maps.shape == (MAPS, (shape[0] + 17) // 2, (shape[1] + 17) // 2)
    assert np.isfinite(maps).all() and not maps[-1].any()


def test_the_feature_table_has_7228_features():
    table = feature_table()
    assert table.shape == (FEATURES, 6) and FEATURES == 7228
    assert table.min() == 0 and table[:, [0, 3]].max() == MAPS - 1 and table[:, [1, 2, 4, 5]].max() == 15
    assert len(np.unique(table, axis=0)) == FEATURES
