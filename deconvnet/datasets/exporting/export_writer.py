"""Writing the predictions of many images as one export: annotations, a configuration for the tool, and copies of the images."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from deconvnet.datasets.exporting import ExportFormat, ExportOptions, ImageExport, PredictedImage, fiftyone
from deconvnet.datasets.exporting.outlines import find_objects, measure_agreement
from deconvnet.datasets.importing.images import read_input
from deconvnet.datasets.thread_map import thread_map
from deconvnet.datasets.writing.voc_writer import REJECTS_FILE
from infra.errors import BadInput
from infra.storage.tables import Reject
from proposals.image_codec import decode_image, decode_mask, encode_png

_STAGE = "export"


@dataclass(frozen=True)
class Prediction:
    """An image and its prediction, not loaded yet.

    Attributes:
        name: path of the image relative to the folder of images.
        image: path or URI of the image.
        mask: path or URI of its mask.
        classes: names of the classes that occur in the mask, by id.
        score: mean probability of the predicted class before the CRF, over the image, 0 to 1.
        class_scores: the same over the pixels of each of `classes`.
    """

    name: str
    image: str
    mask: str
    classes: tuple[str, ...]
    score: float
    class_scores: tuple[float, ...]


SMALL_OBJECT_PIXELS = 20
"""Objects with fewer pixels are counted for the user, because correcting them is hardly worth the time."""


class _Converted(NamedTuple):
    """An image that was converted, and numbers about it.

    Attributes:
        export: what the image adds to the export.
        objects: number of its objects.
        small_objects: number of its objects that have fewer than `SMALL_OBJECT_PIXELS` pixels.
        agreement: share of the pixels, 0 to 1, whose class is the same in mask and annotations.
    """

    export: ImageExport
    objects: int
    small_objects: int
    agreement: float


@dataclass
class ExportSummary:
    """The result of an export.

    Attributes:
        images: number of images that were exported.
        objects: number of their objects.
        small_objects: number of their objects that have fewer than `SMALL_OBJECT_PIXELS` pixels.
        agreement: share of the pixels, 0 to 1, whose class is the same in mask and annotations; mean over the images.
        worst: the smallest agreement of an image, and the name of the image; None if no image was exported.
        rejects: a Reject (an input that can't be used, with the reason) for each image that could not be exported.
    """

    images: int = 0
    objects: int = 0
    small_objects: int = 0
    agreement: float = 1.0
    worst: tuple[float, str] | None = None
    rejects: list[Reject] = field(default_factory=list)

    def add(self, prediction: Prediction, result: "_Converted | Reject") -> None:
        """Add the result of one image."""
        if isinstance(result, Reject):
            self.rejects.append(result)
            return
        self.agreement += (result.agreement - self.agreement) / (self.images + 1)
        self.worst = min(self.worst or (2.0, ""), (result.agreement, prediction.name))
        self.images += 1
        self.objects += result.objects
        self.small_objects += result.small_objects


def write_export(
    predictions: Sequence[Prediction],
    rejects: Sequence[Reject],
    export_format: ExportFormat,
    options: ExportOptions,
    folder: Path,
    threads: int,
) -> ExportSummary:
    """Convert predictions to annotations and write them, with copies of the images. Progress is shown on stderr.

    Args:
        predictions: the images and their masks.
        rejects: images that are known to be unusable, for the summary.
        export_format: format of the annotations.
        options: options of the export.
        folder: existing empty folder to write to.
        threads: number of threads that read and write images.

    Returns:
        What was exported and what was not. The latter is also listed in rejects.csv.
    """
    paths, refused = _image_paths(predictions, export_format)

    def export_one(prediction: Prediction) -> _Converted | Reject:
        try:
            if reason := refused.get(prediction.name):
                raise BadInput(reason)
            converted = _convert(prediction, export_format, options)
            path = paths[prediction.name]
            files = {path: _read_image(prediction, path), **converted.export.files}
        except BadInput as error:
            return Reject(prediction.name, prediction.image, _STAGE, str(error))
        _write_files(folder, files)
        return converted._replace(export=ImageExport(converted.export.entry))

    summary, entries = ExportSummary(rejects=list(rejects)), []
    for prediction, result in zip(predictions, thread_map(export_one, predictions, threads, "exporting", "images"), strict=True):
        summary.add(prediction, result)
        if not isinstance(result, Reject):
            entries.append(result.export.entry)
    _write_files(folder, export_format.dataset_files(entries, options))
    if summary.rejects:
        _write_rejects(folder / REJECTS_FILE, summary.rejects)
    return summary


def _write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """Write the table of the images that could not be exported, with the reasons."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "file", "reason"))
        rows.writerows((reject.image_id, reject.path, reject.reason) for reject in rejects)


def _image_paths(predictions: Sequence[Prediction], export_format: ExportFormat) -> tuple[dict[str, str], dict[str, str]]:
    """Find the paths of the images in the export.

    Args:
        predictions: the images.
        export_format: format of the annotations.

    Returns:
        paths: path in the export by name of the image.
        refused: reason why an image can't have a path in the export, by name of the image.
    """
    paths: dict[str, str] = {}
    refused: dict[str, str] = {}
    names: dict[str, str] = {}
    for name in (prediction.name for prediction in predictions):
        try:
            path = export_format.image_path(name)
        except BadInput as error:
            refused[name] = str(error)
            continue
        stem = str(PurePosixPath(path).with_suffix(""))
        if stem in names:
            refused[name] = f"its annotations would have the same name as those of {names[stem]}: rename one of them"
        else:
            paths[name], names[stem] = path, name
    return paths, refused


def _convert(prediction: Prediction, export_format: ExportFormat, options: ExportOptions) -> _Converted:
    """Read the mask of an image and convert it to the annotations of a format.

    Args:
        prediction: the image.
        export_format: format of the annotations.
        options: options of the export.

    Returns:
        What the image adds to the export, and numbers about it.

    Raises:
        BadInput: if the mask can't be read, or is not the one that the table describes.
    """
    mask = read_predicted_mask(prediction.mask, prediction.classes, options.classes)
    class_scores = dict(zip(map(options.classes.index, prediction.classes), prediction.class_scores, strict=True))
    image = PredictedImage(prediction.name, mask, prediction.score, class_scores)
    objects = find_objects(mask, options)
    export = export_format.convert(image, objects, options)
    small_objects = sum(each.region.area < SMALL_OBJECT_PIXELS for each in objects)
    return _Converted(export, len(objects), small_objects, measure_agreement(mask, objects, options))


def read_predicted_mask(uri: str, expected: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Read the mask of a prediction, and check that it is the one that the table `predictions` describes.

    Args:
        uri: path or URI of the mask.
        expected: names of the classes that occur in the mask according to the table, in the order of their ids.
        classes: names of all classes by id.

    Returns:
        uint8 array (H, W) of class ids.

    Raises:
        BadInput: if the mask can't be read, or other classes occur in it.
    """
    mask = decode_mask(read_input(uri))
    found = [classes[i] if i < len(classes) else f"id {i}" for i in np.unique(mask).tolist()]
    if found != list(expected):
        raise BadInput(
            f"its mask has the classes {', '.join(found)}, but the table predictions lists {', '.join(expected)}: delete the "
            "mask, and run predict.py again"
        )
    return mask


def write_samples(
    units: Sequence[Callable[[], Iterable["fiftyone.Sample | Reject"]]],
    rejects: Sequence[Reject],
    info: fiftyone.DatasetInfo,
    folder: Path,
    threads: int,
) -> ExportSummary:
    """Write samples as a data set of FiftyOne. Progress is shown on stderr.

    Args:
        units: functions that each load some of the samples. They return a Reject in place of a sample that can't be loaded.
        rejects: images that are known to be unusable, for the summary.
        info: what the samples have in common.
        folder: existing empty folder to write to.
        threads: number of threads that load samples and write files.

    Returns:
        What was exported and what was not. The latter is also listed in rejects.csv.
    """

    def write(load: Callable[[], Iterable[fiftyone.Sample | Reject]]) -> list[dict[str, Any] | Reject]:
        written: list[dict[str, Any] | Reject] = []
        for sample in load():
            if isinstance(sample, Reject):
                written.append(sample)
                continue
            try:
                document, files = fiftyone.sample_files(sample, info)
            except BadInput as error:
                written.append(Reject(sample.name, sample.path, _STAGE, str(error)))
                continue
            _write_files(folder, files)
            written.append(document)
        return written

    found = [each for written in thread_map(write, units, threads, "exporting", "parts") for each in written]
    documents = [each for each in found if not isinstance(each, Reject)]
    summary = ExportSummary(len(documents), rejects=[*rejects, *(each for each in found if isinstance(each, Reject))])
    _write_files(folder, fiftyone.dataset_files(documents, info))
    if summary.rejects:
        _write_rejects(folder / REJECTS_FILE, summary.rejects)
    return summary


def _read_image(prediction: Prediction, path: str) -> bytes:
    """Read an image for its path in the export.

    Args:
        prediction: the image.
        path: its path in the export.

    Returns:
        The bytes of the file, or of a PNG if the path has another suffix.

    Raises:
        BadInput: if the image can't be read.
    """
    data = read_input(prediction.image)
    same = PurePosixPath(path).suffix.lower() == PurePosixPath(prediction.name).suffix.lower()
    return data if same else encode_png(decode_image(data))


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, by their paths relative to a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
