"""Windows: overlapping squares of several sizes, of which each size covers the whole image."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proposals.boxes import make_windows, window_pixels

LENGTHS = st.integers(1, 60)
SIZES = st.lists(st.floats(0.05, 1), min_size=1, max_size=3)


@settings(deadline=None, max_examples=50)
@given(LENGTHS, LENGTHS, SIZES, st.floats(0, 0.95))
def test_each_size_covers_every_pixel_with_squares_inside_the_image(height, width, sizes, overlap):
    windows = make_windows(height, width, sizes, overlap)
    sides = windows[:, 2] - windows[:, 0]
    assert (sides == windows[:, 3] - windows[:, 1]).all() and (sides >= 1).all() and (np.diff(sides) <= 0).all()
    assert set(sides) == {max(1, round(size * min(height, width))) for size in sizes}
    for side in set(sides):
        seen = np.zeros((height, width), int)
        for window in windows[sides == side]:
            x1, y1, x2, y2 = window_pixels(window)
            assert [x1, y1, x2, y2] == window.tolist() and 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            seen[y1:y2, x1:x2] += 1
        assert seen.all()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4000), st.floats(0.01, 1), st.floats(0, 0.95))
def test_neighbours_overlap_as_asked_and_no_window_could_be_spared(length, size, overlap):
    windows = make_windows(length, 20, [size], overlap)  # upright, or lying
    side = max(1, round(size * min(length, 20)))
    starts = sorted({int(y) for y in windows[:, 1]})
    step = max(1, side * (1 - overlap))
    assert all(b - a <= np.ceil(step) for a, b in itertools.pairwise(starts))
    assert len(starts) == 1 or (len(starts) - 2) * max(1, int(side * (1 - overlap) + 1e-9)) < length - side


def test_the_order_is_from_large_to_small_by_rows_and_does_not_depend_on_that_of_the_sizes():
    found = make_windows(20, 40, [0.5, 1.0], 0.0).tolist()
    assert found == [[0, 0, 20, 20], [20, 0, 40, 20], *([x, y, x + 10, y + 10] for y in (0, 10) for x in (0, 10, 20, 30))]
    assert make_windows(20, 40, [1.0, 0.5, 0.5], 0.0).tolist() == found
    assert make_windows(20, 40, []).shape == (0, 4)


@pytest.mark.parametrize("wrong", [(0, 5, [1], 0.5), (5, 5, [0], 0.5), (5, 5, [1.1], 0.5), (5, 5, [1], 1.0), (5, 5, [1], -0.1)])
def test_what_gives_no_windows_is_refused(wrong):
    with pytest.raises(ValueError, match=r"windows of .* px with sizes .* and overlap"):
        make_windows(*wrong)
