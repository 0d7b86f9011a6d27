"""EdgeBox object proposals (Zitnick, Dollár, ECCV 2014).

OpenCV's `ximgproc` module finds the boxes, and Soft-NMS reorders them (see `soft_nms.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from infra.errors import UserError
from proposals.edges.detector import EdgeSource, edge_map
from proposals.masks import as_rgb
from proposals.soft_nms import soft_nms

if TYPE_CHECKING:
    from proposals.edges.structured_forest import Forest

_MIN_CANDIDATES = 2000  # number of boxes from which Soft-NMS chooses the best, even if fewer are returned
_MIN_SIDE = 8  # px; EdgeBox reads two pixels to each side of an edge and cannot search smaller images
_SHARES = ("alpha", "beta", "eta", "min_score", "edge_min_mag", "soft_nms_strength")  # options from 0 to 1
_AT_LEAST_1 = ("max_boxes", "max_side", "max_aspect_ratio", "soft_nms_first")
_POSITIVE = ("edge_gain", "edge_merge_thr", "min_box_area", "gamma", "kappa", "soft_nms_power")


@dataclass(frozen=True)
class EdgeBoxOptions:
    """Options of the search for boxes. The settings section `ProposalSettings` has the same fields and defaults.

    Attributes:
        max_boxes: largest number of boxes to return.
        edges: the edge detector: "forest" (structured forest) or "gradient" (colour gradient, which needs no model file).
        edge_model: the structured forest, or its file (path, https or s3 URI); None for the one in the package.
        multiscale: whether to average the edges found at half, full and double image size; about six times slower.
        edge_gain: factor by which edge strengths are multiplied (and then clipped at 1) before EdgeBox sees them.
        alpha: step size of the sliding window search, given as the IoU of neighbouring windows.
        beta: IoU above which EdgeBox's non-maximum suppression removes the box with the lower score.
        eta: adaptation rate of beta during the suppression; 1 keeps beta constant.
        min_score: lowest objectness score of a box that is kept.
        edge_min_mag: edge strength below which EdgeBox ignores a pixel.
        edge_merge_thr: limit of an edge group: neighbouring edge pixels are grouped until their differences in orientation add up
            to this, in units of π.
        min_box_area: smallest area of a box in px², measured in the image that is searched (see `max_side`).
        max_aspect_ratio: largest ratio of the longer to the shorter side of a box.
        gamma: exponent of the affinity of two edge groups; larger values require more similar orientations.
        kappa: exponent of the perimeter of a box, by which its score is divided; larger values favour smaller boxes.
        max_side: images whose longer side exceeds this are shrunk to it for the search, px.
        soft_nms_strength: how much Soft-NMS lowers the score of a box that overlaps a better one, from 0 to 1; 0 turns Soft-NMS
            off.
        soft_nms_power: exponent of the IoU in Soft-NMS.
        soft_nms_first: number of top-ranked boxes that lower the scores of others in Soft-NMS.
    """

    max_boxes: int = 2000
    edges: EdgeSource = "forest"
    edge_model: "str | Forest | None" = None
    multiscale: bool = False
    edge_gain: float = 1.5
    alpha: float = 0.65
    beta: float = 0.75
    eta: float = 1.0
    min_score: float = 0.01
    edge_min_mag: float = 0.1
    edge_merge_thr: float = 0.5
    min_box_area: float = 1000.0
    max_aspect_ratio: float = 3.0
    gamma: float = 4.0
    kappa: float = 1.3
    max_side: int = 1024
    soft_nms_strength: float = 0.9
    soft_nms_power: float = 5.5
    soft_nms_first: int = 200

    def __post_init__(self) -> None:
        """Check that each option is in a range that OpenCV can use. The limits of the settings are narrower.

        Raises:
            ValueError: if an option is out of range.
        """
        wrong = [(name, "from 0 to 1") for name in _SHARES if not 0 <= getattr(self, name) <= 1]
        wrong += [(name, "at least 1") for name in _AT_LEAST_1 if not getattr(self, name) >= 1]
        wrong += [(name, "above 0") for name in _POSITIVE if not getattr(self, name) > 0]
        if self.edges not in ("forest", "gradient"):
            wrong.append(("edges", "forest or gradient"))
        if wrong:
            raise ValueError("; ".join(f"{name} is {getattr(self, name)!r}, and must be {must}" for name, must in wrong))


PAPER_OPTIONS = EdgeBoxOptions(edges="gradient", edge_gain=1.0, gamma=2.0, kappa=1.5, soft_nms_strength=0.0)
"""EdgeBox with the options of its paper (Zitnick, Dollár, ECCV 2014) and without an edge model: the baseline for comparisons."""


def edge_boxes(image: np.ndarray, max_boxes: int = 2000, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Find boxes that are likely to contain an object.

    `edge_boxes(image, 50)` returns the first 50 boxes of `edge_boxes(image, 2000)`. The result does not depend on the number of
    threads.

    Args:
        image: uint8 array (H, W, 3), RGB. Grey uint8 images (H, W) and images with an opaque alpha channel (H, W, 4) are
            converted.
        max_boxes: largest number of boxes to return.
        **options: other fields of `EdgeBoxOptions`, by name.

    Returns:
        boxes: float32 array (N, 4) of x1, y1, x2, y2 in pixels of `image`; all lie inside the image, the best first. N may be 0.
        scores: float32 array (N,) of objectness, highest first. The scores of near-duplicates of better boxes have been lowered.

    Raises:
        UserError: if `edge_model` cannot be used, or OpenCV was installed without its contrib modules.
        TypeError: if an option is unknown.
        ValueError: if the image is anything else (the message says how to convert it), or an option is out of range.
    """
    return find_boxes(image, EdgeBoxOptions(max_boxes, **options))


def require_opencv_contrib() -> None:
    """Check that OpenCV has its contrib modules, which contain EdgeBox (`cv2.ximgproc`).

    Raises:
        UserError: if it was installed without them.
    """
    if not hasattr(cv2, "ximgproc"):
        raise UserError("EdgeBox needs OpenCV's contrib modules, which are not here: pip install opencv-contrib-python-headless")


def find_boxes(image: np.ndarray, options: EdgeBoxOptions) -> tuple[np.ndarray, np.ndarray]:
    """Find boxes that are likely to contain an object.

    This is `edge_boxes` with all options in one object.

    Args:
        image: uint8 array (H, W, 3), RGB. Grey images (H, W) and images with an opaque alpha channel (H, W, 4) are converted.
        options: options of the search, including the largest number of boxes.

    Returns:
        boxes: float32 array (N, 4) of x1, y1, x2, y2 in pixels of `image`, the best first. N is 0 for images too small to search.
        scores: float32 array (N,) of objectness, highest first.

    Raises:
        UserError: if `options.edge_model` cannot be used, or OpenCV was installed without its contrib modules.
        ValueError: if the image is anything else.
    """
    image = as_rgb(image)
    require_opencv_contrib()
    height, width = image.shape[:2]
    scale = min(1.0, options.max_side / max(height, width, 1))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if min(image.shape[:2]) < _MIN_SIDE:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    corners, scores = _search(image, options)
    corners *= np.array([width / image.shape[1], height / image.shape[0]] * 2)
    boxes = np.clip(corners, 0, np.array([width, height] * 2)).astype(np.float32)
    good = np.isfinite(scores) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, scores = boxes[good], scores[good]
    # Equal scores are ordered by position: OpenCV sorts with std::sort, which leaves their order to the C++ library.
    order = np.lexsort((boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], -scores))
    boxes, scores = boxes[order], scores[order]
    if options.soft_nms_strength:
        order, scores = soft_nms(boxes, scores, options.soft_nms_strength, options.soft_nms_power, options.soft_nms_first)
        boxes = boxes[order]
    return boxes[: options.max_boxes], scores[: options.max_boxes]


def _search(image: np.ndarray, options: EdgeBoxOptions) -> tuple[np.ndarray, np.ndarray]:
    """Run OpenCV's EdgeBox on an image, without Soft-NMS.

    Args:
        image: uint8 array (H, W, 3), RGB, already shrunk to `options.max_side`.
        options: options of the search.

    Returns:
        boxes: float64 array (N, 4) of x1, y1, x2, y2 in pixels of `image`; they may reach slightly beyond it.
        scores: float32 array (N,) of objectness.
    """
    edges, orientation = edge_map(image, options.edges, options.edge_model, options.multiscale)
    edges = np.minimum(edges * options.edge_gain, 1).astype(np.float32)
    # OpenCV's object keeps state from its last image, so each image gets a new one.
    edgebox = cv2.ximgproc.createEdgeBoxes(
        alpha=options.alpha,
        beta=options.beta,
        eta=options.eta,
        minScore=options.min_score,
        maxBoxes=max(options.max_boxes, _MIN_CANDIDATES) if options.soft_nms_strength else options.max_boxes,
        edgeMinMag=options.edge_min_mag,
        edgeMergeThr=options.edge_merge_thr,
        maxAspectRatio=options.max_aspect_ratio,
        minBoxArea=options.min_box_area,
        gamma=options.gamma,
        kappa=options.kappa,
    )
    rectangles, scores = edgebox.getBoundingBoxes(edges, orientation)
    corners = np.asarray(rectangles, np.float64).reshape(-1, 4)
    # OpenCV's port kept MATLAB's coordinates, which begin at 1. A rectangle includes the pixels at x + width and y + height.
    corners[:, 2:] += corners[:, :2]
    corners[:, :2] -= 1
    return corners, np.asarray(scores, np.float32).reshape(-1)
