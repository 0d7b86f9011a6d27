"""The images that the neighbour is trained and measured on: the same folder, splits and metric as ours, and its own augmentation.

It imports only modules of ours that need neither pydantic nor Ray, which are not installed in the neighbour's environment.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from deconvnet.datasets.splits import assign_splits
from deconvnet.evaluation.metrics import ConfusionMatrix
from proposals.image_codec import decode_image, decode_mask
from proposals.masks import VOID_ID

DEV_FRACTION = 0.05
"""Share of train that becomes dev: `data.dev_fraction` of our configs."""
MULTIPLE = 32
"""The network halves an image five times, so its sides are padded to multiples of 32."""
MEAN, SCALE = 127.5, 127.5
"""What EfficientNet-Lite subtracts from pixels, and divides them by."""


def read_splits(root: Path, seed: int) -> dict[str, list[str]]:
    """Divide a data set in VOC's layout into train, dev and val, as the first stage of our pipeline does.

    Args:
        root: folder of the data set.
        seed: seed of the pipeline (`--seed`), by which dev is drawn from train.

    Returns:
        The sorted ids of the images, by split.
    """
    lists = root / "ImageSets" / "Segmentation"
    train, val = ((lists / f"{name}.txt").read_text("utf-8").split() for name in ("train", "val"))
    splits = assign_splits(dict.fromkeys(train), dict.fromkeys(val), DEV_FRACTION, seed)
    return {split: sorted(name for name in splits if splits[name] == split) for split in ("train", "dev", "val")}


def read_pair(root: Path, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Read an image, uint8 (H, W, 3), RGB, and its class mask, uint8 (H, W), where 255 is void."""
    image = decode_image((root / "JPEGImages" / f"{image_id}.jpg").read_bytes())
    return image, decode_mask((root / "SegmentationClass" / f"{image_id}.png").read_bytes())


@dataclass(frozen=True)
class Augmentation:
    """How a training crop is made of an image.

    Attributes:
        crop: side of the crop, px.
        scales: smallest and largest factor by which the image is resized; its logarithm is uniform.
        jitter: most by which brightness, contrast and saturation change, as a share.
    """

    crop: int = 256
    scales: tuple[float, float] = (0.5, 2.0)
    jitter: float = 0.4

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Resize, cut, mirror and recolour an image at random. Outside the image is grey, and void.

        Args:
            image: uint8 (H, W, 3), RGB.
            mask: class mask, uint8 (H, W).
            rng: random numbers.

        Returns:
            The prepared crop, float32 (crop, crop, 3), and its mask, uint8 (crop, crop).
        """
        factor = np.exp(rng.uniform(*np.log(self.scales)))
        height, width = (max(1, round(side * factor)) for side in mask.shape)
        shrinks = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (width, height), interpolation=shrinks)
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        top, left = (int(rng.integers(min(0, side - self.crop), max(0, side - self.crop) + 1)) for side in (height, width))
        pixels = prepared(_recoloured(_window(image, top, left, self.crop), self.jitter, rng))
        classes = _window(mask, top, left, self.crop)
        inside = np.zeros((self.crop, self.crop), bool)
        inside[max(0, -top) : height - top, max(0, -left) : width - left] = True
        pixels[~inside] = 0
        classes[~inside] = VOID_ID
        if rng.random() < 0.5:
            pixels, classes = pixels[:, ::-1], classes[:, ::-1]
        return np.ascontiguousarray(pixels), np.ascontiguousarray(classes)


def _window(array: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """Copy a square of an array (H, W, …). `top` and `left` may be negative; outside the array are zeros."""
    found = np.zeros((side, side, *array.shape[2:]), array.dtype)
    part = array[max(0, top) : top + side, max(0, left) : left + side]
    y, x = max(0, -top), max(0, -left)
    found[y : y + part.shape[0], x : x + part.shape[1]] = part
    return found


def _recoloured(image: np.ndarray, jitter: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation of an image (H, W, 3), 0 to 255, at random. Returns float32, 0 to 255."""
    brightness, contrast, saturation = rng.uniform(1 - jitter, 1 + jitter, 3).astype(np.float32)
    pixels = image.astype(np.float32) * brightness
    mean = pixels.mean()
    pixels = (pixels - mean) * contrast + mean
    grey = pixels.mean(axis=2, keepdims=True)
    return np.clip((pixels - grey) * saturation + grey, 0, 255)


def prepared(image: np.ndarray) -> np.ndarray:
    """Scale pixels, 0 to 255, to the network's range, −1 to 1, float32."""
    return (image.astype(np.float32) - MEAN) / SCALE


def training_batch(
    root: Path, ids: Sequence[str], augment: Augmentation, batch: int, step: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Make the crops of a step. They depend on the arguments alone, so a resumed training sees what an uninterrupted one does.

    Each image is used once an epoch, in an order drawn anew for each.

    Args:
        root: folder of the data set.
        ids: the train images.
        augment: makes a crop of an image.
        batch: number of crops.
        step: number of the step, from 0.
        seed: seed of order and augmentation.

    Returns:
        Crops, float32 (batch, 3, crop, crop), in the layout in which channels are last, and masks, uint8 (batch, crop, crop).
    """
    pairs = []
    for number in range(step * batch, (step + 1) * batch):
        epoch, position = divmod(number, len(ids))
        order = np.random.default_rng([seed, 0, epoch]).permutation(len(ids))
        rng = np.random.default_rng([seed, 1, number])
        pairs.append(augment(*read_pair(root, ids[order[position]]), rng))
    images, masks = (np.stack(each) for each in zip(*pairs, strict=True))
    return images.transpose(0, 3, 1, 2), masks


Score = Callable[[np.ndarray], np.ndarray]
"""Computes scores (C, H, W) of prepared pixels, float32 (H, W, 3), whose sides are multiples of 32."""


def predict(score: Score, image: np.ndarray, flip: bool) -> np.ndarray:
    """Segment an image at its own size.

    Args:
        score: the network. It must return probabilities if `flip`, as these are averaged.
        image: uint8 (H, W, 3), RGB.
        flip: whether the network also sees the mirrored image, as with our `segment.flip`.

    Returns:
        Class ids, uint8 (H, W).
    """
    height, width = image.shape[:2]
    padding = ((0, -height % MULTIPLE), (0, -width % MULTIPLE), (0, 0))
    scores = score(np.pad(prepared(image), padding))[:, :height, :width]
    if flip:
        mirrored = score(np.pad(prepared(image[:, ::-1]), padding))[:, :height, :width]
        scores = scores + mirrored[:, :, ::-1]
    return scores.argmax(axis=0).astype(np.uint8)


def evaluate(score: Score, root: Path, ids: Sequence[str], num_classes: int, flip: bool) -> ConfusionMatrix:
    """Segment images and count their pixels in one confusion matrix, as our evaluation does."""
    matrix = ConfusionMatrix(num_classes)
    for image, mask in pairs(root, ids):
        matrix.update(mask, predict(score, image, flip))
    return matrix


def pairs(root: Path, ids: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read images and their class masks, one after the other."""
    return (read_pair(root, image_id) for image_id in ids)
