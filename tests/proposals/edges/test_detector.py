"""Edge maps, orientations, thinning, and the files of forests."""

import functools
import gzip
import http.server
import math
import threading
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from proposals.edges import detector
from proposals.edges.detector import (
    PRETRAINED_FOREST,
    edge_map,
    edge_orientations,
    forest_uri,
    gradient_edges,
    suppress_non_maxima,
    thick_edges,
)
from proposals.edges.forest_file import load_forest
from proposals.edges.structured_forest import Forest

# The smallest possible forest: one tree that compares the gradient in the centre of its patch with a threshold, and where it is
# stronger marks the centre of the patch as an edge (column 8 of 16, in all rows).
FOREST = f"""%YAML:1.0
---
options:
   stride: 2
   shrinkNumber: 2
   patchSize: 32
   patchInnerSize: 16
   numberOfGradientOrientations: 4
   gradientSmoothingRadius: 0
   regFeatureSmoothingRadius: 2
   ssFeatureSmoothingRadius: 8
   gradientNormalizationRadius: 4
   selfsimilarityGridSize: 5
   numberOfTrees: 1
   numberOfTreesToEvaluate: 1
childs: [ [ 2, 0, 0 ] ]
featureIds: [ [ {3 * 256 + 8 * 16 + 8}, 0, 0 ] ]
thresholds: [ [ 0.3, 0., 0. ] ]
edgeBoundaries: [ [ 0, 0, 0, 16 ] ]
edgeBins: [ [ {", ".join(str(8 * 16 + i) for i in range(16))} ] ]
"""


@pytest.fixture
def forest(tmp_path: Path) -> Path:
    path = tmp_path / "model.yml.gz"
    path.write_bytes(gzip.compress(FOREST.encode()))
    return path


def step(height: int = 64, width: int = 96) -> np.ndarray:
    """An image that is dark up to column 39 and bright from column 40 on."""
    image = np.full((height, width, 3), 30, np.uint8)
    image[:, 40:] = 200
    return image


def test_a_vertical_step_gives_one_thin_line_with_a_horizontal_normal():
    edges, orientation = edge_map(step(), "gradient")
    assert edges.dtype == orientation.dtype == np.float32
    columns = np.flatnonzero(edges[32] > 0.1)
    assert set(columns) <= {39, 40} and edges[32].max() == 1
    across = orientation[32, columns]
    assert np.minimum(across, math.pi - across).max() < 0.05


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 110, 135, 160])
def test_orientation_is_the_angle_of_the_edges_normal(degrees):
    angle = math.radians(degrees)
    y, x = np.mgrid[:81, :81] - 40.0
    ridge = np.exp(-((x * math.cos(angle) + y * math.sin(angle)) ** 2) / 8).astype(np.float32)
    found = edge_orientations(ridge)[36:45, 36:45]
    wrong = np.abs(np.remainder(found - angle + math.pi / 2, math.pi) - math.pi / 2)
    assert wrong[ridge[36:45, 36:45] > 0.9].max() < math.radians(4)
    assert (found >= 0).all() and (found <= np.float32(math.pi)).all()


def test_a_change_of_colour_without_a_change_of_lightness_is_an_edge():
    """Two colours of the same lightness."""
    image = np.full((40, 40, 3), (150, 100, 60), np.uint8)
    image[:, 20:] = (60, 118, 150)
    assert gradient_edges(image)[20, 19:21].min() > 0.5


def test_a_flat_image_has_no_edges_and_faint_noise_stays_faint(rng):
    assert not edge_map(np.full((50, 50, 3), 128, np.uint8), "gradient")[0].any()
    faint = (128 + rng.integers(0, 2, (50, 50, 3))).astype(np.uint8)
    assert gradient_edges(faint).max() < 0.2


def test_thinning_keeps_only_ridges_with_their_strength(rng):
    thick = gradient_edges(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    thin = suppress_non_maxima(thick, edge_orientations(thick))
    kept = thin > 0
    np.testing.assert_array_equal(thin[kept], thick[kept])
    assert 0.02 < kept.mean() < 0.35


def test_thinning_weakens_edges_near_the_border_if_asked():
    flat = np.ones((20, 30), np.float32)
    thin = suppress_non_maxima(flat, np.zeros_like(flat), border=5)
    ramp = np.minimum(np.arange(30), np.arange(30)[::-1]).clip(0, 5) / 5
    np.testing.assert_allclose(thin[10], ramp, rtol=1e-6)
    np.testing.assert_allclose(thin[:, 10], ramp[np.minimum(np.arange(20), np.arange(20)[::-1])], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 200), (200, 2), (3, 3)])
def test_tiny_images_have_finite_edges(shape, rng, forest):
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for keywords in ({"edges": "gradient"}, {"edge_model": str(forest)}, {"edge_model": str(forest), "multiscale": True}):
        edges, orientation = edge_map(image, **keywords)
        assert edges.shape == orientation.shape == shape
        assert np.isfinite(edges).all() and edges.min() >= 0 and edges.max() <= 1


@pytest.mark.parametrize("shape", [(9, 40), (15, 15), (17, 16), (33, 64), (100, 101)])
def test_the_forest_is_given_even_sides(shape, rng, monkeypatch, forest):
    """Its feature channels have half the resolution."""
    seen = []

    def evaluate(forest: Forest, image: np.ndarray) -> np.ndarray:
        seen.append(image.shape)
        return image[..., 0].astype(np.float32)

    monkeypatch.setattr("proposals.edges.structured_forest.evaluate_forest", evaluate)
    assert thick_edges(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), "forest", str(forest)).shape == shape
    assert seen[0][0] % 2 == seen[0][1] % 2 == 0 and min(seen[0][:2]) >= 48


@pytest.mark.parametrize("shape", [(64, 96), (65, 97), (33, 47), (70, 99)])
def test_the_forest_file_that_is_given_is_used(forest, shape):
    edges, orientation = edge_map(step(*shape), edge_model=str(forest))
    assert edges.shape == orientation.shape == shape
    strong = np.flatnonzero(edges[shape[0] // 2] > 0.05)
    assert len(strong) and np.abs(strong - 39.5).max() <= 4


def test_a_forest_is_downloaded_over_http(forest):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(forest.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}/model.yml.gz"
        fetched = edge_map(step(), edge_model=uri)[0]
        signed = edge_map(step(), edge_model=f"{uri}?sp=r&sig={'0' * 300}")[0]  # as a pre-signed URL
        with pytest.raises(UserError, match="can't be downloaded"):
            load_forest(uri + "x")
        server.shutdown()
    for found in (fetched, signed):
        np.testing.assert_array_equal(found, edge_map(step(), edge_model=str(forest))[0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.yml", b""),
        ("text.yml", b"this is not a model"),
        ("text.yml.gz", b"this is not a model"),
        ("cut.yml.gz", gzip.compress(FOREST.encode(), mtime=0)[:200]),
        ("other.yml", b"%YAML:1.0\n---\na: 1\n"),
        ("no-trees.yml", FOREST.replace("numberOfTrees: 1", "numberOfTrees: 0").encode()),
        ("no-nodes.yml", FOREST.split("childs")[0].encode()),
    ],
)
def test_a_file_that_is_not_a_forest_is_a_user_error_with_its_name(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_forest(str(path))


def test_a_missing_forest_is_a_user_error_with_its_name(tmp_path):
    with pytest.raises(UserError, match=r"gone\.yml\.gz"):
        load_forest(str(tmp_path / "gone.yml.gz"))


def test_the_forest_in_the_package_is_the_default_and_under_8_mb():
    assert forest_uri("forest", None) == str(PRETRAINED_FOREST) and forest_uri("gradient", None) is None
    assert forest_uri("forest", "mine.yml.gz") == "mine.yml.gz"
    assert PRETRAINED_FOREST.stat().st_size <= 8_000_000
    edges = thick_edges(step(96, 128), "forest")
    assert edges[:, 39:41].mean() > 10 * edges[:, 60:].mean()


def test_edges_are_as_strong_at_the_border_as_inside():
    """Without padding, the outermost pixels would lie in fewer patches, which makes their edges fainter."""
    edges = thick_edges(np.ascontiguousarray(np.roll(step(128, 96), -30, axis=1)[:, :90]), "forest")
    assert edges[:, 9:11].max(axis=1).mean() > 0.7 * thick_edges(step(128, 96), "forest")[:, 39:41].max(axis=1).mean()


def test_multiscale_averages_edges_of_three_sizes(forest, monkeypatch):
    image = step()
    three = edge_map(image, edge_model=str(forest), multiscale=True)[0]
    assert np.abs(np.flatnonzero(three[32] > 0.05) - 39.5).max() <= 6
    strengths = {32: 0.25, 64: 0.375, 128: 0.875}  # by the height of the image
    monkeypatch.setattr(detector, "thick_edges", lambda image, *_: np.full(image.shape[:2], strengths[len(image)], np.float32))
    monkeypatch.setattr(detector, "suppress_non_maxima", lambda edges, *_, **__: edges)
    assert (edge_map(image, multiscale=True)[0] == 0.5).all() and (edge_map(image)[0] == 0.375).all()
