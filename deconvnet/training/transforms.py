"""What a network is shown of an example: a random crop and flip (§4.3), or a photograph somewhere on a square canvas (FCN-8s).

Images go in as uint8 H×W×3 RGB and labels as uint8 H×W (class ids, 255 = void); out come uint8 (3, S, S) and uint8 (S, S). The
random numbers belong to the example's place in the training, so that it looks the same on any number of workers.
"""

from typing import TYPE_CHECKING

import cv2
import numpy as np

from infra.errors import BadInput
from proposals.boxes import MEAN_RGB
from proposals.masks import VOID_ID

if TYPE_CHECKING:
    from collections.abc import Callable


Pair = tuple[np.ndarray, np.ndarray]


def stored_size(input_size: int) -> int:
    """Side of a stored example, px: 250 for an input of 224."""
    return round(input_size * 250 / 224)


def example_rng(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The random numbers of the example at `position` in `epoch`."""
    return np.random.default_rng([seed, epoch, 2, position])


def _planes(image: np.ndarray, label: np.ndarray) -> Pair:
    return np.ascontiguousarray(image.transpose(2, 0, 1)), np.ascontiguousarray(label)


def random_crop(image: np.ndarray, label: np.ndarray, size: int, rng: np.random.Generator) -> Pair:
    """A random size×size crop, flipped left to right half of the time. Raises BadInput where the example is smaller."""
    height, width = label.shape
    if min(height, width) < size:
        raise BadInput(f"an example of {width}×{height} is smaller than the input of {size}×{size}")
    y, x = (int(rng.integers(side - size + 1)) for side in (height, width))
    step = -1 if rng.random() < 0.5 else 1
    window = np.s_[y : y + size, x : x + size]
    return _planes(image[window][:, ::step], label[window][:, ::step])


def centre_crop(image: np.ndarray, label: np.ndarray, size: int) -> Pair:
    """The size×size crop in the middle. Raises BadInput where the example is smaller."""
    height, width = label.shape
    if min(height, width) < size:
        raise BadInput(f"an example of {width}×{height} is smaller than the input of {size}×{size}")
    y, x = (height - size) // 2, (width - size) // 2
    window = np.s_[y : y + size, x : x + size]
    return _planes(image[window], label[window])


def _scaled(image: np.ndarray, label: np.ndarray, scale: float) -> Pair:
    """Both resized by `scale`: the photograph by areas where it shrinks, the label by its nearest pixel."""
    if scale == 1.0:
        return image, label
    height, width = label.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=how), cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)


def _placed(image: np.ndarray, label: np.ndarray, size: int, offset: "Callable[[int], int]") -> Pair:
    """Image and label on a canvas of size×size: `offset` says where in the room (px, negative: how much to cut) of each axis."""
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = MEAN_RGB
    void = np.full((size, size), VOID_ID, np.uint8)
    source, target = [], []
    for side in label.shape:
        at = offset(abs(size - side))
        length = min(size, side)
        source.append(slice(at, at + length) if side > size else slice(0, length))
        target.append(slice(0, length) if side > size else slice(at, at + length))
    canvas[target[0], target[1]] = image[source[0], source[1]]
    void[target[0], target[1]] = label[source[0], source[1]]
    return _planes(canvas, void)


def fit_scale(label: np.ndarray, size: int) -> float:
    """What a photograph with the label (H×W) is scaled by to fit a canvas of size×size: 1 where it fits already."""
    return min(1.0, size / max(label.shape))


def random_canvas(image: np.ndarray, label: np.ndarray, size: int, rng: np.random.Generator, jitter: float = 0.0) -> Pair:
    """The photograph at a random place of a canvas of size×size, flipped half of the time; void and mean colour around it.

    Scaled down to fit where it is larger, then by a random factor of 1 ± `jitter` (what then exceeds the canvas is cut off).
    """
    scale = fit_scale(label, size) * (1 + jitter * float(rng.uniform(-1, 1)))
    step = -1 if rng.random() < 0.5 else 1
    image, label = _scaled(image, label, scale)
    return _placed(image[:, ::step], label[:, ::step], size, lambda room: int(rng.integers(room + 1)))


def centre_canvas(image: np.ndarray, label: np.ndarray, size: int) -> Pair:
    """The photograph in the middle of a canvas of size×size, scaled down to fit where it is larger."""
    image, label = _scaled(image, label, fit_scale(label, size))
    return _placed(image, label, size, lambda room: room // 2)
