"""Export predictions, or the evaluated images of a workspace, as a data set of FiftyOne."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from deconvnet.datasets.exporting.export_writer import read_predicted_mask, write_samples
from deconvnet.datasets.exporting.fiftyone import PREDICTION, TRUTH, DatasetInfo, Sample
from deconvnet.datasets.importing.images import read_input
from deconvnet.datasets.importing.train_val_split import read_split_list
from deconvnet.datasets.writing.new_folder import check_new, new_folder
from deconvnet.datasets.writing.voc_writer import REJECTS_FILE
from deconvnet.evaluation.image_measures import IMAGES_FILE, read_images
from deconvnet.inference.predictions_table import PREDICTIONS
from infra import storage
from infra.errors import BadInput, UserError
from infra.redaction import without_secrets
from infra.runtime.stages import outdated
from infra.storage import tables
from infra.storage.tables import Reject
from proposals.image_codec import decode_mask
from proposals.masks import VOID_ID
from workflows.operations.data_import import count_threads, local_folder
from workflows.operations.label_export import check_rejects, choose_rows, find_rows, read_classes, read_commit
from workflows.pipelines.workspace import Workspace
from workflows.settings.export import ExportSettings

logger = logging.getLogger(__name__)

Unit = Callable[[], Iterable[Sample | Reject]]
_STAGE = "export"
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg"}  # by the first bytes of a file
_RUN_AGAIN = "run train_pipeline.py, or evaluate.py for another split, on this workspace again"


class _Source(NamedTuple):
    """The samples to export.

    Attributes:
        info: what the samples have in common.
        units: functions that load the samples; each one loads a part of them.
        images: number of samples.
        rejects: a Reject for each further image, which is already known to be unusable.
    """

    info: DatasetInfo
    units: Sequence[Unit]
    images: int
    rejects: list[Reject]


def export_to_fiftyone(settings: ExportSettings, dry_run: bool) -> None:
    """Export predictions or the evaluated images of a workspace, and log how FiftyOne opens them.

    Args:
        settings: settings of the command.
        dry_run: True to log what would be exported, without writing anything.

    Raises:
        UserError: if there are no finished predictions or no evaluation, an image that `only` lists is not among them, too many
            images can't be used, or the folder exists and is not empty.
        Locked: if another export creates the same folder.
        Interrupted: if another export took over the lock.
    """
    folder = local_folder(settings.to)
    source = _predictions_source(settings, folder.name) if settings.predictions else _evaluation_source(settings, folder.name)
    total = source.images + len(source.rejects)
    logger.info(f"{source.info.description}: {source.images:,} images, of the classes {', '.join(source.info.classes)}")
    if dry_run:
        check_new(folder)
        check_rejects(source.rejects, total, settings.max_rejects)
        logger.info(f"would export {source.images:,} images for fiftyone")
        return
    with new_folder(folder, "export.py") as temporary:
        summary = write_samples(source.units, source.rejects, source.info, temporary, count_threads(settings.threads))
        check_rejects(summary.rejects, total, settings.max_rejects)
    logger.info(_summary_text(summary.images, len(summary.rejects), source.info.name, folder))


def _summary_text(images: int, rejects: int, name: str, folder: Path) -> str:
    """Return a text for a terminal: what was exported, where it is, and how FiftyOne opens it."""
    lines = [f"exported     {images:,} images"]
    if rejects:
        lines.append(f"rejects      {folder / REJECTS_FILE} ({rejects:,})")
    lines += [f"export       {folder}", "", "FiftyOne (pip install fiftyone) opens it in Python:"]
    lines += ["  import fiftyone as fo"]
    lines += [f"  dataset = fo.Dataset.from_dir({str(folder)!r}, fo.types.FiftyOneDataset, name={name!r})"]
    lines += ["  fo.launch_app(dataset).wait()"]
    return "\n".join(lines)


def _predictions_source(settings: ExportSettings, name: str) -> _Source:
    """Find the predictions to export in an output folder of predict.py.

    Args:
        settings: settings of the command.
        name: name of the data set.
    """
    folder = settings.predictions or ""
    commit, names = read_commit(folder), read_classes(folder)
    rows, rejects = find_rows(folder, settings.only, commit, PREDICTIONS.names)
    classes = tuple(names["classes"])
    info = DatasetInfo(
        name=name,
        description=f"predictions by {commit.extra['model']}",
        classes=classes,
        masks=(PREDICTION,),
        measures=tuple(column.name for column in PREDICTIONS if column.type == pa.float32()),
        groups={column.name: classes for column in PREDICTIONS if column.type == pa.list_(pa.float32())},
        background=names["background"],
        has_maps=any(row.get("confidence_map") for row in rows),
    )
    return _Source(info, [partial(_load_prediction, row, folder, info) for row in rows], len(rows), rejects)


def _load_prediction(row: Mapping[str, Any], folder: str, info: DatasetInfo) -> Iterator[Sample | Reject]:
    """Load an image with its prediction.

    Args:
        row: its row of the table `predictions`.
        folder: output folder of predict.py.
        info: what the samples have in common.

    Yields:
        The sample, or a Reject with the reason if a file can't be read.
    """
    name, confidence_map = row["image_id"], row.get("confidence_map")
    try:
        image = read_input(row["path"])
        mask = read_predicted_mask(storage.join(folder, row["mask"]), row["classes"], info.classes)
        pixels = decode_mask(read_input(storage.join(folder, confidence_map))) if confidence_map else None
    except BadInput as error:
        yield Reject(name, row["path"], _STAGE, str(error))
        return
    measures = {each: row[each] for each in info.measures}
    groups = {each: dict(zip(row["classes"], row[each], strict=True)) for each in info.groups}
    groups["shares"] = dict.fromkeys(info.classes, 0.0) | groups["shares"]  # no pixel has the other classes
    yield Sample(name, row["path"], image, {PREDICTION: mask}, pixels, measures, groups)


def _evaluation_source(settings: ExportSettings, name: str) -> _Source:
    """Find the evaluated images of a workspace.

    Args:
        settings: settings of the command.
        name: name of the data set.

    Raises:
        UserError: if the workspace has no such evaluation, it may not match the current images, an earlier version made it, or
            `only` lists an image that was not evaluated.
    """
    root = storage.absolute(settings.workspace or "")
    report = storage.join(root, settings.evaluation)
    rows = _read_evaluation(root, report, settings)
    measures, groups = _measures_of(next(iter(rows.values())))
    info = DatasetInfo(
        name=name,
        description=f"evaluated images of {without_secrets(settings.workspace or '')} ({settings.evaluation})",
        classes=tuple(storage.read_json(storage.join(report, "results.json"))["classes"]),
        masks=(PREDICTION, TRUTH),
        measures=tuple(measures),
        groups={group: tuple(names) for group, names in groups.items()},
        background=storage.read_json(storage.join(report, "analysis.json"))["segmenter"].get("background", True),
    )
    if settings.only:
        rows = choose_rows(rows, read_split_list(settings.only, "only"), root, settings.only, "were not evaluated")
    images = Workspace(root).images
    units: list[Unit] = []
    existing: set[str] = set()
    for part in tables.require_commit(images).parts:
        for number in range(len(part.row_groups)):
            ids = tables.read_row_group(images, part.name, number, ["image_id"])["image_id"].to_pylist()
            if wanted := {each: rows[each] for each in ids if each in rows}:
                units.append(partial(_load_evaluated, images, part, number, wanted, report))
                existing |= wanted.keys()
    reason = f"the image is not in the data set any more: {_RUN_AGAIN}"
    gone = [Reject(image_id, images, _STAGE, reason) for image_id in rows if image_id not in existing]
    return _Source(info, units, len(existing), gone)


def _read_evaluation(root: str, report: str, settings: ExportSettings) -> dict[str, dict[str, Any]]:
    """Read the table of evaluated images, and check that the evaluation is complete.

    Args:
        root: URI of the workspace.
        report: URI of the folder of the evaluation.
        settings: settings of the command.

    Returns:
        The rows of `images.parquet` by image_id.

    Raises:
        UserError: if there is no such evaluation, it may not match the current images, or an earlier version made it.
    """
    if not storage.exists(storage.join(report, "results.json")):
        raise UserError(
            f"{root} has no evaluation in {settings.evaluation}: name a workspace that train_pipeline.py has evaluated, or by "
            "--evaluation the folder there that evaluate.py wrote, such as evaluations/dev"
        )
    if settings.evaluation.split("/")[0] == "report" and outdated(root, ["evaluate"]):
        raise UserError(
            f"{root}: the last run there did not finish, so its report may not match the current images: {_RUN_AGAIN}"
        )
    rows = {row["image_id"]: row for row in read_images(storage.join(report, IMAGES_FILE))}
    if not all(row.get("mask") for row in rows.values()):
        raise UserError(f"{report} was made by an earlier version of this program, which kept no masks: {_RUN_AGAIN}")
    return rows


def _measures_of(row: Mapping[str, Any]) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
    """Divide a row of `images.parquet`.

    Args:
        row: the row, in which "iou.cat" is the measure "cat" of the group "iou".

    Returns:
        measures: the measures that are in no group, by name.
        groups: the measures of each group by name.
    """
    measures: dict[str, float | None] = {}
    groups: dict[str, dict[str, float | None]] = {}
    for column, value in row.items():
        group, dot, name = column.partition(".")
        if dot:
            groups.setdefault(group, {})[name] = value
        elif column not in ("image_id", "picture", "mask"):
            measures[column] = value
    return measures, groups


def _load_evaluated(
    images: str, part: tables.Part, row_group: int, rows: Mapping[str, Mapping[str, Any]], report: str
) -> Iterator[Sample | Reject]:
    """Load the evaluated images of a row group of the table `images`.

    Args:
        images: URI of the table.
        part: part of the table.
        row_group: index of the row group in the part.
        rows: rows of `images.parquet` by image_id.
        report: folder of the report.

    Yields:
        The samples. In place of an image whose annotation is not the one that was evaluated, or whose mask can't be read, a
        Reject.
    """
    columns = ["image_id", "split", "image", "class_mask"]
    for image in tables.read_row_group(images, part.name, row_group, columns).to_pylist():
        image_id, data = image["image_id"], image["image"]
        if (row := rows.get(image_id)) is None:
            continue
        try:
            truth = decode_mask(image["class_mask"]) if image["class_mask"] else np.zeros((0, 0), np.uint8)
            mask = decode_mask(read_input(storage.join(report, row["mask"])))
            if not _is_evaluated(truth, mask, row["pixel_accuracy"]):
                raise BadInput(f"its annotation or its mask is not the one that was evaluated: {_RUN_AGAIN}")
        except BadInput as error:
            yield Reject(image_id, images, _STAGE, str(error))
            continue
        suffix = next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), ".other")
        yield Sample(
            f"{image_id}{suffix}", images, data, {PREDICTION: mask, TRUTH: truth}, None, *_measures_of(row), (image["split"],)
        )


def _is_evaluated(truth: np.ndarray, mask: np.ndarray, pixel_accuracy: float | None) -> bool:
    """Return whether a mask, compared with an annotation, has the pixel accuracy that the evaluation recorded.

    Args:
        truth: uint8 array (H, W) of class ids; 255 is void.
        mask: uint8 array of class ids.
        pixel_accuracy: share of the annotated pixels with the right class, 0 to 1; None if the annotation is all void.
    """
    if truth.shape != mask.shape:
        return False
    right = (truth == mask)[truth != VOID_ID]
    if pixel_accuracy is None or not right.size:
        return pixel_accuracy is None and not right.size
    return abs(float(right.mean()) - pixel_accuracy) < 1e-9
