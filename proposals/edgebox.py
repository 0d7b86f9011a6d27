"""EdgeBox: where objects may be, from edges alone (Zitnick, Dollár, ECCV 2014), by OpenCV's `ximgproc`."""

import cv2
import numpy as np

from infra.errors import UserError
from proposals.edges import edge_map

_LEAST_SIDE = 8  # px; EdgeBox looks two pixels round each edge and wants something left


def edge_boxes(
    image: np.ndarray,
    max_boxes: int = 2000,
    *,
    edge_model: str | None = None,
    alpha: float = 0.65,
    beta: float = 0.75,
    eta: float = 1.0,
    min_score: float = 0.01,
    edge_min_mag: float = 0.1,
    edge_merge_thr: float = 0.5,
    min_box_area: float = 1000.0,
    max_aspect_ratio: float = 3.0,
    gamma: float = 2.0,
    kappa: float = 1.5,
    max_side: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    """The best boxes of `image`, uint8 H×W×3, RGB: boxes float32 (N,4), N ≤ `max_boxes`, and scores float32 (N,), best first.

    Boxes lie inside the image. A photograph longer than `max_side` is worked at that side, where `min_box_area` (px²) counts
    too. The keywords are those of `ProposalSettings`; the same image gives the same boxes with any number of threads.
    Raises UserError where `edge_model` can't be used, or OpenCV comes without `ximgproc`.
    """
    if not hasattr(cv2, "ximgproc"):
        raise UserError("EdgeBox needs OpenCV's contrib modules, which are not here: pip install opencv-contrib-python-headless")
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    rows, columns = image.shape[:2]
    if min(rows, columns) < _LEAST_SIDE:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    edges, orientation = edge_map(image, edge_model)
    # A finder keeps what it learnt of its last image, so each image has its own.
    finder = cv2.ximgproc.createEdgeBoxes(
        alpha=alpha,
        beta=beta,
        eta=eta,
        minScore=min_score,
        maxBoxes=max_boxes,
        edgeMinMag=edge_min_mag,
        edgeMergeThr=edge_merge_thr,
        maxAspectRatio=max_aspect_ratio,
        minBoxArea=min_box_area,
        gamma=gamma,
        kappa=kappa,
    )
    found, score = finder.getBoundingBoxes(edges, orientation)
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
    order = np.lexsort((boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], -scores))[:max_boxes]
    return boxes[order], scores[order]
