"""Thin edge maps with orientations, what EdgeBox works on.

Two detectors: OpenCV's structured forest (Dollár, Zitnick 2013), learned, and a colour gradient that needs nothing. Both
maps go through the same orientation and non-maximum suppression (Dollár's toolbox, written anew with OpenCV's filters): an edge
map that is not thin makes EdgeBox tens of times slower.
"""

import math
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from proposals.edges.forest_file import load_forest

EdgeSource = Literal["forest", "gradient"]
SHIPPED = Path(__file__).parent / "pretrained" / "edges.yml.gz"
"""The forest that comes with the package; what it learned from is told beside it."""

_SMOOTHING = 2.0  # px, σ of the blur before the gradient
_STRONG = 99.0  # percentile of the gradient that becomes 1
_FLAT = 4.0  # Lab units a pixel; a photograph whose strong gradients are weaker is not stretched further
_ORIENTATION_RADIUS = 4  # px, triangle filter before the orientation, as in Dollár's edgesDetect
_PATCH = 32  # px, the forest's patches: smaller photographs are padded to it
_MARGIN = 16


def edge_map(
    image: np.ndarray,
    edges: EdgeSource = "forest",
    edge_model: str | None = None,
    multiscale: bool = False,
    radius: int = 2,
    border: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Thin edges and their orientations, both float32 H×W, of `image`, uint8 H×W×3, RGB.

    Edges are 0–1; an orientation is the angle of the edge's normal in radians, 0–π, from the x axis towards the y axis.
    edge_model: the forest's file (path, https or s3); the shipped one where None. multiscale: edges are the mean of those of the
    image at half, one and double size. radius, border: see `suppress`. Raises UserError where `edge_model` is not a forest that OpenCV can read.
    """
    thick = thick_edges(image, edges, edge_model)
    if multiscale:
        height, width = image.shape[:2]
        for factor, how in ((0.5, cv2.INTER_AREA), (2.0, cv2.INTER_LINEAR)):
            size = max(1, round(width * factor)), max(1, round(height * factor))
            scaled = thick_edges(cv2.resize(image, size, interpolation=how), edges, edge_model)
            thick += cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)
        thick /= 3
    orientation = orientations(thick)
    return suppress(thick, orientation, radius, border), orientation


def thick_edges(image: np.ndarray, edges: EdgeSource, edge_model: str | None = None) -> np.ndarray:
    """Edges before they are thinned: float32 H×W, 0–1."""
    forest = forest_used(edges, edge_model)
    return forest_edges(image, forest) if forest else gradient_edges(image)


def forest_used(edges: EdgeSource, edge_model: str | None) -> str | None:
    """Where the forest's file is that these settings mean; None for the gradient."""
    return (edge_model or str(SHIPPED)) if edges == "forest" else None


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
    # Reflected over its border, since OpenCV looks at the outermost 16 px through fewer patches than at others, which makes edges
    # fainter there; and to even sides, which its channels are made for.
    below, right = max(_MARGIN, _PATCH - height), max(_MARGIN, _PATCH - width)
    below, right = below + (height + below) % 2, right + (width + right) % 2
    padded = cv2.copyMakeBorder(image, _MARGIN, below, _MARGIN, right, cv2.BORDER_REFLECT)
    edges = load_forest(edge_model).detectEdges(padded.astype(np.float32) / 255)
    return np.clip(edges[_MARGIN : _MARGIN + height, _MARGIN : _MARGIN + width], 0, 1)


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


def suppress(edges: np.ndarray, orientation: np.ndarray, radius: int = 2, border: int = 0) -> np.ndarray:
    """`edges` float32 H×W with 0 wherever the map is higher up to `radius` px along the normal (sampled bilinearly).

    Edges fade towards the image's border over `border` px. Dollár's toolbox takes 2 and 0 for boxes, 1 and 5 where edges themselves
    are measured.
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
        down, across = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in edges.shape)
        thin *= np.clip(np.minimum.outer(down, across) / border, 0, 1).astype(np.float32)
    return thin
