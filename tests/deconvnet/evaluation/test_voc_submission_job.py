"""Predicting a VOC list for the test server: every image or an error, and existing masks are kept."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet import FCN8s
from deconvnet.evaluation.voc_submission.job import VERSION, ListedImage, Recipe, list_split, predict_masks
from deconvnet.inference.int8.ranges import save_ranges
from deconvnet.inference.predictor import Predictor, PredictorOptions
from deconvnet.models.checkpoint import save_model
from infra import storage
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from infra.runtime.stages import digest
from proposals import edge_boxes
from proposals.image_codec import decode_image
from tests.deconvnet.ensembles import CLASSES, EDGES, SEGMENT, random_image, randomised, save_networks

IDS = ["2008_000001", "2008_000002", "2008_000003", "2008_000004", "2008_000005"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder in VOC's layout without masks, like VOC's test set. Its list is unsorted, and not every image is listed."""
    made = tmp_path / "VOC2012"
    (made / "JPEGImages").mkdir(parents=True)
    (made / "ImageSets/Segmentation").mkdir(parents=True)
    for i, name in enumerate([*IDS, "2009_000001"]):
        Image.fromarray(random_image(i, 40 + i, 60)).save(made / f"JPEGImages/{name}.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_image(9, 40, 60)).save(made / f"JPEGImages/{IDS[3]}.jpg", exif=exif)
    (made / "ImageSets/Segmentation/test.txt").write_text("\n".join([*reversed(IDS), IDS[0]]) + "\n")
    return made


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    save_networks(tmp_path, CLASSES)
    return Recipe(str(tmp_path / "deconvnet"), str(tmp_path / "fcn8s"), PredictorOptions(**SEGMENT), EDGES, "edeconvnet_crf")


def test_listed_images_are_sorted_unique_and_have_sizes_as_displayed(root: Path) -> None:
    found = list_split(str(root), "test", 10_000)
    assert [each.image_id for each in found] == IDS
    assert [(each.width, each.height) for each in found] == [(60, 40), (60, 41), (60, 42), (40, 60), (60, 44)]
    assert found[0].uri == str(root / "JPEGImages/2008_000001.jpg") and len({each.content for each in found}) == 5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2008_000099", "lists '2008_000099', and .* has no image of it"),
        ("../JPEGImages/2008_000001", "has no image of it"),
    ],
)
def test_a_listed_image_that_does_not_exist_is_refused(root: Path, line: str, said: str) -> None:
    with (root / "ImageSets/Segmentation/test.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=said):
        list_split(str(root), "test", 10_000)


def test_an_unreadable_image_is_refused_before_any_is_predicted(root: Path) -> None:
    damaged = root / "JPEGImages/2008_000002.jpg"
    damaged.write_bytes(damaged.read_bytes()[:700])
    with pytest.raises(UserError, match=r"2008_000002\.jpg can't be segmented: truncated.*a mask for each image of the list"):
        list_split(str(root), "test", 10_000)
    with pytest.raises(UserError, match="is larger than 2,000 pixels"):
        list_split(str(root), "test", 2_000)


@pytest.mark.parametrize("result", ["edeconvnet_crf", "fcn8s"])
def test_masks_equal_those_of_the_predictor_and_existing_ones_are_kept(
    executor: LocalExecutor, root: Path, recipe: Recipe, tmp_path: Path, result: str
) -> None:
    recipe = Recipe(recipe.deconvnet, recipe.fcn8s, recipe.options, recipe.edge_boxes, result)
    images = list_split(str(root), "test", 10_000)
    folder = tmp_path / "masks"
    folder.mkdir()
    (folder / f"{IDS[1]}.png").write_bytes(b"existing")
    masks = predict_masks(images, recipe, str(folder), executor)
    assert list(masks) == IDS and masks[IDS[1]] == b"existing"
    predictor = Predictor.load(recipe.deconvnet, recipe.fcn8s, options=PredictorOptions(**SEGMENT))
    for each in (images[0], images[3]):
        image = decode_image(Path(each.uri).read_bytes())
        expected = predictor.masks(image, edge_boxes(image, **EDGES)[0], (result,))[result]
        mask = np.asarray(Image.open(folder / f"{each.image_id}.png"))
        np.testing.assert_array_equal(mask, expected)
        assert mask.shape == (each.height, each.width)


def test_an_image_that_becomes_unreadable_during_the_run_is_a_user_error(
    executor: LocalExecutor, root: Path, recipe: Recipe, tmp_path: Path
) -> None:
    images = list_split(str(root), "test", 10_000)
    (root / "JPEGImages/2008_000005.jpg").write_bytes(b"text")
    with pytest.raises(UserError, match=r"2008_000005\.jpg can't be segmented: not an image"):
        predict_masks(images, recipe, str(tmp_path / "masks"), executor)


def test_the_key_changes_with_everything_the_masks_depend_on(root: Path, recipe: Recipe, tmp_path: Path) -> None:
    images = list_split(str(root), "test", 10_000)
    key = recipe.key(images)
    assert recipe.key(images) == key
    others = [
        Recipe(recipe.deconvnet, recipe.fcn8s, recipe.options, recipe.edge_boxes, "fcn8s").key(images),
        Recipe(recipe.deconvnet, recipe.fcn8s, replace(recipe.options, proposals=3), recipe.edge_boxes, recipe.result).key(
            images
        ),
        Recipe(recipe.deconvnet, recipe.fcn8s, recipe.options, recipe.edge_boxes | {"max_boxes": 9}, recipe.result).key(images),
        recipe.key(images[1:]),
        recipe.key([ListedImage(**{**vars(images[0]), "content": "other"}), *images[1:]]),
    ]
    shutil.rmtree(recipe.fcn8s)
    save_model(randomised(FCN8s(3, 0.1, batch_norm=True), 7), recipe.fcn8s, CLASSES)
    others.append(recipe.key(images))
    forest = tmp_path / "forest.npz"
    for content in (b"one", b"another"):
        forest.write_bytes(content)
        others.append(replace(recipe, edge_boxes=EDGES | {"edge_model": str(forest)}).key(images))
    assert len({key, *others}) == 9


def test_the_key_changes_with_the_ranges_for_8_bit_integers_if_these_are_used(recipe: Recipe) -> None:
    in_int8, keys = replace(recipe, options=replace(recipe.options, int8=True)), []
    for inputs_digest in ("a" * 16, "b" * 16):
        save_ranges(recipe.deconvnet, {"conv1.1": 1.0}, inputs_digest)
        keys += [recipe.key([]), in_int8.key([])]
    assert keys[0] == keys[2] and len(set(keys)) == 3


def test_the_key_of_masks_that_were_made_without_8_bit_integers_is_that_of_earlier_releases(recipe: Recipe) -> None:
    windows_alone = replace(recipe, edge_boxes=None)
    tokens = [storage.version_token(f"{folder}/model.safetensors") for folder in (recipe.deconvnet, recipe.fcn8s)]
    assert windows_alone.key([]) == digest([VERSION, asdict(windows_alone), tokens, []])
