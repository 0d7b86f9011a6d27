"""Compare a newly trained model with the champion, the registered model in use, for the report of a retraining.

The new model is called the challenger. Each model is an ensemble of a DeconvNet and an FCN-8s. Both models were evaluated on the
same images. They are compared on the val images of both (`evaluation/hold_out.py`), by the masks that the ensemble predicts with
CRF (the result `DECISIVE_RESULT`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from deconvnet.evaluation.comparison import (
    DECISIVE_RESULT,
    IMAGE_CONFUSIONS,
    mean_iou_rise,
    read_image_confusions,
)
from deconvnet.evaluation.hold_out import HoldOut, results_of
from deconvnet.evaluation.image_measures import IMAGES_FILE, parquet_file, read_images
from deconvnet.evaluation.inputs import EvaluationInputs
from deconvnet.evaluation.metrics import mean_of_defined, none_if_nan
from deconvnet.reporting import gallery, panels
from deconvnet.reporting.run_summary import percent, signed_points
from infra import storage
from infra.runtime.executor import Executor

COMPARISON = "against_champion"
"""Name, without suffix, of three files of the report: JSON (the comparison), Parquet (all images), PNG (largest changes)."""
COLUMNS = {"champion": "champion", "challenger": "new model"}
"""Headings of the two models' masks."""
_IMAGES = 3  # number of images with the largest gains, and with the largest losses, that are shown

CHANGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("mean_iou.champion", pa.float64()),  # null if the whole annotation is void
        pa.field("mean_iou.challenger", pa.float64()),
        pa.field("change", pa.float64()),  # of the mean IoU
        pa.field("boundary_f.champion", pa.float64()),
        pa.field("boundary_f.challenger", pa.float64()),
        pa.field("picture.champion", pa.string(), nullable=False),  # path relative to the report's folder; "" if there is none
        pa.field("picture.challenger", pa.string(), nullable=False),
    ]
)
"""The columns of `against_champion.parquet`. All measures are of one image."""

Change = tuple[str, float | None, float | None]
"""The name of a class or the id of an image, with its IoU or mean IoU (0 to 1) by the champion and by the challenger."""


def compare_with_champion(
    challenger: EvaluationInputs,
    champion: EvaluationInputs,
    hold_out: HoldOut,
    report_uri: str,
    executor: Executor,
    gpu: bool = False,
) -> dict[str, bytes]:
    """Compare two evaluated models, and make the contents of the report's files on the comparison. No file is written.

    Args:
        challenger: inputs of the challenger's evaluation: its networks, the images and the options.
        champion: inputs of the champion's evaluation, with the same images.
        hold_out: the images on which the models are compared, at least one.
        report_uri: folder with the files of the challenger's evaluation. Its subfolder `champion` has the files of the
            champion's evaluation.
        executor: runs the function that draws the figure.
        gpu: whether to predict the masks for the figure on a GPU.

    Returns:
        A dict from file name to content:

        * `against_champion.png`: the images that changed most; missing if no image changed.
        * `against_champion.parquet`: the measures of each image by both models, see `image_changes`.
        * `against_champion.json`: a dict with these keys:

          * `rise`, `lower`, `upper`: the rise of the mean IoU and its 90 % interval.
          * `images`, `new_images`: number of images compared, and of val images that are left out because they are new.
          * `mean_iou`, `boundary_f`: dicts by "champion" and "challenger"; the latter is the mean over the images.
          * `images_gained`, `images_lost`, `images_equal`: numbers of images whose mean IoU rose, fell, or stayed the same.
          * `classes`, `gained`, `lost`: lists of `Change`: all classes (largest rise first), and the images with the largest
            rises and falls.

    Raises:
        UserError: if a file of one of the evaluations is missing or damaged.
        ValueError: if one of the two evaluations lacks one of the images, or they are of different classes.
    """
    content, rows = _measure_changes(report_uri, hold_out, challenger.classes)
    files = {
        f"{COMPARISON}.parquet": parquet_file(rows, CHANGES),
        f"{COMPARISON}.json": (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(),
    }
    if content["gained"] or content["lost"]:
        models = {"champion": champion, "challenger": challenger}
        shown = {name: content[name] for name in ("gained", "lost")}
        draw = partial(load_and_draw_changes, models, gpu, shown)
        files = {f"{COMPARISON}.png": png for png in executor.stream(draw, gpus=1.0 if gpu else 0.0, training=gpu)} | files
    return files


def _measure_changes(report_uri: str, hold_out: HoldOut, classes: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure how the results of two evaluated models differ.

    Args:
        report_uri: folder with the files of the challenger's evaluation; those of the champion's are in its subfolder `champion`.
        hold_out: the images on which the models are compared.
        classes: class names, ordered by id.

    Returns:
        The content of `against_champion.json`, and the rows of `against_champion.parquet`, see `compare_with_champion`.
    """
    folders = {"champion": storage.join(report_uri, "champion"), "challenger": report_uri}
    found = {name: hold_out.select(read_image_confusions(storage.join(uri, IMAGE_CONFUSIONS))) for name, uri in folders.items()}
    old, new = found["champion"], found["challenger"]
    interval = mean_iou_rise(old, new)
    rows = {name: results_of(each, classes)["rows"][DECISIVE_RESULT] for name, each in found.items()}
    measures = {name: read_images(storage.join(uri, IMAGES_FILE)) for name, uri in folders.items()}
    both = image_changes(measures["champion"], measures["challenger"], list(old))
    images = _by_change([(row["image_id"], row["mean_iou.champion"], row["mean_iou.challenger"]) for row in both])
    gained = [change for change in images if _rise(change) > 0]
    lost = [change for change in reversed(images) if _rise(change) < 0]
    content = {
        **asdict(interval),
        "new_images": hold_out.new,
        "mean_iou": {name: row["mean_iou"] for name, row in rows.items()},
        "boundary_f": {name: _mean([row[f"boundary_f.{name}"] for row in both]) for name in COLUMNS},
        "images_gained": len(gained),
        "images_lost": len(lost),
        "images_equal": len(images) - len(gained) - len(lost),
        "classes": _by_change([(c, rows["champion"]["iou"][c], rows["challenger"]["iou"][c]) for c in classes]),
        "gained": gained[:_IMAGES],
        "lost": lost[:_IMAGES],
    }
    return content, both


def image_changes(
    champion: Sequence[Mapping[str, Any]], challenger: Sequence[Mapping[str, Any]], image_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Put the measures of images by two models side by side.

    Args:
        champion: a dict of measures for each image, a row of `images.parquet` of the champion's report.
        challenger: a dict of measures for each image, a row of `images.parquet` of the new model's report.
        image_ids: ids of the images.

    Returns:
        A row for each image, see `CHANGES`. The change of the mean IoU is None if it is undefined in one of the models.
    """
    old, new = ({row["image_id"]: row for row in rows} for rows in (champion, challenger))
    rows = []
    for image_id in image_ids:
        before, after = (rows_of[image_id][f"mean_iou.{DECISIVE_RESULT}"] for rows_of in (old, new))
        rise = _rise((image_id, before, after))
        row = {"image_id": image_id, "mean_iou.champion": before, "mean_iou.challenger": after, "change": none_if_nan(rise)}
        for name, rows_of in {"champion": old, "challenger": new}.items():
            row[f"boundary_f.{name}"] = rows_of[image_id]["boundary_f"]
        row["picture.champion"] = storage.join("champion", old[image_id]["picture"]) if old[image_id]["picture"] else ""
        row["picture.challenger"] = new[image_id]["picture"]
        rows.append(row)
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if all are."""
    return none_if_nan(mean_of_defined(np.array([math.nan if value is None else value for value in values], np.float64)))


def _by_change(changes: list[Change]) -> list[Change]:
    """Sort changes (the IoU of a class or image by both models) by their rise, largest first. Undefined rises come last."""
    return sorted(changes, key=lambda change: -_rise(change) if math.isfinite(_rise(change)) else math.inf)


def _rise(change: Change) -> float:
    """Return the challenger's value minus the champion's value, -1 to 1. It is nan if one of the values is None."""
    _, before, after = change
    return math.nan if before is None or after is None else after - before


def load_and_draw_changes(models: Mapping[str, EvaluationInputs], gpu: bool, changes: Mapping[str, list[Change]]) -> list[bytes]:
    """Draw images beside their ground truth and the masks of two models. An executor runs this in the process that draws.

    Args:
        models: a dict from "champion" and "challenger" to that model's networks, the tables of the images and their proposals,
            the classes, and the options for predicting.
        gpu: whether to predict on a GPU.
        changes: the images to draw, with their mean IoU by each model, under the keys "gained" and "lost". The key is written
            above each image. There must be at least one image.

    Returns:
        A list with one item: the content of a PNG file, 1,200 px wide.
    """
    from deconvnet.inference.predictor import Predictor

    shown = [(word, *change) for word, each in changes.items() for change in each]
    ids = [image_id for _, image_id, _, _ in shown]
    inputs = models["challenger"]
    samples = gallery.read_samples(inputs.images_uri, inputs.proposals_uri, ids, inputs.options.background)
    masks: dict[str, dict[str, np.ndarray]] = {image_id: {} for image_id in samples}
    for name, model in models.items():
        predictor = Predictor.load(model.deconvnet_uri, model.fcn8s_uri, "cuda" if gpu else "cpu", model.options)
        for image_id, sample in samples.items():
            masks[image_id][name] = predictor.masks(sample.image, sample.boxes, (DECISIVE_RESULT,))[DECISIVE_RESULT]
    rows = [
        panels.ComparisonRow(
            samples[image_id].image,
            samples[image_id].truth,
            masks[image_id],
            f"{word}: {image_id}",
            {"champion": before, "challenger": after},
        )
        for word, image_id, before, after in shown
    ]
    return [panels.comparison(rows, inputs.classes, COLUMNS, inputs.options.background)]


def summary_sentence(comparison: Mapping[str, Any]) -> str:
    """Summarise the comparison of two models in a sentence for the report.

    Args:
        comparison: the content of `against_champion.json`.

    Returns:
        A sentence with the mean IoU of both models, its rise and the 90 % interval of the rise.
    """
    before, after = (percent(comparison["mean_iou"][name]) for name in ("champion", "challenger"))
    rise, lower, upper = (signed_points(comparison[name]) for name in ("rise", "lower", "upper"))
    new = comparison.get("new_images", 0)
    left_out = f" Left out are {new:,} val images that were added or changed since the champion was registered." if new else ""
    return (
        f"Mean IoU {after} % against the champion's {before} %: {rise} points "
        f"(90 % interval {lower} to {upper}, by a paired bootstrap over {comparison['images']:,} images).{left_out}"
    )


def changes_sentence(comparison: Mapping[str, Any]) -> str:
    """Summarise how many images gained and lost, and how the boundary F-measure changed.

    Args:
        comparison: the content of `against_champion.json`.
    """
    counts = (comparison["images_gained"], comparison["images_lost"], comparison["images_equal"])
    before, after = (percent(comparison["boundary_f"][name]) for name in COLUMNS)
    images = "Images by their own mean IoU: {:,} gained, {:,} lost, {:,} as before".format(*counts)
    return f"{images}. Their boundary F is {after} % on average, the champion's {before} %."


def class_changes(comparison: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Format the changes of the classes' IoU as rows of a table, largest rise first.

    Args:
        comparison: the content of `against_champion.json`.

    Returns:
        One row of four texts for each class: its name, its IoU in per cent under the champion, its IoU in per cent under the
        challenger, and the change in points with its sign. A missing number is shown as "–".
    """
    rows = []
    for name, before, after in comparison["classes"]:
        rise = _rise((name, before, after))
        rows.append((name, percent(before), percent(after), "–" if math.isnan(rise) else signed_points(rise)))
    return rows
