"""Scores of a photograph: instance-wise by DeconvNet over proposals (§3.3, §4.4), or at once by FCN-8s."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, log
from typing import Literal, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.network import Network
from proposals.boxes import Window, crop, extend, window_pixels

Aggregation = Literal["max", "sum"]
Floats = NDArray[np.float32]
Place = tuple[slice, slice]


def choose_boxes(
    boxes: Floats, n: int | None = None, *, min_side: float = 0.0, context: float = 1.2, window: Window = "square"
) -> Floats:
    """The first `n` boxes (all, where None) of (N, 4), best first.

    Boxes whose extended window has a shorter side under `min_side` px are passed over and don't count towards `n`.
    """
    extended = extend(boxes, context, window)
    sides = (extended[:, 2:] - extended[:, :2]).min(axis=1, initial=np.inf)
    return np.asarray(boxes, np.float32).reshape(-1, 4)[sides >= min_side][:n]


def segment_instances(
    model: DeconvNet,
    image: NDArray[np.uint8],
    boxes: Floats,
    *,
    context: float = 1.2,
    window: Window = "square",
    aggregation: Aggregation = "max",
    batch: int = 50,
    min_side: float = 0.0,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Floats:
    """Scores before softmax, float32 (C, H, W), of `image` uint8 (H, W, 3) RGB from what `model` sees in each of `boxes` (N, 4).

    Each box is extended, cropped by the rule of training (`proposals.boxes`) and forwarded, `batch` at once, on the model's
    device and in evaluation mode. Its score map is resized (bilinear) to its window, and the maps meet in a canvas that starts
    at 0, by maximum (so no score is under 0, as in the released code) or sum. Boxes may leave the image; those whose extended
    window has a side under `min_side` px are left out.

    Where no box reaches, no object was proposed: every score is 0, but background's is log(C - 1), so that its probability is
    a half. Thus background wins there, while an FCN-8s that is sure, or the CRF, may still say otherwise.

    watch: told after each box how many have met in the canvas, and the canvas (C, H, W) itself, 0 where none has reached yet.
    """
    if aggregation not in ("max", "sum"):
        raise ValueError(f"aggregation must be max or sum, not {aggregation!r}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    height, width = image.shape[:2]
    chosen = extend(choose_boxes(boxes, min_side=min_side, context=context, window=window), context, window)
    seen = [(box, pixels) for box in chosen if _inside(pixels := window_pixels(box), height, width)]
    device = _device(model)
    canvas = torch.zeros(model.num_classes, height, width, device=device)
    covered = np.zeros((height, width), bool)
    side = model.input_size
    crops = np.empty((min(batch, len(seen)), side, side, 3), np.uint8)
    workspace = np.empty(max(((x2 - x1) * (y2 - y1) for _, (x1, y1, x2, y2) in seen), default=0), np.float32)
    with _evaluating(model):
        for start in range(0, len(seen), batch):
            some = seen[start : start + batch]
            for into, (box, _) in zip(crops, some, strict=False):
                into[:] = crop(image, box, side)
            images = torch.from_numpy(crops[: len(some)]).to(device).permute(0, 3, 1, 2)
            scores = model(model.prepare(images)).float().contiguous()
            for number, (one, (_, pixels)) in enumerate(zip(scores, some, strict=True), start + 1):
                covered[cast(Place, _inside(pixels, height, width))] = True
                _place(one, pixels, canvas, aggregation, workspace)
                if watch:
                    watch(number, canvas)
    out = canvas.cpu().numpy()
    out[0][~covered] = log(max(model.num_classes - 1, 1))
    return out


def whole_image_scores(fcn: Network, image: NDArray[np.uint8]) -> Floats:
    """Scores before softmax, float32 (C, H, W), of `image` uint8 (H, W, 3) RGB by a network that takes any size.

    An image larger than the network was trained on (`input_size`) is seen scaled down to that; its scores are scaled back (bilinear).
    """
    height, width = image.shape[:2]
    scale = min(1.0, (fcn.input_size or inf) / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cast(NDArray[np.uint8], cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    with _evaluating(fcn):
        images = torch.from_numpy(np.ascontiguousarray(image)).to(_device(fcn)).permute(2, 0, 1)[None]
        scores = fcn(fcn.prepare(images)).float()
        if scale < 1:
            scores = F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
        return scores[0].cpu().numpy()


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without gradients and in evaluation mode; the mode is restored."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _inside(pixels: tuple[int, int, int, int], height: int, width: int) -> Place | None:
    """Rows and columns of the image that a window covers; None where it lies outside."""
    x1, y1, x2, y2 = pixels
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def _place(
    scores: Tensor, pixels: tuple[int, int, int, int], canvas: Tensor, aggregation: Aggregation, workspace: Floats
) -> None:
    """Resize `scores` (C, S, S) to the window and join them with the part of `canvas` (C, H, W) it covers, in place.

    `workspace` (flat) has room for a window.
    """
    x1, y1, x2, y2 = pixels
    rows, columns = cast(Place, _inside(pixels, *canvas.shape[-2:]))
    source = slice(rows.start - y1, rows.stop - y1), slice(columns.start - x1, columns.stop - x1)
    part = canvas[:, rows, columns]
    if scores.device.type != "cpu":
        whole = F.interpolate(scores[None], size=(y2 - y1, x2 - x1), mode="bilinear", align_corners=False)
        resized = whole[0][:, *source]
        torch.maximum(part, resized, out=part) if aggregation == "max" else part.add_(resized)
        return
    # OpenCV resizes a plane two to four times faster than torch on CPUs, and into the same buffer.
    buffer = workspace[: (y2 - y1) * (x2 - x1)].reshape(y2 - y1, x2 - x1)
    join = np.maximum if aggregation == "max" else np.add
    for plane, target in zip(scores.numpy(), part.numpy(), strict=True):
        cv2.resize(plane, (x2 - x1, y2 - y1), dst=buffer, interpolation=cv2.INTER_LINEAR)
        join(target, buffer[source], out=target)
