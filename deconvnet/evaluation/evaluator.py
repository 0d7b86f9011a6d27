"""Evaluate DeconvNet and FCN-8s on one split of a data set.

The images are split into batches. Workers that hold both networks predict each image in the five ways that Noh et al. (ICCV 2015)
compare, the results (`RESULTS`), and compare the masks with the annotation. The counts of all batches are then added up.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from itertools import chain
from typing import Any

import cv2
import numpy as np
import torch

from deconvnet.datasets.overlay import side_by_side
from deconvnet.datasets.palette import class_palette
from deconvnet.evaluation import EVALUATION_VERSION
from deconvnet.evaluation.boundaries import BoundaryCounts, boundary_counts
from deconvnet.evaluation.breakdowns import Breakdowns
from deconvnet.evaluation.calibration import BINS, calibration_as_dict, calibration_counts, expected_calibration_error
from deconvnet.evaluation.comparison import DECISIVE_RESULT
from deconvnet.evaluation.drift import PredictionStatistics
from deconvnet.evaluation.image_measures import MASKS, SIDE_BY_SIDE
from deconvnet.evaluation.inputs import EvaluationInputs, ImageBatch, image_batches, read_images
from deconvnet.evaluation.measurements import BATCHES, Measurements, read_kept
from deconvnet.evaluation.metrics import ConfusionMatrix, mean_of_defined, none_if_nan
from deconvnet.inference.int8.ranges import ranges_file
from deconvnet.inference.pixels import average_measures, scan_pixels
from deconvnet.inference.predictor import RESULTS, Predictor
from deconvnet.inference.scaling import resize_nearest
from deconvnet.inference.uncertainty import Measures
from deconvnet.models.checkpoint import weights_digest
from infra import storage
from infra.errors import UserError
from infra.runtime.executor import Actors, Executor, Work
from infra.runtime.stages import digest
from proposals.image_codec import encode_jpeg, encode_mask
from proposals.job import iter_proposals

logger = logging.getLogger(__name__)

_QUALITY = 85  # JPEG quality of the pictures of images


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        results: the content of `report/results.json`, a dict: the name of the "dataset", the number of "images", the names of the
            "classes", the "expected_calibration_error" of the result "edeconvnet_crf" (0 to 1), and "rows", which has an entry
            for each of the five results, by its name: see `_result_row`.
        images: a dict of measures for each image, a row of `report/images.parquet` (see `image_measures.images_schema`).
        breakdowns: IoU by number of proposals and by object size, and confusion matrices, see `Breakdowns.as_dict`; and, as
            "calibration", the reliability diagram of the result "edeconvnet_crf", see `calibration_as_dict`.
        confusions: confusion matrix of each image by image_id, int32 (C, C), of the result "edeconvnet_crf" (the ensemble with
            the CRF, by which models are compared). A row is a true class and a column is a predicted class.
        statistics: statistics of the predictions of this result.
    """

    results: dict[str, Any]
    images: list[dict[str, Any]]
    breakdowns: dict[str, Any]
    confusions: dict[str, np.ndarray]
    statistics: PredictionStatistics


def evaluate(inputs: EvaluationInputs, dataset: str, executor: Executor, gpu: bool = False) -> Evaluation:
    """Predict every annotated image of a split in five ways (`RESULTS`), and measure the predictions.

    If there is a report's folder, the measurements of each batch of images are kept there (`measurements.BATCHES`) until the
    caller has written the report and deletes them. If an evaluation with the same inputs was stopped or killed, its batches are
    not predicted again. What an evaluation with other inputs has left is deleted.

    Args:
        inputs: the networks, the images and the options. Only `inputs.report_uri` is written to.
        dataset: name of the data set, which is stored in the results.
        executor: runs the workers, each of which holds both networks.
        gpu: whether each worker takes a GPU.

    Returns:
        The metrics of the five results, the mean IoU of each image, and the breakdowns.

    Raises:
        FileNotFoundError: if the table `images` or `proposals` is not complete.
        UserError: if a folder holds no model, the split has no image with a class mask, or no node has room for a worker.
    """
    device = "cuda" if gpu else "cpu"
    units = dict(enumerate(image_batches(inputs)))
    folder = ""
    kept: dict[int, Measurements] = {}
    if inputs.report_uri:
        fingerprint = _fingerprint(inputs, device)
        folder = storage.join(inputs.report_uri, BATCHES, fingerprint)
        kept = read_kept(inputs.report_uri, {index: f"{fingerprint}/{unit.file}" for index, unit in units.items()})
    if kept:
        logger.info(f"  {len(kept):,} of {len(units):,} batches of images were evaluated before the interruption")
    todo = {index: unit for index, unit in units.items() if index not in kept}
    actors = Actors(gpus=1.0 if gpu else 0.0, remedy="use nodes with more memory, or lower segment.max_side")
    make = partial(_make_worker, inputs, device, folder)
    title = f"evaluating on {inputs.split}"
    measured = executor.map_actors(todo, make, actors, title=title, unit="batches of images") if todo else iter(())
    return _summarise(Measurements.merged(chain(kept.values(), (found for _, found in measured))), inputs, dataset)


def _fingerprint(inputs: EvaluationInputs, device: str) -> str:
    """Return a digest of what the measurements of a batch depend on, besides its images and proposals.

    The kind of CPU or GPU is not in it, although rounding and number formats depend on it.

    Raises:
        UserError: if a folder holds no model.
    """
    folders = inputs.deconvnet_uri, inputs.fcn8s_uri
    models = [weights_digest(folder) for folder in folders]
    ranges = [ranges_file(folder) for folder in folders] if inputs.options.int8 else []
    return digest([EVALUATION_VERSION, *models, ranges, asdict(inputs.options), inputs.classes, inputs.split, device])


def _make_worker(inputs: EvaluationInputs, device: str, folder: str, threads: int) -> Work[Measurements]:
    """Load the networks into a worker process and limit its CPU threads. The executor calls this once in each worker process.

    Args:
        inputs: the networks, the images and the options.
        device: torch device to predict on, "cpu" or "cuda".
        folder: folder in which the measurements of each batch are kept; "" for none.
        threads: number of CPU threads that the worker may use.

    Returns:
        A function that takes the index of a batch and the batch, measures its images (`_measure`), and writes the measurements
        to the folder.
    """
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    predictor = Predictor.load(inputs.deconvnet_uri, inputs.fcn8s_uri, device, inputs.options)

    def work(index: int, unit: ImageBatch) -> Measurements:
        found = _measure(predictor, inputs, unit)
        if folder:
            found.write(storage.join(folder, unit.file))
        return found

    return work


def _measure(predictor: Predictor, inputs: EvaluationInputs, unit: ImageBatch) -> Measurements:
    """Predict and measure the images of one batch, and write their pictures and masks to the report's folder, if there is one.

    Args:
        predictor: holds the two networks and predicts the masks.
        inputs: the networks, the images and the options.
        unit: the batch of images.

    Returns:
        The measurements of those of its images that have a class mask.
    """
    boxes = {name: found for name, found, _ in iter_proposals(inputs.proposals_uri, unit.proposals)}
    no_boxes = np.zeros((0, 4), np.float32)  # for images that EdgeBox could not read
    results, classes = len(RESULTS), len(inputs.classes)
    breakdowns = Breakdowns(RESULTS, inputs.counts, classes)
    boundaries, calibration = BoundaryCounts.zeros(results, classes), np.zeros((3, BINS))
    found: list[tuple[Any, ...]] = []
    final = RESULTS.index(DECISIVE_RESULT)
    for image_id, image, class_mask, object_mask in read_images(inputs, unit):
        masks, by_count, probabilities = predictor.predict_with_box_counts(image, boxes.get(image_id, no_boxes), inputs.counts)
        mask = masks[DECISIVE_RESULT]
        pixels = scan_pixels(*(probabilities[name] for name in (DECISIVE_RESULT, "edeconvnet", "deconvnet", "fcn8s")))
        single = breakdowns.add(class_mask, object_mask, masks, by_count, inputs.options.background)
        own = boundary_counts(class_mask, [masks[name] for name in RESULTS], classes)
        boundaries += own
        calibration += calibration_counts(class_mask, mask, resize_nearest(pixels.confidence, mask.shape))
        found.append(
            (
                image_id,
                predictor.in_int8,
                [each.mean_iou for each in single],
                single[final].matrix,
                (mean_of_defined(own.f_measure[final]), mean_of_defined(own.iou[final])),
                astuple(average_measures(pixels).image),
                np.bincount(mask.ravel(), minlength=classes) / mask.size,
            )
        )
        if inputs.report_uri:
            picture = side_by_side(image, (class_mask, mask), inputs.classes, inputs.options.background)
            storage.write_bytes(storage.join(inputs.report_uri, SIDE_BY_SIDE, f"{image_id}.jpg"), encode_jpeg(picture, _QUALITY))
            png = encode_mask(mask, class_palette(inputs.options.background))
            storage.write_bytes(storage.join(inputs.report_uri, MASKS, f"{image_id}.png"), png)
    sums = {"contours": boundaries.contours, "bands": boundaries.bands, "calibration": calibration, **breakdowns.arrays()}
    return Measurements.of(found, sums)


def _summarise(measured: Measurements | None, inputs: EvaluationInputs, dataset: str) -> Evaluation:
    """Compute the metrics from the measurements of all images.

    Args:
        measured: the measurements; None if there are no images.
        inputs: the networks, the images and the options.
        dataset: name of the data set, which is stored in the results.

    Returns:
        The metrics of the five results, the mean IoU of each image, and the breakdowns.

    Raises:
        UserError: if no image was measured.
    """
    classes = inputs.classes
    if measured is None:
        raise UserError(
            f"the split {inputs.split!r} of {inputs.images_uri} has no annotated image to evaluate on: "
            "add images with masks to it, or choose another split"
        )
    if inputs.options.int8 and (floats := int((~measured.in_int8).sum())):
        logger.warning(
            f"  segment.int8: {floats:,} of {len(measured.image_ids):,} images were predicted in floats, as their device is slow "
            "at int8"
        )
    total = Breakdowns(RESULTS, inputs.counts, len(classes))
    total.merge(measured.sums)
    boundaries, calibration = BoundaryCounts(measured.sums["contours"], measured.sums["bands"]), measured.sums["calibration"]
    matrices = [ConfusionMatrix(len(classes), matrix) for matrix in total.confusion]
    rows = zip(RESULTS, matrices, boundaries.f_measure, boundaries.iou, strict=True)
    error = round(expected_calibration_error(calibration), 6)  # the digits beyond depend on the order of the sums
    results = {
        "dataset": dataset,
        "images": len(measured.image_ids),
        "classes": list(classes),
        "expected_calibration_error": none_if_nan(error),
        "rows": {name: _result_row(matrix, f, iou, classes) for name, matrix, f, iou in rows},
    }
    images = [_image_row(measured, number, inputs) for number in range(len(measured.image_ids))]
    return Evaluation(
        results,
        images,
        {**total.as_dict(), "calibration": calibration_as_dict(calibration)},
        dict(zip(measured.image_ids.tolist(), measured.confusions, strict=True)),
        PredictionStatistics.of([image["confidence"] for image in images], measured.shares, classes),
    )


def _image_row(measured: Measurements, number: int, inputs: EvaluationInputs) -> dict[str, Any]:
    """Make the row of an image for the table `images.parquet`, see `image_measures.images_schema`.

    Args:
        measured: the measurements of all images.
        number: index of the image among them.
        inputs: the networks, the images and the options.
    """

    def columns(names: Iterable[str], values: np.ndarray) -> dict[str, float | None]:
        return {name: none_if_nan(value) for name, value in zip(names, values.tolist(), strict=True)}

    image_id, matrix = str(measured.image_ids[number]), ConfusionMatrix(len(inputs.classes), measured.confusions[number])
    return {
        "image_id": image_id,
        **columns((f"mean_iou.{name}" for name in RESULTS), measured.mean_iou[number]),
        "pixel_accuracy": none_if_nan(matrix.pixel_accuracy),
        **columns(("boundary_f", "boundary_iou"), measured.boundaries[number]),
        **columns((each.name for each in fields(Measures)), measured.uncertainty[number]),
        **columns((f"iou.{name}" for name in inputs.classes), matrix.iou),
        "picture": f"{SIDE_BY_SIDE}/{image_id}.jpg" if inputs.report_uri else "",
        "mask": f"{MASKS}/{image_id}.png" if inputs.report_uri else "",
    }


def _result_row(
    matrix: ConfusionMatrix, boundary_f: np.ndarray, boundary_iou: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Compute the metrics of one result (one of the five ways of predicting).

    Args:
        matrix: confusion matrix of the result over all images.
        boundary_f: boundary F-measure of each class, float64 (C,), nan if undefined.
        boundary_iou: Boundary IoU of each class, in the same form.
        classes: class names, ordered by id.

    Returns:
        A dict with the floats `mean_iou`, `pixel_accuracy`, `boundary_f` and `boundary_iou`, 0 to 1, of which the last two are
        means over the classes, and with `iou`, `boundary_f_by_class` and `boundary_iou_by_class`, dicts from class name to value.
        A metric is None if it is undefined, such as the IoU of a class that does not occur.
    """

    def by_class(values: np.ndarray) -> dict[str, float | None]:
        return {name: none_if_nan(value) for name, value in zip(classes, values.tolist(), strict=True)}

    return {
        "mean_iou": none_if_nan(matrix.mean_iou),
        "pixel_accuracy": none_if_nan(matrix.pixel_accuracy),
        "boundary_f": none_if_nan(mean_of_defined(boundary_f)),
        "boundary_iou": none_if_nan(mean_of_defined(boundary_iou)),
        "iou": by_class(matrix.iou),
        "boundary_f_by_class": by_class(boundary_f),
        "boundary_iou_by_class": by_class(boundary_iou),
    }
