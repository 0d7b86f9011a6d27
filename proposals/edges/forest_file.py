"""Read, write and check files of structured forests, which detect edges.

The format is that of OpenCV's `createStructuredEdgeDetection`: gzipped YAML. Forests that were made for OpenCV can therefore be
used here, and ours there. Files are checked, because the detector would read beyond its arrays if their content were wrong.
"""

import gzip
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from infra import storage
from infra.errors import UserError
from infra.storage.uri import is_http
from proposals.edges.channels import (
    FEATURES,
    GRID,
    INNER,
    NORMALIZATION_RADIUS,
    ORIENTATIONS,
    PATCH,
    REGULAR_SMOOTHING,
    SHRINK,
    SIMILARITY_SMOOTHING,
)
from proposals.edges.structured_forest import STRIDE, Forest, boundary_bits

_NUMBERS_PER_LINE = 100  # OpenCV's parser accepts lines of a few thousand characters
_MAX_BYTES = 1 << 29  # uncompressed
_MAX_TREES = 1000
# Options that must have the values for which features are computed here. Only the number of trees can vary.
_FIXED_OPTIONS = {
    "stride": STRIDE,
    "shrinkNumber": SHRINK,
    "patchSize": PATCH,
    "patchInnerSize": INNER,
    "numberOfGradientOrientations": ORIENTATIONS,
    "gradientSmoothingRadius": 0,
    "regFeatureSmoothingRadius": REGULAR_SMOOTHING,
    "ssFeatureSmoothingRadius": SIMILARITY_SMOOTHING,
    "gradientNormalizationRadius": NORMALIZATION_RADIUS,
    "selfsimilarityGridSize": GRID,
}
_ARRAYS = ("childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins")


class EdgeTree(NamedTuple):
    """A decision tree of n nodes in the form of the file. Parents come before their children.

    Attributes:
        child: int32 array (n,), index of a node's right child; the left child is just before it. It is 0 for leaves.
        feature: int32 array (n,), index of the feature that a node compares with its threshold, from 0 to
            `channels.FEATURES` - 1.
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
    options = {**_FIXED_OPTIONS, "numberOfTrees": len(trees), "numberOfTreesToEvaluate": max(1, len(trees) // 2)}
    # OpenCV expects the nodes of tree k at index k * nodes, so all trees are padded to the same size. `starts` are indices into
    # the bins of the whole forest.
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


def load_forest(uri: str) -> Forest:
    """Load a structured forest. The two forests used last are kept in memory.

    A local file that has changed is loaded again. A changed file in a bucket or on a web server goes unnoticed in this process,
    because asking for its version would cost a request for each image.

    Args:
        uri: path, https or s3 URI of the file.

    Returns:
        The forest, as `evaluate_forest` uses it.

    Raises:
        UserError: if the file cannot be fetched or is not a complete structured forest.
    """
    return _load_forest(uri, "" if storage.in_bucket(uri) or is_http(uri) else storage.version_token(uri))


@lru_cache(maxsize=2)
def _load_forest(uri: str, version: str) -> Forest:
    """Load a structured forest. The version of a local file is part of the key of the cache."""
    with storage.local_copy(uri) as path:
        try:
            return _parse_forest(path.read_bytes(), path.suffix == ".gz")
        except _Fault as error:
            raise UserError(f"proposals.edge_model: {uri} is not an OpenCV structured-forest file ({error})") from None


@lru_cache(maxsize=2)  # keyed by content: every registered model version has its own copy of the file, and parsing takes a second
def _parse_forest(data: bytes, compressed_name: bool) -> Forest:
    """Parse a forest file. The arguments and errors are those of `_read`."""
    trees, evaluated, arrays = _read(data, compressed_name)
    child, feature, threshold, starts, bins = (arrays[name] for name in _ARRAYS)
    votes, boundaries = boundary_bits(starts[: len(child) + 1], bins)
    shape = trees, len(child) // trees
    return Forest(
        child.astype(np.int32).reshape(shape),
        feature.astype(np.int32).reshape(shape),
        threshold.astype(np.float32).reshape(shape),
        votes.reshape(shape),
        boundaries,
        evaluated,
    )


class _Fault(ValueError):
    """Raised if a forest's file is invalid. The message says what is wrong."""


def _read(data: bytes, compressed_name: bool) -> tuple[int, int, dict[str, np.ndarray]]:
    """Read and check the content of a forest's file.

    Args:
        data: the content, which may be compressed.
        compressed_name: whether the file's name ends in .gz.

    Returns:
        The number of trees; the number of them that each patch goes through; and the flat number arrays of the file by name, such
        as "childs" (int64) and "thresholds" (float64).

    Raises:
        _Fault: if the file is not a complete forest, or needs other features than those computed here.
    """
    _, *parts = re.split(r"^(\w+):", _read_text(data, compressed_name), flags=re.MULTILINE)
    names, contents = parts[::2], parts[1::2]
    sections = dict(zip(names, contents, strict=True))
    if len(sections) < len(names):
        raise _Fault("it has a section twice")
    options = {key: int(value) for key, value in re.findall(r"(\w+)\s*:\s*(\d+)\s*[,}\n]", sections.get("options", ""))}
    for name in ("numberOfTrees", "numberOfTreesToEvaluate"):
        if not 1 <= options.get(name, 0) <= _MAX_TREES:
            raise _Fault(f"options.{name} is missing or not from 1 to {_MAX_TREES}")
    for name, value in _FIXED_OPTIONS.items():
        if name not in options:
            raise _Fault(f"options.{name} is missing")
        if options[name] != value:
            raise _Fault(f"options.{name} is {options[name]}, and only {value} is supported")
    arrays = {}
    for name in _ARRAYS:
        numbers = _parse_numbers(sections.get(name, ""), float if name == "thresholds" else np.int64)
        if numbers is None or not len(numbers):
            raise _Fault(f"{name} is missing, empty or not a list of numbers")
        arrays[name] = numbers
    trees, evaluated = options["numberOfTrees"], options["numberOfTreesToEvaluate"]
    if evaluated > trees:
        raise _Fault("options.numberOfTreesToEvaluate is more than numberOfTrees")
    if (error := _array_error(trees, arrays)) is not None:
        raise _Fault(error)
    return trees, evaluated, arrays


def _read_text(data: bytes, compressed_name: bool) -> str:
    """Read the text of a YAML file that may be compressed.

    Args:
        data: the file's content.
        compressed_name: whether the file's name ends in .gz.

    Returns:
        The text, in which bytes that are not ASCII are replaced.

    Raises:
        _Fault: if the compressed content is incomplete or damaged, the name does not say whether it is compressed (OpenCV decides
            by the name), or the file is not YAML.
    """
    if compressed := data.startswith(b"\x1f\x8b"):
        try:
            decompressor = zlib.decompressobj(wbits=31)
            data = decompressor.decompress(data, _MAX_BYTES)
        except zlib.error:
            raise _Fault("its compressed content is damaged") from None
        if not decompressor.eof:
            raise _Fault("it is truncated" if not decompressor.unconsumed_tail else "it is too large")
        if decompressor.unused_data:
            raise _Fault("there is data after its end")
    if compressed != compressed_name:
        if compressed:
            raise _Fault("it is compressed, so its name should end in .gz")
        raise _Fault("its name ends in .gz, but it is not compressed")
    if not data.startswith(b"%YAML"):
        raise _Fault("it is not YAML" if data else "it is empty")
    return data.decode("ascii", "replace")


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


def _array_error(trees: int, arrays: Mapping[str, np.ndarray]) -> str | None:
    """Check that the arrays of a forest's file fit together.

    Args:
        trees: number of trees.
        arrays: the flat number arrays of the file by name, such as "childs" and "thresholds".

    Returns:
        A description of the first error found, or None if there is none.
    """
    child, feature, threshold, starts, bins = (arrays[name] for name in _ARRAYS)
    if len(child) % trees or not len(child) == len(feature) == len(threshold):
        return f"{len(child)} childs, {len(feature)} featureIds and {len(threshold)} thresholds don't make {trees} trees"
    nodes = len(child) // trees
    inner = child != 0
    if (child < 0).any() or (child >= nodes).any() or (child[inner] <= np.tile(np.arange(nodes), trees)[inner] + 1).any():
        return "childs point outside their tree, or back"
    if (feature < 0).any() or (feature >= FEATURES).any():
        return f"featureIds are not all from 0 to {FEATURES - 1}"
    if not np.isfinite(threshold).all():
        return "thresholds are not all finite numbers"
    if len(starts) <= len(child) or starts[0] < 0 or (np.diff(starts) < 0).any() or starts[-1] > len(bins):
        return "edgeBoundaries do not match edgeBins"
    if (bins < 0).any() or (bins >= INNER**2).any():
        return "edgeBins lie outside the patch"
    return None
