"""Augmentation: crops, flips and canvases, the same for image and mask."""

import numpy as np
import pytest

from deconvnet.training.data import transforms
from infra.errors import BadInput
from proposals.boxes import MEAN_RGB


def pair(height: int, width: int) -> transforms.Pair:
    """A mask whose values tell pixels apart, and an image with the same values."""
    mask = (np.arange(height)[:, None] * 3 + np.arange(width)).astype(np.uint8) % 250
    return np.repeat(mask[..., None], 3, axis=2), mask


def test_a_random_crop_is_the_same_of_image_and_mask_and_half_are_flipped():
    image, mask = pair(36, 36)
    flipped, corners = 0, set()
    for position in range(300):
        x, y = transforms.square_crop(image, mask, 32, transforms.example_rng(0, 0, position))
        assert x.shape == (3, 32, 32)
        assert x.flags.c_contiguous and y.flags.c_contiguous
        assert np.array_equal(x[1], y)
        mirrored = int(y[0, 0]) > int(y[0, 1])
        flipped += mirrored
        corners.add(int(y[0, -1] if mirrored else y[0, 0]))
    assert 110 < flipped < 190
    assert len(corners) > 14  # of the 5 × 5 positions; some have the same value


def test_augmentation_depends_on_seed_epoch_and_position_alone():
    image, mask = pair(80, 80)
    at = [
        transforms.square_crop(image, mask, 32, transforms.example_rng(*where))[1]
        for where in ((0, 1, 2), (0, 1, 2), (0, 2, 2), (1, 1, 2), (0, 1, 3))
    ]
    assert np.array_equal(at[0], at[1])
    assert not any(np.array_equal(at[0], other) for other in at[2:])


def test_the_centre_crop_is_the_middle_and_a_small_example_is_refused():
    image, mask = pair(36, 36)
    x, y = transforms.square_crop(image, mask, 32)
    assert np.array_equal(y, mask[2:34, 2:34])
    assert np.array_equal(x[0], y)
    for crop in (
        lambda: transforms.square_crop(image, mask, 64),
        lambda: transforms.square_crop(image, mask, 64, transforms.example_rng(0, 0, 0)),
    ):
        with pytest.raises(BadInput, match="36×36 is smaller"):
            crop()


def test_a_small_image_is_whole_on_its_canvas():
    image, mask = pair(20, 30)
    offsets = set()
    for position in range(60):
        x, y = transforms.square_canvas(image, mask, 64, transforms.example_rng(0, 0, position))
        inside = y != 255
        assert inside.sum() == 600
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        cut = y[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert np.array_equal(cut, mask) or np.array_equal(cut, mask[:, ::-1])
        assert np.array_equal(x[0][inside], y[inside])
        assert all((x[c][~inside] == MEAN_RGB[c]).all() for c in range(3))
        offsets.add((int(rows[0]), int(columns[0])))
    assert len(offsets) > 40


@pytest.mark.parametrize("shape", [(200, 100), (64, 400), (3000, 1)])
def test_a_large_image_is_scaled_to_fit(shape):
    image, mask = pair(*shape)
    for x, y in (
        transforms.square_canvas(image, mask, 64),
        transforms.square_canvas(image, mask, 64, transforms.example_rng(0, 0, 0)),
    ):
        assert x.shape == (3, 64, 64)
        rows, columns = (np.flatnonzero((y != 255).any(axis)) for axis in (1, 0))
        size = [max(1, round(side * 64 / max(shape))) for side in shape]
        assert [len(rows), len(columns)] == size


def test_a_large_image_is_averaged_as_it_is_scaled_down():
    """Black and white pixels become grey. Interpolation between the nearest of them would leave them black or white."""
    image = np.repeat(255 * (np.indices((320, 320)).sum(0) % 2).astype(np.uint8)[..., None], 3, axis=2)
    x, _ = transforms.square_canvas(image, image[..., 0], 64)
    assert np.abs(x - 127.5).max() < 8


def test_jitter_scales_up_and_down_and_cuts_off_what_exceeds_the_canvas():
    image, mask = pair(64, 64)
    areas = []
    for position in range(40):
        x, y = transforms.square_canvas(image, mask, 64, transforms.example_rng(0, 0, position), 0.5)
        assert x.shape == (3, 64, 64)
        areas.append(int((y != 255).sum()))
    assert 31 * 31 <= min(areas) < 40 * 40
    assert sum(area == 64 * 64 for area in areas) > 10


def test_jitter_scales_image_and_mask_alike_by_at_most_its_share_and_makes_no_new_classes():
    """Each class has a channel of the image. With another interpolation the mask would be shifted against it by half a pixel."""
    classes, mask = (0, 7, 200), np.zeros((64, 64), np.uint8)
    mask[22:42, 22:42], mask[50:62, 4:40] = 200, 7
    image = np.where(mask[..., None] == classes, 250, 0).astype(np.uint8)
    canvases = [transforms.square_canvas(image, mask, 128, transforms.example_rng(0, 0, i), 0.5) for i in range(40)]
    widths = [int((y == 200).any(0).sum()) for _, y in canvases]
    assert 9 <= min(widths) < 13 and 27 < max(widths) <= 31
    assert all(np.unique(y).tolist() == [*classes, 255] for _, y in canvases)

    def centre(region: np.ndarray) -> np.ndarray:
        return np.mean(np.nonzero(region), axis=1)

    shifts = [centre((x[n] > 125) & (y != 255)) - centre(y == classes[n]) for x, y in canvases for n in (1, 2)]
    assert np.abs(shifts).max() <= 0.5 and np.abs(np.mean(shifts, axis=0)).max() < 0.1


def test_an_image_of_the_size_of_the_square_is_taken_as_it_is(rng):
    image, mask = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), rng.integers(0, 3, (8, 8), dtype=np.uint8)
    for found, expected in zip(transforms.square_crop(image, mask, 8), (image.transpose(2, 0, 1), mask), strict=True):
        np.testing.assert_array_equal(found, expected)
