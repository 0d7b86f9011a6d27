"""Compute edge maps for EdgeBox: thin edges and their orientations.

There are two edge detectors: a structured forest (Dollár, Zitnick, ICCV 2013) and a colour gradient, which needs no model. Both
are followed by the non-maximum suppression of Dollár's edge toolbox, done with OpenCV's filters. Without this thinning, EdgeBox
would be tens of times slower.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from proposals.masks import check_image

if TYPE_CHECKING:
    from proposals.edges.structured_forest import Forest

EdgeSource = Literal["forest", "gradient"]
"""The name of an edge detector."""
PRETRAINED_FOREST = Path(__file__).parent / "pretrained" / "edges.yml.gz"
"""The forest in the package. The README.md beside it describes its training data."""

_SMOOTHING = 2.0  # px, σ of the blur before the gradient
_STRONG_PERCENTILE = 99.0  # this percentile of the gradients is scaled to strength 1
_MIN_STRONG = 4.0  # smallest gradient (Lab units per pixel) that is scaled to 1, so that noise in a flat image stays faint
_ORIENTATION_RADIUS = 4  # px, radius of the triangle filter before orientations are computed, as in Dollár's edgesDetect
_MARGIN = 16  # px, padding on each side


def edge_map(
    image: np.ndarray,
    edges: EdgeSource = "forest",
    edge_model: "str | Forest | None" = None,
    multiscale: bool = False,
    radius: int = 2,
    border: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Detect thin edges and their orientations.

    Args:
        image: uint8 array (H, W, 3), RGB.
        edges: the edge detector to use, "forest" or "gradient".
        edge_model: the forest, or its file (path, https or s3 URI); None for the one in the package. The gradient ignores it.
        multiscale: whether to average the edges found at half, full and double image size.
        radius: distance in pixels within which an edge must be the strongest, see `suppress_non_maxima`.
        border: width in pixels of the margin in which edges are weakened, see `suppress_non_maxima`.

    Returns:
        edges: float32 array (H, W) of strengths from 0 to 1; 0 where there is no edge.
        orientations: float32 array (H, W) of the direction perpendicular to the edge: an angle from 0 to π in radians, measured
            from the x axis towards the y axis.

    Raises:
        UserError: if `edge_model` is not the file of a forest.
        ValueError: if the image has another dtype or shape, or there is no such edge detector.
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


def thick_edges(image: np.ndarray, edges: EdgeSource, edge_model: "str | Forest | None" = None) -> np.ndarray:
    """Detect edges without thinning them.

    Args:
        image: uint8 array (H, W, 3), RGB.
        edges: the edge detector to use, "forest" or "gradient".
        edge_model: the forest, or its file (path, https or s3 URI); None for the one in the package.

    Returns:
        float32 array (H, W) of strengths from 0 to 1.

    Raises:
        UserError: if `edge_model` is not the file of a forest.
        ValueError: if the image has another dtype or shape, or there is no such edge detector.
    """
    check_image(image)
    default = forest_uri(edges, None)
    return gradient_edges(image) if default is None else forest_edges(image, edge_model or default)


def forest_uri(edges: EdgeSource, edge_model: str | None) -> str | None:
    """Return the location of the forest that an edge detector uses.

    Args:
        edges: the edge detector, "forest" or "gradient".
        edge_model: file of the forest chosen by the user; None for the one in the package.

    Returns:
        Path or URI of the file; None if the detector is the gradient.

    Raises:
        ValueError: if there is no such edge detector.
    """
    if edges not in ("forest", "gradient"):
        raise ValueError(f"edges is {edges!r}, and must be forest or gradient")
    return (edge_model or str(PRETRAINED_FOREST)) if edges == "forest" else None


def gradient_edges(image: np.ndarray) -> np.ndarray:
    """Detect edges by how fast the colour changes.

    The image is converted to CIE Lab and blurred by a Gaussian of σ = 2 px. The gradients of L, a and b are computed, and the
    largest of the three is taken at each pixel. It is divided by the 99th percentile over the image (or by 4 Lab units per pixel,
    if that is more) and clipped at 1.

    Args:
        image: uint8 array (H, W, 3), RGB.

    Returns:
        float32 array (H, W) of thick edges with strengths from 0 to 1.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    smooth = cv2.GaussianBlur(lab, (0, 0), _SMOOTHING)
    dx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    magnitude = np.sqrt(dx * dx + dy * dy).max(axis=2)
    return np.minimum(magnitude / max(float(np.percentile(magnitude, _STRONG_PERCENTILE)), _MIN_STRONG), 1)


def forest_edges(image: np.ndarray, edge_model: "str | Forest") -> np.ndarray:
    """Detect edges by a structured forest.

    Args:
        image: uint8 array (H, W, 3), RGB.
        edge_model: the forest, or the path or URI of its file.

    Returns:
        float32 array (H, W) of thick edges with strengths from 0 to 1.

    Raises:
        UserError: if the file cannot be fetched or is not a forest.
    """
    # Imported late, because importing numba's cached functions raises RuntimeError if no cache folder is writable. A registered
    # model that is loaded elsewhere sets such a folder first, and gradient edges need no numba.
    from proposals.edges.channels import PATCH
    from proposals.edges.forest_file import load_forest
    from proposals.edges.structured_forest import evaluate_forest

    height, width = image.shape[:2]
    # The image is padded by reflection, because the outermost 16 px lie in fewer patches, so edges would be fainter there. Its
    # sides are made even, because the feature channels have half the resolution.
    below, right = max(_MARGIN, PATCH - height), max(_MARGIN, PATCH - width)
    below, right = below + (height + below) % 2, right + (width + right) % 2
    padded = cv2.copyMakeBorder(image, _MARGIN, below, _MARGIN, right, cv2.BORDER_REFLECT)
    edges = evaluate_forest(load_forest(edge_model) if isinstance(edge_model, str) else edge_model, padded)
    return np.clip(edges[_MARGIN : _MARGIN + height, _MARGIN : _MARGIN + width], 0, 1)


def edge_orientations(edges: np.ndarray) -> np.ndarray:
    """Compute the orientation of the edge at each pixel of a thick edge map.

    An edge is a ridge of the map. The smoothed map curves most in the direction perpendicular to the ridge. This direction is an
    eigenvector of the matrix of the map's second derivatives. The curvature is concave on the ridge, and convex beside it.
    (Dollár's toolbox approximates the angle θ of the direction by tan θ = Oyy / Oxx, where Oxx and Oyy are second derivatives.)

    Args:
        edges: float32 array (H, W) of thick edges.

    Returns:
        float32 array (H, W) of the directions perpendicular to the edges, as angles from 0 to π in radians.
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
    """Thin edges: keep only pixels that are strongest along the direction perpendicular to the edge.

    Dollár's toolbox uses radius 2 and border 0 for proposals, and radius 1 and border 5 for measuring the quality of edges.

    Args:
        edges: float32 array (H, W) of thick edges.
        orientation: float32 array (H, W) of the directions perpendicular to the edges, in radians.
        radius: how many pixels to each side a pixel is compared with (their strengths are interpolated bilinearly).
        border: distance from the image's border in pixels below which edges are weakened, linearly down to 0 at the border; 0 to
            weaken none.

    Returns:
        float32 array (H, W); 0 where an edge was removed.
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
