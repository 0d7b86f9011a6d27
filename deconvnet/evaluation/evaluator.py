"""Evaluate DeconvNet and FCN-8s on one split of a data set.

The images are split into batches. Workers that hold both networks predict each image in five ways and compare the masks with the
annotation. The counts of all batches are then added up. Noh et al. (ICCV 2015), the paper on DeconvNet, compare the same five
ways: FCN-8s, DeconvNet, DeconvNet refined by a CRF, the ensemble of both networks, and the ensemble refined by a CRF. Each way
is called a result (`RESULTS`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch

from deconvnet.datasets.objects import make_object_mask
from deconvnet.evaluation.breakdowns import Breakdowns
from deconvnet.evaluation.comparison import DECISIVE_RESULT
from deconvnet.evaluation.drift import PredictionStatistics
from deconvnet.evaluation.metrics import ConfusionMatrix, none_if_nan
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
    """The networks, the images and the options of an evaluation.

    Attributes:
        deconvnet_uri: folder of a trained DeconvNet.
        fcn8s_uri: folder of a trained FCN-8s.
        images_uri: URI of the table `images`.
        proposals_uri: URI of the table `proposals`, which holds the boxes that were found in these images.
        split: name of the split, such as "val". Its images with a class mask are evaluated.
        classes: class names, ordered by id.
        options: options for predicting, such as the largest number of boxes per image.
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
        """Return the numbers of proposals from which DeconvNet's masks are predicted and measured.

        They are in ascending order, and the last is `options.proposals`.
        """
        return counts_up_to(self.options.proposals)


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        results: a dict, the content of `report/results.json`. "dataset" is the name of the data set, "images" the number of images,
            and "classes" the list of class names. "rows" has an entry for each of the five results, by its name, such as
            "edeconvnet_crf": a dict with its "mean_iou", its "pixel_accuracy", and the "iou" of each class by name.
        mean_iou: mean IoU of each image on its own, by image_id, then by the name of the result; None if all pixels are void.
        breakdowns: IoU by number of proposals and by object size, and confusion matrices; see `Breakdowns.as_dict`.
        confusions: confusion matrix of each image by image_id, int32 (C, C), of the result "edeconvnet_crf" (the ensemble with
            the CRF, by which models are compared). A row is a true class and a column is a predicted class.
        statistics: what the predictions of this result were like.
    """

    results: dict[str, Any]
    mean_iou: dict[str, dict[str, float | None]]
    breakdowns: dict[str, Any]
    confusions: dict[str, np.ndarray]
    statistics: PredictionStatistics


@dataclass(frozen=True)
class _Unit:
    """A unit of work: a batch of images that a worker measures in one call.

    The images lie in one row group (block of rows) of a Parquet file.

    Attributes:
        images: the part (Parquet file) of the table `images` that holds the images.
        proposals: the part (Parquet file) of the table `proposals` that holds the boxes of the images.
        row_group: index of the images' row group in their part, from 0.
        rows: positions of the images among the rows of the row group that belong to the evaluated split.
    """

    images: tables.Part
    proposals: tables.Part
    row_group: int
    rows: range


def evaluate(inputs: EvaluationInputs, dataset: str, executor: Executor, gpu: bool = False) -> Evaluation:
    """Predict every annotated image of a split in five ways (`RESULTS`) and measure the predictions. No file is written.

    Args:
        inputs: the networks, the images and the options.
        dataset: name of the data set, which is stored in the results.
        executor: runs the workers, each of which holds both networks.
        gpu: whether each worker takes a GPU.

    Returns:
        The metrics of the five results, the mean IoU of each image, and the breakdowns.

    Raises:
        FileNotFoundError: if the table `images` or `proposals` is not complete.
        UserError: if the split has no image with a class mask, or no node has room for a worker.
    """
    units = dict(enumerate(_units(inputs)))
    actors = Actors(gpus=1.0 if gpu else 0.0, remedy="use nodes with more memory, or lower segment.max_side")
    make = partial(_make_worker, inputs, "cuda" if gpu else "cpu")
    title = f"evaluating on {inputs.split}"
    measured = executor.map_actors(units, make, actors, title=title, unit="batches of images") if units else iter(())
    return _merge((found for _, found in measured), inputs, dataset)


def _units(inputs: EvaluationInputs) -> list[_Unit]:
    """Divide the images of the evaluated split into batches of at most 8 images, in the order of the table `images`.

    Raises:
        FileNotFoundError: if the table `images` or `proposals` is not complete.
    """
    images, proposals = (tables.require_commit(uri).parts for uri in (inputs.images_uri, inputs.proposals_uri))
    return [
        _Unit(part, boxes, number, rows)
        for part, boxes in zip(images, proposals, strict=True)
        for number, group in enumerate(part.row_groups)
        if group.splits.get(inputs.split)
        for rows in tables.chunks(group.splits[inputs.split], IMAGES_PER_UNIT)
    ]


def _make_worker(inputs: EvaluationInputs, device: str, threads: int) -> Work[dict[str, Any]]:
    """Load the networks into a worker process and limit its CPU threads. The executor calls this once in each worker process.

    Args:
        inputs: the networks, the images and the options.
        device: torch device to predict on, "cpu" or "cuda".
        threads: number of CPU threads that the worker may use.

    Returns:
        A function that takes the index of a batch and the batch, and measures its images. It returns a dict, see `_measure`.
    """
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    predictor = Predictor.load(inputs.deconvnet_uri, inputs.fcn8s_uri, device, inputs.options)
    return lambda index, unit: _measure(predictor, inputs, unit)


def _measure(predictor: Predictor, inputs: EvaluationInputs, unit: _Unit) -> dict[str, Any]:
    """Predict and measure the images of one batch.

    Args:
        predictor: holds the two networks and predicts the masks.
        inputs: the networks, the images and the options.
        unit: the batch of images.

    Returns:
        A dict with the arrays of sums that `Breakdowns.arrays` returns, and five lists that have an item for each image:
        `image_ids` has the image's id. `mean_iou` has a list of floats, one for each result in the order of `RESULTS`; they are
        nan if the whole annotation is void. The others are of the result "edeconvnet_crf": `confusions` has the confusion matrix,
        int32 (C, C), `confidence` the mean probability of the predicted class, and `shares` the share of each class in the mask.
    """
    boxes = {name: found for name, found, _ in iter_proposals(inputs.proposals_uri, unit.proposals)}
    no_boxes = np.zeros((0, 4), np.float32)  # for images that EdgeBox could not read
    breakdowns = Breakdowns(RESULTS, inputs.counts, len(inputs.classes))
    found: dict[str, list[Any]] = {name: [] for name in ("image_ids", "mean_iou", "confusions", "confidence", "shares")}
    for image_id, image, class_mask, object_mask in _read_images(inputs, unit):
        masks, by_count, confidence = predictor.masks_by_box_count(image, boxes.get(image_id, no_boxes), inputs.counts)
        found["image_ids"].append(image_id)
        single = breakdowns.add(class_mask, object_mask, masks, by_count, inputs.options.background)
        found["mean_iou"].append([each.mean_iou for each in single])
        found["confusions"].append(single[RESULTS.index(DECISIVE_RESULT)].matrix.astype(np.int32))
        found["confidence"].append(confidence[DECISIVE_RESULT])
        mask = masks[DECISIVE_RESULT]
        found["shares"].append(np.bincount(mask.ravel(), minlength=len(inputs.classes)) / mask.size)
    return {**found, **breakdowns.arrays()}


def _read_images(inputs: EvaluationInputs, unit: _Unit) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Read the annotated images of a batch.

    Images without a class mask are skipped. If only the object mask is missing, it is made from the class mask.

    Args:
        inputs: the networks, the images and the options.
        unit: the batch of images.

    Yields:
        For each image in order: its image_id; the image, uint8 (H, W, 3), RGB; the class mask, uint8 (H, W), where 255 is void;
        the object mask, uint8 or uint16 (H, W), with 0 for background, ids from 1, and the largest value of the dtype for void.
    """
    columns = ["image_id", "split", "image", "class_mask", "object_mask"]
    rows = tables.read_row_group(inputs.images_uri, unit.images.name, unit.row_group, columns).to_pylist()
    of_split = [row for row in rows if row["split"] == inputs.split]
    for row in (of_split[i] for i in unit.rows):
        if row["class_mask"] is not None:
            class_mask = decode_mask(row["class_mask"])
            object_mask = decode_mask(row["object_mask"]) if row["object_mask"] else None
            object_mask = make_object_mask(class_mask, None, inputs.options.background) if object_mask is None else object_mask
            yield row["image_id"], decode_image(row["image"]), class_mask, object_mask


def _merge(measured: Iterable[Mapping[str, Any]], inputs: EvaluationInputs, dataset: str) -> Evaluation:
    """Add up the measurements of all batches.

    Args:
        measured: measurements of the batches, as `_measure` returns them, in any order.
        inputs: the networks, the images and the options.
        dataset: name of the data set, which is stored in the results.

    Returns:
        The metrics of the five results, the mean IoU of each image, and the breakdowns.

    Raises:
        UserError: if no image was measured.
    """
    classes = inputs.classes
    total = Breakdowns(RESULTS, inputs.counts, len(classes))
    mean_iou: dict[str, dict[str, float | None]] = {}
    confusions: dict[str, np.ndarray] = {}
    predicted: dict[str, tuple[float, np.ndarray]] = {}
    for found in measured:
        total.merge(found)
        for image_id, values in zip(found["image_ids"], found["mean_iou"], strict=True):
            mean_iou[image_id] = {name: none_if_nan(value) for name, value in zip(RESULTS, values, strict=True)}
        confusions |= zip(found["image_ids"], found["confusions"], strict=True)
        predicted |= zip(found["image_ids"], zip(found["confidence"], found["shares"], strict=True), strict=True)
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
    confidence, shares = zip(*(predicted[image_id] for image_id in sorted(predicted)), strict=True)
    statistics = PredictionStatistics.of(confidence, np.array(shares), classes)
    return Evaluation(results, dict(sorted(mean_iou.items())), total.as_dict(), dict(sorted(confusions.items())), statistics)


def _result_row(matrix: ConfusionMatrix, classes: Sequence[str]) -> dict[str, Any]:
    """Compute the metrics of one result (one of the five ways of predicting).

    Args:
        matrix: confusion matrix of the result over all images.
        classes: class names, ordered by id.

    Returns:
        A dict with the floats `mean_iou` and `pixel_accuracy`, 0 to 1, and `iou`, a dict from class name to IoU. A metric is None
        if it is undefined, such as the IoU of a class that does not occur.
    """
    return {
        "mean_iou": none_if_nan(matrix.mean_iou),
        "pixel_accuracy": none_if_nan(matrix.pixel_accuracy),
        "iou": {name: none_if_nan(iou) for name, iou in zip(classes, matrix.iou.tolist(), strict=True)},
    }
