"""EdgeBox object proposals (Zitnick, Dollár, ECCV 2014) by OpenCV's `ximgproc`, reordered by Soft-NMS."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from proposals.edges.detector import EdgeSource, edge_map
from proposals.edges.forest_file import require_opencv_contrib
from proposals.soft_nms import soft_nms

_MIN_CANDIDATES = 2000  # boxes that Soft-NMS chooses the best from
_MIN_SIDE = 8  # px; EdgeBox reads two pixels to each side of an edge and cannot search smaller images


@dataclass(frozen=True)
class EdgeBoxOptions:
    """Options of the search for boxes. The setting type `ProposalSettings` has the same fields and defaults.

    Attributes:
        max_boxes: number of boxes returned at most.
        edges: edge detector: "forest" (structured forest) or "gradient" (colour gradient, needs no model file).
        edge_model: file of the structured forest (path, https or s3); None for the one in the package.
        multiscale: average the edges at half, full and double size; about six times slower.
        edge_gain: factor on edge strengths (clipped at 1) before EdgeBox's thresholds are applied.
        alpha: step size of the sliding window search, as the IoU of neighbouring windows.
        beta: IoU above which EdgeBox's non-maximum suppression removes the lower-scoring box.
        eta: adaptation rate of beta during the suppression; 1 keeps it constant.
        min_score: lowest objectness of a box that is kept.
        edge_min_mag: edges weaker than this are ignored.
        edge_merge_thr: edge pixels are grouped until their changes of orientation sum to this, in units of π.
        min_box_area: smallest area of a box in px², at the size that is searched (see `max_side`).
        max_aspect_ratio: largest ratio of the longer to the shorter side.
        gamma: exponent of the affinity of edge groups; larger values require more similar orientations.
        kappa: exponent of the box's perimeter that scores are divided by; larger values favour smaller boxes.
        max_side: images with a longer side than this are shrunk to it for the search, px.
        soft_nms_strength: how much boxes that overlap better ones are lowered, 0 to 1; 0 turns Soft-NMS off.
        soft_nms_power: exponent of the IoU in Soft-NMS.
        soft_nms_first: number of first boxes that lower the scores of others.
    """

    max_boxes: int = 2000
    edges: EdgeSource = "forest"
    edge_model: str | None = None
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


PAPER_OPTIONS = EdgeBoxOptions(edges="gradient", edge_gain=1.0, gamma=2.0, kappa=1.5, soft_nms_strength=0.0)
"""EdgeBox as published, on edges that need no model: the baseline that our proposals are compared with."""


def edge_boxes(image: np.ndarray, max_boxes: int = 2000, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Find boxes that are likely to contain an object.

    `edge_boxes(image, 50)` gives the first 50 of the boxes that `edge_boxes(image, 2000)` gives. The result does not depend on the
    number of threads.

    Args:
        image: uint8 array (H, W, 3), RGB.
        max_boxes: number of boxes returned at most.
        **options: the other fields of `EdgeBoxOptions`, by name.

    Returns:
        boxes: float32 array (N, 4), x1, y1, x2, y2 in pixels of `image`, all inside it, best first; N may be 0.
        scores: float32 array (N,), objectness, lowered for near-duplicates of better boxes; highest first.

    Raises:
        UserError: if `edge_model` cannot be used, or OpenCV was installed without its contrib modules.
        TypeError: for an unknown option.
    """
    return find_boxes(image, EdgeBoxOptions(max_boxes, **options))


def find_boxes(image: np.ndarray, options: EdgeBoxOptions) -> tuple[np.ndarray, np.ndarray]:
    """Find boxes that are likely to contain an object: `edge_boxes` with its options as one object.

    Args:
        image: uint8 array (H, W, 3), RGB.
        options: see `EdgeBoxOptions`.

    Returns:
        Boxes (N, 4) and scores (N,), float32, as `edge_boxes`.
    """
    require_opencv_contrib()
    height, width = image.shape[:2]
    scale = min(1.0, options.max_side / max(height, width))
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
    """Run OpenCV's EdgeBox; returns boxes float64 (N, 4) in pixels of `image` and scores float32 (N,)."""
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
    # OpenCV's port counts pixels from 1, as MATLAB does, and its scores include the pixel at x + width.
    corners[:, 2:] += corners[:, :2]
    corners[:, :2] -= 1
    return corners, np.asarray(scores, np.float32).reshape(-1)
