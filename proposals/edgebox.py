"""EdgeBox: where objects may be, from edges alone (Zitnick, Dollár, ECCV 2014), by OpenCV's `ximgproc`."""

import cv2
import numpy as np

from proposals.edges.detector import EdgeSource, edge_map
from proposals.edges.forest_file import check_contrib
from proposals.soft_nms import spread

_CANDIDATES = 2000  # boxes that the best are chosen from
_LEAST_SIDE = 8  # px; EdgeBox looks two pixels round each edge and wants something left


def edge_boxes(
    image: np.ndarray,
    max_boxes: int = 2000,
    *,
    edges: EdgeSource = "forest",
    edge_model: str | None = None,
    multiscale: bool = False,
    edge_gain: float = 1.5,
    alpha: float = 0.65,
    beta: float = 0.75,
    eta: float = 1.0,
    min_score: float = 0.01,
    edge_min_mag: float = 0.1,
    edge_merge_thr: float = 0.5,
    min_box_area: float = 1000.0,
    max_aspect_ratio: float = 3.0,
    gamma: float = 4.0,
    kappa: float = 1.3,
    max_side: int = 1024,
    soft_nms_strength: float = 0.9,
    soft_nms_power: float = 5.5,
    soft_nms_first: int = 200,
) -> tuple[np.ndarray, np.ndarray]:
    """The best boxes of `image`, uint8 H×W×3, RGB: boxes float32 (N,4), N ≤ `max_boxes`, and scores float32 (N,), best first.

    Boxes lie inside the image. Fewer boxes are the first of more (up to 2000): near-duplicates of better ones come later, by
    `ranking.spread`, which also lowers their scores. A photograph longer than `max_side` is worked at that side, where `min_box_area` (px²) counts
    too. The keywords are those of `ProposalSettings`; the same image gives the same boxes with any number of threads.
    Raises UserError where `edge_model` can't be used, or OpenCV comes without `ximgproc`.
    """
    check_contrib()
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    rows, columns = image.shape[:2]
    if min(rows, columns) < _LEAST_SIDE:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    thin, orientation = edge_map(image, edges, edge_model, multiscale)
    thin = np.minimum(thin * edge_gain, 1).astype(np.float32)
    # A finder keeps what it learnt of its last image, so each image has its own.
    finder = cv2.ximgproc.createEdgeBoxes(
        alpha=alpha,
        beta=beta,
        eta=eta,
        minScore=min_score,
        maxBoxes=max(max_boxes, _CANDIDATES) if soft_nms_strength else max_boxes,
        edgeMinMag=edge_min_mag,
        edgeMergeThr=edge_merge_thr,
        maxAspectRatio=max_aspect_ratio,
        minBoxArea=min_box_area,
        gamma=gamma,
        kappa=kappa,
    )
    found, score = finder.getBoundingBoxes(thin, orientation)
    corners = np.asarray(found, np.float64).reshape(-1, 4)
    scores = np.asarray(score, np.float32).reshape(-1)
    # OpenCV's port counts pixels from 1, as MATLAB does, and its scores take in the pixel at x + width.
    corners[:, 2:] += corners[:, :2]
    corners[:, :2] -= 1
    corners *= np.array([width / columns, height / rows] * 2)
    boxes = np.clip(corners, 0, np.array([width, height] * 2)).astype(np.float32)
    good = np.isfinite(scores) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, scores = boxes[good], scores[good]
    # Ties by place: std::sort leaves their order to the library OpenCV was built with.
    order = np.lexsort((boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], -scores))
    boxes, scores = boxes[order], scores[order]
    if soft_nms_strength:
        order, scores = spread(boxes, scores, soft_nms_strength, soft_nms_power, soft_nms_first)
        boxes = boxes[order]
    return boxes[:max_boxes], scores[:max_boxes]
