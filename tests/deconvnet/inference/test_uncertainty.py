"""How sure predictions are: measures of pixels, images and classes, against a loop over the pixels."""

import numpy as np
import pytest

from deconvnet.inference.uncertainty import DOUBT, Measures, boundary_pixels, chosen_probability, entropy, measure, most_probable


def softmax_of(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(axis=0))
    return (raised / raised.sum(axis=0)).astype(np.float32)


def test_the_entropy_is_a_share_of_the_largest_one(rng: np.random.Generator) -> None:
    p = softmax_of(rng.normal(0, 3, (5, 19, 7)))
    expected = [[-sum(float(q) * np.log(float(q)) for q in p[:, y, x]) / np.log(5) for x in range(7)] for y in range(19)]
    np.testing.assert_allclose(entropy(p), expected, atol=1e-5)
    extremes = np.zeros((4, 1, 2), np.float32)
    extremes[2, 0, 0], extremes[:, 0, 1] = 1, 0.25
    np.testing.assert_allclose(entropy(extremes), [[0, 1]], atol=1e-6)
    assert entropy(np.ones((1, 2, 3), np.float32)).tolist() == [[0] * 3] * 2, "one class alone is certain"


def test_the_most_probable_class_is_the_first_of_equals(rng: np.random.Generator) -> None:
    p = rng.integers(0, 3, (6, 30, 20)).astype(np.float32)
    ids, largest = most_probable(p)
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, p.argmax(axis=0))
    np.testing.assert_array_equal(largest, p.max(axis=0))
    mirrored = p[..., ::-1]  # not contiguous in memory
    np.testing.assert_array_equal(most_probable(mirrored)[0], mirrored.argmax(axis=0))


def test_the_probability_of_the_chosen_class_is_that_of_the_mask(rng: np.random.Generator) -> None:
    p = softmax_of(rng.normal(0, 3, (5, 8, 9)))
    mask = rng.integers(0, 5, (8, 9)).astype(np.uint8)
    expected = [[p[mask[y, x], y, x] for x in range(9)] for y in range(8)]
    np.testing.assert_array_equal(chosen_probability(p, mask), expected)


def neighbours(mask: np.ndarray, y: int, x: int) -> set[int]:
    around = ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
    return {int(mask[a, b]) for a, b in around if 0 <= a < mask.shape[0] and 0 <= b < mask.shape[1]}


def test_boundary_pixels_have_a_neighbour_of_another_class(rng: np.random.Generator) -> None:
    for shape in ((9, 14), (1, 12), (12, 1), (1, 1)):
        mask = np.kron(rng.integers(0, 3, shape), np.ones((2, 1), int)).astype(np.uint8)
        expected = [
            [bool(neighbours(mask, y, x) - {int(mask[y, x])}) for x in range(mask.shape[1])] for y in range(mask.shape[0])
        ]
        np.testing.assert_array_equal(boundary_pixels(mask), expected)


def test_measures_are_means_over_the_image_and_over_each_class(rng: np.random.Generator) -> None:
    """Classes 0, 2 and 7 are in the mask, and two regions of class 7."""
    mask = np.zeros((11, 17), np.uint8)
    mask[1:4, 2:9], mask[6:10, 1:5], mask[5:9, 10:16] = 7, 2, 7
    confidence, before_crf = rng.uniform(0.4, 1, (2, *mask.shape)).astype(np.float32)
    entropies = rng.uniform(0, 1, mask.shape).astype(np.float32)
    disagrees = rng.random(mask.shape) < 0.3

    def expected(inside: np.ndarray) -> Measures:
        pixels = [tuple(map(int, each)) for each in np.argwhere(inside)]
        edge = [(y, x) for y, x in pixels if neighbours(mask, y, x) - {int(mask[y, x])}]
        return Measures(
            *(
                pytest.approx(np.mean([plane[at] for at in pixels]), abs=1e-6)
                for plane in (confidence, before_crf, entropies, disagrees)
            ),
            pytest.approx(np.mean([before_crf[at] < DOUBT for at in edge])),
        )

    found = measure(mask, confidence, before_crf, entropies, disagrees)
    assert found.image == expected(mask < 255)
    assert list(found.classes) == [0, 2, 7]
    for class_id, measures in found.classes.items():
        assert measures == expected(mask == class_id)
        assert measures.boundary_doubt != found.image.boundary_doubt
    columns = found.columns()
    assert columns["entropy"] == found.image.entropy
    assert columns["class_disagreement"] == [found.classes[i].disagreement for i in (0, 2, 7)]


def test_an_image_of_one_class_has_no_boundary_to_be_in_doubt() -> None:
    level = np.full((3, 5), 0.25, np.float32)
    found = measure(np.full((3, 5), 4, np.uint8), 2 * level, level, level, np.ones((3, 5), bool))
    assert found.image == found.classes[4] == Measures(0.5, 0.25, 0.25, 1.0, None)
    assert found.columns()["class_boundary_doubt"] == [None]
