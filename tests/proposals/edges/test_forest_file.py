"""The file of a forest: OpenCV and we read what we write, and faulty files are refused."""

import gzip
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from infra.errors import UserError
from proposals.edges import forest_file
from proposals.edges.channels import FEATURES
from proposals.edges.forest_file import EdgeTree, encode_forest, load_forest
from proposals.edges.structured_forest import NO_VOTES, evaluate_forest


def tree(nodes: int, rng: np.random.Generator) -> EdgeTree:
    """A tree that is a chain of nodes: each left child is a leaf with a boundary of three pixels."""
    child, feature = np.zeros(nodes, np.int32), np.zeros(nodes, np.int32)
    child[np.arange(0, nodes - 2, 2)] = np.arange(0, nodes - 2, 2) + 2
    inner = child > 0
    feature[inner] = rng.integers(0, FEATURES, inner.sum())
    leaves = (~inner).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(3 * leaves)])
    return EdgeTree(
        child, feature, rng.normal(size=nodes).astype(np.float32), starts, rng.integers(0, 256, starts[-1]).astype(np.uint8)
    )


@pytest.fixture
def forest(tmp_path: Path, rng: np.random.Generator) -> Path:
    """The file of two trees of different size, with arrays of several lines."""
    path = tmp_path / "forest.yml.gz"
    path.write_bytes(encode_forest([tree(701, rng), tree(401, rng)]))
    return path


def test_opencv_reads_the_file(forest):
    file = cv2.FileStorage(str(forest), cv2.FILE_STORAGE_READ)
    assert file.getNode("options").getNode("numberOfTrees").real() == 2
    assert [file.getNode("childs").at(i).size() for i in range(2)] == [701, 701]
    found = cv2.ximgproc.createStructuredEdgeDetection(str(forest)).detectEdges(np.zeros((64, 64, 3), np.float32))
    assert found.shape == (64, 64) and np.isfinite(found).all() and found.max() > 0


def test_we_read_the_trees_that_were_written(tmp_path, rng):
    written = [tree(701, rng), tree(401, rng)]
    path = tmp_path / "forest.yml.gz"
    path.write_bytes(encode_forest(written))
    read = load_forest(str(path))
    assert load_forest(str(path)) is read
    path.write_bytes(encode_forest(written[:1]))
    assert load_forest(str(path)).child.shape == load_forest(f"file://{path}").child.shape == (1, 701), "the file has changed"
    assert read.evaluated == 1 and read.child.shape == (2, 701)
    for index, each in enumerate(written):
        n = len(each.child)
        np.testing.assert_array_equal(read.child[index, :n], each.child)
        np.testing.assert_array_equal(read.feature[index, :n], each.feature)
        np.testing.assert_allclose(read.threshold[index, :n], each.threshold, rtol=1e-3)
        assert not read.child[index, n:].any()
        for node in rng.integers(0, n, 50):
            pixels = each.bins[each.starts[node] : each.starts[node + 1]]
            row = read.votes[index, node]
            assert (row == NO_VOTES) == (len(pixels) == 0)
            if len(pixels):
                bits = {(x, y) for y in range(16) for x in range(16) if read.boundaries[row, y] >> x & 1}
                assert bits == {(p // 16, p % 16) for p in pixels.tolist()}


def test_the_same_trees_give_the_same_bytes(rng):
    made = tree(51, rng)
    assert encode_forest([made]) == encode_forest([made])
    assert encode_forest([made])[4:8] == bytes(4), "the header of gzip has the time"


def error_of(file: Path) -> str:
    """The message of the error with which a file is refused."""
    with pytest.raises(UserError, match="is not an OpenCV structured-forest file") as caught:
        load_forest(str(file))
    return str(caught.value)


def faulty(forest: Path, pattern: str, by: str) -> Path:
    text = gzip.decompress(forest.read_bytes()).decode()
    other, count = re.subn(pattern, by, text, count=1, flags=re.DOTALL)
    assert count == 1
    path = forest.with_name("faulty.yml.gz")
    path.write_bytes(gzip.compress(other.encode()))
    return path


@pytest.mark.parametrize(
    ("pattern", "by", "reason"),
    [
        ("numberOfTrees: 2", "numberOfTrees: 3", "don't make 3 trees"),
        ("numberOfTrees: 2", "numberOfTrees: 0", "options.numberOfTrees"),
        ("numberOfTrees: 2", "numberOfTrees: 1001", "not from 1 to 1000"),
        ("numberOfTreesToEvaluate: 1", "numberOfTreesToEvaluate: 4", "more than numberOfTrees"),
        ("stride: 2", "stride: 0", "options.stride"),
        ("stride: 2", "stride: 4", "options.stride is 4, and only 2 is supported"),
        ("patchSize: 32", "patchSize: 64", "options.patchSize is 64"),
        ("ientations: 4", "ientations: 8", "numberOfGradientOrientations is 8"),
        ("   gradientSmoothingRadius: 0\n", "", "gradientSmoothingRadius"),
        (r"childs:\n   - \[ 2,", "childs:\n   - [ 900,", "point outside"),
        (r"childs:\n   - \[ 2,0,4", "childs:\n   - [ 2,0,2", "or back"),
        (r"childs:\n   - \[ 2,", "childs:\n   - [ two,", "childs is missing"),
        (r"childs:\n   - \[ 2,", "childs:\n   - [ ", "don't make 2 trees"),
        (r"featureIds:\n   - \[ \d+", "featureIds:\n   - [ 7228", "0 to 7227"),
        (r"thresholds:\n   - \[ [^,]+", "thresholds:\n   - [ nan", "thresholds"),
        (r"edgeBoundaries:\n   - \[ 0", "edgeBoundaries:\n   - [ 9", "edgeBoundaries"),
        (r"edgeBins:\n   - \[ \d+,", "edgeBins:\n   - [ ", "edgeBoundaries"),
        (r"edgeBins:\n   - \[ \d+", "edgeBins:\n   - [ 256", "outside the patch"),
        ("thresholds:.*edgeBoundaries", "edgeBoundaries", "thresholds is missing"),
        ("%YAML:1.0\n", "", "not YAML"),
    ],
)
def test_faults_are_refused(forest, pattern, by, reason):
    assert reason in error_of(faulty(forest, pattern, by))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(forest, share):
    content = forest.read_bytes()
    forest.write_bytes(content[: int(share * len(content))])
    assert "truncated" in error_of(forest)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, rng, monkeypatch):
    path = tmp_path / "forest.yml.gz"
    path.write_bytes(encode_forest([tree(31, rng)]))  # that no other test has loaded, so it is not in memory
    monkeypatch.setattr(forest_file, "_MAX_BYTES", 400)
    assert "too large" in error_of(path)


def test_a_damaged_file_is_refused(forest):
    content = bytearray(forest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    forest.write_bytes(content)
    assert "damaged" in error_of(forest)


def test_data_after_the_end_and_repeated_sections_are_refused(forest):
    content = forest.read_bytes()
    forest.write_bytes(content + gzip.compress(b"edgeBins:\n   - [ 9999 ]\n"))
    assert "after its end" in error_of(forest)
    forest.write_bytes(gzip.compress(gzip.decompress(content) + b"edgeBins:\n   - [ 9 ]\n"))
    assert "twice" in error_of(forest)


def test_a_forest_is_read_and_evaluated_without_opencvs_contrib_modules(forest, monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc")
    forest_file._load_forest.cache_clear()
    forest_file._parse_forest.cache_clear()
    assert evaluate_forest(load_forest(str(forest)), np.zeros((64, 64, 3), np.uint8)).shape == (64, 64)


def test_the_name_must_match_the_compression(forest):
    assert "should end in .gz" in error_of(forest.rename(forest.with_name("forest.yml")))
    plain = forest.with_name("plain.yml.gz")
    plain.write_bytes(b"%YAML:1.0\n---\n")
    assert "not compressed" in error_of(plain)
