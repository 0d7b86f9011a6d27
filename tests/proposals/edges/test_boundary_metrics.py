"""The F-measure of edges, on maps with known results, against another matching algorithm, and on real images."""

import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from proposals.edges.boundary_metrics import THRESHOLDS, disk_offsets, edge_counts, edge_quality, matched_pixels, thin_lines
from proposals.edges.bsds import bsds_files, read_bsds_image
from proposals.edges.detector import edge_orientations, gradient_edges, suppress_non_maxima


def line(column: int, height: int = 80, width: int = 100, rows: slice = slice(None)) -> np.ndarray:
    """A mask with a vertical line one pixel wide."""
    made = np.zeros((height, width), bool)
    made[rows, column] = True
    return made


def points(*pixels: tuple[int, int], shape: tuple[int, int] = (12, 12)) -> np.ndarray:
    made = np.zeros(shape, bool)
    made[tuple(np.array(pixels).T)] = True
    return made


def test_thresholds_are_25_between_0_and_1():
    assert len(THRESHOLDS) == 25 and THRESHOLDS[0] == pytest.approx(26**-2) and THRESHOLDS[-1] == pytest.approx((25 / 26) ** 2)


def test_matching_is_one_to_one():
    many, single = points((5, 4), (5, 5), (5, 6), (6, 5)), points((5, 5))
    assert matched_pixels(many, single, disk_offsets(2)).sum() == 1
    assert matched_pixels(single, many, disk_offsets(2)).sum() == 1


def test_matching_is_as_large_as_possible_where_greedy_matching_is_not():
    """The middle pair is the nearest; matching it first would leave both outer pixels without a partner."""
    detected, annotated = points((5, 3), (5, 6)), points((5, 5), (5, 8))
    # Nearest first takes (5, 6)–(5, 5); then (5, 3) and (5, 8) are 5 px apart.
    assert matched_pixels(detected, annotated, disk_offsets(2)).sum() == 2
    chain = [(5, c) for c in range(0, 12, 3)]
    shifted = [(5, c + 2) for c in range(0, 12, 3)]
    np.testing.assert_array_equal(matched_pixels(points(*chain), points(*shifted), disk_offsets(2)), points(*chain))


def test_offsets_are_a_disc_ordered_by_distance():
    assert [tuple(o) for o in disk_offsets(1)] == [(0, 0), (-1, 0), (0, -1), (0, 1), (1, 0)]
    assert len(disk_offsets(1.42)) == 9 and len(disk_offsets(0.9)) == 1
    lengths = np.hypot(*disk_offsets(4.34).T)
    assert (np.diff(lengths) >= 0).all() and lengths.max() <= 4.34 and len(lengths) == 61


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3])
def test_matching_is_as_large_as_scipys(density):
    rng = np.random.default_rng(int(100 * density))
    for _ in range(20):
        detected, annotated = rng.random((2, 25, 40)) < density * rng.random((2, 1, 1)) * 2
        a, b = np.argwhere(detected), np.argwhere(annotated)
        near = ((a[:, None] - b[None]) ** 2).sum(axis=2) <= 3.2**2
        most = (maximum_bipartite_matching(csr_matrix(near), perm_type="column") >= 0).sum() if near.any() else 0
        matched = matched_pixels(detected, annotated, disk_offsets(3.2))
        assert matched.sum() == most and not (matched & ~detected).any()


@pytest.mark.parametrize(("shift", "found"), [(0, True), (4, True), (5, False), (-4, True)])
def test_a_shifted_line_matches_within_the_tolerance(shift, found):
    """0.0075 of the diagonal of 360×480 is 4.5 px."""
    edges = line(200 + shift, 360, 480).astype(np.float32) * 0.5
    counts = edge_counts(edges, [line(200, 360, 480)])
    low, high = counts[np.array(THRESHOLDS) <= 0.5], counts[np.array(THRESHOLDS) > 0.5]
    assert (low[:, 1] >= 358).all() and (high[:, :3] == 0).all() and (counts[:, 3] == 360).all()
    assert (low[:, 0] == (low[:, 1] if found else 0)).all() and (low[:, 2] == low[:, 0]).all()


def test_between_thresholds_precision_and_recall_are_interpolated():
    counts = np.array([[60, 100, 90, 100], [80, 80, 40, 100]])
    quality = edge_quality([counts], [0.2, 0.6])
    p, r = np.linspace(0.6, 1, 101), np.linspace(0.9, 0.4, 101)
    assert quality.ods == pytest.approx((2 * p * r / (p + r)).max()) and 0.2 < quality.threshold < 0.6


def test_precision_counts_matches_with_any_annotator_and_recall_with_all():
    """Two lines are detected. One annotator drew the first, one both, one a third: precision is 1, and 3 of 4 lines are found."""
    edges = (line(20) | line(60)).astype(np.float32)
    counts = edge_counts(edges, [line(20), line(20) | line(60), line(40)], [0.5])
    detected = int(thin_lines(edges > 0).sum())
    assert counts.tolist() == [[detected, detected, detected // 2 * 3, 4 * 80]]
    assert detected >= 156
    quality = edge_quality([counts], [0.5])
    assert quality.precision == 1 and quality.recall == pytest.approx(0.75, abs=0.02)
    assert quality.ods == quality.ois == pytest.approx(2 * quality.recall / (1 + quality.recall))


def test_thick_edges_are_thinned_before_they_are_counted():
    edges = np.zeros((80, 100), np.float32)
    edges[:, 48:53] = 1
    counts = edge_counts(edges, [line(50)], [0.5], tolerance=0.02)
    assert 76 <= counts[0, 1] <= 90, "400 px of a thick line, of which a thin one with a few twigs should be left"
    assert 74 <= counts[0, 0] <= 80 and counts[0, 2] == counts[0, 0]


def test_ods_has_one_threshold_and_ois_one_for_each_image():
    """Counts by hand at two thresholds: matched detections, detections, matched annotations, annotations."""
    first = np.array([[80, 100, 80, 100], [10, 10, 10, 100]])  # F 0.8, 0.18
    second = np.array([[50, 200, 50, 100], [45, 50, 45, 100]])  # F 0.33, 0.6
    quality = edge_quality([first, second], [0.2, 0.6])
    p, r = np.linspace(130 / 300, 55 / 60, 101), np.linspace(130 / 200, 55 / 200, 101)
    best = (2 * p * r / (p + r)).argmax()
    assert quality.ods == pytest.approx(2 * p[best] * r[best] / (p[best] + r[best]))
    assert quality.threshold == pytest.approx(0.2 + 0.004 * best)
    assert (quality.precision, quality.recall) == (pytest.approx(p[best]), pytest.approx(r[best]))
    p, r = 125 / 150, 125 / 200
    assert quality.ois == pytest.approx(2 * p * r / (p + r))


def test_average_precision_is_the_area_over_the_recalls_that_are_reached():
    flat = np.array([[90, 100, 50 + 50 * (k == 0), 100] for k in range(2)])  # precision 0.9 at recall 1 and 0.5
    assert edge_quality([flat], [0.3, 0.6]).average_precision == pytest.approx(0.9 * 51 * 0.01)


def test_an_image_without_edges_scores_0():
    counts = edge_counts(np.zeros((30, 40), np.float32), [np.zeros((30, 40), bool)])
    quality = edge_quality([counts])
    assert quality.ods == quality.ois == quality.average_precision == 0 and not math.isnan(quality.precision)


def test_annotators_agree_more_than_the_gradient_on_real_images(shared):
    if not (shared / "bsds500").is_dir():
        pytest.skip("no BSDS500")
    own, others, gradient = [], [], []
    any_threshold, few = [0.5], THRESHOLDS[::5]  # an annotator's edges are all of strength 1
    for annotated in map(read_bsds_image, bsds_files(shared / "bsds500", "val")[:2]):
        own.append(edge_counts(annotated.boundaries[0].astype(np.float32), annotated.boundaries[:1], any_threshold))
        others.append(edge_counts(annotated.boundaries[0].astype(np.float32), annotated.boundaries[1:], any_threshold))
        thick = gradient_edges(annotated.image)
        gradient.append(edge_counts(suppress_non_maxima(thick, edge_orientations(thick)), annotated.boundaries, few))
    agreement = edge_quality(others, any_threshold).ods
    assert edge_quality(own, any_threshold).ods > 0.98
    assert 0.6 < agreement < 0.95, "people agree with each other, but not fully"
    assert 0.4 < edge_quality(gradient, few).ods < agreement
