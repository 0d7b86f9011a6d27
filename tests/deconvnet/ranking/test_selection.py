"""The choice of images to label, against the rule spelt out image by image, on random inputs."""

from collections import Counter

import numpy as np
import pytest

from deconvnet.ranking.selection import class_quota, most_uncertain_class, select, uncertainty_scores


def chosen_by_the_rule(
    scores: list[float], classes: list[str], bits: np.ndarray, number: int, quota: int, distance: int, labelled: np.ndarray
) -> list[int]:
    """Each time the best image that is unlike all before; of a class with room, as long as there is one."""
    chosen: list[int] = []
    while len(chosen) < number:
        before = [*labelled, *(bits[i] for i in chosen)]
        unlike = [
            i for i in range(len(scores)) if i not in chosen and all((bits[i] != each).sum() >= distance for each in before)
        ]
        room = [i for i in unlike if sum(classes[j] == classes[i] for j in chosen) < quota]
        if not (allowed := room or unlike):
            break
        chosen.append(max(allowed, key=lambda i: (scores[i], -i)))
    return chosen


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_that_of_the_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, number = int(rng.integers(0, 60)), int(rng.integers(1, 30))
    scores = rng.integers(0, 12, images) / 12  # with ties
    classes = [str(name) for name in rng.choice(["zebra", "ape", "bee", "cow"], images, p=[0.6, 0.2, 0.15, 0.05])]
    bits = rng.integers(0, 2, (images, 12)).astype(np.uint8)
    bits[1::3] = bits[: len(bits[1::3])]  # exact copies, too
    labelled = rng.integers(0, 2, (int(rng.integers(0, 4)), 12)).astype(np.uint8)
    quota, distance = int(rng.integers(1, 10)), int(rng.integers(0, 6))
    found = select(scores, classes, bits, number, quota=quota, min_distance=distance, labelled=labelled)
    assert found.chosen == chosen_by_the_rule(scores.tolist(), classes, bits, number, quota, distance, labelled)
    counts = Counter(classes[i] for i in found.chosen)
    assert found.above_quota == sum(max(0, count - quota) for count in counts.values())
    if len(found.chosen) < number:
        assert found.near_duplicates == images - len(found.chosen), "all others are near-duplicates"
    assert distance or not found.near_duplicates


def test_near_duplicates_of_labelled_and_of_chosen_images_are_passed_over() -> None:
    bits = np.zeros((4, 64), np.uint8)
    bits[1, :10], bits[2, 20:40], bits[3, :30] = 1, 1, 1
    labelled = bits[2:3].copy()
    found = select(np.array([0.9, 0.8, 0.7, 0.6]), ["a"] * 4, bits, 4, quota=4, min_distance=11, labelled=labelled)
    assert (found.chosen, found.near_duplicates) == ([0, 3], 2)
    assert select(np.array([0.9, 0.8, 0.7, 0.6]), ["a"] * 4, bits, 4, quota=4, min_distance=10, labelled=labelled).chosen == [
        0,
        1,
        3,
    ]


def test_a_score_is_the_mean_share_of_images_that_are_surer() -> None:
    rng = np.random.default_rng(5)
    measures = rng.integers(0, 6, (25, 3)).astype(np.float32)
    expected = [
        np.mean([np.mean([(other[m] < one[m]) + 0.5 * (other[m] == one[m]) for other in measures]) for m in range(3)])
        for one in measures
    ]
    np.testing.assert_allclose(uncertainty_scores(measures), expected)
    assert len(set(uncertainty_scores(measures))) > 10
    rescaled = measures * [1, 1000, 0.001]
    np.testing.assert_allclose(uncertainty_scores(rescaled), expected, err_msg="scales don't matter")
    assert uncertainty_scores(np.zeros((0, 3))).shape == (0,)


def test_the_class_of_an_image_is_the_one_with_most_doubt_and_the_background_comes_last() -> None:
    row = {"classes": ["other", "cat", "dog"], "shares": [0.7, 0.1, 0.2], "class_confidence_before_crf": [0.5, 0.4, 0.8]}
    assert most_uncertain_class(row, "other") == "cat", "0.1 × 0.6 is more than 0.2 × 0.2"
    assert most_uncertain_class({**row, "shares": [0.35, 0.05, 0.6]}, "other") == "dog"
    assert most_uncertain_class({"classes": ["sky"], "shares": [1.0], "class_confidence_before_crf": [0.9]}, "sky") == "sky"
    named = {**row, "classes": ["background", "cat", "dog"]}
    assert most_uncertain_class(named, None) == "background", "a class like any other, in spite of its name"


def test_the_quota_is_twice_an_equal_share_unless_it_is_given() -> None:
    classes = ["a", "b", "c", "d", "a"]
    assert [class_quota(classes, 10, share) for share in (None, 0.31, 1.0, 0.01)] == [5, 4, 10, 1]
    assert class_quota(["a"], 10, None) == 10 and class_quota([], 3, None) == 3
