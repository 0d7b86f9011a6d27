"""The file of a structured forest, as OpenCV's `createStructuredEdgeDetection` reads it: YAML, gzipped.

OpenCV believes what such a file says, and reads beyond its end or ends the process where that is wrong: so a file is checked here
before OpenCV sees it.
"""

import gzip
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from infra import storage
from infra.errors import UserError

PATCH = 32  # px, what a tree sees
INNER = 16  # px, what it tells, in the middle of the patch
SHRINK = 2
STRIDE = 2
ORIENTATIONS = 4
CHANNELS = 2 * (ORIENTATIONS + 1) + 3
GRID = 5  # cells a side for the self-similarity features
NORMALIZATION_RADIUS = 4
GRADIENT_SMOOTHING = 0
REGULAR_SMOOTHING = 2
SIMILARITY_SMOOTHING = 8
_A_LINE = 100  # numbers; OpenCV's parser knows lines of a few thousand characters
_LARGEST = 1 << 29  # bytes, unpacked
_OPTIONS = (
    "stride",
    "shrinkNumber",
    "patchSize",
    "patchInnerSize",
    "numberOfGradientOrientations",
    "selfsimilarityGridSize",
    "numberOfTrees",
    "numberOfTreesToEvaluate",
)
_RADII = ("gradientSmoothingRadius", "regFeatureSmoothingRadius", "ssFeatureSmoothingRadius", "gradientNormalizationRadius")
_SEQUENCES = ("childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins")


class EdgeTree(NamedTuple):
    """A tree as OpenCV evaluates it, n nodes, parents before children.

    child: int32 (n,), 0 for a leaf, else the right child's index; the left one is right before it. feature: int32 (n,), 0 to
    `edge_forest.FEATURES`; threshold: float32 (n,), smaller values go left. starts: int64 (n + 1,): node i's boundary pixels are
    bins[starts[i]:starts[i + 1]], uint8, column · 16 + row in the middle 16×16 pixels.
    """

    child: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    starts: np.ndarray
    bins: np.ndarray


def encode_forest(trees: Sequence[EdgeTree]) -> bytes:
    """The file's content. The same trees give the same bytes."""
    nodes = max(len(tree.child) for tree in trees)
    options = {
        "stride": STRIDE,
        "shrinkNumber": SHRINK,
        "patchSize": PATCH,
        "patchInnerSize": INNER,
        "numberOfGradientOrientations": ORIENTATIONS,
        "gradientSmoothingRadius": GRADIENT_SMOOTHING,
        "regFeatureSmoothingRadius": REGULAR_SMOOTHING,
        "ssFeatureSmoothingRadius": SIMILARITY_SMOOTHING,
        "gradientNormalizationRadius": NORMALIZATION_RADIUS,
        "selfsimilarityGridSize": GRID,
        "numberOfTrees": len(trees),
        "numberOfTreesToEvaluate": max(1, len(trees) // 2),
    }
    # All trees have the same number of nodes: OpenCV finds tree k's at k · nodes. Boundaries are numbered through the whole forest.
    offset = 0
    starts: list[np.ndarray] = []
    for tree in trees:
        starts.append(np.pad(tree.starts[:-1], (0, nodes - len(tree.child)), constant_values=tree.starts[-1]) + offset)
        offset += int(tree.starts[-1])
    starts[-1] = np.append(starts[-1], offset)
    lines = ["%YAML:1.0", "---", "options:", *(f"   {key}: {value}" for key, value in options.items())]
    lines += _sequence("childs", (_padded(tree.child, nodes) for tree in trees))
    lines += _sequence("featureIds", (_padded(tree.feature, nodes) for tree in trees))
    lines += _sequence("thresholds", (_padded(tree.threshold, nodes) for tree in trees), number=".4g")
    lines += _sequence("edgeBoundaries", starts)
    lines += _sequence("edgeBins", (tree.bins for tree in trees))
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


def _padded(values: np.ndarray, nodes: int) -> np.ndarray:
    return np.pad(values, (0, nodes - len(values)))


def _sequence(name: str, trees: Iterable[np.ndarray], number: str = "d") -> list[str]:
    """A sequence with a sequence for each tree, in lines short enough for OpenCV's parser."""
    lines = [f"{name}:"]
    for values in trees:
        words = [format(v, number) for v in values.tolist()]
        rows = [",".join(words[i : i + _A_LINE]) for i in range(0, len(words), _A_LINE)] or [""]
        lines += [f"   - [ {rows[0]}"] if len(rows) == 1 else [f"   - [ {rows[0]},"]
        lines += [f"      {row}," for row in rows[1:-1]] + [f"      {row}" for row in rows[1:][-1:]]
        lines[-1] += " ]"
    return lines


def require_opencv_contrib() -> None:
    """Raise UserError where OpenCV comes without `ximgproc`."""
    if not hasattr(cv2, "ximgproc"):
        raise UserError("EdgeBox needs OpenCV's contrib modules, which are not here: pip install opencv-contrib-python-headless")


@lru_cache(maxsize=2)
def load_forest(uri: str) -> Any:
    """OpenCV's detector from the file at `uri` (path, https or s3). Raises UserError where it is not a whole structured forest."""
    require_opencv_contrib()
    with storage.local_copy(uri) as path:
        if (fault := forest_file_error(path)) is not None:
            raise UserError(f"proposals.edge_model: {uri} is not an OpenCV structured-forest file ({fault})")
        return cv2.ximgproc.createStructuredEdgeDetection(str(path))


def forest_file_error(path: Path) -> str | None:
    """What is wrong with a forest file, or None: whether it is whole, and everything that OpenCV takes as given."""
    data = path.read_bytes()
    if packed := data.startswith(b"\x1f\x8b"):
        try:
            unpacker = zlib.decompressobj(wbits=31)
            data = unpacker.decompress(data, _LARGEST)
        except zlib.error:
            return "its compressed content is damaged"
        if not unpacker.eof:
            return "it is cut short" if not unpacker.unconsumed_tail else "it is too large"
        if unpacker.unused_data:
            return "something follows its end"
    if packed != path.name.endswith(".gz"):  # OpenCV goes by the name
        return "it is compressed, so its name should end in .gz" if packed else "it is not compressed, as its name says"
    if not data.startswith(b"%YAML"):
        return "it is not YAML" if data else "it is empty"
    parts = re.findall(r"^(\w+):(.*?)(?=^\w|\Z)", data.decode("ascii", "replace"), re.MULTILINE | re.DOTALL)
    sections = dict(parts)
    if len(sections) < len(parts):
        return "it says something twice"
    options = {key: int(value) for key, value in re.findall(r"(\w+)\s*:\s*(\d+)\s*[,}\n]", sections.get("options", ""))}
    for name in _OPTIONS:
        if options.get(name, 0) < 1:
            return f"options.{name} is missing or not positive"
    for name in _RADII:
        if name not in options:
            return f"options.{name} is missing"
    arrays = {}
    for name in _SEQUENCES:
        numbers = _numbers(sections.get(name, ""), float if name == "thresholds" else np.int64)
        if numbers is None or not len(numbers):
            return f"{name} is missing, empty or no list of numbers"
        arrays[name] = numbers
    return _tree_fault(options, arrays)


def _numbers(text: str, dtype: type) -> np.ndarray | None:
    """The numbers of a sequence of sequences; None where there is anything else."""
    rows = [row.strip().rstrip(",") for row in re.findall(r"\[([^\[\]]*)\]", text)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(",".join(row for row in rows if row), dtype, sep=",")
        except (DeprecationWarning, ValueError):
            return None


def _tree_fault(options: Mapping[str, int], arrays: Mapping[str, np.ndarray]) -> str | None:
    child, feature, threshold, starts, bins = (arrays[name] for name in _SEQUENCES)
    trees, patch, shrink = options["numberOfTrees"], options["patchSize"], options["shrinkNumber"]
    channels, cells, grid = (
        2 * (options["numberOfGradientOrientations"] + 1) + 3,
        patch // shrink,
        options["selfsimilarityGridSize"],
    )
    features = (cells**2 + grid**2 * (grid**2 - 1) // 2) * channels
    if patch % shrink or options["patchInnerSize"] > patch or options["stride"] % shrink or grid > cells:
        return "options.patchSize, patchInnerSize, stride, shrinkNumber and selfsimilarityGridSize don't go together"
    if options["numberOfTreesToEvaluate"] > trees:
        return "options.numberOfTreesToEvaluate is more than numberOfTrees"
    if len(child) % trees or not len(child) == len(feature) == len(threshold):
        return f"{len(child)} childs, {len(feature)} featureIds and {len(threshold)} thresholds don't make {trees} trees"
    nodes = len(child) // trees
    inner = child != 0
    if (child < 0).any() or (child >= nodes).any() or (child[inner] <= np.tile(np.arange(nodes), trees)[inner] + 1).any():
        return "childs point outside their tree, or back"
    if (feature < 0).any() or (feature >= features).any():
        return f"featureIds are not all from 0 to {features - 1}"
    if not np.isfinite(threshold).all():
        return "thresholds are not all numbers"
    if len(starts) <= len(child) or starts[0] < 0 or (np.diff(starts) < 0).any() or starts[-1] > len(bins):
        return "edgeBoundaries don't go with edgeBins"
    if (bins < 0).any() or (bins >= options["patchInnerSize"] ** 2 * channels).any():
        return "edgeBins lie outside the patch"
    return None
