"""Evaluate DeconvNet and FCN-8s on one split of a data set.

The images are split into batches. Workers that hold both networks predict each image in the five ways that Noh et al. (ICCV 2015)
compare, the results (`RESULTS`), and compare the masks with the annotation. The counts of all batches are then added up.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch

from deconvnet.datasets.objects import make_object_mask
from deconvnet.datasets.overlay import side_by_side
from deconvnet.datasets.palette import class_palette
from deconvnet.evaluation.boundaries import BoundaryCounts, boundary_counts
from deconvnet.evaluation.breakdowns import Breakdowns
from deconvnet.evaluation.calibration import BINS, calibration_as_dict, calibration_counts, expected_calibration_error
from deconvnet.evaluation.comparison import DECISIVE_RESULT
from deconvnet.evaluation.drift import PredictionStatistics
from deconvnet.evaluation.image_measures import MASKS, SIDE_BY_SIDE
from deconvnet.evaluation.metrics import ConfusionMatrix, mean_of_defined, none_if_nan
from deconvnet.inference.pixels import average_measures, scan_pixels
from deconvnet.inference.predictor import RESULTS, Predictor, PredictorOptions
from deconvnet.inference.scaling import resize_nearest
from infra import storage
from infra.errors import UserError
from infra.runtime.executor import Actors, Executor, Work
from infra.storage import tables
from proposals.image_codec import decode_image, decode_mask, encode_jpeg, encode_mask
from proposals.job import iter_proposals
from proposals.recall import counts_up_to

logger = logging.getLogger(__name__)

IMAGES_PER_UNIT = 8
_PER_IMAGE = ("image_ids", "mean_iou", "confusions", "boundaries", "uncertainty", "shares", "in_int8")
_QUALITY = 85  # JPEG quality of the pictures of images


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
        report_uri: folder to which the workers write two files for each image. The one in the subfolder `images` shows image,
            annotation and prediction side by side; the one in `masks` is the prediction, a paletted PNG. "" to write neither.
    """

    deconvnet_uri: str
    fcn8s_uri: str
    images_uri: str
    proposals_uri: str
    split: str
    classes: tuple[str, ...]
    options: PredictorOptions
    report_uri: str = ""

    @property
    def counts(self) -> tuple[int, ...]:
        """Return the numbers of proposals k for which the mask from the first k boxes is measured; () if there are windows."""
        return () if self.options.window_sizes else counts_up_to(self.options.proposals)  # windows would be counted as proposals


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


@dataclass(frozen=True)
class _Unit:
    """A unit of work: a batch of images of one row group, which a worker measures in one call.

    Attributes:
        images: the part (Parquet file) of the table `images` that holds the images.
        proposals: the part of the table `proposals` that holds their boxes.
        row_group: index of the images' row group in their part, from 0.
        rows: positions of the images among the rows of the row group that belong to the evaluated split.
    """

    images: tables.Part
    proposals: tables.Part
    row_group: int
    rows: range


def evaluate(inputs: EvaluationInputs, dataset: str, executor: Executor, gpu: bool = False) -> Evaluation:
    """Predict every annotated image of a split in five ways (`RESULTS`), and measure the predictions.

    Args:
        inputs: the networks, the images and the options. Only `inputs.report_uri` is written to.
        dataset: name of the data set, which is stored in the results.
        executor: runs the workers, each of which holds both networks.
        gpu: whether each worker takes a GPU.

    Returns:
        The metrics of the five results, the mean IoU of each image, and the breakdowns.

    Raises:
        FileNotFoundError: if the table `images` or `proposals` is not complete.
        UserError: if the split has no image with a class mask, or no node has the resources for a worker.
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
        A function that takes the index of a batch and the batch, and measures its images (`_measure`).
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
        A dict with sums over the images: the arrays of `Breakdowns.arrays`; `contours` and `bands` of `BoundaryCounts`; and
        `calibration`, the array of `calibration_counts`. And seven lists with an item for each image:

        * `image_ids` and `in_int8`: its id, and whether it was predicted in 8-bit integers.
        * `mean_iou`: a list of floats in the order of `RESULTS`; nan if the whole annotation is void.
        * `confusions`, `boundaries`, `uncertainty` and `shares`, all of the result "edeconvnet_crf": the confusion matrix, int32
          (C, C); the boundary F-measure and the Boundary IoU, means over the classes; a dict of `uncertainty.Measures`; and the
          share of each class in the mask.
    """
    boxes = {name: found for name, found, _ in iter_proposals(inputs.proposals_uri, unit.proposals)}
    no_boxes = np.zeros((0, 4), np.float32)  # for images that EdgeBox could not read
    breakdowns = Breakdowns(RESULTS, inputs.counts, len(inputs.classes))
    boundaries, calibration = BoundaryCounts.zeros(len(RESULTS), len(inputs.classes)), np.zeros((3, BINS))
    found: dict[str, list[Any]] = {name: [] for name in _PER_IMAGE}
    final = RESULTS.index(DECISIVE_RESULT)
    for image_id, image, class_mask, object_mask in _read_images(inputs, unit):
        masks, by_count, probabilities = predictor.predict_with_box_counts(image, boxes.get(image_id, no_boxes), inputs.counts)
        mask = masks[DECISIVE_RESULT]
        pixels = scan_pixels(*(probabilities[name] for name in (DECISIVE_RESULT, "edeconvnet", "deconvnet", "fcn8s")))
        found["image_ids"].append(image_id)
        single = breakdowns.add(class_mask, object_mask, masks, by_count, inputs.options.background)
        found["mean_iou"].append([each.mean_iou for each in single])
        found["confusions"].append(single[final].matrix.astype(np.int32))
        own = boundary_counts(class_mask, [masks[name] for name in RESULTS], len(inputs.classes))
        boundaries += own
        found["boundaries"].append((mean_of_defined(own.f_measure[final]), mean_of_defined(own.iou[final])))
        calibration += calibration_counts(class_mask, mask, resize_nearest(pixels.confidence, mask.shape))
        found["uncertainty"].append(asdict(average_measures(pixels).image))
        found["in_int8"].append(predictor.in_int8)
        found["shares"].append(np.bincount(mask.ravel(), minlength=len(inputs.classes)) / mask.size)
        if inputs.report_uri:
            picture = side_by_side(image, (class_mask, mask), inputs.classes, inputs.options.background)
            storage.write_bytes(storage.join(inputs.report_uri, SIDE_BY_SIDE, f"{image_id}.jpg"), encode_jpeg(picture, _QUALITY))
            png = encode_mask(mask, class_palette(inputs.options.background))
            storage.write_bytes(storage.join(inputs.report_uri, MASKS, f"{image_id}.png"), png)
    sums = {"contours": boundaries.contours, "bands": boundaries.bands, "calibration": calibration}
    return {**found, **sums, **breakdowns.arrays()}


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
    boundaries, calibration = BoundaryCounts.zeros(len(RESULTS), len(classes)), np.zeros((3, BINS))
    by_image: dict[str, dict[str, Any]] = {}
    for found in measured:
        total.merge(found)
        boundaries += BoundaryCounts(found["contours"], found["bands"])
        calibration = calibration + found["calibration"]
        for values in zip(*(found[name] for name in _PER_IMAGE), strict=True):
            by_image[values[0]] = dict(zip(_PER_IMAGE, values, strict=True))
    if not by_image:
        raise UserError(
            f"the split {inputs.split!r} of {inputs.images_uri} has no annotated image to evaluate on: "
            "add images with masks to it, or choose another split"
        )
    by_image = dict(sorted(by_image.items()))
    if inputs.options.int8 and (floats := sum(not each["in_int8"] for each in by_image.values())):
        logger.warning(
            f"  segment.int8: {floats:,} of {len(by_image):,} images were predicted in floats, as their device is slow at int8"
        )
    matrices = [ConfusionMatrix(len(classes), matrix) for matrix in total.confusion]
    rows = zip(RESULTS, matrices, boundaries.f_measure, boundaries.iou, strict=True)
    error = round(expected_calibration_error(calibration), 6)  # the digits beyond depend on the order of the sums
    results = {
        "dataset": dataset,
        "images": len(by_image),
        "classes": list(classes),
        "expected_calibration_error": none_if_nan(error),
        "rows": {name: _result_row(matrix, f, iou, classes) for name, matrix, f, iou in rows},
    }
    confidence = [each["uncertainty"]["confidence"] for each in by_image.values()]
    shares = np.array([each["shares"] for each in by_image.values()])
    return Evaluation(
        results,
        [_image_row(each, inputs) for each in by_image.values()],
        {**total.as_dict(), "calibration": calibration_as_dict(calibration)},
        {image_id: each["confusions"] for image_id, each in by_image.items()},
        PredictionStatistics.of(confidence, shares, classes),
    )


def _image_row(measured: Mapping[str, Any], inputs: EvaluationInputs) -> dict[str, Any]:
    """Make the row of an image for the table `images.parquet`, see `image_measures.images_schema`.

    Args:
        measured: the image's items of the lists that `_measure` returns.
        inputs: the networks, the images and the options.
    """
    matrix = ConfusionMatrix(len(inputs.classes), measured["confusions"])
    boundary_f, boundary_iou = measured["boundaries"]
    return {
        "image_id": measured["image_ids"],
        **{f"mean_iou.{name}": none_if_nan(value) for name, value in zip(RESULTS, measured["mean_iou"], strict=True)},
        "pixel_accuracy": none_if_nan(matrix.pixel_accuracy),
        "boundary_f": none_if_nan(boundary_f),
        "boundary_iou": none_if_nan(boundary_iou),
        **measured["uncertainty"],
        **{f"iou.{name}": none_if_nan(value) for name, value in zip(inputs.classes, matrix.iou.tolist(), strict=True)},
        "picture": f"{SIDE_BY_SIDE}/{measured['image_ids']}.jpg" if inputs.report_uri else "",
        "mask": f"{MASKS}/{measured['image_ids']}.png" if inputs.report_uri else "",
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
