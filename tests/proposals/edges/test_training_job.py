"""The jobs that train a structured forest: which images it learns from, and the seeds of its trees."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from infra.storage import tables
from proposals.edges.forest_file import EdgeTree, load_forest
from proposals.edges.training import job
from proposals.edges.training.forest import ForestOptions, Sample
from proposals.edges.training.job import collect_samples, train_forest
from proposals.edges.training.segmentations import segments_from_masks
from proposals.image_codec import decode_image, decode_mask, encode_mask
from tests.proposals.edges.bsds_folder import drawing, write

LEAF = EdgeTree(
    np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.float32), np.array([0, 256]), np.arange(256, dtype=np.uint8)
)


def test_a_forest_learns_from_the_images_of_train_that_have_masks(executor, images, rows, tmp_path):
    """The first image has two objects of one class, which are two segments."""
    out = str(tmp_path / "segments")
    rows[0]["class_mask"] = encode_mask((decode_mask(rows[0]["object_mask"]) % 255 > 0).astype(np.uint8))
    made = collect_samples(images(rows, 3), None, out, "s" * 16, executor=executor, num_images=1000, seed=0)
    found = {row["image_id"]: row for row in tables.iter_rows(out)}
    used = {row["image_id"]: row for row in rows if row["split"] == "train" and row["class_mask"]}
    assert list(found) == list(used) and made.rows == len(used) and 0 < len(used) < len(rows)
    for image_id, row in used.items():
        classes, objects = decode_mask(row["class_mask"]), decode_mask(row["object_mask"])
        (segments,) = found[image_id]["segmentations"]
        np.testing.assert_array_equal(decode_mask(segments), segments_from_masks(classes, objects))
        assert found[image_id]["image"] == row["image"]


def test_a_share_of_the_images_is_drawn_by_the_seed(executor, images, rows, tmp_path):
    """Train has eleven images, of which one has no masks; each of the others is drawn with the probability 4 / 11."""
    uri, drawn = images(rows, 3), []
    for seed in range(20):
        out = str(tmp_path / f"{seed}")
        try:
            collect_samples(uri, None, out, "s" * 16, executor=executor, num_images=4, seed=seed)
            drawn.append(frozenset(row["image_id"] for row in tables.iter_rows(out)))
        except UserError:  # none at all
            drawn.append(frozenset())
    assert 2.5 < sum(map(len, drawn)) / 20 < 5 and len(set(drawn)) > 10


def test_masks_without_objects_and_bsds500_are_learned_from_and_damaged_masks_are_rejected(executor, images, rows, tmp_path):
    rows[0]["object_mask"], rows[1]["class_mask"] = None, b"no mask"
    write(tmp_path / "bsds", "9", [drawing(4), drawing(7)], split="train")
    out = str(tmp_path / "out")
    made = collect_samples(images(rows[:3], 1), str(tmp_path / "bsds"), out, "s" * 16, executor=executor, num_images=9, seed=0)
    assert [reject.image_id for reject in made.rejects] == ["001"]
    found = {row["image_id"]: [decode_mask(each) for each in row["segmentations"]] for row in tables.iter_rows(out)}
    assert list(found) == ["000", "002", "bsds/9"]
    np.testing.assert_array_equal(found["000"][0], segments_from_masks(decode_mask(rows[0]["class_mask"]), None))
    for segments, column in zip(found["bsds/9"], (4, 7), strict=True):
        np.testing.assert_array_equal(segments, drawing(column)[0])


def test_without_an_image_with_masks_there_is_nothing_to_learn_from(executor, images, rows, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="there is no image with masks to learn edges from"):
        collect_samples(images(rows[11:12]), None, out, "s" * 16, executor=executor, num_images=9, seed=0)
    assert tables.read_commit(out) is None


def test_each_tree_has_a_seed_and_an_order_of_its_own_and_those_of_a_killed_run_are_kept(
    executor, images, rows, tmp_path, monkeypatch
):
    """The run is killed in the third tree. The images are told apart by their brightness."""
    out, trees = str(tmp_path / "segments"), tmp_path / "trees"
    made = collect_samples(images(rows[:6], 6), None, out, "s" * 16, executor=executor, num_images=1000, seed=0)
    seeds, orders = [], []

    def train(samples: Iterator[Sample], count: int, options: ForestOptions, seed: Sequence[int]) -> EdgeTree:
        seeds.append([*seed])
        if len(seeds) == 3:
            raise KeyboardInterrupt
        assert count == made.rows
        orders.append([float(image.mean()) for image, _ in samples])
        return LEAF

    monkeypatch.setattr(job, "train_tree", train)
    given = (out, str(tmp_path / "f.yml.gz"), ForestOptions(trees=3), 5, str(trees), executor)
    with pytest.raises(KeyboardInterrupt):
        train_forest(*given)
    assert len(list(trees.glob("*.npz"))) == 2
    figures = train_forest(*given)
    assert seeds == [[5, 0], [5, 1], [5, 2], [5, 2]], "the trees that were there are not trained again"
    shown = sorted(float(decode_image(row["image"]).mean()) for row in rows[:6] if row["split"] == "train")
    assert [sorted(order) for order in orders] == [shown] * 3
    assert len({tuple(order) for order in orders}) > 1, "the images come in another order"
    size = Path(given[1]).stat().st_size
    assert figures == {"images": made.rows, "trees": 3, "nodes": 3, "bytes": size} and not trees.exists()
    assert len(load_forest(given[1]).child) == 3
