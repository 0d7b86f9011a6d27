"""Record the ranges of both networks' activations on some images of a table, by the workers of an executor."""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch

from deconvnet.inference.int8.ranges import Ranges, has_ranges, load_ranges, merged, recording, save_ranges
from deconvnet.inference.predictor import Predictor, PredictorOptions
from infra.errors import UserError
from infra.runtime.executor import Actors, Executor, Work
from infra.storage import tables
from proposals.image_codec import decode_image
from proposals.job import iter_proposals

logger = logging.getLogger(__name__)

IMAGES = 16
"""Number of images on which ranges are recorded."""
_WITHOUT_EFFECT = {"aggregation", "ensemble", "fcn_weight", "batch", "int8", "crf", "background"}
"""Options that don't change what the networks compute. With `early_exit`, `aggregation` does."""


@dataclass(frozen=True)
class RangeInputs:
    """The networks and images of the job.

    Attributes:
        deconvnet_uri: folder of a trained DeconvNet. Its ranges are written there.
        fcn8s_uri: folder of a trained FCN-8s. Its ranges are written there.
        images_uri: URI of the table `images`, from whose training images some are taken.
        proposals_uri: URI of the table `proposals`, which holds the boxes that were found in these images.
        options: options for predicting.
    """

    deconvnet_uri: str
    fcn8s_uri: str
    images_uri: str
    proposals_uri: str
    options: PredictorOptions


@dataclass(frozen=True)
class _Unit:
    """A unit of work: one image.

    Attributes:
        images: the part (Parquet file) of the table `images` that holds the image.
        proposals: the part of the table `proposals` that holds its boxes.
        row_group: index of the image's row group in its part.
        position: position of the image among the training images of the row group.
    """

    images: tables.Part
    proposals: tables.Part
    row_group: int
    position: int


def record_missing_ranges(inputs: RangeInputs, executor: Executor, registered: bool = False) -> None:
    """Record the activation ranges of two networks in their folders, unless they were recorded with the same images and options.

    All workers compute on CPUs. The images are taken at even distances from all training images, so the ranges are the same for
    any number of workers.

    Args:
        inputs: the networks and the images.
        executor: runs the workers, each of which holds both networks.
        registered: whether the networks are a registered model. If both have ranges, these are used, of whatever images.

    Raises:
        UserError: if there are no training images, or no boxes in them.
    """
    folders = inputs.deconvnet_uri, inputs.fcn8s_uri
    units = dict(enumerate(_units(inputs)))
    inputs_digest = _digest(inputs.options, units.values())
    if all(has_ranges(folder, inputs_digest) or (registered and load_ranges(folder) is not None) for folder in folders):
        return
    make = partial(_make_worker, inputs)
    title = "recording the largest activations (segment.int8)"
    deconvnet: Ranges = {}
    fcn8s: Ranges = {}
    for _, found in executor.map_actors(units, make, Actors(), title=title, unit="training images"):
        deconvnet, fcn8s = merged(deconvnet, found[0]), merged(fcn8s, found[1])
    if not deconvnet:
        raise UserError(
            f"segment.int8 needs training images with boxes, and {len(units)} were tried: set it to false, or lower "
            "segment.min_side"
        )
    for folder, ranges in zip(folders, (deconvnet, fcn8s), strict=True):
        save_ranges(folder, ranges, inputs_digest)
    logger.info(f"  largest activations recorded on {len(units)} training images, for prediction in 8-bit integers")


def _units(inputs: RangeInputs) -> Sequence[_Unit]:
    """Choose the images."""
    images, proposals = (tables.require_commit(uri).parts for uri in (inputs.images_uri, inputs.proposals_uri))
    every = [
        _Unit(part, boxes, number, position)
        for part, boxes in zip(images, proposals, strict=True)
        for number, group in enumerate(part.row_groups)
        for position in range(group.splits.get("train", 0))
    ]
    return [every[i * len(every) // IMAGES] for i in range(IMAGES)] if len(every) > IMAGES else every


def _digest(options: PredictorOptions, units: Iterable[_Unit]) -> str:
    """Return a digest of the images, of their boxes, and of the options on which the ranges of given networks depend."""
    used = {name: value for name, value in asdict(options).items() if name not in _WITHOUT_EFFECT}
    if options.early_exit is not None:
        used["aggregation"] = options.aggregation  # it decides which boxes are left out
    # The names of parts stand for their content.
    images = [(unit.images.name, unit.proposals.name, unit.row_group, unit.position) for unit in units]
    return hashlib.sha256(json.dumps([used, images], sort_keys=True).encode()).hexdigest()


def _make_worker(inputs: RangeInputs, threads: int) -> Work[tuple[Ranges, Ranges]]:
    """Load the networks into a worker process. The executor calls this once in each worker process.

    Args:
        inputs: the networks and the images.
        threads: number of CPU threads that the worker may use.

    Returns:
        A function that takes the index of an image and the image, predicts it, and returns the ranges of both networks.
    """
    torch.set_num_threads(threads)
    options = replace(inputs.options, int8=False)
    predictor = Predictor.load(inputs.deconvnet_uri, inputs.fcn8s_uri, "cpu", options)
    return lambda index, unit: _record(predictor, inputs, unit)


def _record(predictor: Predictor, inputs: RangeInputs, unit: _Unit) -> tuple[Ranges, Ranges]:
    """Predict an image and return the ranges of DeconvNet and of FCN-8s."""
    columns = ["image_id", "split", "image"]
    rows = tables.read_row_group(inputs.images_uri, unit.images.name, unit.row_group, columns).to_pylist()
    row = [row for row in rows if row["split"] == "train"][unit.position]
    boxes = {name: found for name, found, _ in iter_proposals(inputs.proposals_uri, unit.proposals)}
    no_boxes = np.zeros((0, 4), np.float32)
    with recording(predictor.deconvnet) as deconvnet, recording(predictor.fcn8s) as fcn8s:
        predictor.probabilities(decode_image(row["image"]), boxes.get(row["image_id"], no_boxes), ("edeconvnet",))
    return deconvnet, fcn8s
