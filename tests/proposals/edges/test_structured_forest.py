"""The evaluation of a structured forest: its edges are those of OpenCV's detector."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from proposals.edgebox import edge_boxes
from proposals.edges.channels import FEATURES
from proposals.edges.detector import PRETRAINED_FOREST, forest_edges
from proposals.edges.forest_file import EdgeTree, encode_forest, load_forest
from proposals.edges.structured_forest import evaluate_forest
from proposals.image_codec import decode_image


@pytest.fixture(scope="module")
def opencv() -> "cv2.ximgproc.StructuredEdgeDetection":
    """OpenCV's detector with the forest in the package."""
    return cv2.ximgproc.createStructuredEdgeDetection(str(PRETRAINED_FOREST))


def check(image: np.ndarray, opencv: "cv2.ximgproc.StructuredEdgeDetection", forest: str = str(PRETRAINED_FOREST)) -> None:
    """Check that the edges of an image with even sides are OpenCV's."""
    edges = evaluate_forest(load_forest(forest), image)
    assert edges.dtype == np.float32 and edges.shape == image.shape[:2]
    np.testing.assert_allclose(edges, opencv.detectEdges(image.astype(np.float32) / 255), atol=1e-5, rtol=0)


def test_edges_of_a_real_image_are_those_of_opencv(voc_rows, opencv):
    image = decode_image(voc_rows[0]["image"])
    check(np.ascontiguousarray(image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]), opencv)


@pytest.mark.parametrize("shape", [(16, 16), (18, 34), (300, 420)])
def test_edges_of_other_sizes_are_those_of_opencv(shape, voc_rows, opencv):
    check(cv2.resize(decode_image(voc_rows[1]["image"]), shape[::-1]), opencv)


def test_edges_of_grey_noisy_and_plain_images_are_those_of_opencv(rng, opencv):
    grey = cv2.GaussianBlur(rng.integers(0, 256, (80, 96, 1), dtype=np.uint8), (0, 0), 2)
    for image in (
        np.dstack([grey] * 3),
        rng.integers(0, 256, (60, 70, 3), dtype=np.uint8),
        np.full((64, 64, 3), 255, np.uint8),
        np.zeros((64, 64, 3), np.uint8),
    ):
        check(image, opencv)


@pytest.mark.parametrize("shape", [(375, 500), (333, 499), (33, 47), (17, 16), (9, 40), (1, 1)])
def test_the_detector_gives_what_it_gave_with_opencv(shape, voc_rows, opencv):
    """Images of any size are extended by reflection."""
    image = cv2.resize(decode_image(voc_rows[2]["image"]), shape[::-1])
    below, right = (max(16, 32 - side) for side in shape)
    below, right = below + (shape[0] + below) % 2, right + (shape[1] + right) % 2
    extended = cv2.copyMakeBorder(image, 16, below, 16, right, cv2.BORDER_REFLECT)
    expected = np.clip(opencv.detectEdges(extended.astype(np.float32) / 255), 0, 1)[16:, 16:][: shape[0], : shape[1]]
    np.testing.assert_allclose(forest_edges(image, str(PRETRAINED_FOREST)), expected, atol=1e-5, rtol=0)


def random_tree(nodes: int, rng: np.random.Generator) -> EdgeTree:
    """A tree of random shape, features, thresholds and boundaries. `nodes` is odd."""
    child = np.zeros(nodes, np.int32)
    leaves = [0]
    for right in range(2, nodes, 2):
        child[leaves.pop(int(rng.integers(len(leaves))))] = right
        leaves += [right - 1, right]
    inner = child > 0
    boundaries = [
        np.zeros(0, np.uint8) if inner[i] or rng.random() < 0.3 else rng.permutation(256)[:20].astype(np.uint8)
        for i in range(nodes)
    ]
    starts = np.cumsum([0, *(len(each) for each in boundaries)])
    threshold = np.where(inner, rng.uniform(-0.05, 0.3, nodes), 0).astype(np.float32)
    return EdgeTree(child, np.where(inner, rng.integers(0, FEATURES, nodes), 0), threshold, starts, np.concatenate(boundaries))


def written(trees: Sequence[EdgeTree], path: Path) -> str:
    path.write_bytes(encode_forest(trees))
    return str(path)


@pytest.mark.parametrize("trees", [1, 2, 3, 5, 8])
def test_any_number_of_trees_is_evaluated_as_by_opencv(trees, voc_rows, tmp_path, rng):
    forest = written([random_tree(int(rng.integers(20, 60)) * 2 + 1, rng) for _ in range(trees)], tmp_path / "forest.yml.gz")
    image = np.ascontiguousarray(decode_image(voc_rows[3]["image"])[:120, :150])
    check(image, cv2.ximgproc.createStructuredEdgeDetection(forest), forest)


def test_a_tree_that_is_one_leaf_votes_everywhere(tmp_path):
    leaf = EdgeTree(
        np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.float32), np.array([0, 256]), np.arange(256, dtype=np.uint8)
    )
    edges = evaluate_forest(load_forest(written([leaf], tmp_path / "leaf.yml.gz")), np.zeros((64, 64, 3), np.uint8))
    np.testing.assert_array_equal(edges[20:40, 20:40], 2)


def test_threads_do_not_disturb_each_other(voc_rows):
    """Nodes are given the positions of each image, whose sizes differ."""
    sizes = [(96, 64), (128, 90), (70, 200)]
    images = [cv2.resize(decode_image(row["image"]), size) for row, size in zip(voc_rows[:3], sizes, strict=True)]
    forest = load_forest(str(PRETRAINED_FOREST))
    expected = [evaluate_forest(forest, image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for index, edges in enumerate(pool.map(lambda image: evaluate_forest(forest, image), images * 5)):
            np.testing.assert_array_equal(edges, expected[index % len(images)])


def test_boxes_are_those_that_opencvs_edges_give(voc_rows, opencv, monkeypatch):
    image = cv2.resize(decode_image(voc_rows[3]["image"]), (250, 190))
    ours = edge_boxes(image)
    assert len(ours[0]) > 100
    monkeypatch.setattr(
        "proposals.edges.structured_forest.evaluate_forest", lambda _, image: opencv.detectEdges(image.astype(np.float32) / 255)
    )
    for found, expected in zip(ours, edge_boxes(image), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(15, 15), (64, 65), (14, 64), (65, 64)])
def test_odd_or_small_images_are_refused(shape):
    with pytest.raises(ValueError, match=f"{shape[0]} rows and {shape[1]} columns"):
        evaluate_forest(load_forest(str(PRETRAINED_FOREST)), np.zeros((*shape, 3), np.uint8))
