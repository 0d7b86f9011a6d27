"""export.py: predictions and evaluated images as data sets for FiftyOne."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deconvnet.evaluation.image_measures import images_file, read_images
from deconvnet.evaluation.metrics import ConfusionMatrix, none_if_nan
from infra import storage
from infra.storage import tables
from proposals.image_codec import encode_mask
from tests.deconvnet.datasets.exporting.fiftyone_reader import read_dataset
from tests.deconvnet.datasets.exporting.scenes import CLASSES, scene_mask
from tests.image_tables import image_row, write_images
from tests.workflows.commands import Done, call
from workflows import export


def test_fiftyone_gets_the_predictions_with_how_sure_they_are(run, tmp_path):
    (tmp_path / "names.txt").write_text("b.jpg\nsite/c.jpg\n")
    done = run("fiftyone", "--only", str(tmp_path / "names.txt"))
    assert done.returncode == 0, done.stderr
    assert "exported     2 images" in done.stdout and f"from_dir('{tmp_path}/out', fo.types.FiftyOneDataset" in done.stdout
    metadata, samples = read_dataset(tmp_path / "out")
    assert list(samples) == ["b.jpg", "site/c.jpg"] and metadata["description"] == "predictions by models:/edeconvnet/3"
    for (name, sample), number in zip(samples.items(), (1, 5), strict=True):
        np.testing.assert_array_equal(sample["prediction"], scene_mask(number))
        assert sample["entropy"] == number / 8 and sample["boundary_doubt"] is None and "ground_truth" not in sample
        assert sample["confidence_before_crf"] == pytest.approx(0.5 + number / 100)
        assert [sample["class_boundary_doubt"][each] for each in CLASSES] == [0.5, None, 0.25, 0.125]
        assert ("confidence_map" in sample) == name.startswith("site/")
    np.testing.assert_array_equal(samples["site/c.jpg"]["confidence_map"], scene_mask(5) * 20)


def test_in_fiftyone_no_class_is_hidden_and_a_class_that_is_not_predicted_has_a_share_of_0(run, predictions, tmp_path):
    storage.write_json(str(predictions / "classes.json"), {"classes": [*CLASSES, "cone"], "background": False})
    (tmp_path / "names.txt").write_text("b.jpg\n")
    assert run("fiftyone", "--only", str(tmp_path / "names.txt")).returncode == 0
    metadata, samples = read_dataset(tmp_path / "out")
    np.testing.assert_array_equal(samples["b.jpg"]["prediction"], scene_mask(1) + 1)
    assert metadata["mask_targets"]["prediction"]["5"] == "cone"
    assert samples["b.jpg"]["shares"]["cone"] == 0.0 and samples["b.jpg"]["shares"]["ball"] == 0.25
    assert samples["b.jpg"]["class_entropy"]["cone"] is None


def test_fiftyone_gets_no_mask_that_the_table_does_not_describe_and_no_image_that_has_changed(run, predictions, tmp_path):
    (predictions / "masks/a.png").write_bytes(encode_mask(np.where(scene_mask() == 3, 1, scene_mask()).astype(np.uint8)))
    (predictions / "masks/b.png").unlink()
    os.utime(tmp_path / "photos/c.jpg", ns=(1, 1))
    done = run("fiftyone")
    assert done.returncode == 2 and "3 of 6 images can't be exported" in done.stderr and not (tmp_path / "out").exists()
    assert "would export 5 images for fiftyone" in run("fiftyone", "--max_rejects", "0.5", "--dry-run").stdout
    done = run("fiftyone", "--max_rejects", "0.5")
    assert done.returncode == 0
    assert f"exported     3 images\nrejects      {tmp_path}/out/rejects.csv (3)\n" in done.stdout
    assert set(read_dataset(tmp_path / "out")[1]) == {"site/a.jpg", "site/b.jpg", "site/c.jpg"}
    reasons = (tmp_path / "out/rejects.csv").read_text()
    assert "its mask has the classes background, ring, crate, but the table" in reasons and "there is no file" in reasons


EVALUATED = ("ring", "background", "ball", "cr.ate")
"""Class names by id, in an odd order, one with a dot."""


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """A workspace whose images p1, p3, p5 and p7 were evaluated; p3 is all void. Its networks and stages are left out."""
    folder, rows, measured = tmp_path / "workspace", [], []
    for number in range(8):
        truth, mask = scene_mask(number), scene_mask(number + 1)
        truth[:, 20:30] = 255
        truth[:] = 255 if number == 3 else truth
        image = np.full((*truth.shape, 3), 10 * number, np.uint8)
        rows.append(image_row(f"p{number}", image, truth, None, "val" if number % 2 else "train"))
        if number % 2:
            storage.write_bytes(str(folder / f"report/masks/p{number}.png"), encode_mask(mask))
            matrix = ConfusionMatrix(4).update(truth, mask)
            measures = {"image_id": f"p{number}", "pixel_accuracy": none_if_nan(matrix.pixel_accuracy), "boundary_f": number / 8}
            measures |= {f"iou.{name}": none_if_nan(iou) for name, iou in zip(EVALUATED, matrix.iou.tolist(), strict=True)}
            measured.append(measures | {"mean_iou.fcn8s": number / 16, "picture": "", "mask": f"masks/p{number}.png"})
    write_images(str(folder / "images"), rows, parts=2, rows_per_group=3)
    storage.write_bytes(str(folder / "report/images.parquet"), images_file(measured, ("fcn8s",), EVALUATED))
    storage.write_json(str(folder / "report/results.json"), {"classes": EVALUATED})
    storage.write_json(str(folder / "report/analysis.json"), {"segmenter": {"background": False}})
    return folder


def export_evaluated(folder: Path, *more: str) -> Done:
    to = folder.parent / "out"
    return call(export.main, "--format", "fiftyone", "--workspace", str(folder), "--to", str(to), *more)


def test_fiftyone_gets_the_evaluated_images_of_a_workspace_with_truth_and_measures(evaluated, tmp_path):
    assert "would export 4 images" in export_evaluated(evaluated, "--dry-run").stdout and not (tmp_path / "out").exists()
    done = export_evaluated(evaluated)
    assert done.returncode == 0, done.stderr
    metadata, samples = read_dataset(tmp_path / "out")
    assert list(samples) == [f"p{number}.jpg" for number in (1, 3, 5, 7)]
    assert metadata["mask_targets"]["prediction"] == {"1": "ring", "2": "background", "3": "ball", "4": "cr.ate"}
    table = {row["image_id"]: row for row in read_images(str(evaluated / "report/images.parquet"))}
    for number in (1, 3, 5, 7):
        sample, row = samples[f"p{number}.jpg"], table[f"p{number}"]
        np.testing.assert_array_equal(sample["prediction"], scene_mask(number + 1) + 1)
        truth = np.where(sample["ground_truth"] == 255, 255, sample["ground_truth"] - 1)
        expected = scene_mask(number)
        expected[:, 20:30] = 255
        np.testing.assert_array_equal(truth, np.full_like(expected, 255) if number == 3 else expected)
        assert sample["tags"] == ["val"] and sample["boundary_f"] == number / 8 and sample["mean_iou"]["fcn8s"] == number / 16
        assert sample["pixel_accuracy"] == row["pixel_accuracy"] and (row["pixel_accuracy"] is None) == (number == 3)
        assert [sample["iou"][key] for key in ("ring", "background", "ball", "cr_ate")] == [row[f"iou.{c}"] for c in EVALUATED]


def test_fiftyone_gets_no_annotation_other_than_the_one_that_was_evaluated(evaluated, tmp_path):
    """The annotation of p5 has changed since, p7 has none any more and p1 is gone."""
    rows = list(tables.iter_rows(str(evaluated / "images")))[2:]
    for row in rows:
        if row["image_id"] == "p5":
            row["class_mask"] = encode_mask(np.where(scene_mask(5) == 1, 2, scene_mask(5)).astype(np.uint8))
        if row["image_id"] == "p7":
            row["class_mask"] = None
    shutil.rmtree(evaluated / "images")
    write_images(str(evaluated / "images"), rows)
    done = export_evaluated(evaluated)
    assert done.returncode == 2 and "3 of 4 images can't be exported" in done.stderr
    assert export_evaluated(evaluated, "--max_rejects", "0.8").returncode == 0
    reasons = (tmp_path / "out/rejects.csv").read_text()
    assert "p1," in reasons and "not in the data set any more" in reasons and reasons.count("not the one that was evaluated") == 2
    assert list(read_dataset(tmp_path / "out")[1]) == ["p3.jpg"]


def test_user_errors_about_evaluations_are_sentences(evaluated, tmp_path, run):
    (tmp_path / "none.txt").write_text("")
    assert f"only {tmp_path}/none.txt names no image" in export_evaluated(evaluated, "--only", str(tmp_path / "none.txt")).stderr
    assert "has no evaluation in evaluations/dev" in export_evaluated(evaluated, "--evaluation", "evaluations/dev").stderr
    (tmp_path / "names.txt").write_text("p5\np4\n")
    assert (
        "1 images were not evaluated, the first is p4"
        in export_evaluated(evaluated, "--only", str(tmp_path / "names.txt")).stderr
    )
    (tmp_path / "names.txt").write_text("p5\n")
    assert "would export 1 images" in export_evaluated(evaluated, "--only", str(tmp_path / "names.txt"), "--dry-run").stdout
    storage.write_json(str(evaluated / "stages/prepare.json"), {})
    assert "the last run there did not finish" in export_evaluated(evaluated).stderr
    shutil.rmtree(evaluated / "stages")
    old = pq.read_table(evaluated / "report/images.parquet").drop_columns("mask")
    pq.write_table(old, evaluated / "report/images.parquet")
    assert "made by an earlier version of this program, which kept no masks" in export_evaluated(evaluated).stderr
    assert "either new images or evaluated ones" in run("fiftyone", "--workspace", str(evaluated)).stderr
    assert "either new images or evaluated ones" in call(export.main, "--format", "fiftyone", "--to", "x").stderr
    assert "shapes polygons is not possible for format fiftyone" in run("fiftyone", "--shapes", "polygons").stderr
    assert "min_area is for labels" in run("fiftyone", "--min_area", "3").stderr
