"""Read, write and check files of structured forests, which detect edges.

The format is that of OpenCV's `createStructuredEdgeDetection`: gzipped YAML. OpenCV trusts such a file. If its content is wrong,
OpenCV reads beyond its arrays or ends the process. Therefore this module checks a file before OpenCV opens it.
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

PATCH = 32  # px, side of the patch that a tree sees
INNER = 16  # px, side of the boundary map that a leaf holds, for the centre of the patch
SHRINK = 2  # factor by which feature channels are smaller than the image
STRIDE = 2  # px between neighbouring patches
ORIENTATIONS = 4  # gradient orientations, a channel each
CHANNELS = 2 * (ORIENTATIONS + 1) + 3  # gradient magnitude and orientations at two scales, and the colours L, u, v
GRID = 5  # cells per side of the grid for self-similarity features
NORMALIZATION_RADIUS = 4  # px, radii of the triangle filters on the channels
GRADIENT_SMOOTHING = 0
REGULAR_SMOOTHING = 2
SIMILARITY_SMOOTHING = 8

_NUMBERS_PER_LINE = 100  # OpenCV's parser accepts lines of a few thousand characters
_MAX_BYTES = 1 << 29  # uncompressed
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
_ARRAYS = ("childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins")


class EdgeTree(NamedTuple):
    """A decision tree of n nodes in the form that OpenCV evaluates. Parents come before their children.

    Attributes:
        child: int32 array (n,), index of a node's right child; the left child is just before it. It is 0 for leaves.
        feature: int32 array (n,), index of the feature that a node compares with its threshold, from 0 to
            `training.forest.FEATURES` - 1.
        threshold: float32 array (n,); a patch goes to the left child if its feature is smaller than this.
        starts: int64 array (n + 1,); bins[starts[i]:starts[i + 1]] are the boundary pixels that node i predicts. Only leaves have
            any.
        bins: uint8 array of boundary pixels, each given as 16 * column + row within the central 16x16 pixels of the patch.
    """

    child: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    starts: np.ndarray
    bins: np.ndarray


def encode_forest(trees: Sequence[EdgeTree]) -> bytes:
    """Encode a forest in OpenCV's format. The same trees always give the same bytes.

    Args:
        trees: at least one tree; the trees may differ in size.

    Returns:
        The content of a .yml.gz file.
    """
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
    # OpenCV finds the nodes of tree k from k * nodes on, so all trees are padded to the same size. The starts of boundaries are
    # counted through the whole forest.
    offset = 0
    starts: list[np.ndarray] = []
    for tree in trees:
        starts.append(np.pad(tree.starts[:-1], (0, nodes - len(tree.child)), constant_values=tree.starts[-1]) + offset)
        offset += int(tree.starts[-1])
    starts[-1] = np.append(starts[-1], offset)
    lines = ["%YAML:1.0", "---", "options:", *(f"   {key}: {value}" for key, value in options.items())]
    lines += _yaml_arrays("childs", (_padded(tree.child, nodes) for tree in trees))
    lines += _yaml_arrays("featureIds", (_padded(tree.feature, nodes) for tree in trees))
    lines += _yaml_arrays("thresholds", (_padded(tree.threshold, nodes) for tree in trees), number_format=".4g")
    lines += _yaml_arrays("edgeBoundaries", starts)
    lines += _yaml_arrays("edgeBins", (tree.bins for tree in trees))
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


def _padded(values: np.ndarray, nodes: int) -> np.ndarray:
    """Append zeros to an array.

    Args:
        values: array of at most `nodes` elements.
        nodes: number of elements of the result.

    Returns:
        A new array (nodes,) of the same dtype.
    """
    return np.pad(values, (0, nodes - len(values)))


def _yaml_arrays(name: str, arrays: Iterable[np.ndarray], number_format: str = "d") -> list[str]:
    """Format one number array per tree as a YAML sequence of sequences.

    Long arrays are split into several lines, since OpenCV's parser does not accept long ones.

    Args:
        name: the YAML key.
        arrays: a flat array per tree.
        number_format: format specification of a number, such as "d" or ".4g".

    Returns:
        The lines of YAML, without line ends.
    """
    lines = [f"{name}:"]
    for values in arrays:
        words = [format(v, number_format) for v in values.tolist()]
        rows = [",".join(words[i : i + _NUMBERS_PER_LINE]) for i in range(0, len(words), _NUMBERS_PER_LINE)] or [""]
        lines += [f"   - [ {rows[0]}"] if len(rows) == 1 else [f"   - [ {rows[0]},"]
        lines += [f"      {row}," for row in rows[1:-1]] + [f"      {row}" for row in rows[1:][-1:]]
        lines[-1] += " ]"
    return lines


def require_opencv_contrib() -> None:
    """Check that OpenCV has its contrib modules, which contain EdgeBox and the edge detector (`cv2.ximgproc`).

    Raises:
        UserError: if it was installed without them.
    """
    if not hasattr(cv2, "ximgproc"):
        raise UserError("EdgeBox needs OpenCV's contrib modules, which are not here: pip install opencv-contrib-python-headless")


@lru_cache(maxsize=2)
def load_forest(uri: str) -> Any:
    """Load a structured forest. The two forests used last are kept in memory.

    Args:
        uri: path, https or s3 URI of the file.

    Returns:
        OpenCV's detector object (`cv2.ximgproc.StructuredEdgeDetection`).

    Raises:
        UserError: if the file cannot be fetched or is not a complete structured forest, or OpenCV lacks its contrib modules.
    """
    require_opencv_contrib()
    with storage.local_copy(uri) as path:
        if (error := forest_file_error(path)) is not None:
            raise UserError(f"proposals.edge_model: {uri} is not an OpenCV structured-forest file ({error})")
        return cv2.ximgproc.createStructuredEdgeDetection(str(path))


def forest_file_error(path: Path) -> str | None:
    """Check that a forest's file is complete and that OpenCV can safely read it.

    Args:
        path: a local file, .yml or .yml.gz.

    Returns:
        A description of the first error found, or None if the file is good.
    """
    data = path.read_bytes()
    if compressed := data.startswith(b"\x1f\x8b"):
        try:
            decompressor = zlib.decompressobj(wbits=31)
            data = decompressor.decompress(data, _MAX_BYTES)
        except zlib.error:
            return "its compressed content is damaged"
        if not decompressor.eof:
            return "it is truncated" if not decompressor.unconsumed_tail else "it is too large"
        if decompressor.unused_data:
            return "there is data after its end"
    if compressed != path.name.endswith(".gz"):  # OpenCV decides by the name
        return (
            "it is compressed, so its name should end in .gz" if compressed else "its name ends in .gz, but it is not compressed"
        )
    if not data.startswith(b"%YAML"):
        return "it is not YAML" if data else "it is empty"
    parts = re.findall(r"^(\w+):(.*?)(?=^\w|\Z)", data.decode("ascii", "replace"), re.MULTILINE | re.DOTALL)
    sections = dict(parts)
    if len(sections) < len(parts):
        return "it has a section twice"
    options = {key: int(value) for key, value in re.findall(r"(\w+)\s*:\s*(\d+)\s*[,}\n]", sections.get("options", ""))}
    for name in _OPTIONS:
        if options.get(name, 0) < 1:
            return f"options.{name} is missing or not positive"
    for name in _RADII:
        if name not in options:
            return f"options.{name} is missing"
    arrays = {}
    for name in _ARRAYS:
        numbers = _parse_numbers(sections.get(name, ""), float if name == "thresholds" else np.int64)
        if numbers is None or not len(numbers):
            return f"{name} is missing, empty or not a list of numbers"
        arrays[name] = numbers
    return _array_error(options, arrays)


def _parse_numbers(text: str, dtype: type) -> np.ndarray | None:
    """Read all numbers in a YAML sequence of sequences.

    Args:
        text: the YAML text after the key.
        dtype: type of the numbers, float or np.int64.

    Returns:
        A flat array of all numbers in order; None if the text contains anything that is not a number.
    """
    rows = [row.strip().rstrip(",") for row in re.findall(r"\[([^\[\]]*)\]", text)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(",".join(row for row in rows if row), dtype, sep=",")
        except (DeprecationWarning, ValueError):
            return None


def _array_error(options: Mapping[str, int], arrays: Mapping[str, np.ndarray]) -> str | None:
    """Check that the options and arrays of a forest's file fit together.

    Args:
        options: the section `options` of the file: integers by name, such as "numberOfTrees".
        arrays: the flat number arrays of the file by name, such as "childs" and "thresholds".

    Returns:
        A description of the first error found, or None if there is none.
    """
    child, feature, threshold, starts, bins = (arrays[name] for name in _ARRAYS)
    trees, patch, shrink = options["numberOfTrees"], options["patchSize"], options["shrinkNumber"]
    channels = 2 * (options["numberOfGradientOrientations"] + 1) + 3
    cells, grid = patch // shrink, options["selfsimilarityGridSize"]
    features = (cells**2 + grid**2 * (grid**2 - 1) // 2) * channels
    if patch % shrink or options["patchInnerSize"] > patch or options["stride"] % shrink or grid > cells:
        return "options.patchSize, patchInnerSize, stride, shrinkNumber and selfsimilarityGridSize contradict each other"
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
        return "thresholds are not all finite numbers"
    if len(starts) <= len(child) or starts[0] < 0 or (np.diff(starts) < 0).any() or starts[-1] > len(bins):
        return "edgeBoundaries do not match edgeBins"
    if (bins < 0).any() or (bins >= options["patchInnerSize"] ** 2 * channels).any():
        return "edgeBins lie outside the patch"
    return None
