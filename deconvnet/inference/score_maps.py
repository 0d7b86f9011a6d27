"""Merge the score maps of overlapping windows into the class scores of an image.

Source: Noh et al. (ICCV 2015), §5.1, "Aggregating Instance-wise Segmentation Maps". Let G_i(x, y, c) be the score map of proposal
i, resized to the proposal's window and 0 outside it. Then the score of class c at pixel (x, y) is

    P(x, y, c) = max_i G_i(x, y, c)      "max", the paper's Eq. (1)
    P(x, y, c) = sum_i G_i(x, y, c)      "sum", the paper's Eq. (2)
    P(x, y, c) = sum_i G_i(x, y, c) / n  "mean", not in the paper: n is the number of windows that contain the pixel

A softmax over the classes turns P into probabilities. Where many windows overlap, those of "sum" are extreme, and those of "mean"
are not. So "mean" suits windows that cover the image (`proposals.boxes.make_windows`), whose number differs from pixel to pixel.
"""

from typing import Literal, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Aggregation = Literal["max", "sum", "mean"]
Slices = tuple[slice, slice]


def visible_part(pixels: tuple[int, int, int, int], height: int, width: int) -> Slices | None:
    """Clip a window (enlarged box) to the image.

    Args:
        pixels: the window x1, y1, x2, y2 in whole pixels; it may reach beyond the image.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        The slices of rows and of columns where the window and the image overlap, or None if they do not.
    """
    x1, y1, x2, y2 = pixels
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def merge_score_map(
    scores: Tensor, pixels: tuple[int, int, int, int], canvas: Tensor, aggregation: Aggregation, buffer: NDArray[np.float32]
) -> None:
    """Resize the score map of a box to the enlarged box, and merge it into the scores of the image in place.

    Args:
        scores: score map of one box, float32 (C, S, S).
        pixels: window (enlarged box), x1, y1, x2, y2 in whole pixels. It must overlap the image but may reach beyond it.
        canvas: scores of the image merged so far, float32 (C, H, W), on the device of `scores`; it is changed.
        aggregation: "max" to keep the larger score of each pixel and class, "sum" or "mean" to add the scores. The caller of
            "mean" divides the sums in the end.
        buffer: scratch memory, a flat float32 array with at least as many elements as the window has pixels. Only used on CPUs.
    """
    x1, y1, x2, y2 = pixels
    rows, columns = cast(Slices, visible_part(pixels, *canvas.shape[-2:]))
    source = slice(rows.start - y1, rows.stop - y1), slice(columns.start - x1, columns.stop - x1)
    part = canvas[:, rows, columns]
    if scores.device.type != "cpu":
        whole = F.interpolate(scores[None], size=(y2 - y1, x2 - x1), mode="bilinear", align_corners=False)
        resized = whole[0][:, *source]
        torch.maximum(part, resized, out=part) if aggregation == "max" else part.add_(resized)
        return
    # On CPUs OpenCV resizes a plane two to four times faster than torch, and into one buffer.
    plane_buffer = buffer[: (y2 - y1) * (x2 - x1)].reshape(y2 - y1, x2 - x1)
    merge = np.maximum if aggregation == "max" else np.add
    for plane, target in zip(scores.numpy(), part.numpy(), strict=True):
        cv2.resize(plane, (x2 - x1, y2 - y1), dst=plane_buffer, interpolation=cv2.INTER_LINEAR)
        merge(target, plane_buffer[source], out=target)
