"""Edge maps for EdgeBox: thin edges and their orientations.

Two detectors: a structured forest (Dollár, Zitnick, ICCV 2013), evaluated by OpenCV, and a colour gradient, which needs no model.
Both results are thinned in the same way, as in Dollár's edge toolbox, here with OpenCV's filters. Thinning is needed: on thick
edges EdgeBox is tens of times slower.
"""

import math
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from proposals.edges.forest_file import load_forest

EdgeSource = Literal["forest", "gradient"]
"""The name of an edge detector."""
PRETRAINED_FOREST = Path(__file__).parent / "pretrained" / "edges.yml.gz"
"""The forest in the package; README.md beside it says what it was trained on."""

_SMOOTHING = 2.0  # px, σ of the blur before the gradient
_STRONG_PERCENTILE = 99.0  # percentile of the gradient that is scaled to strength 1 ...
_LEAST_STRONG = 4.0  # ... but at least this gradient (Lab units per pixel), so that noise in a flat image stays faint
_ORIENTATION_RADIUS = 4  # px, radius of the triangle filter before orientations are computed, as in Dollár's edgesDetect
_PATCH = 32  # px, side of the forest's patches; smaller images are padded to it
_MARGIN = 16  # px, padding on each side


def edge_map(
    image: np.ndarray,
    edges: EdgeSource = "forest",
    edge_model: str | None = None,
    multiscale: bool = False,
    radius: int = 2,
    border: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Detect thin edges and their orientations.

    Args:
        image: uint8 array (H, W, 3), RGB.
        edges: which detector to use.
        edge_model: file of the forest (path, https or s3); None for the one in the package.
        multiscale: whether to average the edges of the image at half, full and double size.
        radius: see `suppress_non_maxima`.
        border: see `suppress_non_maxima`.

    Returns:
        edges: float32 array (H, W), strengths from 0 to 1.
        orientations: float32 array (H, W), the angle of the edge's normal in radians, from 0 to π, measured from the x axis
            towards the y axis.

    Raises:
        UserError: if `edge_model` is not a forest that OpenCV can read.
    """
    thick = thick_edges(image, edges, edge_model)
    if multiscale:
        height, width = image.shape[:2]
        for factor, interpolation in ((0.5, cv2.INTER_AREA), (2.0, cv2.INTER_LINEAR)):
            size = max(1, round(width * factor)), max(1, round(height * factor))
            scaled = thick_edges(cv2.resize(image, size, interpolation=interpolation), edges, edge_model)
            thick += cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)
        thick /= 3
    orientation = edge_orientations(thick)
    return suppress_non_maxima(thick, orientation, radius, border), orientation


def thick_edges(image: np.ndarray, edges: EdgeSource, edge_model: str | None = None) -> np.ndarray:
    """Detect edges without thinning them.

    Args:
        image: uint8 array (H, W, 3), RGB.
        edges: which detector to use.
        edge_model: file of the forest; None for the one in the package.

    Returns:
        float32 array (H, W), strengths from 0 to 1.
    """
    forest = forest_uri(edges, edge_model)
    return forest_edges(image, forest) if forest else gradient_edges(image)


def forest_uri(edges: EdgeSource, edge_model: str | None) -> str | None:
    """Find the file of the forest that these settings use.

    Args:
        edges: which detector is used.
        edge_model: file of the forest; None for the one in the package.

    Returns:
        Path or URI of the file; None if the detector is not a forest.
    """
    return (edge_model or str(PRETRAINED_FOREST)) if edges == "forest" else None


def gradient_edges(image: np.ndarray) -> np.ndarray:
    """Detect edges by how fast the colour changes.

    The strength is the largest gradient among L, a and b (CIE Lab), after a Gaussian blur of σ = 2 px.

    Args:
        image: uint8 array (H, W, 3), RGB.

    Returns:
        float32 array (H, W), thick edges with strengths from 0 to 1.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    smooth = cv2.GaussianBlur(lab, (0, 0), _SMOOTHING)
    dx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    magnitude = np.sqrt(dx * dx + dy * dy).max(axis=2)
    return np.minimum(magnitude / max(float(np.percentile(magnitude, _STRONG_PERCENTILE)), _LEAST_STRONG), 1)


def forest_edges(image: np.ndarray, edge_model: str) -> np.ndarray:
    """Detect edges by a structured forest.

    Args:
        image: uint8 array (H, W, 3), RGB.
        edge_model: path or URI of the forest's file.

    Returns:
        float32 array (H, W), thick edges with strengths from 0 to 1.
    """
    height, width = image.shape[:2]
    # The image is extended by reflection because OpenCV sees the outermost 16 px in fewer patches, which makes edges fainter
    # there, and to even sides because OpenCV's feature channels have half the resolution.
    below, right = max(_MARGIN, _PATCH - height), max(_MARGIN, _PATCH - width)
    below, right = below + (height + below) % 2, right + (width + right) % 2
    padded = cv2.copyMakeBorder(image, _MARGIN, below, _MARGIN, right, cv2.BORDER_REFLECT)
    edges = load_forest(edge_model).detectEdges(padded.astype(np.float32) / 255)
    return np.clip(edges[_MARGIN : _MARGIN + height, _MARGIN : _MARGIN + width], 0, 1)


def edge_orientations(edges: np.ndarray) -> np.ndarray:
    """Compute the orientation of the edge at each pixel of a thick edge map.

    An edge is a ridge of the map. Its normal is the direction in which the smoothed map curves most: an eigenvector of its second
    derivatives, concave on the ridge and convex beside it. (Dollár's toolbox approximates it by tan θ = Oyy / Oxx.)

    Args:
        edges: float32 array (H, W), thick edges.

    Returns:
        float32 array (H, W), the normals' angles in radians, from 0 to π.
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


def suppress_non_maxima(edges: np.ndarray, orientation: np.ndarray, radius: int = 2, border: int = 0) -> np.ndarray:
    """Thin edges: keep only pixels that are the maximum along the edge's normal.

    Dollár's toolbox uses radius 2 and border 0 for proposals, radius 1 and border 5 when it measures edges.

    Args:
        edges: float32 array (H, W), thick edges.
        orientation: float32 array (H, W), the normals' angles.
        radius: how far to each side of a pixel its neighbours are compared, px (interpolated bilinearly).
        border: edges nearer than this to the image's border are weakened, down to 0 at the border, px.

    Returns:
        float32 array (H, W), 0 where an edge was removed.
    """
    height, width = edges.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cos, sin = np.cos(orientation), np.sin(orientation)
    keep = np.ones(edges.shape, bool)
    for step in range(-radius, radius + 1):
        if step:
            keep &= edges >= cv2.remap(edges, x + step * cos, y + step * sin, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    thin = np.where(keep, edges, np.float32(0))
    if border:
        from_top, from_left = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in edges.shape)
        thin *= np.clip(np.minimum.outer(from_top, from_left) / border, 0, 1).astype(np.float32)
    return thin
