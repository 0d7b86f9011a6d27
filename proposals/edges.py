"""Thin edge maps with orientations, what EdgeBox works on.

Two detectors: OpenCV's structured forest (Dollár, Zitnick 2013) from a model file, and a colour gradient that needs none. Both
maps go through the same orientation and non-maximum suppression (Dollár's toolbox, written anew with OpenCV's filters): an edge
map that is not thin makes EdgeBox tens of times slower.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infra import storage
from infra.errors import UserError

_SMOOTHING = 2.0  # px, σ of the blur before the gradient
_STRONG = 99.0  # percentile of the gradient that becomes 1
_FLAT = 4.0  # Lab units a pixel; a photograph whose strong gradients are weaker is not stretched further
_ORIENTATION_RADIUS = 4  # px, triangle filter before the orientation, as in Dollár's edgesDetect
_NMS_RADIUS = 2  # px, as in Dollár's edgeBoxes
_PATCH = 32  # px, the forest's patches: smaller photographs are padded to it


def edge_map(image: np.ndarray, edge_model: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Thin edges and their orientations, both float32 H×W, of `image`, uint8 H×W×3, RGB.

    Edges are 0–1; an orientation is the angle of the edge's normal in radians, 0–π, from the x axis towards the y axis.
    Raises UserError where `edge_model` (path, https or s3) is not a forest that OpenCV can read.
    """
    thick = gradient_edges(image) if edge_model is None else forest_edges(image, edge_model)
    orientation = orientations(thick)
    return suppress(thick, orientation), orientation


def gradient_edges(image: np.ndarray) -> np.ndarray:
    """How fast the colour changes: float32 H×W, 0–1, thick. The largest gradient of L, a and b (CIE Lab), blurred by σ 2 px."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    smooth = cv2.GaussianBlur(lab, (0, 0), _SMOOTHING)
    dx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    magnitude = np.sqrt(dx * dx + dy * dy).max(axis=2)
    return np.minimum(magnitude / max(float(np.percentile(magnitude, _STRONG)), _FLAT), 1)


def forest_edges(image: np.ndarray, edge_model: str) -> np.ndarray:
    """The structured forest's edges: float32 H×W, 0–1, thick."""
    height, width = image.shape[:2]
    below, right = max(_PATCH - height, 0), max(_PATCH - width, 0)
    padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    edges = load_forest(edge_model).detectEdges(padded.astype(np.float32) / 255)
    return np.clip(np.ascontiguousarray(edges[:height, :width]), 0, 1)


def orientations(edges: np.ndarray) -> np.ndarray:
    """Angles of the edges' normals, float32 H×W, radians 0–π, from a thick edge map.

    An edge is a ridge of the map; its normal is the direction in which the smoothed map is most curved, an eigenvector of its
    second derivatives: concave on the ridge, convex on its flanks. (Dollár's formula, tan θ ≈ Oyy/Oxx, approximates it.)
    """
    ramp = np.arange(1, _ORIENTATION_RADIUS + 2, dtype=np.float32)
    triangle = np.concatenate([ramp, ramp[-2::-1]]) / (_ORIENTATION_RADIUS + 1) ** 2
    smooth = cv2.sepFilter2D(edges, cv2.CV_32F, triangle, triangle, borderType=cv2.BORDER_REFLECT)
    xx = cv2.Sobel(smooth, cv2.CV_32F, 2, 0)
    xy = cv2.Sobel(smooth, cv2.CV_32F, 1, 1)
    yy = cv2.Sobel(smooth, cv2.CV_32F, 0, 2)
    convex = np.where(xx + yy > 0, np.float32(1), np.float32(-1))
    angle = np.arctan2(2 * xy * convex, (xx - yy) * convex) / 2
    return np.where(angle < 0, angle + np.float32(math.pi), angle).astype(np.float32)


def suppress(edges: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """`edges` float32 H×W with 0 wherever the map is higher one or two pixels along the normal (sampled bilinearly)."""
    height, width = edges.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cos, sin = np.cos(orientation), np.sin(orientation)
    keep = np.ones(edges.shape, bool)
    for step in range(-_NMS_RADIUS, _NMS_RADIUS + 1):
        if step:
            keep &= edges >= cv2.remap(edges, x + step * cos, y + step * sin, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(keep, edges, np.float32(0))


@lru_cache(maxsize=2)
def load_forest(uri: str) -> Any:
    """The forest at `uri`. Checked before OpenCV sees it: a YAML file that is no forest ends the process (a division by zero)."""
    with storage.local_copy(uri) as path:
        if (fault := _forest_fault(path)) is not None:
            raise UserError(f"proposals.edge_model: {uri} is not an OpenCV structured-forest file ({fault})")
        return cv2.ximgproc.createStructuredEdgeDetection(str(path))


def _forest_fault(path: Path) -> str | None:
    """What is wrong with a forest file, or None."""
    try:
        file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    except (cv2.error, SystemError) as error:
        return f"OpenCV can't read it: {str(error).splitlines()[0]}"
    if not file.isOpened():
        return "OpenCV can't open it"
    options = file.getNode("options")
    for name in ("stride", "shrinkNumber", "patchSize", "patchInnerSize", "numberOfTrees", "numberOfTreesToEvaluate"):
        node = options.getNode(name) if options.isMap() else options
        if not node.isInt() or node.real() < 1:
            return f"options.{name} is missing or not positive"
    for name in ("childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins"):
        if not file.getNode(name).isSeq() or file.getNode(name).size() == 0:
            return f"{name} is missing or empty"
    return None
