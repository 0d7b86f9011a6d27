"""Augmentation: a random crop and flip of a stored crop (DeconvNet, §6.1), or a random position of an image on a canvas (FCN-8s).

An example is a pair of arrays: image uint8 (H, W, 3), RGB, and mask uint8 (H, W), class ids with 255 = void. For the network it
becomes uint8 (3, S, S) and uint8 (S, S). Random numbers depend on seed, epoch and position alone, so an example looks the same on any
number of workers.
"""

from collections.abc import Callable

import cv2
import numpy as np

from infra.errors import BadInput
from proposals.boxes import MEAN_RGB
from proposals.masks import VOID_ID

Pair = tuple[np.ndarray, np.ndarray]
"""An image and its mask."""


def example_rng(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Make the random generator of an example.

    Args:
        seed: of the training.
        epoch: from 0.
        position: of the example in the epoch, see `sampler`.
    """
    return np.random.default_rng([seed, epoch, 2, position])


def random_crop(image: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator) -> Pair:
    """Cut out a random square and flip it left to right half of the time.

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W).
        size: side of the square, px.
        rng: source of the random numbers.

    Returns:
        uint8 (3, size, size) and uint8 (size, size).

    Raises:
        BadInput: if the example is smaller than the square.
    """
    height, width = _checked_size(mask, size)
    y, x = (int(rng.integers(side - size + 1)) for side in (height, width))
    step = -1 if rng.random() < 0.5 else 1
    window = np.s_[y : y + size, x : x + size]
    return _channels_first(image[window][:, ::step], mask[window][:, ::step])


def centre_crop(image: np.ndarray, mask: np.ndarray, size: int) -> Pair:
    """Cut out the square in the middle; arguments, result and errors as for `random_crop`."""
    height, width = _checked_size(mask, size)
    y, x = (height - size) // 2, (width - size) // 2
    window = np.s_[y : y + size, x : x + size]
    return _channels_first(image[window], mask[window])


def random_canvas(image: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator, jitter: float = 0.0) -> Pair:
    """Place an image at a random position on a square canvas, flipped left to right half of the time.

    The image is scaled down to fit where it is larger, then by a random factor; what then exceeds the canvas is cut off. Around it are
    the mean colour and void.

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W).
        size: side of the canvas, px.
        rng: source of the random numbers.
        jitter: the random factor lies between 1 − jitter and 1 + jitter.

    Returns:
        uint8 (3, size, size) and uint8 (size, size).
    """
    scale = fit_scale(mask, size) * (1 + jitter * float(rng.uniform(-1, 1)))
    step = -1 if rng.random() < 0.5 else 1
    image, mask = _scaled(image, mask, scale)
    return _on_canvas(image[:, ::step], mask[:, ::step], size, lambda slack: int(rng.integers(slack + 1)))


def centre_canvas(image: np.ndarray, mask: np.ndarray, size: int) -> Pair:
    """Place an image in the middle of a square canvas, scaled down to fit; arguments and result as for `random_canvas`."""
    image, mask = _scaled(image, mask, fit_scale(mask, size))
    return _on_canvas(image, mask, size, lambda slack: slack // 2)


def fit_scale(mask: np.ndarray, size: int) -> float:
    """Compute the factor by which an image is scaled to fit a canvas.

    Args:
        mask: the image's mask (H, W).
        size: side of the canvas, px.

    Returns:
        At most 1; 1 if the image fits already.
    """
    return float(min(1.0, size / max(mask.shape)))


def _checked_size(mask: np.ndarray, size: int) -> tuple[int, int]:
    """Return height and width. Raises BadInput if one is below `size`."""
    height, width = mask.shape
    if min(height, width) < size:
        raise BadInput(f"an example of {width}×{height} is smaller than the input of {size}×{size}")
    return height, width


def _channels_first(image: np.ndarray, mask: np.ndarray) -> Pair:
    """Turn an image (H, W, 3) into (3, H, W); both arrays become contiguous."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)), np.ascontiguousarray(mask)


def _scaled(image: np.ndarray, mask: np.ndarray, scale: float) -> Pair:
    """Resize an example: the image by area where it shrinks and bilinearly where it grows, the mask by nearest pixel."""
    if scale == 1.0:
        return image, mask
    height, width = mask.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=interpolation), cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)


def _on_canvas(image: np.ndarray, mask: np.ndarray, size: int, offset: Callable[[int], int]) -> Pair:
    """Place an example on a canvas of size×size.

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W).
        size: side of the canvas, px.
        offset: called for each axis with the difference of the two lengths, px; returns how much of it lies before the image or,
            where the image is longer, is cut off before the part that is kept.
    """
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = MEAN_RGB
    void = np.full((size, size), VOID_ID, np.uint8)
    source, target = [], []
    for side in mask.shape:
        at = offset(abs(size - side))
        length = min(size, side)
        source.append(slice(at, at + length) if side > size else slice(0, length))
        target.append(slice(0, length) if side > size else slice(at, at + length))
    canvas[target[0], target[1]] = image[source[0], source[1]]
    void[target[0], target[1]] = mask[source[0], source[1]]
    return _channels_first(canvas, void)
