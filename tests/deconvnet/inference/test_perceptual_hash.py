"""Perceptual hashes: those of an image's copies differ in few bits, those of other images in many."""

import cv2
import numpy as np

from deconvnet.inference.perceptual_hash import BITS, perceptual_hash, unpack
from proposals.image_codec import decode_image, encode_jpeg
from tests.deconvnet.ensembles import random_image


def distance(one: np.ndarray, other: np.ndarray) -> int:
    bits = unpack([perceptual_hash(one), perceptual_hash(other)])
    return int((bits[0] != bits[1]).sum())


def test_copies_are_near_and_other_images_far() -> None:
    images = [random_image(seed, 90, 140) for seed in range(8)]
    for image in images:
        smaller = cv2.resize(image, (90, 58), interpolation=cv2.INTER_AREA)
        brighter = np.clip(image * 1.2, 0, 255).astype(np.uint8)
        for copy in (image, decode_image(encode_jpeg(image, 40)), smaller, brighter):
            assert distance(image, copy) <= 10
    others = [distance(a, b) for n, a in enumerate(images) for b in images[:n]]
    assert min(others) > 10 and abs(np.mean(others) - BITS / 2) < 6


def test_colours_are_read_as_rgb() -> None:
    """Red and blue stripes have another grey pattern if they are taken for each other."""
    image = random_image(3, 60, 80)
    grey = (image @ [0.299, 0.587, 0.114]).round().astype(np.uint8)
    assert distance(image, np.stack([grey] * 3, axis=-1)) <= 2 < distance(image, image[..., ::-1].copy())


def test_bits_are_those_of_the_digits() -> None:
    assert unpack([]).shape == (0, BITS)
    bits = unpack(["8000000000000001", "00000000000000ff"])
    assert np.flatnonzero(bits[0]).tolist() == [0, 63] and np.flatnonzero(bits[1]).tolist() == list(range(56, 64))
