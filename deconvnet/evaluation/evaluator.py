"""Evaluate DeconvNet and FCN-8s on a split: the paper's five results and their breakdowns, by a job over the images."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np

from deconvnet.datasets.objects import make_object_mask
from deconvnet.evaluation.breakdowns import Breakdowns
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.inference.predictor import RESULTS, Predictor, PredictorOptions
from infra.errors import UserError
from infra.runtime.executor import Actors, Executor, Work
from infra.storage import tables
from proposals.image_codec import decode_image, decode_mask
from proposals.job import iter_proposals
from proposals.recall import counts_up_to

IMAGES_PER_UNIT = 8


@dataclass(frozen=True)
class EvaluationInputs:
    """What is evaluated, and on which images.

    Attributes:
        deconvnet_uri: model folder of a DeconvNet.
        fcn8s_uri: model folder of an FCN-8s.
        images_uri: the table `images`.
        proposals_uri: the table `proposals` made from it.
        split: the images of this split that have a class mask are evaluated.
        classes: class names by id.
        options: how images are predicted.
    """

    deconvnet_uri: str
    fcn8s_uri: str
    images_uri: str
    proposals_uri: str
    split: str
    classes: tuple[str, ...]
    options: PredictorOptions

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of proposals after which DeconvNet is measured, up to `options.proposals`."""
        return counts_up_to(self.options.proposals)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        results: the content of `report/results.json`.
        mean_iou: mean IoU of each image alone, by image_id and result; None if its truth is all void.
        breakdowns: the content of `report/analysis.json`, see `Breakdowns.as_dict`.
    """

    results: dict[str, Any]
    mean_iou: dict[str, dict[str, float | None]]
    breakdowns: dict[str, Any]


@dataclass(frozen=True)
class _Unit:
    """A batch of images that a worker measures.

    Attributes:
        images: part of the table `images` that holds them.
        proposals: part of the table `proposals` with their boxes.
        row_group: number of the row group in the part.
        rows: their numbers among the split's rows in that row group.
    """

    images: tables.Part
    proposals: tables.Part
    row_group: int
    rows: range


def evaluate(inputs: EvaluationInputs, dataset: str, executor: Executor, gpu: bool = False) -> Evaluation:
    """Predict every annotated image of a split in the paper's five ways and measure the predictions.

    Args:
        inputs: the models and the images.
        dataset: name of the data set in the results.
        executor: runs batches of images, by workers that hold the networks.
        gpu: each worker takes a GPU.

    Returns:
        The results, the mean IoU of each image, and the breakdowns.

    Raises:
        UserError: if the split has no image with a class mask, or the executor has no room for a worker.
    """
    units = dict(enumerate(_units(inputs)))
    actors = Actors(gpus=1.0 if gpu else 0.0, remedy="use nodes with more memory, or lower segment.max_side")
    make = partial(_make_worker, inputs, "cuda" if gpu else "cpu")
    title = f"evaluating on {inputs.split}"
    measured = executor.map_actors(units, make, actors, title=title, unit="batches of images") if units else iter(())
    return _merge((found for _, found in measured), inputs, dataset)


def _units(inputs: EvaluationInputs) -> list[_Unit]:
    """The split's images in batches, in order."""
    images, proposals = (tables.require_commit(uri).parts for uri in (inputs.images_uri, inputs.proposals_uri))
    return [
        _Unit(part, boxes, number, rows)
        for part, boxes in zip(images, proposals, strict=True)
        for number, group in enumerate(part.row_groups)
        if group.splits.get(inputs.split)
        for rows in tables.chunks(group.splits[inputs.split], IMAGES_PER_UNIT)
    ]


def _make_worker(inputs: EvaluationInputs, device: str, threads: int) -> Work[dict[str, Any]]:
    """Load the networks; return the work that measures a unit with them."""
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    predictor = Predictor.load(inputs.deconvnet_uri, inputs.fcn8s_uri, device, inputs.options)
    return lambda index, unit: _measure(predictor, inputs, unit)


def _measure(predictor: Predictor, inputs: EvaluationInputs, unit: _Unit) -> dict[str, Any]:
    """Measure a unit's images.

    Returns:
        The arrays of `Breakdowns`, `image_ids`, and `mean_iou`: for each image a list by result, nan if its truth is all void.
    """
    boxes = {name: found for name, found, _ in iter_proposals(inputs.proposals_uri, unit.proposals)}
    no_boxes = np.zeros((0, 4), np.float32)  # of images that EdgeBox could not read
    breakdowns = Breakdowns.empty(RESULTS, inputs.counts, len(inputs.classes))
    image_ids, mean_iou = [], []
    for image_id, image, class_mask, object_mask in _read_images(inputs, unit):
        masks, by_count = predictor.masks_by_box_count(image, boxes.get(image_id, no_boxes), inputs.counts)
        image_ids.append(image_id)
        mean_iou.append(breakdowns.add(class_mask, object_mask, masks, by_count))
    return {"image_ids": image_ids, "mean_iou": mean_iou, **breakdowns.arrays()}


def _read_images(inputs: EvaluationInputs, unit: _Unit) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """image_id, image, class mask and object mask of the unit's annotated images, in order."""
    columns = ["image_id", "split", "image", "class_mask", "object_mask"]
    rows = tables.read_row_group(inputs.images_uri, unit.images.name, unit.row_group, columns).to_pylist()
    of_split = [row for row in rows if row["split"] == inputs.split]
    for row in (of_split[i] for i in unit.rows):
        if row["class_mask"] is not None:
            class_mask = decode_mask(row["class_mask"])
            object_mask = decode_mask(row["object_mask"]) if row["object_mask"] else make_object_mask(class_mask)
            yield row["image_id"], decode_image(row["image"]), class_mask, object_mask


def _merge(measured: Iterable[Mapping[str, Any]], inputs: EvaluationInputs, dataset: str) -> Evaluation:
    """Add up what `_measure` returned for all units, in any order. Raises UserError if there was no image."""
    classes = inputs.classes
    total = Breakdowns.empty(RESULTS, inputs.counts, len(classes))
    mean_iou: dict[str, dict[str, float | None]] = {}
    for found in measured:
        total.merge(found)
        for image_id, values in zip(found["image_ids"], found["mean_iou"], strict=True):
            mean_iou[image_id] = {name: _or_none(value) for name, value in zip(RESULTS, values, strict=True)}
    if not mean_iou:
        raise UserError(
            f"the split {inputs.split!r} of {inputs.images_uri} has no annotated image to evaluate on: "
            "list some that have masks, or take another split"
        )
    matrices = [ConfusionMatrix(len(classes), matrix) for matrix in total.confusion]
    results = {
        "dataset": dataset,
        "images": len(mean_iou),
        "classes": list(classes),
        "rows": {name: _result_row(matrix, classes) for name, matrix in zip(RESULTS, matrices, strict=True)},
    }
    return Evaluation(results, dict(sorted(mean_iou.items())), total.as_dict())


def _result_row(matrix: ConfusionMatrix, classes: Sequence[str]) -> dict[str, Any]:
    """Make a row of `results.json` from a result's confusion matrix."""
    return {
        "mean_iou": _or_none(matrix.mean_iou),
        "pixel_accuracy": _or_none(matrix.pixel_accuracy),
        "iou": {name: _or_none(iou) for name, iou in zip(classes, matrix.iou.tolist(), strict=True)},
    }


def _or_none(value: float) -> float | None:
    """The value, or None for nan, which JSON does not have."""
    return None if math.isnan(value) else float(value)
