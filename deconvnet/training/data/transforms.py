"""Augmentation of training examples, and the corresponding views without randomness for evaluation.

DeconvNet is trained on a random square of a stored crop (§6.1 of Noh et al., ICCV 2015), FCN-8s on an image at a random
position on a square canvas. Both are flipped at random.

An example is an image and its mask. They are stored as a uint8 RGB array (H, W, 3) and a uint8 array (H, W) with class ids and
255 for void. The network gets arrays of shape (3, S, S) and (S, S). Random numbers depend only on the seed, the epoch and the
example's position in the order of the epoch. So augmentation does not depend on the number of workers.
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
    """Make the random generator for the augmentation of one example.

    Args:
        seed: seed of the training.
        epoch: number of the epoch, from 0.
        position: position of the example in the order of the epoch, from 0.
    """
    return np.random.default_rng([seed, epoch, 2, position])


def random_crop(image: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator) -> Pair:
    """Cut a random square out of an image and its mask, and flip both horizontally with probability ½.

    Args:
        image: uint8 array of shape (H, W, 3).
        mask: uint8 array of shape (H, W).
        size: side of the square in pixels.
        rng: source of the random numbers.

    Returns:
        The image, uint8 (3, size, size), and the mask, uint8 (size, size).

    Raises:
        BadInput: if the image is smaller than the square.
    """
    height, width = _checked_size(mask, size)
    y, x = (int(rng.integers(side - size + 1)) for side in (height, width))
    step = -1 if rng.random() < 0.5 else 1
    window = np.s_[y : y + size, x : x + size]
    return _channels_first(image[window][:, ::step], mask[window][:, ::step])


def centre_crop(image: np.ndarray, mask: np.ndarray, size: int) -> Pair:
    """Cut the square in the middle out of an image and its mask.

    Args:
        image: uint8 array of shape (H, W, 3).
        mask: uint8 array of shape (H, W).
        size: side of the square in pixels.

    Returns:
        The image, uint8 (3, size, size), and the mask, uint8 (size, size).

    Raises:
        BadInput: if the image is smaller than the square.
    """
    height, width = _checked_size(mask, size)
    y, x = (height - size) // 2, (width - size) // 2
    window = np.s_[y : y + size, x : x + size]
    return _channels_first(image[window], mask[window])


def random_canvas(image: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator, jitter: float = 0.0) -> Pair:
    """Place an image and its mask at a random position on a square canvas, flipped horizontally with probability ½.

    An image that is larger than the canvas is first scaled down to fit. Then every image is scaled by a random factor, and
    cropped if it no longer fits. The rest of the canvas has the mean colour (ImageNet's) in the image and void in the mask.

    Args:
        image: uint8 array of shape (H, W, 3).
        mask: uint8 array of shape (H, W).
        size: side of the canvas in pixels.
        rng: source of the random numbers.
        jitter: the random factor lies between 1 − jitter and 1 + jitter.

    Returns:
        The image, uint8 (3, size, size), and the mask, uint8 (size, size).
    """
    scale = fit_scale(mask, size) * (1 + jitter * float(rng.uniform(-1, 1)))
    step = -1 if rng.random() < 0.5 else 1
    image, mask = _scaled(image, mask, scale)
    return _on_canvas(image[:, ::step], mask[:, ::step], size, lambda slack: int(rng.integers(slack + 1)))


def centre_canvas(image: np.ndarray, mask: np.ndarray, size: int) -> Pair:
    """Place an image in the middle of a square canvas. If the image is larger than the canvas, it is scaled down to fit.

    Args:
        image: uint8 array of shape (H, W, 3).
        mask: uint8 array of shape (H, W).
        size: side of the canvas in pixels.

    Returns:
        The image, uint8 (3, size, size), and the mask, uint8 (size, size). Around the image they have the mean colour and void.
    """
    image, mask = _scaled(image, mask, fit_scale(mask, size))
    return _on_canvas(image, mask, size, lambda slack: slack // 2)


def fit_scale(mask: np.ndarray, size: int) -> float:
    """Return the factor by which an image must be scaled down to fit on a square canvas.

    Args:
        mask: mask of the image, of shape (H, W). Only its shape is used.
        size: side of the canvas in pixels.

    Returns:
        A factor of at most 1. It is 1 if the image already fits.
    """
    return float(min(1.0, size / max(mask.shape)))


def _checked_size(mask: np.ndarray, size: int) -> tuple[int, int]:
    """Return the height and width of an example, and check that they are not too small.

    Args:
        mask: the example's mask, of shape (H, W). Only its shape is used.
        size: smallest height and width allowed, in pixels.

    Returns:
        The pair (H, W).

    Raises:
        BadInput: if the height or width is smaller than `size`.
    """
    height, width = mask.shape
    if min(height, width) < size:
        raise BadInput(f"an example of {width}×{height} is smaller than the input of {size}×{size}")
    return height, width


def _channels_first(image: np.ndarray, mask: np.ndarray) -> Pair:
    """Move the channels of an image to the front, and make image and mask contiguous in memory.

    Args:
        image: array of shape (H, W, 3).
        mask: array of shape (H, W).

    Returns:
        The image with shape (3, H, W), and the mask.
    """
    return np.ascontiguousarray(image.transpose(2, 0, 1)), np.ascontiguousarray(mask)


def _scaled(image: np.ndarray, mask: np.ndarray, scale: float) -> Pair:
    """Resize an image and its mask.

    The image is resized by area averaging if it becomes smaller, bilinearly if it becomes larger. Each pixel of the resized
    mask takes the class of the nearest original pixel.

    Args:
        image: uint8 array of shape (H, W, 3).
        mask: uint8 array of shape (H, W).
        scale: factor for height and width.

    Returns:
        The resized image and mask.
    """
    if scale == 1.0:
        return image, mask
    height, width = mask.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=interpolation), cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)


def _on_canvas(image: np.ndarray, mask: np.ndarray, size: int, offset: Callable[[int], int]) -> Pair:
    """Place an image and its mask on a square canvas. Around them, the image has ImageNet's mean colour, and the mask is void.

    Args:
        image: uint8 array of shape (H, W, 3).
        mask: uint8 array of shape (H, W).
        size: side of the canvas in pixels.
        offset: function that decides the position along each axis. Its argument is the difference in pixels between the lengths
            of the image and the canvas, at least 0. If the image is shorter, the result is the space before the image. If the
            image is longer, the result is how much to cut off at its start.

    Returns:
        The canvas, uint8 (3, size, size), and its mask, uint8 (size, size).
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
