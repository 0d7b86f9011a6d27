"""The neighbour is trained on our train images, measured on our dev and val by our metric, and goes on where it was left.

Its network is not tested here: its packages are not installed beside ours (`run.py check` tests its weights).
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from deconvnet.datasets.images_table import data_folder, prepare_images
from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.settings import DataSettings, GeneratedSettings
from infra.runtime.local_executor import LocalExecutor
from infra.storage import tables
from tests.benchmarks.neighbour import data, network, training
from tests.benchmarks.neighbour.training import Progress, Recipe, Run
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images in VOC's layout, whose sides are not multiples of 32."""
    settings = DataSettings(generated=GeneratedSettings(train=45, val=6, height=45, width=70))
    return Path(data_folder(settings, 0, str(tmp_path_factory.mktemp("data"))))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_splits_are_those_of_our_table(folder, tmp_path, seed):
    settings = DataSettings(root=str(folder), classes=GENERATED_CLASSES)
    prepare_images(settings, seed, str(tmp_path), "f" * 64, str(folder), LocalExecutor(1))
    ours: dict[str, list[str]] = {"train": [], "dev": [], "val": []}
    for row in tables.iter_rows(str(tmp_path), ["image_id", "split"]):
        ours[row["split"]].append(row["image_id"])
    assert data.read_splits(folder, seed) == ours and len(ours["dev"]) == 2


def test_dev_is_as_large_as_in_the_config_that_it_is_compared_with():
    config = yaml.safe_load((ROOT / "workflows" / "configs" / "voc_sample_cpu.yaml").read_text("utf-8"))
    assert DataSettings(**{**config["data"], "root": ""}).dev_fraction == data.DEV_FRACTION


@pytest.mark.parametrize("flip", [False, True])
def test_an_image_is_segmented_at_its_own_size_and_counted_by_our_metric(folder, flip):
    """The "network" takes the brightest colour for the class, so the prediction is known for each pixel."""
    shapes = []

    def score(pixels):
        shapes.append(pixels.shape)
        return pixels.transpose(2, 0, 1)

    ids = data.read_splits(folder, 0)["val"]
    expected = ConfusionMatrix(len(GENERATED_CLASSES))
    for image, mask in data.pairs(folder, ids):
        expected.update(mask, image.argmax(axis=2))
    found = data.evaluate(score, folder, ids, len(GENERATED_CLASSES), flip)
    assert np.array_equal(found.matrix, expected.matrix) and 0 < found.mean_iou == expected.mean_iou < 1
    assert set(shapes) == {(64, 96, 3)} and len(shapes) == len(ids) * (1 + flip)


def test_the_mirrored_image_counts_as_much():
    """Left is class 0 for one view, so it is class 0 in the right half of the other: then both are equally probable."""

    def score(pixels):
        width = pixels.shape[1]
        ramp = np.broadcast_to(np.linspace(0, 1, width), pixels.shape[:2])
        return np.stack([np.full(pixels.shape[:2], 0.45), ramp])

    image = np.zeros((32, 64, 3), np.uint8)
    assert data.predict(score, image, flip=False).mean() == pytest.approx(0.55, abs=0.02)
    assert data.predict(score, image, flip=True).all(), "0.5 on average everywhere"


@pytest.mark.parametrize(("factor", "crop"), [(0.5, 64), (2.0, 48), (1.0, 64)])
def test_a_crop_keeps_image_and_mask_together(factor, crop):
    mask = np.zeros((40, 90), np.uint8)
    mask[5:25, 10:40], mask[15:40, 50:90] = 1, 7
    image = (np.uint8(30) * mask + 20)[..., None].repeat(3, axis=2)
    augment = data.Augmentation(crop, (factor, factor), jitter=0.0)
    firsts = set()
    for seed in range(12):
        pixels, classes = augment(image, mask, np.random.default_rng(seed))
        assert pixels.shape == (crop, crop, 3) and pixels.dtype == np.float32 and classes.shape == (crop, crop)
        inside = classes != 255
        assert inside.sum() == min(crop, round(40 * factor)) * min(crop, round(90 * factor))
        assert (pixels[~inside] == 0).all()
        assert set(np.unique(classes)) <= {0, 1, 7, 255}
        of_pixels = np.rint((pixels[..., 0] * data.SCALE + data.MEAN - 20) / 30)
        assert (of_pixels == classes)[inside].mean() > 0.93, "they differ at borders alone"
        firsts.add(classes[:, np.flatnonzero(inside.any(axis=0))].tobytes())
    assert len(firsts) > 6, "place and direction are drawn"


def test_each_image_is_seen_once_an_epoch_and_a_step_can_be_made_again(monkeypatch):
    ids = ["a", "b", "c", "d", "e"]
    read: list[str] = []

    def read_pair(root, image_id):
        read.append(image_id)
        return np.full((40, 40, 3), 9 * (1 + ids.index(image_id)), np.uint8), np.zeros((40, 40), np.uint8)

    monkeypatch.setattr(data, "read_pair", read_pair)
    augment = data.Augmentation(32)
    steps = [data.training_batch(Path(), ids, augment, 2, step, seed=3) for step in range(5)]
    assert sorted(read[:5]) == sorted(read[5:]) == ids and read[:5] != read[5:]
    assert steps[3][0].shape == (2, 3, 32, 32) and not np.array_equal(steps[3][0], steps[4][0])
    again = data.training_batch(Path(), ids, augment, 2, 3, seed=3)
    assert all(np.array_equal(one, other) for one, other in zip(steps[3], again, strict=True))
    one, other = (data.training_batch(Path(), ids[:1], augment, 2, 0, seed)[0] for seed in (3, 4))
    assert not np.array_equal(one, other), "the seed decides on the augmentation, too"


def toy(folder: Path, recipe: Recipe) -> Run:
    """A run of a tiny network with batch norm and dropout."""
    torch.manual_seed(recipe.seed)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1))
    return Run(folder, recipe, layers, encoder=layers[0])


def toy_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of noise, of which the mask says where they are bright; a part is void."""
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    masks = (images[:, 0] > 0).to(torch.uint8)
    masks[:, :2] = 255
    return images, masks


class KilledError(Exception):
    """Stands for the end of the process."""


def test_a_killed_training_goes_on_at_its_checkpoint_and_ends_like_one_that_was_not(tmp_path, monkeypatch):
    recipe = Recipe(steps=9, batch=2)
    whole = toy(tmp_path / "whole", recipe)
    whole.train(toy_batch, 2, 4, dev=lambda: 0.5)
    clock = iter(range(0, 10_000, 21))  # so there is a checkpoint after two steps, and after each second one from there
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    killed = toy(tmp_path / "killed", recipe)
    seen: list[int] = []

    def batch(step):
        seen.append(step)
        if step == 5 and seen.count(5) == 1:
            raise KilledError
        return toy_batch(step)

    with pytest.raises(KilledError):
        killed.train(batch, 2, 4, dev=lambda: 0.5)
    resumed = toy(tmp_path / "killed", recipe)
    assert resumed.progress.step == 4 and resumed.progress.cpu_seconds > 0
    resumed.train(batch, 2, 4, dev=lambda: 0.5)
    assert seen == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8] and resumed.is_done
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, resumed.network.state_dict()[name]), name
    reports = [
        [(line["step"], line["loss"], line.get("dev_mean_iou")) for line in each.progress.history] for each in (whole, resumed)
    ]
    assert reports[0] == reports[1] and [step for step, *_ in reports[0]] == [2, 4, 6, 8, 9]
    assert [dev for *_, dev in reports[0]] == [None, 0.5, None, 0.5, 0.5]
    assert toy(tmp_path / "killed", recipe).is_done, "a third start has nothing to do"


def test_another_recipe_does_not_continue_a_run(tmp_path):
    toy(tmp_path, Recipe(steps=3))
    with pytest.raises(ValueError, match=r"was begun with \{'steps': 3\}"):
        toy(tmp_path, Recipe(steps=4))


@pytest.mark.parametrize("wrong", [{}, {"minutes": 1.0, "steps": 1}])
def test_a_recipe_has_one_budget(wrong):
    with pytest.raises(ValueError, match="either minutes or steps"):
        Recipe(**wrong)


def test_the_budget_is_processor_time_of_the_steps_by_thread():
    recipe = Recipe(minutes=2, threads=2, lr=0.1, warmup=0.0)
    assert recipe.share_done(Progress(cpu_seconds=60.0, wall_seconds=999.0)) == 0.25
    assert recipe.share_done(Progress(cpu_seconds=500.0)) == 1
    assert recipe.rate(0.25) == pytest.approx(0.1 * 0.75**0.9) and recipe.rate(1.0) == 0
    rates = [Recipe(steps=1, lr=0.1, warmup=0.1).rate(share) for share in (0.0, 0.05, 0.1, 0.2)]
    assert 0 < rates[0] < 0.002 and rates[0] < rates[1] < rates[2] > rates[3]


def test_the_encoder_has_a_learning_rate_of_its_own_and_void_does_not_count(tmp_path):
    run = toy(tmp_path, Recipe(steps=10, lr=0.01, encoder_lr_factor=0.0, weight_decay=0.0, warmup=0.0))
    encoder, decoder = (run.network[n].weight.detach().clone() for n in (0, 3))
    run.step(toy_batch)
    assert torch.equal(run.network[0].weight, encoder) and not torch.equal(run.network[3].weight, decoder)
    with pytest.raises(FloatingPointError, match="after 1 steps"):
        run.step(lambda step: (toy_batch(step)[0], torch.full((2, 8, 8), 255)))


def test_weights_of_the_package_have_timms_names():
    assert network.timm_name("_conv_stem.weight") == "conv_stem.weight"
    assert network.timm_name("_bn1.running_var") == "bn2.running_var" and network.timm_name("_fc.bias") == "classifier.bias"
    assert network.timm_name("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert network.timm_name("_blocks.4._bn2.bias") == "blocks.2.1.bn3.bias"
    assert network.timm_name("_blocks.15._expand_conv.weight") == "blocks.6.0.conv_pw.weight"
    with pytest.raises(KeyError):
        network.timm_name("_blocks.16._bn2.bias")
    with pytest.raises(KeyError):
        network.timm_name("_blocks.0._se_reduce.weight")
