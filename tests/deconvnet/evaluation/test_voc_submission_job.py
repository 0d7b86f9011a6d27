"""Labelling a list for VOC's test server: every photograph of it or none, and what stands is not made again."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet import DeconvNet, FCN8s
from deconvnet.evaluation.voc_submission_job import Listed, Recipe, label_list, list_split
from deconvnet.inference.predictor import Predictor, PredictorOptions
from deconvnet.models.checkpoint import save_model
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from proposals import edge_boxes
from proposals.image_codec import decode_image
from tests.deconvnet.ensembles import CLASSES, EDGES, SEGMENT, random_image, randomised

IDS = ["2008_000001", "2008_000002", "2008_000003", "2008_000004", "2008_000005"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder in VOC's layout without masks, as the test photographs come; its list is not in order, and has more photographs beside."""
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
    save_model(randomised(DeconvNet(3, 0.1, 32), 1), str(tmp_path / "deconvnet"), CLASSES)
    save_model(randomised(FCN8s(3, 0.1, batch_norm=True), 2), str(tmp_path / "fcn8s"), CLASSES)
    return Recipe(str(tmp_path / "deconvnet"), str(tmp_path / "fcn8s"), PredictorOptions(**SEGMENT), EDGES, "edeconvnet_crf")


def test_a_list_is_sorted_once_each_with_sizes_as_displayed(root: Path) -> None:
    found = list_split(str(root), "test", 10_000)
    assert [each.image_id for each in found] == IDS
    assert [(each.width, each.height) for each in found] == [(60, 40), (60, 41), (60, 42), (40, 60), (60, 44)]
    assert found[0].uri == str(root / "JPEGImages/2008_000001.jpg") and len({each.content for each in found}) == 5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2008_000099", "lists '2008_000099', and .* has no photograph of it"),
        ("../JPEGImages/2008_000001", "has no photograph of it"),
    ],
)
def test_a_line_without_a_photograph_is_refused(root: Path, line: str, said: str) -> None:
    with (root / "ImageSets/Segmentation/test.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=said):
        list_split(str(root), "test", 10_000)


def test_a_photograph_that_cant_be_read_is_refused_before_any_is_labelled(root: Path) -> None:
    damaged = root / "JPEGImages/2008_000002.jpg"
    damaged.write_bytes(damaged.read_bytes()[:700])
    with pytest.raises(UserError, match=r"2008_000002\.jpg can't be labelled: truncated.*a mask for each photograph of the list"):
        list_split(str(root), "test", 10_000)
    with pytest.raises(UserError, match="is larger than 2,000 pixels"):
        list_split(str(root), "test", 2_000)


@pytest.mark.parametrize("result", ["edeconvnet_crf", "fcn8s"])
def test_masks_are_the_segmenters_and_what_stands_is_not_made_again(
    executor: LocalExecutor, root: Path, recipe: Recipe, tmp_path: Path, result: str
) -> None:
    recipe = Recipe(recipe.deconvnet, recipe.fcn8s, recipe.segment, recipe.edges, result)
    photographs = list_split(str(root), "test", 10_000)
    place = tmp_path / "masks"
    place.mkdir()
    (place / f"{IDS[1]}.png").write_bytes(b"stands")
    masks = label_list(photographs, recipe, str(place), executor)
    assert list(masks) == IDS and masks[IDS[1]] == b"stands"
    predictor = Predictor.load(recipe.deconvnet, recipe.fcn8s, options=PredictorOptions(**SEGMENT))
    for each in (photographs[0], photographs[3]):
        image = decode_image(Path(each.uri).read_bytes())
        expected = predictor.masks(image, edge_boxes(image, **EDGES)[0], (result,))[result]
        labels = np.asarray(Image.open(place / f"{each.image_id}.png"))
        np.testing.assert_array_equal(labels, expected)
        assert labels.shape == (each.height, each.width)


def test_a_photograph_that_goes_bad_meanwhile_stops_it_with_a_sentence(
    executor: LocalExecutor, root: Path, recipe: Recipe, tmp_path: Path
) -> None:
    photographs = list_split(str(root), "test", 10_000)
    (root / "JPEGImages/2008_000005.jpg").write_bytes(b"text")
    with pytest.raises(UserError, match=r"2008_000005\.jpg can't be labelled: not an image"):
        label_list(photographs, recipe, str(tmp_path / "masks"), executor)


def test_the_key_follows_what_the_masks_depend_on(root: Path, recipe: Recipe, tmp_path: Path) -> None:
    photographs = list_split(str(root), "test", 10_000)
    key = recipe.key(photographs)
    assert recipe.key(photographs) == key
    others = [
        Recipe(recipe.deconvnet, recipe.fcn8s, recipe.segment, recipe.edges, "fcn8s").key(photographs),
        Recipe(recipe.deconvnet, recipe.fcn8s, replace(recipe.segment, proposals=3), recipe.edges, recipe.result).key(
            photographs
        ),
        Recipe(recipe.deconvnet, recipe.fcn8s, recipe.segment, recipe.edges | {"max_boxes": 9}, recipe.result).key(photographs),
        recipe.key(photographs[1:]),
        recipe.key([Listed(**{**vars(photographs[0]), "content": "other"}), *photographs[1:]]),
    ]
    shutil.rmtree(recipe.fcn8s)
    save_model(randomised(FCN8s(3, 0.1, batch_norm=True), 7), recipe.fcn8s, CLASSES)
    assert len({key, *others, recipe.key(photographs)}) == 7
