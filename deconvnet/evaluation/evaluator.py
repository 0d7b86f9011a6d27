"""The five results of the paper on a split: a Ray Data job over the photographs, or threads of this process, and its tables."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from deconvnet.datasets.objects import make_object_mask
from deconvnet.evaluation.breakdowns import Analysis
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.inference.predictor import RESULTS, Predictor, PredictorOptions
from infra.errors import Interrupted, UserError
from infra.runtime.actors import Actors, Work, for_each
from infra.runtime.progress import progress
from infra.storage import tables
from proposals.image_codec import decode_image, decode_mask
from proposals.job import iter_proposals
from proposals.recall import counts_up_to

if TYPE_CHECKING:
    from deconvnet.settings import SegmentSettings
    from proposals.settings import ExampleSettings

PHOTOGRAPHS_A_UNIT = 8
ANYWHERE = Actors()


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
    actors: Actors = ANYWHERE,
) -> Evaluation:
    """Label every photograph of `split` that has a class mask in all five ways, and measure.

    The models (folders of `checkpoints.save_model`) are loaded once an actor; each has as many torch threads as CPUs. Raises
    UserError where the split has no labelled photograph, or Ray no room.
    """
    if not (units := _units(images_uri, proposals_uri, split)):
        raise _nothing(split, images_uri)
    options = PredictorOptions.from_settings(segment, examples)
    make = partial(_worker, (deconvnet_uri, fcn8s_uri), options, (images_uri, proposals_uri), split, len(classes), actors)
    done = for_each(
        dict(enumerate(units)), make, actors, title=f"evaluating on {split}", kind="batches of photographs",
        remedy="use nodes with more memory, or lower segment.max_side",
    )  # fmt: skip
    counts = counts_up_to(segment.proposals)
    return _gathered((found for _, found in done), classes, dataset, counts, _nothing(split, images_uri))


def evaluate_here(
    predictor: Predictor,
    images_uri: str,
    proposals_uri: str,
    *,
    split: str,
    classes: Sequence[str],
    dataset: str,
    threads: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """`evaluate` by `threads` of this process, without Ray.

    Raises UserError as `evaluate` does, and Interrupted where `should_stop`, asked between photographs' batches, says yes.
    """
    units = _units(images_uri, proposals_uri, split)
    measure = partial(_measured, predictor, images_uri, proposals_uri, split, len(classes))

    def rows(pool: ThreadPoolExecutor) -> Iterator[dict[str, Any]]:
        found = pool.map(measure, units)
        for row in progress(found, len(units), f"evaluating on {split}", "batches of photographs"):
            yield row
            if should_stop():
                pool.shutdown(cancel_futures=True)
                raise Interrupted(f"stopped while it evaluated on {split}")

    with ThreadPoolExecutor(threads) as pool:
        return _gathered(rows(pool), classes, dataset, counts_up_to(predictor.options.proposals), _nothing(split, images_uri))


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
    models: tuple[str, str], options: PredictorOptions, tables: tuple[str, str], split: str, num_classes: int, actors: Actors
) -> Work[dict[str, Any]]:
    """What an actor does with a unit: `_measured`, by networks that it holds."""
    import torch

    torch.set_num_threads(actors.cpus)
    cv2.setNumThreads(1)
    predictor = Predictor.load(*models, "cuda" if actors.gpus else "cpu", options)
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
