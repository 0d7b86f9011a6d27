"""Compare two models on the same images: how much the mean IoU rises, and how certain this is.

A difference of half a point on a few dozen images is mostly chance: other images would have given another difference. The
paired bootstrap estimates this chance from the images themselves. If there are N images, it draws N of them with replacement
and computes the rise of the mean IoU on the drawn images. It repeats this many times. In each draw, both models are measured
on the same images ("paired"). So an image that is easy or hard for both models hardly changes the rise.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit  # quantiles of the normal distribution and of Student's t

from deconvnet.evaluation.metrics import iou_of_counts
from infra import storage
from infra.errors import UserError

DECISIVE_RESULT = "edeconvnet_crf"
"""Name of the result by which two models are compared. This result (one of five) is what the registered model predicts."""
IMAGE_CONFUSIONS = "image_confusions.npz"
"""Name of the report's file with the confusion matrix of each image, computed from the masks of `DECISIVE_RESULT`."""
_TAIL = 0.05  # share of the draws that lie below the interval; the same share lies above it


@dataclass(frozen=True)
class RiseInterval:
    """The rise of the mean IoU from one model to another, with its 90 % interval. All values but `images` are from -1 to 1.

    Attributes:
        rise: mean IoU of the second model minus the mean IoU of the first model, both computed over all images.
        lower: lower end of the interval. The true rise is below it with a probability of about 5 %.
        upper: upper end of the interval. The true rise is above it with a probability of about 5 %.
        images: number of images that were compared.
    """

    rise: float
    lower: float
    upper: float
    images: int


def mean_iou_rise(
    champion: Mapping[str, np.ndarray], challenger: Mapping[str, np.ndarray], draws: int = 2000, seed: int = 0
) -> RiseInterval:
    """Measure by how much the mean IoU rises from one model to another, with a 90 % interval from a paired bootstrap.

    The bootstrap gives one rise for each draw of images. The 5 % and 95 % quantiles of these rises are the ends of a first
    interval. With few images, this interval is too narrow. So the distance of each end from the measured rise is multiplied by a
    factor, which comes from Student's t distribution: 1.02 for 60 images, 1.4 for 5 images. A single image tells nothing about
    other images, so the interval is then from -1 to 1.

    Args:
        champion: confusion matrices of the first model, a dict from image_id to integers (C, C). A row is a true class and a
            column is a predicted class.
        challenger: confusion matrices of the second model for the same images, in the same form.
        draws: number of times that a set of images is drawn.
        seed: seed of the random draws. The same matrices and seed give the same interval, whatever the order of the images.

    Returns:
        The rise and its interval.

    Raises:
        ValueError: if the two models were not measured on the same images and classes, or no image has an annotated pixel.
    """
    if champion.keys() != challenger.keys():
        other = sorted(champion.keys() ^ challenger.keys())
        raise ValueError(
            f"the models were measured on different images: {len(other)} of them, such as {other[0]!r}, with one model only"
        )
    old, new = (np.array([_counts(matrices[image_id]) for image_id in sorted(champion)]) for matrices in (champion, challenger))
    if old.shape != new.shape:
        raise ValueError(f"the models have {old.shape[-1]} and {new.shape[-1]} classes, so they can't be compared")
    n = len(old)
    rise = float(_mean_iou(new.sum(0)) - _mean_iou(old.sum(0))) if n else math.nan
    if math.isnan(rise):
        raise ValueError("there is no annotated pixel to compare the models on")
    if n == 1:
        return RiseInterval(rise, -1.0, 1.0, 1)
    random = np.random.default_rng(seed)
    both = np.stack([old, new]).reshape(2, n, -1)
    drawn = np.array([np.bincount(random.integers(n, size=n), minlength=n) @ both for _ in range(draws)])
    before, after = _mean_iou(drawn.reshape(draws, 2, 3, -1)).T
    low, high = np.nanquantile(after - before, (_TAIL, 1 - _TAIL))
    widening = stdtrit(n - 1, 1 - _TAIL) / ndtri(1 - _TAIL) * math.sqrt(n / (n - 1))
    ends = (rise + widening * (end - rise) for end in (low, high))
    lower, upper = (float(np.clip(end, -1, 1)) for end in ends)
    return RiseInterval(rise, lower, upper, n)


def _counts(matrix: np.ndarray) -> np.ndarray:
    """Count the pixels of each class from which its IoU is computed.

    Args:
        matrix: confusion matrix of an image, integers (C, C). A row is a true class and a column is a predicted class.

    Returns:
        float64 (3, C). Its rows are the correctly predicted pixels, the annotated pixels and the predicted pixels of each class.
    """
    return np.array([np.diag(matrix), matrix.sum(1), matrix.sum(0)], np.float64)


def _mean_iou(counts: np.ndarray) -> np.ndarray:
    """Compute the mean IoU of each of several sets of images. `ConfusionMatrix.mean_iou` is computed in the same way.

    Args:
        counts: float64 (…, 3, C), sums of the arrays that `_counts` returns. The leading axes number the sets of images.

    Returns:
        The mean IoU of each set, float64 (…), 0 to 1. It is nan for a set in which no class occurs.
    """
    iou = iou_of_counts(*np.moveaxis(counts, -2, 0))
    present = ~np.isnan(iou)
    total, number = np.where(present, iou, 0).sum(-1), present.sum(-1)
    return np.divide(total, number, out=np.full(np.shape(total), np.nan), where=number > 0)


def image_confusions_file(confusions: Mapping[str, np.ndarray]) -> bytes:
    """Make the content of the file `image_confusions.npz`, which stores the confusion matrix of each image.

    Only the entries that are not 0 are stored, because an image shows few of the classes.

    Args:
        confusions: confusion matrices by image_id, integers (C, C). There must be at least one.

    Returns:
        The content of the file. The same matrices make the same bytes.
    """
    ids = sorted(confusions)
    matrices = [confusions[image_id] for image_id in ids]
    cells = [np.flatnonzero(matrix) for matrix in matrices]
    sink = io.BytesIO()
    np.savez_compressed(
        sink,
        image_ids=np.array(ids),
        classes=np.int64(len(matrices[0])),
        entries=np.array([len(each) for each in cells]),  # per image
        cells=np.concatenate(cells),
        pixels=np.concatenate([matrix.ravel()[each] for matrix, each in zip(matrices, cells, strict=True)]).astype(np.int64),
    )
    return sink.getvalue()


def read_image_confusions(uri: str) -> dict[str, np.ndarray]:
    """Read the confusion matrix of each image from a file that `image_confusions_file` made.

    Args:
        uri: URI of the file `image_confusions.npz` (local or in a bucket).

    Returns:
        The confusion matrices by image_id, int32 (C, C). A row is a true class and a column is a predicted class.

    Raises:
        UserError: if the file does not exist or is damaged.
    """
    try:
        with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as file:
            stored = {name: file[name] for name in ("image_ids", "classes", "entries", "cells", "pixels")}
    except FileNotFoundError as error:
        raise UserError(f"{uri} does not exist: run the stage `evaluate` of its workspace again, which writes it") from error
    except Exception as error:  # numpy and zipfile raise all kinds of errors for damaged files
        raise UserError(
            f"{uri} can't be used: it is not a complete file of confusion matrices; delete it, and evaluate again"
        ) from error
    size, ends = int(stored["classes"]), np.cumsum(stored["entries"])
    found = {}
    for image_id, cells, pixels in zip(
        stored["image_ids"].tolist(), np.split(stored["cells"], ends[:-1]), np.split(stored["pixels"], ends[:-1]), strict=True
    ):
        matrix = np.zeros(size * size, np.int32)
        matrix[cells] = pixels
        found[image_id] = matrix.reshape(size, size)
    return found
