"""Outlines as pixels, against matplotlib's point-in-polygon test, and files that lie."""

from contextlib import suppress

import numpy as np
import pytest
from matplotlib.path import Path

from deconvnet.datasets.importing.regions import Region, bitmap, disc, paint, points, polygon, run_lengths, runs, union
from infra.errors import BadInput

H, W = 30, 40


def full(region: Region, height=H, width=W):
    mask = np.zeros((height, width), bool)
    mask[region.window] = region.pixels
    return mask


def compressed(lengths):
    """pycocotools' rleToString."""
    text = ""
    for i, length in enumerate(lengths):
        rest = length - (lengths[i - 2] if i > 2 else 0)
        while True:
            bits, rest = rest & 0x1F, rest >> 5
            more = rest != -1 if bits & 0x10 else rest != 0
            text += chr((bits | (0x20 if more else 0)) + 48)
            if not more:
                break
    return text


@pytest.mark.parametrize("seed", range(30))
def test_a_pixel_is_inside_if_its_centre_is(seed):
    rng = np.random.default_rng(seed)
    radii = rng.uniform(3, 40, rng.integers(3, 12))
    turn = np.arange(len(radii)) * 2 * np.pi / len(radii) + 0.1234
    corners = rng.uniform(0, 30, 2) + radii[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    rows, columns = np.mgrid[:H, :W] + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    path = Path(np.vstack([corners, corners[:1]]))
    sure = path.contains_points(centres, radius=1e-6) == path.contains_points(centres, radius=-1e-6)  # not on an edge
    inside = full(polygon(1, corners, H, W)).ravel()
    assert np.array_equal(inside[sure], path.contains_points(centres)[sure])


def test_what_an_outline_goes_round_twice_is_outside():
    ring = np.array([[2, 2], [20, 2], [20, 20], [2, 20], [2, 2], [6, 6], [16, 6], [16, 16], [6, 16], [6, 6]], float)
    mask = full(polygon(1, ring, H, W))
    assert mask.sum() == 18 * 18 - 10 * 10 and not mask[10, 10] and mask[3, 10]


@pytest.mark.parametrize("shift", [0.0, 1e6, -1e6, 1e300])
def test_an_outline_far_away_costs_nothing(shift):
    region = polygon(1, np.array([[0, 0], [10, 0], [10, 10], [0, 10]]) + shift, H, W)
    assert region.area == (100 if shift == 0 else 0)


def test_an_outline_over_the_edge_is_cut_off():
    assert full(polygon(1, np.array([[-1e9, 10], [1e9, 10], [1e9, 1e9], [-1e9, 1e9]]), H, W)).sum() == 20 * W


def test_two_points_have_no_inside():
    assert polygon(1, np.array([[1.0, 1], [20, 20]]), H, W).area == 0


@pytest.mark.parametrize("wrong", [[[1, "x"]], [[1, None]], [[1, float("nan")]], [[1, 2, 3]], [1, 2, 3], {"a": 1}, [[1], [2, 3]]])
def test_what_is_no_outline_is_refused(wrong):
    with pytest.raises(BadInput, match="its polygon"):
        points(wrong, "its polygon")


def test_a_disc_is_what_is_near_its_centre():
    rows, columns = np.mgrid[:H, :W] + 0.5
    assert np.array_equal(full(disc(1, 3.2, 8, 7, H, W)), np.hypot(columns - 3.2, rows - 8) <= 7)
    assert disc(1, -50, 5, 3, H, W).area == 0


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999, 1])
def test_run_lengths_come_back(share, rng):
    mask = rng.random((H, W)) < share
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.T.ravel()]))).tolist()
    lengths = np.diff([0, *edges, H * W]).tolist()
    for counts in (lengths, compressed(lengths)):
        assert np.array_equal(full(runs(1, counts, H, W)), mask)


def test_texts_that_pycocotools_wrote():
    """`pycocotools.mask.encode` (2.0.11): rows 1–2, columns 1–3 of 4×5; and a block with a gap and a bar in 12×9."""
    assert run_lengths("5220003").tolist() == [5, 2, 2, 2, 2, 2, 5]
    mask = np.zeros((12, 9), bool)
    mask[2:11, 1:8] = True
    mask[5] = False
    mask[:, 4] = True
    assert np.array_equal(full(runs(1, ">3122NN22NN2071GO22NN22NN2<", 12, 9), 12, 9), mask)


@pytest.mark.parametrize(
    "counts", ["", "abc", "zzzzzzzz", "é", "P" * 60, [5, 10], [-5, H * W + 5], [1.5, 2], [True, 3], None, 7, [2**70]]
)
def test_run_lengths_that_lie_are_refused(counts):
    """pycocotools reads memory that isn't its own, or crashes, for some of these."""
    with pytest.raises(BadInput):
        runs(1, counts, H, W)


def test_any_text_is_read_or_refused(rng):
    for _ in range(500):
        text = "".join(chr(c) for c in rng.integers(48, 112, rng.integers(0, 40)))
        with suppress(BadInput):
            assert runs(1, text, H, W).pixels.size <= H * W


def test_small_objects_lie_over_large_ones_and_overlaps_are_counted():
    large = polygon(1, np.array([[0, 0], [20, 0], [20, 20], [0, 20]]), H, W)
    small = polygon(2, np.array([[5, 5], [10, 5], [10, 10], [5, 10]]), H, W)
    for order in ([large, small], [small, large]):
        made = paint(order, H, W)
        assert made.classes[7, 7] == 2 and made.classes[2, 2] == 1 and made.overlap == 25 and made.hidden == 0
        assert made.objects[7, 7] == order.index(small) + 1
    made = paint([small, large], H, W, small_over_large=False)
    assert made.classes[7, 7] == 1 and made.hidden == 1


def test_void_never_hides_an_object_and_is_void_in_both_masks():
    void = polygon(255, np.array([[0, 0], [20, 0], [20, 20], [0, 20]]), H, W)
    thing = polygon(2, np.array([[5, 5], [10, 5], [10, 10], [5, 10]]), H, W)
    made = paint([thing, void], H, W)
    assert made.classes[7, 7] == 2 and made.objects[7, 7] == 1
    assert made.classes[2, 2] == 255 and made.objects[2, 2] == 255 and made.overlap == 0


def test_background_painted_over_an_object_cuts_a_hole():
    thing = polygon(3, np.array([[0, 0], [20, 0], [20, 20], [0, 20]]), H, W)
    hole = polygon(0, np.array([[5, 5], [10, 5], [10, 10], [5, 10]]), H, W)
    made = paint([thing, hole], H, W)
    assert made.classes[7, 7] == 0 and made.objects[7, 7] == 0 and made.hidden == 0


def test_more_than_254_objects_need_16_bits():
    dots = [bitmap(1, np.ones((1, 1), bool), i // W, i % W, H, W) for i in range(300)]
    made = paint([*dots, polygon(255, np.array([[0, 20], [W, 20], [W, 25], [0, 25]]), H, W)], H, W)
    assert made.objects.dtype == np.uint16 and made.objects[0, 0] == 1 and made.objects[22, 5] == 65535
    assert len(np.unique(made.objects)) == 302


def test_pieces_become_one_object():
    one = union([disc(1, 5, 5, 3, H, W), disc(1, -50, 5, 3, H, W), disc(1, 30, 20, 4, H, W)])
    assert np.array_equal(full(one), full(disc(1, 5, 5, 3, H, W)) | full(disc(1, 30, 20, 4, H, W)))
