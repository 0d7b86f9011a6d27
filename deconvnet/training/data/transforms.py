"""Augmentation of training examples, and the corresponding views without randomness for evaluation.

DeconvNet is trained on a random square of a stored crop (§6.1 of Noh et al., ICCV 2015), FCN-8s on an image at a random
position on a square canvas. Both are flipped at random.

An example is an image and its mask. They are stored as a uint8 RGB array (H, W, 3) and a uint8 array (H, W) with class ids and
255 for void. The network gets arrays of shape (3, S, S) and (S, S). Random numbers depend only on the seed, the epoch and the
example's position in the order of the epoch. So augmentation does not depend on the number of workers.
"""

import cv2
import numpy as np

from infra.errors import BadInput
from proposals.boxes import MEAN_RGB
from proposals.masks import VOID_ID, check_masks

Pair = tuple[np.ndarray, np.ndarray]
"""An image and its mask."""


def example_rng(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Make the random generator for the augmentation of one example.

    Args:
        seed: seed of the training.
        epoch: number of the epoch, from 0.
        position: position of the example in the random order of the epoch, from 0.
    """
    return np.random.default_rng([seed, epoch, 2, position])


def square_crop(image: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator | None = None) -> Pair:
    """Cut a square out of an image and its mask.

    If `rng` is given, the position is random, and the square is flipped horizontally with probability ½. Otherwise, the square
    is cut from the middle of the image.

    Args:
        image: uint8 array of shape (H, W, 3).
        mask: uint8 array of shape (H, W).
        size: side of the square in pixels.
        rng: source of the random numbers. None for the middle, without a flip.

    Returns:
        The image, uint8 (3, size, size), and the mask, uint8 (size, size).

    Raises:
        BadInput: if the image is smaller than the square.
        ValueError: if the image or the mask has another dtype or shape, or their sizes differ.
    """
    check_masks(mask, image=image)
    height, width = mask.shape
    if min(height, width) < size:
        raise BadInput(f"an example of {width}×{height} is smaller than the input of {size}×{size}")
    y, x = (_offset(side - size, rng) for side in (height, width))
    step = _column_step(rng)
    window = np.s_[y : y + size, x : x + size]
    return _channels_first(image[window][:, ::step], mask[window][:, ::step])


def square_canvas(
    image: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator | None = None, jitter: float = 0.0
) -> Pair:
    """Place an image and its mask on a square canvas.

    If `rng` is given, the position on the canvas is random, and image and mask are flipped horizontally with probability ½.
    Otherwise, they are placed in the middle.

    An image that is larger than the canvas is first scaled down to fit. Then, if `rng` is given, every image is scaled by a
    random factor, and cropped if it no longer fits. The rest of the canvas has ImageNet's mean colour in the image and void in
    the mask.

    Args:
        image: uint8 array of shape (H, W, 3).
        mask: uint8 array of shape (H, W).
        size: side of the canvas in pixels.
        rng: source of the random numbers. None for the middle, without a flip or a random factor.
        jitter: the random factor lies between 1 − jitter and 1 + jitter.

    Returns:
        The image, uint8 (3, size, size), and the mask, uint8 (size, size).

    Raises:
        ValueError: if the image or the mask has another dtype or shape, or their sizes differ.
    """
    check_masks(mask, image=image)
    scale = min(1.0, size / max(mask.shape))
    if rng is not None:
        scale *= 1 + jitter * float(rng.uniform(-1, 1))
    step = _column_step(rng)
    image, mask = _scaled(image, mask, scale)
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = MEAN_RGB
    void = np.full((size, size), VOID_ID, np.uint8)
    source, target = [], []
    for side in mask.shape:
        at = _offset(abs(size - side), rng)
        length = min(size, side)
        source.append(slice(at, at + length) if side > size else slice(0, length))
        target.append(slice(0, length) if side > size else slice(at, at + length))
    canvas[target[0], target[1]] = image[:, ::step][source[0], source[1]]
    void[target[0], target[1]] = mask[:, ::step][source[0], source[1]]
    return _channels_first(canvas, void)


def _offset(slack: int, rng: np.random.Generator | None) -> int:
    """Choose the position of a shorter line (such as a crop's side) within a longer line (such as the image's side).

    Args:
        slack: length of the longer line minus length of the shorter line, in pixels, at least 0.
        rng: source of the random numbers. None for the middle.

    Returns:
        Pixels from the beginning of the longer line to the beginning of the shorter line, 0 to `slack`.
    """
    return slack // 2 if rng is None else int(rng.integers(slack + 1))


def _column_step(rng: np.random.Generator | None) -> int:
    """Choose whether to flip an image: return the slice step -1 (flip) or 1 (no flip), each with probability ½.

    Return 1 if `rng` is None.
    """
    return -1 if rng is not None and rng.random() < 0.5 else 1


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
