"""Compute the class scores of an image, either with DeconvNet from its object proposals or with FCN-8s from the whole image.

A proposal is a box that may contain an object. Its window is the enlarged box that is cropped for the network. How the score maps
of the windows are merged into the scores of the image is in `deconvnet.inference.score_maps`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise
from math import inf, log
from typing import cast, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deconvnet.inference.score_maps import Aggregation, Slices, merge_score_map, visible_part
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.network import Network
from infra.device import to_numpy
from infra.stopwatch import timed
from proposals.boxes import WindowShape, as_boxes, crop, enlarge, mirrored_boxes, window_pixels
from proposals.masks import check_image

Floats = NDArray[np.float32]
OnBox = Callable[[int, Tensor], None]
"""A callback that is called after the score map of each box has been merged.

Its arguments are the number of boxes merged so far, windows included, and the score canvas, a float tensor (C, H, W). The canvas
is 0 where no box has reached yet, and holds sums if the maps are merged with "mean". It is still being filled, so the callback
must copy whatever it keeps. After the last box, the class with the largest score of each pixel stays the same.
"""

BOXES_PER_CHECK = 10
"""Number of boxes after which an early exit is considered. They go through DeconvNet together, so fewer would be slower."""


def choose_boxes(
    boxes: Floats, n: int | None = None, *, min_side: float = 0.0, context: float = 1.2, window: WindowShape = "square"
) -> Floats:
    """Select the first boxes that are large enough.

    A box is measured after it has been enlarged, because the enlarged box is what the network sees.

    Args:
        boxes: (N, 4) boxes x1, y1, x2, y2 in pixels, best first.
        n: largest number of boxes to return; None for no limit. Boxes that are too small do not count.
        min_side: lower limit of the shorter side of an enlarged box, in pixels. Smaller boxes are skipped.
        context: factor by which the boxes are enlarged.
        window: shape of an enlarged box: "square" with `context` times the longer side, or "stretched" with `context` times each
            side.

    Returns:
        The selected boxes in their original order and size (not enlarged), float32 (M, 4).
    """
    enlarged = enlarge(boxes, context, window)
    sides = (enlarged[:, 2:] - enlarged[:, :2]).min(axis=1, initial=np.inf)
    return np.asarray(boxes, np.float32).reshape(-1, 4)[sides >= min_side][:n]


@timed("deconvnet")
def segment_instances(
    model: DeconvNet,
    image: NDArray[np.uint8],
    boxes: Floats,
    *,
    windows: Floats | None = None,
    context: float = 1.2,
    window: WindowShape = "square",
    aggregation: Aggregation = "max",
    background: bool = True,
    flip: bool = False,
    batch: int = 50,
    early_exit: float | None = None,
    on_box: OnBox | None = None,
) -> Floats:
    """Compute the class scores of an image by running DeconvNet on each box and merging the score maps.

    Long because of its arguments.

    Each box is enlarged, cropped in the same way as the training crops (`proposals.boxes.crop`), and passed through the network.
    Its score map is resized to the enlarged box and merged into the canvas, an array of scores (C, H, W) that is 0 at first. So
    no score is negative if the maps are merged with "max", as in the released code of Noh et al. (ICCV 2015).

    Pixels that no enlarged box covers get the score log(C - 1) for the background and 0 for every other class. The softmax then
    gives the background a probability of one half. So DeconvNet predicts the background there, but the ensemble with FCN-8s or
    the CRF can still choose another class. If the data has no background, the score is 0 for every class, so nothing is assumed.

    Memory is needed for the canvas, a count of boxes for each pixel, and a single batch. So large images can be segmented at
    their own size.

    Args:
        model: the network. It runs on its current device, in evaluation mode.
        image: uint8 (H, W, 3), RGB.
        boxes: (N, 4) boxes x1, y1, x2, y2 in pixels; they may reach beyond the image.
        windows: (M, 4) boxes that are merged before the others and are not enlarged, see `proposals.boxes.make_windows`, or None.
        context: factor by which the boxes are enlarged.
        window: shape of an enlarged box, "square" or "stretched", see `proposals.boxes.enlarge`.
        aggregation: how overlapping score maps are merged: "max" takes the largest score of each class, "sum" adds the scores,
            "mean" takes their mean.
        background: whether class 0 is the background.
        flip: whether to do the same with the mirrored image and mirrored boxes, and to return the mean of both images' scores.
        batch: number of boxes in one forward pass.
        early_exit: the remaining boxes are left out after ten boxes (`BOXES_PER_CHECK`) that have changed the predicted class of
            at most this share of the pixels, 0 to 1; None to use all boxes. All windows or, without windows, at least twenty
            boxes are used. The mirrored image gets the same boxes.
        on_box: function called after each merged box with the number of boxes so far and the canvas, see `OnBox`; None for none.
            It is not called for the mirrored image.

    Returns:
        Scores before the softmax, float32 (C, H, W), where C is the number of classes.

    Raises:
        ValueError: if the image has another dtype or shape, these are not boxes (see `proposals.boxes.as_boxes`), `aggregation`
            is unknown, `batch` is below 1 or `early_exit` is not from 0 to 1.
    """
    check_image(image)
    if aggregation not in get_args(Aggregation):
        raise ValueError(f"aggregation must be {', '.join(get_args(Aggregation))}, not {aggregation!r}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    if early_exit is not None and not 0 <= early_exit <= 1:
        raise ValueError(f"early_exit must be None or from 0 to 1, not {early_exit}")
    windows = as_boxes([] if windows is None else windows, "windows")
    crops = np.concatenate([windows, enlarge(boxes, context, window)])
    exits = None if early_exit is None else (early_exit, len(windows))
    with _evaluating(model):
        scores, used = _merged_scores(model, image, crops, aggregation, background, batch, exits, on_box)
        if flip:
            mirrored = mirrored_boxes(crops[:used], image.shape[1])
            others, _ = _merged_scores(model, _mirrored(image), mirrored, aggregation, background, batch)
            scores = scores + others[..., ::-1]  # not in place, because `on_box` may still hold the canvas
            scores /= 2
    return scores


def _merged_scores(
    model: DeconvNet,
    image: NDArray[np.uint8],
    crops: Floats,
    aggregation: Aggregation,
    background: bool,
    batch: int,
    exits: tuple[float, int] | None = None,
    on_box: OnBox | None = None,
) -> tuple[Floats, int]:
    """Merge the score maps of an image's windows and enlarged boxes, as `segment_instances` does.

    Args:
        model: the network, in evaluation mode.
        image: uint8 (H, W, 3), RGB.
        crops: (N, 4) windows and enlarged boxes x1, y1, x2, y2 in pixels.
        aggregation: "max", "sum" or "mean".
        background: whether class 0 is the background.
        batch: number of boxes in one forward pass.
        exits: the share of the pixels for an early exit, and the number of windows among the crops; None to use all crops.
        on_box: function called after each merged box; None for none.

    Returns:
        Scores before the softmax, float32 (C, H, W), where C is the number of classes; and the number of crops used. It includes
        crops outside the image, which have no score map.
    """
    height, width = image.shape[:2]
    shown = {i: pixels for i, box in enumerate(crops) if visible_part(pixels := window_pixels(box), height, width)}
    seen = list(shown)
    checks = range(0)  # numbers of merged score maps after which the classes are compared with those of the check before
    if exits:
        checks = range(sum(i < exits[1] for i in seen) or BOXES_PER_CHECK, len(seen), BOXES_PER_CHECK)
    canvas = torch.zeros(model.num_classes, height, width, device=device_of(model))
    covered = np.zeros((height, width), np.uint16)  # number of crops, of which there are fewer than 65,536 at any pixel
    buffer = np.empty(max(((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in shown.values()), default=0), np.float32)
    groups = (crops[seen[start:end]] for start, end in pairwise((0, *checks, len(seen))))
    score_maps = chain.from_iterable(_score_maps(model, image, group, batch) for group in groups)
    used, classes = len(crops), None
    for number, (score_map, pixels) in enumerate(zip(score_maps, shown.values(), strict=True), start=1):
        covered[cast(Slices, visible_part(pixels, height, width))] += 1
        merge_score_map(score_map, pixels, canvas, aggregation, buffer)
        if on_box:
            on_box(number, canvas)
        if exits and number in checks:
            before, classes = classes, canvas.max(dim=0).indices  # four times as fast as argmax
            if before is not None and (classes != before).sum().item() <= exits[0] * classes.numel():
                used = seen[number - 1] + 1
                break
    out = to_numpy(canvas)
    if aggregation == "mean":
        out /= np.maximum(covered, 1)
    if background:
        out[0][covered == 0] = log(max(model.num_classes - 1, 1))
    return out, used


def _score_maps(model: DeconvNet, image: NDArray[np.uint8], boxes: Floats, batch: int) -> Iterator[Tensor]:
    """Run DeconvNet on the crop of each box, in batches.

    Args:
        model: the network, in evaluation mode.
        image: uint8 (H, W, 3), RGB.
        boxes: (N, 4) enlarged boxes x1, y1, x2, y2 in pixels.
        batch: number of boxes in one forward pass.

    Yields:
        The score map of each box in order, float32 (C, S, S), on the model's device. S is the side of the network's input.
    """
    side = model.input_size
    crops = np.empty((min(batch, len(boxes)), side, side, 3), np.uint8)
    for start in range(0, len(boxes), batch):
        chunk = boxes[start : start + batch]
        for into, box in zip(crops, chunk, strict=False):
            into[:] = crop(image, box, side)
        images = torch.from_numpy(crops[: len(chunk)]).to(device_of(model)).permute(0, 3, 1, 2)
        yield from model(model.prepare(images)).float().contiguous()


@timed("fcn8s")
def whole_image_scores(fcn: Network, image: NDArray[np.uint8], *, flip: bool = False) -> Floats:
    """Compute the class scores of a whole image with a fully convolutional network.

    If the longer side of the image exceeds `fcn.input_size` pixels, the image is scaled down until it has that length, and the
    scores are scaled back up with bilinear interpolation. If `fcn.input_size` is None, no image is scaled.

    Args:
        fcn: a network that accepts any input size. It runs on its current device, in evaluation mode.
        image: uint8 (H, W, 3), RGB.
        flip: whether to do the same with the mirrored image, and to return the mean of both images' scores.

    Returns:
        Scores before the softmax, float32 (C, H, W).

    Raises:
        ValueError: if the image has another dtype or shape.
    """
    check_image(image)
    height, width = image.shape[:2]
    scale = (inf if fcn.input_size is None else fcn.input_size) / max(height, width)
    # The mirrored image is scaled by itself, because the mirror image of a scaled one may differ from it by rounding.
    seen = [image, _mirrored(image)] if flip else [image]
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        seen = [cast(NDArray[np.uint8], cv2.resize(each, size, interpolation=cv2.INTER_AREA)) for each in seen]
    with _evaluating(fcn):
        images = torch.from_numpy(np.stack(seen)).to(device_of(fcn)).permute(0, 3, 1, 2)
        scores = fcn(fcn.prepare(images)).float()
        if scale < 1:
            scores = F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
        out, *mirrored = (to_numpy(each) for each in scores)
    for each in mirrored:
        out += each[..., ::-1]
        out /= 2
    return out


def _mirrored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) with left and right exchanged, contiguous in memory."""
    return np.ascontiguousarray(image[:, ::-1])


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device that holds the model's parameters."""
    return next(model.parameters()).device


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode and switch gradients off for the duration of a `with` block.

    At the end, the model returns to its earlier mode.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
