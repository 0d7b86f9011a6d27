"""Training a structured forest: that it sees what detection sees, here and in OpenCV, and finds the edges it was shown."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from infra.errors import UserError
from proposals.edges.channels import FEATURES, feature_channels, feature_table
from proposals.edges.forest_file import EdgeTree, encode_forest
from proposals.edges.training import forest
from proposals.edges.training.forest import ForestOptions, Sample, sample_patches, train_tree

SMALL = ForestOptions(trees=2, patches=3000, feature_share=0.1)
SMALLER = ForestOptions(patches=1200, feature_share=0.05)


def shapes(seed: int) -> Sample:
    """A noisy image of a rectangle and a disc, and its segmentation."""
    rng = np.random.default_rng(seed)
    segments = np.ones((96, 120), np.uint16)
    x, y = rng.integers(10, 40, 2)
    segments[y : y + 40, x : x + 45] = 2
    cv2.circle(segments, (int(rng.integers(60, 100)), int(rng.integers(30, 70))), 20, 3, -1)
    colours = rng.permutation([[40, 60, 90], [200, 80, 60], [90, 190, 120]])
    image = colours[segments - 1] + rng.normal(0, 12, (96, 120, 3))
    return np.clip(image, 0, 255).astype(np.uint8), [segments]


def samples(count: int = 8) -> Iterator[Sample]:
    return (shapes(seed) for seed in range(count))


def detector(trees: Sequence[EdgeTree], folder: Path) -> "cv2.ximgproc.StructuredEdgeDetection":
    path = folder / "forest.yml.gz"
    path.write_bytes(encode_forest(trees))
    return cv2.ximgproc.createStructuredEdgeDetection(str(path))


@pytest.mark.parametrize("feature", [0, 17, 255, 256 * 4 + 100, 256 * 13 - 1, 256 * 13, 256 * 13 + 311, FEATURES - 1])
@pytest.mark.parametrize("shape", [(96, 120), (95, 121)])
def test_training_sees_what_detection_sees(feature, shape, tmp_path):
    """OpenCV evaluates a tree with one split, whose right leaf marks the first pixel of its patch, as we do."""
    image = np.ascontiguousarray(cv2.resize(shapes(1)[0], shape[::-1]))
    rows, columns = (np.arange(0, side - side % 2 - 16, 2) for side in shape)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    values = forest._feature_values(feature_channels(image), places, feature_table()[[feature]])[0]
    threshold = np.float32(f"{np.median(values):.4g}")
    tree = EdgeTree(
        child=np.array([2, 0, 0], np.int32),
        feature=np.array([feature, 0, 0], np.int32),
        threshold=np.array([threshold, 0, 0], np.float32),
        starts=np.array([0, 0, 0, 1]),
        bins=np.array([0], np.uint8),
    )
    even = cv2.copyMakeBorder(image, 0, shape[0] % 2, 0, shape[1] % 2, cv2.BORDER_REFLECT)
    found = detector([tree], tmp_path).detectEdges(even.astype(np.float32) / 255)
    right = found[places[:, 0], places[:, 1]] > 0
    clear = np.abs(values - threshold) > 1e-4 * np.abs(values).max()
    # Near an odd side the padding differs: OpenCV reflects twice, we once.
    clear &= (places < np.array(shape) - 34).all(axis=1)
    assert clear.mean() > 0.4 and 0.2 < right[clear].mean() < 0.8
    np.testing.assert_array_equal(right[clear], (values >= threshold)[clear])


@pytest.fixture(scope="module")
def trees() -> list[EdgeTree]:
    return [train_tree(samples(), 8, SMALL, [0, index]) for index in range(2)]


def test_a_forest_finds_the_edges_it_was_trained_on(trees, tmp_path):
    image, (segments,) = shapes(100)
    found = detector(trees, tmp_path).detectEdges(image.astype(np.float32) / 255)
    inside = np.s_[16:-16, 16:-16]  # OpenCV looks at the outermost pixels through fewer patches
    boundary = forest.boundary_map(segments)[inside]
    far = cv2.distanceTransform((~boundary).astype(np.uint8), cv2.DIST_L2, 5) > 5
    assert found[inside][boundary].mean() > 8 * found[inside][far].mean()


OTHER_OPTIONS = {"patches": 900, "positives": 0.2, "feature_share": 0.04, "pairs": 8, "min_child": 30, "max_depth": 3}


@pytest.fixture(scope="module")
def default_tree() -> EdgeTree:
    return train_tree(samples(4), 4, SMALLER, [0])


def test_the_same_seed_gives_the_same_file(default_tree):
    again, other = (train_tree(samples(4), 4, SMALLER, [seed]) for seed in (0, 1))
    assert encode_forest([default_tree]) == encode_forest([again]) != encode_forest([other])


@pytest.mark.parametrize("name", sorted({each.name for each in fields(ForestOptions)} - {"trees"}))
def test_each_option_but_the_number_of_trees_changes_a_tree(default_tree, name):
    options = replace(SMALLER, **{name: OTHER_OPTIONS[name]})
    assert encode_forest([train_tree(samples(4), 4, options, [0])]) != encode_forest([default_tree])


def test_sampled_patches_have_a_boundary_near_their_centre_or_none(rng):
    segments = np.ones((60, 80), np.uint16)
    segments[:, 40:] = 2
    segments[50:, :10] = forest.UNKNOWN
    corners = sample_patches(segments, 50, 30, rng)
    assert len(corners) == 80 and (corners % 2 == 0).all() and (corners >= 0).all() and (corners <= [44, 64]).all()
    near = np.abs(corners[:, 1] + 8 - 40) <= 9
    assert near[:50].all() and not near[50:].any()
    assert not ((corners[:, 0] > 34) & (corners[:, 1] < 10)).any()
    assert len(sample_patches(segments[:10], 50, 30, rng)) == 0


def test_patches_after_those_that_give_the_thresholds_are_quantised_by_them(rng, monkeypatch):
    monkeypatch.setattr(forest, "_QUANTILE_PATCHES", 300)
    monkeypatch.setattr(forest, "_CHUNK", 64)
    image, (segments,) = shapes(1)
    maps, table, corners = feature_channels(image), feature_table()[:20], sample_patches(segments, 400, 400, rng)
    patches = forest._Patches(len(corners), table)
    patches.add(maps, segments, corners)
    bins, _, thresholds = patches.finish()
    values = forest._feature_values(maps, corners, table)
    assert len(corners) > 500
    for found, edges, each in zip(bins, thresholds, values, strict=True):
        np.testing.assert_array_equal(found, np.searchsorted(edges, each, side="right"))


def test_half_of_the_images_are_mirrored_with_their_segmentations(monkeypatch):
    images, segmentations = [], []
    monkeypatch.setattr(forest, "feature_channels", lambda image: (images.append(image), feature_channels(image))[1])
    monkeypatch.setattr(forest, "sample_patches", lambda *given: (segmentations.append(given[0]), sample_patches(*given))[1])
    train_tree(samples(), 8, ForestOptions(patches=200, feature_share=0.005), [0])
    mirrored = [not np.array_equal(image, shapes(seed)[0]) for seed, image in enumerate(images)]
    assert 2 <= sum(mirrored) <= 6
    for seed, (turned, image, segments) in enumerate(zip(mirrored, images, segmentations, strict=True)):
        original, (segmentation,) = shapes(seed)
        np.testing.assert_array_equal(image, original[:, ::-1] if turned else original)
        np.testing.assert_array_equal(segments, segmentation[:, ::-1] if turned else segmentation)


def test_few_patches_are_all_used_and_too_few_are_a_user_error():
    tree = train_tree(samples(1), 1, ForestOptions(patches=100_000, feature_share=0.02), [0])
    assert len(tree.child) > 10
    flat = np.zeros((10, 10, 3), np.uint8), [np.ones((10, 10), np.uint16)]
    with pytest.raises(UserError, match="too few"):
        train_tree([flat], 1, SMALL, [0])


def test_masks_without_a_boundary_are_a_user_error():
    image, (segments,) = shapes(1)
    with pytest.raises(UserError, match="no boundary"):
        train_tree([(image, [np.ones_like(segments)])] * 4, 4, SMALL, [0])


def test_each_image_gives_patches_with_and_without_a_boundary(tmp_path):
    """Even if fewer patches than images are wanted."""
    options = ForestOptions(trees=1, patches=40, feature_share=0.05, min_child=2)
    tree = train_tree(samples(40), 40, options, [0])
    assert len(tree.child) >= 3 and len(tree.bins) > 0
