"""Export the predictions of predict.py as annotations that a labelling tool can edit."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deconvnet.datasets.exporting import ExportOptions, get_format
from deconvnet.datasets.exporting.export_writer import SMALL_OBJECT_PIXELS, ExportSummary, Prediction, write_export
from deconvnet.datasets.exporting.voc import has_label_map
from deconvnet.datasets.image_folder import list_folder
from deconvnet.datasets.importing.dataset import BACKGROUND_NAMES
from deconvnet.datasets.importing.image_index import NameIndex
from deconvnet.datasets.importing.train_val_split import read_split_list
from deconvnet.datasets.writing.new_folder import check_new, new_folder
from deconvnet.datasets.writing.voc_writer import REJECTS_FILE
from deconvnet.inference.predictions_table import CLASSES_FILE, TABLE, read_state
from infra import storage
from infra.errors import UserError
from infra.storage import tables
from infra.storage.tables import Reject
from workflows import cli
from workflows.operations.data_import import count_threads, local_folder
from workflows.settings.export import ExportSettings

logger = logging.getLogger(__name__)

_SCORES = ["confidence_before_crf", "class_confidence_before_crf"]
_COLUMNS = ["image_id", "path", "classes", *_SCORES, "mask", "stamp", "generation"]
_IMPORTED_AS = {"labelstudio": "label_studio", "voc": "masks"}  # names of the formats at import_data.py, where they differ


def export_labels(settings: ExportSettings, dry_run: bool) -> None:
    """Export the predictions of a folder of images, and log the command that imports the corrected annotations.

    Args:
        settings: settings of the command.
        dry_run: True to log what would be exported, without writing anything.

    Raises:
        UserError: if there are no finished predictions, an image to export has none, too many images can't be used, or the folder
            exists and is not empty.
        Locked: if another export creates the same folder.
        Interrupted: if another export took over the lock.
    """
    folder, source = local_folder(settings.to), settings.predictions or ""
    commit, names = read_commit(source), read_classes(source)
    export_format = get_format(settings.format)
    options = ExportOptions(
        classes=tuple(names["classes"]),
        background=names["background"],
        shapes=settings.shapes or ("polygons" if export_format.has_polygons else "masks"),
        tolerance=settings.tolerance,
        min_area=settings.min_area,
        image_url=settings.image_url,
        model=commit.extra["model"],
    )
    rows, rejects = find_rows(source, settings.only, commit, _COLUMNS)
    predictions = [_to_prediction(row, source) for row in rows]
    logger.info(f"{len(predictions):,} predictions by {options.model}, of the classes {', '.join(options.labels.values())}")
    if dry_run:
        check_new(folder)
        check_rejects(rejects, len(predictions) + len(rejects), settings.max_rejects)
        logger.info(f"would export {len(predictions):,} images as {options.shapes} for {settings.format}")
        return
    with new_folder(folder, "export.py") as temporary:
        summary = write_export(predictions, rejects, export_format, options, temporary, count_threads(settings.threads))
        check_rejects(summary.rejects, len(predictions) + len(rejects), settings.max_rejects)
    logger.info(_summary_text(summary, options, folder))
    logger.info("\nto import the corrected labels, after the tool has exported them in the same format:")
    logger.info("(with --add_to FOLDER instead of --to: add them to a data set, or replace its masks)")
    logger.info(_import_command(settings.format, folder, options))


def read_commit(predictions: str) -> tables.Commit:
    """Return the commit record of the table `predictions` in an output folder of predict.py. Raise UserError if it has none."""
    commit = tables.read_commit(storage.join(predictions, TABLE))
    if commit is None:
        raise UserError(
            f"predictions {predictions} has no finished table {TABLE}: name the folder that predict.py wrote by --output"
        )
    return commit


def read_classes(predictions: str) -> Mapping[str, Any]:
    """Return the content of classes.json in an output folder of predict.py: `classes`, and whether class 0 is the `background`.

    Args:
        predictions: the output folder.

    Raises:
        UserError: if there is no such file, because an earlier version of the program made the predictions.
    """
    try:
        names: Mapping[str, Any] = storage.read_json(storage.join(predictions, CLASSES_FILE))
    except FileNotFoundError:
        raise UserError(
            f"predictions {predictions} has no {CLASSES_FILE}, because an earlier version of this program made it: run "
            "predict.py again, with a new folder as output"
        ) from None
    return names


def find_rows(
    source: str, only: str | None, commit: tables.Commit, columns: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Find the predictions to export.

    Args:
        source: output folder of predict.py.
        only: text file with the names or paths of the images to export; None for all.
        commit: commit record of the table `predictions`.
        columns: names of columns to read; image_id, path, stamp and generation must be among them.

    Returns:
        predictions: rows of the table by the names of the columns, in the order of the table.
        rejects: a Reject for each image that is gone, or has changed since it was predicted.

    Raises:
        UserError: if `only` lists no image or one that was not predicted, the folder of images is gone, or predict.py was stopped
            while it predicted the images by another model.
    """
    rows = {row["image_id"]: row for row in tables.iter_rows(storage.join(source, TABLE), columns)}
    state = read_state(source)
    if state is None or {row["generation"] for row in rows.values()} - {state.generation}:
        raise UserError(
            f"predictions {source} are unfinished: predict.py was stopped while it predicted them by another model. Run it again"
        )
    if only:
        names = {row["path"]: name for name, row in rows.items()}
        listed = [names.get(name, name) for name in read_split_list(only, "only")]
        rows = choose_rows(rows, listed, commit.extra["input"], only, "have no prediction")
    stamps = {image.name: image.stamp for image in list_folder(commit.extra["input"], exclude=source).images}
    predictions, rejects = [], []
    for name, row in rows.items():
        if stamps.get(name) == row["stamp"]:
            predictions.append(row)
        else:
            reason = "was changed after it was predicted" if name in stamps else "is gone"
            rejects.append(Reject(name, row["path"], "export", f"the image {reason}: run predict.py again"))
    return predictions, rejects


def choose_rows(
    rows: Mapping[str, dict[str, Any]], listed: Sequence[str], root: str, only: str, missing_text: str
) -> dict[str, dict[str, Any]]:
    """Return the rows of the images that a list names, in the order of the rows.

    Args:
        rows: rows by name of the image.
        listed: names of images.
        root: folder of the images.
        only: the file that lists them, for the message.
        missing_text: predicate of the error message about images without a row, such as "have no prediction".

    Raises:
        UserError: if the list is empty, or an image has no row.
    """
    if not listed:
        raise UserError(f"only {only} names no image: name one a line, or leave only out to export all")
    found, missing, _ = NameIndex(list(rows), root).find_listed(listed)
    if missing:
        first, reason = next(iter(missing.items()))
        raise UserError(f"only {only}: {len(missing):,} images {missing_text}, the first is {first}: {reason}")
    chosen = set(found.values())
    return {name: row for name, row in rows.items() if name in chosen}


def _to_prediction(row: Mapping[str, Any], source: str) -> Prediction:
    """Convert a row of the table `predictions` in the folder `source` to a prediction."""
    score, *class_scores = (round(each, 4) for each in (row[_SCORES[0]], *row[_SCORES[1]]))
    mask = storage.join(source, row["mask"])
    return Prediction(row["image_id"], row["path"], mask, tuple(row["classes"]), score, tuple(class_scores))


def check_rejects(rejects: list[Reject], images: int, max_rejects: float) -> None:
    """Log which images can't be used.

    Args:
        rejects: these images, with the reasons.
        images: number of all images.
        max_rejects: share of the images that may be unusable.

    Raises:
        UserError: if more are unusable, or all.
    """
    if not rejects:
        return
    logger.warning(cli.rejects_text(rejects))
    if len(rejects) > max_rejects * images or len(rejects) == images:
        raise UserError(
            f"{len(rejects):,} of {images:,} images can't be exported, and max_rejects allows {max_rejects:.0%}; the first is "
            f"{rejects[0].path}: {rejects[0].reason}. Nothing was written"
        )


def _summary_text(summary: ExportSummary, options: ExportOptions, folder: Path) -> str:
    """Return a text for a terminal: what was exported, how exact it is, and where it is."""
    lines = [f"exported     {summary.images:,} images with {summary.objects:,} objects"]
    if summary.small_objects:
        lines.append(
            f"specks       {summary.small_objects:,} objects have fewer than {SMALL_OBJECT_PIXELS} px: "
            f"--min_area {SMALL_OBJECT_PIXELS} leaves them out"
        )
    if options.shapes == "polygons" or options.min_area:
        share, name = summary.worst or (1.0, "")
        exact = "--tolerance 0 with --min_area 0 is exact"
        lines.append(f"agreement    {summary.agreement:.2%} of the pixels keep their class (least: {share:.2%}, {name}); {exact}")
    if summary.rejects:
        lines.append(f"rejects      {folder / REJECTS_FILE} ({len(summary.rejects):,})")
    return "\n".join([*lines, f"export       {folder}"])


def _import_command(name: str, folder: Path, options: ExportOptions) -> str:
    """Return the shell command that imports an export.

    Args:
        name: name of the format.
        folder: folder of the export.
        options: options of the export.

    Returns:
        The command with quoted arguments, in one line. It gives the classes the ids that they have in the model.
    """
    export_format = get_format(name)
    images = Path(export_format.image_path("a.jpg")).parent
    command = ["python", "workflows/import_data.py", "--from", _IMPORTED_AS.get(name, name), "--images", str(folder / images)]
    command += ["--annotations", str(folder / export_format.annotations), "--to", f"{folder}-corrected"]
    if export_format.has_polygons:
        command += ["--classes", cli.names_text(tuple(options.labels.values()))]
        return shlex.join(command)
    if not has_label_map(options.classes):  # then the masks have ids alone, and perhaps not all of them
        command += ["--classes", cli.names_text(options.classes)]
    if not options.background and options.classes[0].lower() not in BACKGROUND_NAMES:
        command += ["--background", "none"]
    return shlex.join(command)
