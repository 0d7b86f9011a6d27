"""The rules of stage 1, stage 2 and class balance, on masks small enough to count by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proposals.boxes import MEAN_RGB, make_windows
from proposals.mining.rules import (
    AnnotatedObject,
    ExampleWindow,
    choose_stage1,
    choose_stage2,
    choose_windows,
    cut_example,
    example_size,
    find_objects,
    rarest,
    repeats_by_class,
)


@pytest.fixture
def masks() -> tuple[np.ndarray, np.ndarray]:
    """Class and object mask. Object 1: 20×10 px of class 5 at (20, 30), 3 px void. Object 2: 8×8 px of class 7 at (40, 30)."""
    classes, objects = np.zeros((80, 100), np.uint8), np.zeros((80, 100), np.uint8)
    classes[30:40, 20:40], objects[30:40, 20:40] = 5, 1
    classes[30:38, 40:48], objects[30:38, 40:48] = 7, 2
    classes[30, 20:23] = 255
    return classes, objects


def test_objects_have_tight_boxes_and_the_class_of_most_of_their_pixels(masks):
    classes, objects = masks
    classes[38:40, 20:40] = 9  # a fifth of object 1
    assert [(o.object_id, o.class_id, o.box) for o in find_objects(classes, objects)] == [
        (1, 5, (20, 30, 40, 40)),
        (2, 7, (40, 30, 48, 38)),
    ]


def test_what_is_void_in_the_object_mask_is_no_object_whatever_its_class(masks):
    classes, objects = masks
    objects[objects == 1] = 255
    assert [o.object_id for o in find_objects(classes, objects)] == [2]
    wide = objects.astype(np.uint16)
    wide[wide == 255] = 65535
    assert [o.object_id for o in find_objects(classes, wide)] == [2]


def test_void_pixels_do_not_decide_the_class(masks):
    classes, objects = masks
    classes[30:40, 20:40] = 255
    classes[35, 30] = 3
    assert find_objects(classes, objects)[0].class_id == 3


def test_small_void_and_background_objects_are_left_out(masks):
    classes, objects = masks
    assert [o.object_id for o in find_objects(classes, objects, min_side=9)] == [1]
    assert [o.object_id for o in find_objects(classes, objects, min_side=10)] == [1]
    assert find_objects(classes, objects, min_side=11) == []
    assert find_objects(np.full_like(classes, 255), objects) == []
    assert find_objects(np.zeros_like(classes), objects) == []
    assert find_objects(classes, np.full_like(objects, 255)) == []


def test_by_default_an_object_of_one_pixel_is_found():
    classes = np.zeros((5, 5), np.uint8)
    classes[2, 3] = 7
    assert [o.box for o in find_objects(classes, classes)] == [(3, 2, 4, 3)]


def test_16_bit_ids_go_beyond_255_and_void_is_65535(masks):
    classes, objects = masks
    wide = objects.astype(np.uint16)
    wide[wide == 1] = 255
    wide[wide == 2] = 3000
    wide[0] = 65535
    assert [o.object_id for o in find_objects(classes, wide)] == [255, 3000]


def test_without_objects_there_are_no_windows():
    nothing = np.zeros((5, 5), np.uint8)
    assert find_objects(nothing, nothing) == []
    assert choose_stage1([]) == []
    assert choose_stage2([], np.array([[0, 0, 4, 4]])) == []


def test_stage_1_windows_are_the_enlarged_tight_boxes(masks):
    choices = choose_stage1(find_objects(*masks), 1.2, "square")
    assert [c.classes for c in choices] == [(5,), (7,)]
    np.testing.assert_allclose(choices[0].box, (18, 23, 42, 47), atol=1e-4)  # 1.2 × 20 about (30, 35)
    assert [c.iou for c in choices] == [1, 1]
    np.testing.assert_allclose(choose_stage1(find_objects(*masks), 1.2, "stretched")[0].box, (18, 29, 42, 41), atol=1e-4)


def test_stage_1_labels_only_the_objects_own_pixels(masks):
    choice = choose_stage1(find_objects(*masks), 1.2, "square")[0]
    image, label = cut_example(np.zeros((80, 100, 3), np.uint8), *masks, choice, 1, 24)
    expected = np.zeros((24, 24), np.uint8)
    expected[7:17, 2:22] = 5
    expected[7, 2:5] = 255  # and object 2, from column 22 on, is background here
    np.testing.assert_array_equal(label, expected)
    assert image.shape == (24, 24, 3)


@pytest.mark.parametrize("seed", range(20))
def test_labels_equal_those_of_a_loop_over_the_pixels_of_random_masks(seed):
    """Few classes and more objects, so that crops show several objects of a class; windows reach beyond the image."""
    rng = np.random.default_rng(seed)
    classes, objects = (rng.choice([*range(n), 255], (20, 24)).astype(np.uint8) for n in (3, 7))
    objects = objects.astype(np.uint16) if seed % 2 else objects
    objects[objects == 255] = 65535 if seed % 2 else 255
    own, x, y, side = (int(rng.integers(low, high)) for low, high in ((1, 7), (-6, 20), (-6, 16), (3, 16)))
    window = ExampleWindow((x, y, x + side, y + side), (int(rng.integers(1, 3)),), own, 1.0)
    for stage in (1, 2):
        _, label = cut_example(np.zeros((20, 24, 3), np.uint8), classes, objects, window, stage, side)
        for row in range(side):
            for column in range(side):
                at = y + row, x + column
                expected = 255
                if 0 <= at[0] < 20 and 0 <= at[1] < 24:
                    expected = classes[at]
                    if stage == 1 and expected != 255:
                        expected = window.classes[0] if objects[at] == own else 255 if objects[at] > 7 else 0
                assert label[row, column] == expected, (stage, at)


def test_stage_2_labels_every_class_in_the_window(masks):
    choice = choose_stage2(find_objects(*masks), np.array([[20.0, 30, 40, 40]]))[0]
    _, label = cut_example(np.zeros((80, 100, 3), np.uint8), *masks, choice, 2, 24)
    expected = np.zeros((24, 24), np.uint8)
    expected[7:17, 2:22] = 5
    expected[7, 2:5] = 255
    expected[7:15, 22:24] = 7
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("stage", [1, 2])
def test_outside_the_image_crops_have_the_mean_colour_and_masks_are_void(stage):
    classes = np.ones((20, 20), np.uint8)
    choice = choose_stage1(find_objects(classes, classes), 2, "square")[0]  # -10…30: half of it outside
    image, label = cut_example(np.zeros((20, 20, 3), np.uint8), classes, classes, choice, stage, 40)
    inside = np.zeros((40, 40), bool)
    inside[10:30, 10:30] = True
    assert (image[~inside] == MEAN_RGB).all() and (image[inside] == 0).all()
    assert (label[~inside] == 255).all() and (label[inside] == 1).all()


def test_void_of_the_object_mask_is_void_in_stage_1(masks):
    masks[1][45, 30] = 255
    _, label = cut_example(np.zeros((80, 100, 3), np.uint8), *masks, choose_stage1(find_objects(*masks))[0], 1, 24)
    assert label[22, 12] == 255 and (label == 255).sum() == 4


def test_stage_2_selects_proposals_by_iou_before_enlarging(masks):
    proposals = np.array(
        [
            [20, 30, 40, 50],  # 200 of 400: exactly 0.5 with object 1
            [20, 30, 40, 50.1],  # just under
            [40, 30, 48, 38],  # object 2
            [26, 30, 48, 40],  # 140 of 280 with object 1; 64 of 220 with object 2
            [60, 60, 90, 79],
        ]
    )
    choices = choose_stage2(find_objects(*masks), proposals, min_iou=0.5)
    assert sorted((*c.classes, round(c.iou, 4)) for c in choices) == [(5, 0.5), (5, 0.5), (7, 1.0)]
    assert choices == sorted(choices, key=lambda c: c.box)
    np.testing.assert_allclose(choices[0].box, (18, 28, 42, 52), atol=1e-4)
    assert len(choose_stage2(find_objects(*masks), proposals, min_iou=0.51)) == 1


def test_of_proposals_with_the_same_window_the_one_that_fits_better_comes_first(masks):
    """A square window depends on the longer side alone."""
    proposals = np.array([[20.0, 31, 40, 39], [20, 30, 40, 40], [20, 29, 40, 41]])
    for order in ([0, 1, 2], [2, 1, 0]):
        chosen = choose_stage2(find_objects(*masks), proposals[order])
        assert len({c.box for c in chosen}) == 1
        assert [round(c.iou, 3) for c in chosen] == [1.0, 0.833, 0.8]


def test_max_per_image_keeps_the_best_of_each_object_and_draws_the_rest_by_seed(masks):
    rng = np.random.default_rng(0)
    proposals = np.array([20, 30, 40, 40]) + rng.uniform(-1, 1, (30, 4))
    proposals = np.vstack([proposals, [[20, 30, 40, 40], [40, 30, 48, 38]]])
    objects = find_objects(*masks)

    def chosen(seed: int, image_id: str) -> list:
        return choose_stage2(objects, proposals, max_per_image=6, seed=seed, image_id=image_id)

    first = chosen(0, "a")
    assert len(first) == 6 and first == chosen(0, "a")
    assert [c.iou for c in first].count(1) == 2 and {c.classes for c in first} == {(5,), (7,)}
    assert first != chosen(1, "a") and first != chosen(0, "b")
    assert len(choose_stage2(objects, proposals, max_per_image=50)) == 32
    assert len(choose_stage2(objects, proposals, max_per_image=1)) == 1


def test_example_size_is_250_for_224_in_proportion():
    assert [example_size(s) for s in (224, 64, 96, 32)] == [250, 71, 107, 36]


def test_repeats_by_hand():
    assert repeats_by_class({1: 100, 2: 50, 3: 40, 4: 1, 5: 0, 6: 70}, 10) == {1: 1, 2: 2, 3: 3, 4: 10, 6: 1}
    assert repeats_by_class({}, 10) == {}


@given(st.dictionaries(st.integers(1, 20), st.integers(0, 10_000), max_size=20), st.integers(1, 50))
def test_repeats_never_exceed_the_limit_or_the_largest_class(counts, limit):
    repeats = repeats_by_class(counts, limit)
    most = max(counts.values(), default=0)
    assert repeats.keys() == {c for c, n in counts.items() if n}
    for c, times in repeats.items():
        assert 1 <= times <= limit
        assert counts[c] * times <= max(most + counts[c] / 2, counts[c])


@pytest.mark.parametrize(
    ("boxes", "keywords", "message"),
    [
        (np.array([[9, 0, 1, 9]]), {}, "x1 ≤ x2"),
        (np.array([[0, 0, 9, 9, 0.5]] * 4), {}, r"shape \(4, 5\)"),
        (np.array([[0, 0, 9, 9]]), {"min_iou": 50}, "min_iou is 50, and must be above 0 and at most 1"),
        (np.array([[0, 0, 9, 9]]), {"min_iou": 1.01}, "min_iou is 1.01"),
        (np.array([[0, 0, 9, 9]]), {"min_iou": 0}, "min_iou is 0"),
    ],
)
def test_proposals_and_limits_of_another_kind_are_refused(boxes, keywords, message):
    with pytest.raises(ValueError, match=message):
        choose_stage2([AnnotatedObject(1, 1, (0, 0, 9, 9))], boxes, **keywords)


def test_objects_with_corners_in_the_wrong_order_are_refused():
    for box in ((9, 0, 1, 9), (0, 9, 9, 1)):
        with pytest.raises(ValueError, match="x1 ≤ x2"):
            choose_stage1([AnnotatedObject(1, 1, box)])


def street(void_rows: int = 0) -> np.ndarray:
    """20 × 40 pixels: sky (0) above road (1), a sign (2) of 4 × 2 pixels on the left; the first rows are void."""
    classes = np.zeros((20, 40), np.uint8)
    classes[10:] = 1
    classes[8:10, 2:6] = 2
    classes[:void_rows] = 255
    return classes


def test_windows_are_balanced_by_the_classes_in_them_and_not_enlarged():
    found = choose_windows(street(), make_windows(20, 40, [1.0, 0.5], 0.0))
    assert [(w.box, w.classes) for w in found if w.box[2] - w.box[0] == 20] == [
        ((0, 0, 20, 20), (0, 1, 2)),
        ((20, 0, 40, 20), (0, 1)),
    ]
    assert {w.classes for w in found if w.box[1] == 10} == {(1,)} and {w.object_id for w in found} == {0}
    assert rarest(found[0].classes, {0: 1, 1: 1, 2: 9}) == 2 and rarest(found[0].classes, {0: 1, 1: 1, 2: 1}) == 0


def test_a_class_of_under_one_per_cent_is_not_shown_unless_it_is_all_there_is():
    classes = street()
    classes[8:10, 2:6] = 0
    classes[8, 2:5] = 2  # 3 of 400 pixels
    assert choose_windows(classes, make_windows(20, 20, [1.0]))[0].classes == (0, 1)
    classes[8, 5] = 2  # 4: exactly one per cent
    assert choose_windows(classes, make_windows(20, 20, [1.0]))[0].classes == (0, 1, 2)
    classes[classes != 2] = 255
    assert choose_windows(classes, make_windows(20, 20, [1.0]))[0].classes == (2,)


def test_one_per_cent_is_of_the_window_wherever_it_lies():
    classes = np.ones((50, 60), np.uint8)
    classes[30:32, 40:42] = 2  # 4 of 400 pixels
    assert choose_windows(classes, np.array([[35, 25, 55, 45]], np.float32))[0].classes == (1, 2)


def test_windows_without_an_annotated_pixel_are_left_out_and_the_others_drawn_by_seed_and_image():
    windows = make_windows(20, 40, [0.5], 0.0)
    assert [w.box[1] for w in choose_windows(street(void_rows=10), windows)] == [10] * 4
    assert choose_windows(street(void_rows=20), windows) == []
    drawn = [
        choose_windows(street(), windows, max_per_image=3, seed=s, image_id=i)
        for s, i in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    ]
    assert drawn[0] == drawn[1] and all(len(each) == 3 for each in drawn) and len({str(each) for each in drawn}) > 1
    assert all(each == sorted(each, key=lambda w: w.box) for each in drawn)


def test_without_a_background_class_0_has_objects_and_nothing_becomes_background():
    classes = street()
    objects = (classes == 0).astype(np.uint8)
    assert find_objects(classes, objects) == []
    (sky,) = find_objects(classes, objects, background=False)
    assert (sky.class_id, sky.box) == (0, (0, 0, 40, 10))
    objects[:], classes[:] = 1, 255
    assert find_objects(classes, objects, background=False) == []
    image, classes = np.zeros((20, 40, 3), np.uint8), street()
    (window,) = choose_stage1([sky])
    cut = {
        b: set(np.unique(cut_example(image, classes, (classes == 0).astype(np.uint8), window, 1, 40, b)[1]))
        for b in (True, False)
    }
    assert cut == {True: {0, 255}, False: {0, 1, 2, 255}}
