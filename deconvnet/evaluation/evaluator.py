"""The five results of the paper on a split: a job over its images, and its tables."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from deconvnet.datasets.objects import make_object_mask
from deconvnet.evaluation.breakdowns import Analysis
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.inference.predictor import RESULTS, Predictor, PredictorOptions
from infra.errors import UserError
from infra.runtime.executor import Actors, Executor, Work
from infra.storage import tables
from proposals.image_codec import decode_image, decode_mask
from proposals.job import iter_proposals
from proposals.recall import counts_up_to

if TYPE_CHECKING:
    from deconvnet.settings import SegmentSettings
    from proposals.settings import ExampleSettings

PHOTOGRAPHS_A_UNIT = 8


@dataclass(frozen=True)
class Unit:
    """Photographs that an actor labels at a time: of the split's rows in one row group of `images`, those numbered `rows`."""

    images: tables.Part
    proposals: tables.Part
    row_group: int
    rows: range


@dataclass(frozen=True)
class Evaluation:
    """results: `results.json`. mean_iou: for each image_id, by result, of that photograph alone (None where it is all void).

    analysis: what the charts are drawn from, `Analysis.as_dict`.
    """

    results: dict[str, Any]
    mean_iou: dict[str, dict[str, float | None]]
    analysis: dict[str, Any]


def evaluate(
    deconvnet_uri: str,
    fcn8s_uri: str,
    images_uri: str,
    proposals_uri: str,
    *,
    split: str,
    segment: "SegmentSettings",
    examples: "ExampleSettings",
    classes: Sequence[str],
    dataset: str,
    executor: Executor,
    gpu: bool = False,
) -> Evaluation:
    """Segment every image of a split that has a class mask in all five ways, and measure the results.

    Args:
        deconvnet_uri: folder of a DeconvNet (`checkpoint.save_model`).
        fcn8s_uri: folder of an FCN-8s.
        images_uri: the `images` table.
        proposals_uri: the `proposals` table made from it.
        split: whose images are measured.
        segment: how images are segmented.
        examples: whose `context` and `window` say how boxes are extended, as in training.
        classes: class names by id.
        dataset: name of the data in the results.
        executor: runs batches of images, by workers that hold the networks.
        gpu: whether each worker takes a GPU.

    Raises:
        UserError: if the split has no image with a class mask, or there is no room for a worker.
    """
    if not (units := _units(images_uri, proposals_uri, split)):
        raise _nothing(split, images_uri)
    options = PredictorOptions.from_settings(segment, examples)
    device = "cuda" if gpu else "cpu"
    make = partial(_worker, (deconvnet_uri, fcn8s_uri), options, (images_uri, proposals_uri), split, len(classes), device)
    actors = Actors(gpus=1.0 if gpu else 0.0, remedy="use nodes with more memory, or lower segment.max_side")
    title = f"evaluating on {split}"
    done = executor.map_actors(dict(enumerate(units)), make, actors, title=title, unit="batches of images")
    counts = counts_up_to(segment.proposals)
    return _gathered((found for _, found in done), classes, dataset, counts, _nothing(split, images_uri))


def _nothing(split: str, images_uri: str) -> UserError:
    return UserError(
        f"the split {split!r} of {images_uri} has no labelled photograph to evaluate on: list some that have masks, or take another split"
    )


def _gathered(
    rows: Iterable[Mapping[str, Any]], classes: Sequence[str], dataset: str, counts: Sequence[int], nothing: UserError
) -> Evaluation:
    """What `_measured` found in all units, in any order. Raises `nothing` where that is no photograph."""
    total = Analysis.empty(RESULTS, counts, len(classes))
    mean_iou: dict[str, dict[str, float | None]] = {}
    for row in rows:
        total.merge(row)
        for image_id, figures in zip(row["image_ids"], row["mean_iou"], strict=True):
            mean_iou[image_id] = {name: _number(x) for name, x in zip(RESULTS, figures, strict=True)}
    if not mean_iou:
        raise nothing
    matrices = [ConfusionMatrix(len(classes), matrix) for matrix in total.confusion]
    results = {
        "dataset": dataset,
        "images": len(mean_iou),
        "classes": list(classes),
        "rows": {name: _row(matrix, classes) for name, matrix in zip(RESULTS, matrices, strict=True)},
    }
    return Evaluation(results, dict(sorted(mean_iou.items())), total.as_dict())


def _worker(
    models: tuple[str, str],
    options: PredictorOptions,
    tables: tuple[str, str],
    split: str,
    num_classes: int,
    device: str,
    threads: int,
) -> Work[dict[str, Any]]:
    """The work of a worker that holds the networks: `_measured` of each unit."""
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    predictor = Predictor.load(*models, device, options)
    return lambda index, unit: _measured(predictor, *tables, split, num_classes, unit)


def _measured(
    predictor: Predictor, images_uri: str, proposals_uri: str, split: str, num_classes: int, unit: Unit
) -> dict[str, Any]:
    """For one unit: `Analysis.arrays`, and each photograph's id and five mean IoUs, nan where all is void."""
    # A photograph that EdgeBox set aside has no boxes.
    boxes = {name: found for name, found, _ in iter_proposals(proposals_uri, unit.proposals)}
    counts = counts_up_to(predictor.options.proposals)
    found = Analysis.empty(RESULTS, counts, num_classes)
    image_ids, mean_iou = [], []
    for image_id, image, truth, objects in _photographs(unit, images_uri, split):
        nothing = np.zeros((0, 4), np.float32)
        labels, after = predictor.masks_by_box_count(image, boxes.get(image_id, nothing), counts)
        image_ids.append(image_id)
        mean_iou.append(found.add(truth, objects, labels, after))
    return {"image_ids": image_ids, "mean_iou": mean_iou, **found.arrays()}


def _photographs(unit: Unit, images_uri: str, split: str) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """image_id, photograph, class mask and object mask of the labelled ones of a unit, in order."""
    columns = ["image_id", "split", "image", "class_mask", "object_mask"]
    rows = tables.read_row_group(images_uri, unit.images.name, unit.row_group, columns).to_pylist()
    chosen = [row for row in rows if row["split"] == split]
    for row in (chosen[i] for i in unit.rows):
        if row["class_mask"] is not None:
            truth = decode_mask(row["class_mask"])
            objects = decode_mask(row["object_mask"]) if row["object_mask"] else make_object_mask(truth)
            yield row["image_id"], decode_image(row["image"]), truth, objects


def _units(images_uri: str, proposals_uri: str, split: str) -> list[Unit]:
    """The split's photographs, in order."""
    images, proposals = (tables.require_commit(uri).parts for uri in (images_uri, proposals_uri))
    return [
        Unit(part, found, group, rows)
        for part, found in zip(images, proposals, strict=True)
        for group, about in enumerate(part.row_groups)
        if about.splits.get(split)
        for rows in tables.chunks(about.splits[split], PHOTOGRAPHS_A_UNIT)
    ]


def _number(value: float) -> float | None:
    """A figure as JSON has it: null for nan."""
    return None if math.isnan(value) else float(value)


def _row(matrix: ConfusionMatrix, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "mean_iou": _number(matrix.mean_iou),
        "pixel_accuracy": _number(matrix.pixel_accuracy),
        "iou": {name: _number(iou) for name, iou in zip(classes, matrix.iou.tolist(), strict=True)},
    }
