"""The interval of the rise of the mean IoU from one model to another, on simulated images; and the file of confusion matrices."""

from pathlib import Path

import numpy as np
import pytest

from deconvnet.evaluation.comparison import image_confusions_file, mean_iou_rise, read_image_confusions
from deconvnet.evaluation.metrics import ConfusionMatrix
from infra.errors import UserError

CLASSES = 4
Matrices = dict[str, np.ndarray]


def simulated(rng: np.random.Generator, images: int, gain: float = 0.0) -> tuple[Matrices, Matrices]:
    """Confusion matrices of two models on images that are hard or easy for both; `gain` makes the second model better.

    Each model also has luck of its own with each image, and errors go to any other class.
    """
    champion, challenger = {}, {}
    for i in range(images):
        true = rng.multinomial(2000, rng.dirichlet([3, 0.5, 0.5, 0.5]))
        easy = 1.2 + rng.normal(0, 0.25)
        for matrices, better in ((champion, 0.0), (challenger, gain)):
            hits = rng.binomial(true, 1 / (1 + np.exp(-(easy + better + rng.normal(0, 0.24)))))
            errors = rng.multinomial(true - hits, [1 / (CLASSES - 1)] * (CLASSES - 1))
            matrix = np.diag(hits)
            matrix[~np.eye(CLASSES, dtype=bool)] = errors.ravel()
            matrices[f"image {i}"] = matrix
    return champion, challenger


def rise_on_all(champion: Matrices, challenger: Matrices) -> float:
    first, second = (ConfusionMatrix(CLASSES, sum(each.values())).mean_iou for each in (champion, challenger))
    return second - first


def test_the_rise_is_that_of_the_mean_iou_over_all_images(rng: np.random.Generator) -> None:
    champion, challenger = simulated(rng, 40, 0.2)
    found = mean_iou_rise(champion, challenger)
    assert found.rise == pytest.approx(rise_on_all(champion, challenger), abs=1e-12)
    assert found.lower < found.rise < found.upper and found.images == 40
    back = mean_iou_rise(challenger, champion)
    assert back.rise == pytest.approx(-found.rise) and back.lower == pytest.approx(-found.upper, abs=0.002)


def test_the_interval_holds_the_true_rise_in_nine_of_ten_data_sets() -> None:
    rng = np.random.default_rng(7)
    true = rise_on_all(*simulated(rng, 8000, 0.1))
    found = [mean_iou_rise(*simulated(rng, 30, 0.1), draws=300) for _ in range(200)]
    below, above = (np.mean([wrong(each) for each in found]) for wrong in (lambda f: f.lower > true, lambda f: f.upper < true))
    assert 0.01 < below < 0.1 and 0.01 < above < 0.1  # 0.05 each, and what 200 data sets leave to chance


def test_so_many_sets_are_drawn_that_the_interval_hardly_depends_on_the_seed() -> None:
    found = [mean_iou_rise(*simulated(np.random.default_rng(3), 30, 0.1), seed=seed) for seed in range(10)]
    assert np.std([each.lower for each in found]) < 0.025 * (found[0].upper - found[0].lower)


def test_a_rise_by_chance_on_60_images_has_no_lower_bound_above_zero_and_a_real_one_has() -> None:
    rng = np.random.default_rng(8)
    chance = [mean_iou_rise(*simulated(rng, 60), draws=400) for _ in range(60)]
    by_half_a_point = [each for each in chance if each.rise > 0.005]
    assert len(by_half_a_point) >= 10 and np.mean([each.lower > 0 for each in chance]) < 0.12
    assert np.mean([each.lower > 0 for each in by_half_a_point if each.rise < 0.012]) == 0
    real = [mean_iou_rise(*simulated(rng, 60, 0.3), draws=400) for _ in range(20)]
    assert all(each.lower > 0 for each in real)


def test_the_same_masks_never_rise() -> None:
    champion, _ = simulated(np.random.default_rng(1), 12)
    same = mean_iou_rise(champion, champion)
    assert (same.rise, same.lower, same.upper) == (0, 0, 0)


def test_the_order_of_the_images_does_not_matter_and_the_seed_does(rng: np.random.Generator) -> None:
    champion, challenger = simulated(rng, 20, 0.1)
    reverse = dict(reversed(challenger.items()))
    assert mean_iou_rise(champion, challenger) == mean_iou_rise(champion, reverse)
    assert mean_iou_rise(champion, challenger).lower != mean_iou_rise(champion, challenger, seed=1).lower


def test_few_images_prove_little(rng: np.random.Generator) -> None:
    champion, challenger = simulated(rng, 1, 3.0)
    one = mean_iou_rise(champion, challenger)
    assert one.rise > 0.1 and (one.lower, one.upper) == (-1, 1)
    lucky = [mean_iou_rise(*simulated(rng, 3), draws=200).lower > 0 for _ in range(100)]
    assert np.mean(lucky) < 0.15, "three images that all rise by chance"


def test_images_that_are_all_void_and_classes_that_are_rare_do_no_harm(rng: np.random.Generator) -> None:
    champion, challenger = simulated(rng, 20, 0.3)
    plain = mean_iou_rise(champion, challenger)
    void = {"void": np.zeros((CLASSES, CLASSES), int)}
    with_void = mean_iou_rise(champion | void, challenger | void)
    assert with_void.rise == pytest.approx(plain.rise) and with_void.lower == pytest.approx(plain.lower, abs=0.02)
    wide = [{name: np.pad(matrix, (0, 1)) for name, matrix in each.items()} for each in (champion, challenger)]
    wide[1]["image 3"][4, 4] = wide[0]["image 3"][4, 4] = 9  # a class that one image shows
    rare = mean_iou_rise(*wide)
    assert np.isfinite([rare.rise, rare.lower, rare.upper]).all()


def test_images_that_show_a_single_class_are_compared() -> None:
    matrices = {str(i): np.diag([9 + i, 0, 0]) for i in range(5)}
    assert mean_iou_rise(matrices, matrices).upper == 0


def test_a_class_that_only_one_model_predicts_counts_for_that_model_alone(rng: np.random.Generator) -> None:
    """It occurs nowhere, so the model that predicts it has an IoU of 0 there, and the other model has none."""
    champion, challenger = ({name: np.pad(m, (0, 1)) for name, m in each.items()} for each in simulated(rng, 9, 0.1))
    for matrix in champion.values():
        matrix[0, 4] += 200
    rise = ConfusionMatrix(5, sum(challenger.values())).mean_iou - ConfusionMatrix(5, sum(champion.values())).mean_iou
    found = mean_iou_rise(champion, challenger)
    assert found.rise == pytest.approx(rise, abs=1e-12) and found.lower < rise < found.upper < rise + 0.1


def test_an_interval_ends_where_a_rise_can_be() -> None:
    """Of two images the interval is five times as wide as the draws."""
    wrong, right = np.array([[0, 50], [50, 0]]), np.array([[50, 0], [0, 50]])
    found = mean_iou_rise({"a": wrong, "b": wrong}, {"a": wrong, "b": right})
    assert (found.lower, found.upper) == (-1, 1)


@pytest.mark.filterwarnings("error")
def test_draws_of_void_images_alone_are_left_out() -> None:
    """A quarter of the draws of two images shows only the second one, which is void."""
    matrices = {"a": np.array([[40, 10], [20, 30]]), "b": np.zeros((2, 2), int)}
    same = mean_iou_rise(matrices, matrices)
    assert (same.rise, same.lower, same.upper) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("image 3"), r"different images: 1 of them, such as 'image 3'"),
        (lambda m: m.update(other=m["image 0"]), r"different images: 1 of them, such as 'other'"),
        (lambda m: m.update({name: each[:3, :3] for name, each in m.items()}), "4 and 3 classes"),
        (lambda m: m.clear(), r"different images: 8 of them"),
    ],
)
def test_models_measured_on_other_images_or_classes_are_not_compared(rng: np.random.Generator, change, reason: str) -> None:
    champion, challenger = simulated(rng, 8)
    change(challenger)
    with pytest.raises(ValueError, match=reason):
        mean_iou_rise(champion, challenger)


@pytest.mark.parametrize("matrices", [{}, {"a": np.zeros((2, 2), int)}])
def test_no_annotated_pixel_is_refused(matrices: Matrices) -> None:
    with pytest.raises(ValueError, match="no annotated pixel"):
        mean_iou_rise(matrices, matrices)


def test_a_file_keeps_the_confusion_matrices(tmp_path: Path, rng: np.random.Generator) -> None:
    champion, _ = simulated(rng, 5)
    kept = champion | {"void": np.zeros((CLASSES, CLASSES), np.int32), "Größe/1": champion["image 0"] * 1000}
    file = tmp_path / "image_confusions.npz"
    file.write_bytes(image_confusions_file(kept))
    again = read_image_confusions(str(file))
    assert list(again) == sorted(kept) and all(np.array_equal(again[name], kept[name]) for name in kept)
    assert image_confusions_file(dict(reversed(kept.items()))) == file.read_bytes()
    one = dict([kept.popitem()])
    file.write_bytes(image_confusions_file(one))
    assert read_image_confusions(str(file)).keys() == one.keys()


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"", lambda data: b"no zip", None])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, rng: np.random.Generator, damage) -> None:
    file = tmp_path / "image_confusions.npz"
    if damage:
        file.write_bytes(damage(image_confusions_file(simulated(rng, 5)[0])))
    with pytest.raises(UserError, match=r"image_confusions\.npz .*evaluat"):
        read_image_confusions(str(file))


def test_a_file_that_could_run_code_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    """An array of Python objects is stored by pickle."""
    file = tmp_path / "image_confusions.npz"
    file.write_bytes(image_confusions_file(simulated(rng, 2)[0]))
    arrays = dict(np.load(file))
    np.savez(file, **arrays | {"image_ids": arrays["image_ids"].astype(object)})
    with pytest.raises(UserError, match="it is not a complete file of confusion matrices"):
        read_image_confusions(str(file))
