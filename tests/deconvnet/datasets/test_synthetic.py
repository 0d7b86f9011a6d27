"""The generated data set."""

import numpy as np
import pytest

from deconvnet.datasets import synthetic
from deconvnet.datasets.objects import make_object_mask
from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.datasets.synthetic import VAL_OFFSET, generate, write_dataset
from deconvnet.datasets.voc import VocDataset
from proposals.image_codec import decode_image, decode_mask


@pytest.fixture(scope="module")
def scenes():
    return [generate(i, 0, 120, 160) for i in range(40)]


def test_an_image_depends_on_seed_and_index_alone():
    first = generate(3, 0, 48, 64)
    generate(9, 5, 48, 64)
    for one, other in zip(first, generate(3, 0, 48, 64), strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(first[0], generate(4, 0, 48, 64)[0])
    assert not np.array_equal(first[0], generate(3, 1, 48, 64)[0])


def test_images_and_masks_have_their_shapes_types_and_ids(scenes):
    for image, classes, ids in scenes:
        assert image.shape == (120, 160, 3) and image.dtype == classes.dtype == ids.dtype == np.uint8
        assert set(np.unique(classes)) <= {*range(len(GENERATED_CLASSES)), 255}
        assert np.array_equal(make_object_mask(classes, ids), ids)  # every object one class, void the same


def test_images_have_all_classes_many_scales_overlaps_and_void_borders(scenes):
    seen = np.bincount(np.concatenate([np.unique(classes) for _, classes, _ in scenes]), minlength=256)
    assert seen[1 : len(GENERATED_CLASSES)].min() > 5
    sides, touching = [], 0
    for _, classes, ids in scenes:
        for object_id in set(np.unique(ids)) - {0, 255}:
            rows, columns = np.nonzero(ids == object_id)
            sides.append(max(np.ptp(rows), np.ptp(columns)) + 1)
        borders = zip(*np.nonzero(ids[2:-2, 2:-2] == 255), strict=True)
        touching += any(len(set(np.unique(ids[y : y + 5, x : x + 5])) - {0, 255}) > 1 for y, x in borders)
        change = (classes[:, 1:] != classes[:, :-1]) & (classes[:, 1:] != 255) & (classes[:, :-1] != 255)
        assert not change.any()
    assert np.quantile(sides, 0.05) < 30 and np.quantile(sides, 0.95) > 85
    assert touching > 10
    assert 0.02 < np.mean([classes == 255 for _, classes, _ in scenes]) < 0.15


def test_classes_can_not_be_told_by_colour_alone(scenes):
    """Giving each pixel the class of the nearest mean colour reaches a mean IoU of at most 0.25."""
    count = len(GENERATED_CLASSES)
    pixels = [(image[classes < count].astype(np.float64), classes[classes < count]) for image, classes, _ in scenes]
    colours, classes = (np.concatenate(each) for each in zip(*pixels, strict=True))
    means = np.stack([colours[classes == c].mean(axis=0) for c in range(count)])
    table = np.zeros((count, count), np.int64)
    for index in range(30):
        image, classes, _ = generate(VAL_OFFSET + index, 0, 120, 160)
        nearest = ((image[:, :, None] - means) ** 2).sum(axis=3).argmin(axis=2)
        np.add.at(table, (classes[classes < count], nearest[classes < count]), 1)
    iou = table.diagonal() / (table.sum(axis=0) + table.sum(axis=1) - table.diagonal())
    assert iou.mean() <= 0.25


@pytest.mark.parametrize("height, width", [(32, 32), (33, 200), (240, 90)])
def test_images_of_any_size_are_generated(height, width):
    image, classes, ids = generate(0, 0, height, width)
    assert image.shape[:2] == classes.shape == ids.shape == (height, width)


def test_the_data_set_is_written_once_and_again_for_other_settings(tmp_path, monkeypatch):
    root, options = tmp_path / "data", {"seed": 0, "train": 3, "val": 2, "height": 48, "width": 64}
    write_dataset(str(root), **options)
    train, rejects = VocDataset(str(root)).split("train")
    assert [each.image_id for each in train] == ["train_00000", "train_00001", "train_00002"] and not rejects
    assert (root / "classes.txt").read_text().split() == list(GENERATED_CLASSES)
    image, classes, ids = generate(VAL_OFFSET + 1, 0, 48, 64)
    assert np.array_equal(decode_mask((root / "SegmentationClass/val_00001.png").read_bytes()), classes)
    assert np.array_equal(decode_mask((root / "SegmentationObject/val_00001.png").read_bytes()), ids)
    written = decode_image((root / "JPEGImages/val_00001.jpg").read_bytes()).astype(int)
    assert np.abs(written - image).mean() < 4

    def stop(*_):
        raise AssertionError("generated again")

    monkeypatch.setattr(synthetic, "generate", stop)
    recipe = (root / "generated.json").read_bytes()
    write_dataset(str(root), **options)
    for name, value in options.items():
        with pytest.raises(AssertionError, match="generated again"):
            write_dataset(str(root), **options | {name: value + 1})
        assert not (root / "generated.json").exists()
        (root / "generated.json").write_bytes(recipe)
    monkeypatch.setattr(synthetic, "GENERATOR_VERSION", 0)
    with pytest.raises(AssertionError, match="generated again"):
        write_dataset(str(root), **options)
