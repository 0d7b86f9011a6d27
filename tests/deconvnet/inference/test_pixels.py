"""How sure predictions are: measures of pixels, images and classes, against loops over the pixels."""

import numpy as np
import pytest

from deconvnet.inference.pixels import PixelMeasures, average_measures, scan_pixels
from deconvnet.inference.uncertainty import Measures


def softmax_of(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(axis=0))
    return (raised / raised.sum(axis=0)).astype(np.float32)


@pytest.mark.parametrize("size", [(19, 7), (1, 40), (33, 1), (5, 130)])
def test_a_scan_finds_classes_probabilities_entropy_and_disagreement(rng: np.random.Generator, size: tuple[int, int]) -> None:
    refined, ensemble = (softmax_of(rng.normal(0, 4, (6, *size))) for _ in range(2))
    ensemble[1] = 0
    ensemble /= ensemble.sum(axis=0)
    scores, others = rng.integers(-3, 3, (2, 6, *size)).astype(np.float32)  # with ties
    found = scan_pixels(refined, ensemble, scores, others)
    mask = refined.argmax(axis=0)
    np.testing.assert_array_equal(found.mask, mask)
    assert found.mask.dtype == np.uint8 and len(np.unique(mask)) > 1
    np.testing.assert_array_equal(found.confidence, refined.max(axis=0))
    np.testing.assert_array_equal(found.before_crf, np.take_along_axis(ensemble, mask[None], axis=0)[0])
    exact = ensemble.astype(float)
    np.testing.assert_allclose(found.entropy, -(exact * np.log(np.maximum(exact, 1e-300))).sum(axis=0) / np.log(6), atol=1e-5)
    np.testing.assert_array_equal(found.disagrees, scores.argmax(axis=0) != others.argmax(axis=0))
    turned = [np.asfortranarray(each) for each in (refined, ensemble, scores, others)]
    np.testing.assert_array_equal(scan_pixels(*turned).entropy, found.entropy)


def test_the_entropy_is_0_for_one_certain_class_and_1_for_equal_ones_and_ties_go_to_the_lowest_id() -> None:
    p = np.zeros((4, 1, 3), np.float32)
    p[2, 0, 0], p[:, 0, 1], p[1::2, 0, 2] = 1, 0.25, 0.5
    found = scan_pixels(p, p, p, p)
    np.testing.assert_allclose(found.entropy, [[0, 1, 0.5]], atol=1e-5)
    assert found.entropy.min() >= 0 and found.entropy.max() <= 1
    assert found.mask.tolist() == [[2, 0, 1]] and not found.disagrees.any()
    one = np.ones((1, 2, 3), np.float32)
    assert np.abs(scan_pixels(one, one, one, one).entropy).max() < 1e-5, "one class alone is certain"


def neighbours(mask: np.ndarray, y: int, x: int) -> set[int]:
    around = ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
    return {int(mask[a, b]) for a, b in around if 0 <= a < mask.shape[0] and 0 <= b < mask.shape[1]}


def expected_measures(pixels: PixelMeasures, inside: np.ndarray) -> Measures:
    places = [tuple(map(int, each)) for each in np.argwhere(inside)]
    edge = [at for at in places if neighbours(pixels.mask, *at) - {int(pixels.mask[at])}]
    planes = (pixels.confidence, pixels.before_crf, pixels.entropy, pixels.disagrees)
    return Measures(
        *(pytest.approx(np.mean([plane[at] for at in places]), abs=1e-6) for plane in planes),
        pytest.approx(np.mean([pixels.before_crf[at] < 0.5 for at in edge])) if edge else None,
    )


def random_pixels(rng: np.random.Generator, mask: np.ndarray) -> PixelMeasures:
    planes = rng.uniform(0.2, 1, (3, *mask.shape)).astype(np.float32)
    return PixelMeasures(mask.astype(np.uint8), *planes, rng.random(mask.shape) < 0.3)


def test_measures_are_means_over_the_image_and_over_each_class(rng: np.random.Generator) -> None:
    """Classes 0, 2 and 7 are in the mask, and two regions of class 7."""
    mask = np.zeros((11, 17), np.uint8)
    mask[1:4, 2:9], mask[6:10, 1:5], mask[5:9, 10:16] = 7, 2, 7
    pixels = random_pixels(rng, mask)
    found = average_measures(pixels)
    assert found.image == expected_measures(pixels, mask < 255)
    assert list(found.classes) == [0, 2, 7]
    for class_id, measures in found.classes.items():
        assert measures == expected_measures(pixels, mask == class_id)
        assert measures.boundary_doubt != found.image.boundary_doubt
    columns = found.columns()
    assert columns["entropy"] == found.image.entropy
    assert columns["class_disagreement"] == [found.classes[i].disagreement for i in (0, 2, 7)]


@pytest.mark.parametrize("shape", [(9, 14), (1, 12), (12, 1), (1, 1)])
def test_measures_of_random_masks_of_any_shape(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    """A pixel at the edge of the image is at a boundary only if a neighbour in the image has another class."""
    mask = np.kron(rng.integers(0, 3, shape), np.ones((1, 2), int))
    mask[mask == 1] = 255
    pixels = random_pixels(rng, mask)
    found = average_measures(pixels)
    assert found.image == expected_measures(pixels, mask >= 0)
    assert found.classes == {int(i): expected_measures(pixels, mask == i) for i in np.unique(mask)}


def test_means_over_many_regions_are_exact() -> None:
    """Added up one by one in float32, half a million numbers of 0.1 give 0.4 % too much."""
    level = np.full((1000, 1000), 0.1, np.float32)
    stripes = np.tile(np.array([0, 3], np.uint8), (1000, 500))
    found = average_measures(PixelMeasures(stripes, level, level, level, np.zeros(level.shape, bool)))
    assert [found.classes[i].entropy for i in (0, 3)] == pytest.approx([0.1, 0.1], rel=1e-6)


def test_an_image_of_one_class_has_no_boundary_to_be_in_doubt() -> None:
    level = np.full((3, 5), 0.25, np.float32)
    found = average_measures(PixelMeasures(np.full((3, 5), 4, np.uint8), 2 * level, level, level, np.ones((3, 5), bool)))
    assert found.image == found.classes[4] == Measures(0.5, 0.25, 0.25, 1.0, None)
    assert found.columns()["class_boundary_doubt"] == [None]
