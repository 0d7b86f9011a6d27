"""What a network is shown: crops, flips and canvases, image and label in step."""

import numpy as np
import pytest

from deconvnet.training import transforms
from infra.errors import BadInput
from proposals.boxes import MEAN_RGB


def pair(height: int, width: int) -> transforms.Pair:
    """A label that says where each pixel came from, and an image that says the same."""
    label = (np.arange(height)[:, None] * 3 + np.arange(width)).astype(np.uint8) % 250
    return np.repeat(label[..., None], 3, axis=2), label


def test_stored_examples_leave_room_for_the_crop():
    assert transforms.stored_size(224) == 250
    assert transforms.stored_size(64) == 71


def test_a_crop_keeps_image_and_label_in_step_and_flips_half_of_them():
    image, label = pair(36, 36)
    flipped, corners = 0, set()
    for position in range(300):
        x, y = transforms.random_crop(image, label, 32, transforms.example_rng(0, 0, position))
        assert x.shape == (3, 32, 32)
        assert x.flags.c_contiguous and y.flags.c_contiguous
        assert np.array_equal(x[1], y)
        mirrored = int(y[0, 0]) > int(y[0, 1])
        flipped += mirrored
        corners.add(int(y[0, -1] if mirrored else y[0, 0]))
    assert 110 < flipped < 190
    assert len(corners) > 14  # of the 5 × 5 places; some share a value


def test_an_example_looks_the_same_at_its_place_and_different_elsewhere():
    image, label = pair(80, 80)
    at = [
        transforms.random_crop(image, label, 32, transforms.example_rng(*place))[1]
        for place in ((0, 1, 2), (0, 1, 2), (0, 2, 2), (1, 1, 2), (0, 1, 3))
    ]
    assert np.array_equal(at[0], at[1])
    assert not any(np.array_equal(at[0], other) for other in at[2:])


def test_the_centre_crop_is_the_middle():
    image, label = pair(36, 36)
    x, y = transforms.centre_crop(image, label, 32)
    assert np.array_equal(y, label[2:34, 2:34])
    assert np.array_equal(x[0], y)
    for crop in (
        lambda: transforms.centre_crop(image, label, 64),
        lambda: transforms.random_crop(image, label, 64, transforms.example_rng(0, 0, 0)),
    ):
        with pytest.raises(BadInput, match="36×36 is smaller"):
            crop()


def test_a_small_photograph_lies_whole_on_its_canvas():
    image, label = pair(20, 30)
    places = set()
    for position in range(60):
        x, y = transforms.random_canvas(image, label, 64, transforms.example_rng(0, 0, position))
        inside = y != 255
        assert inside.sum() == 600
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        cut = y[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert np.array_equal(cut, label) or np.array_equal(cut, label[:, ::-1])
        assert np.array_equal(x[0][inside], y[inside])
        assert all((x[c][~inside] == MEAN_RGB[c]).all() for c in range(3))
        places.add((int(rows[0]), int(columns[0])))
    assert len(places) > 40


@pytest.mark.parametrize("shape", [(200, 100), (64, 400), (3000, 1)])
def test_a_large_photograph_is_scaled_to_fit(shape):
    image, label = pair(*shape)
    for x, y in (
        transforms.centre_canvas(image, label, 64),
        transforms.random_canvas(image, label, 64, transforms.example_rng(0, 0, 0)),
    ):
        assert x.shape == (3, 64, 64)
        rows, columns = (np.flatnonzero((y != 255).any(axis)) for axis in (1, 0))
        size = [max(1, round(side * 64 / max(shape))) for side in shape]
        assert [len(rows), len(columns)] == size


def test_jitter_scales_both_ways_and_cuts_what_exceeds():
    image, label = pair(64, 64)
    areas = []
    for position in range(40):
        x, y = transforms.random_canvas(image, label, 64, transforms.example_rng(0, 0, position), 0.5)
        assert x.shape == (3, 64, 64)
        areas.append(int((y != 255).sum()))
    assert min(areas) < 40 * 40
    assert sum(area == 64 * 64 for area in areas) > 10
