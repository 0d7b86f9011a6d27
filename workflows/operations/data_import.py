"""Import an annotated data set into PASCAL VOC's folder layout, and check a folder that has this layout."""

import logging
import shlex
from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path

from deconvnet.datasets import formats, voc
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions, parse_class_names
from deconvnet.datasets.importing.images import read_text
from deconvnet.datasets.importing.train_val_split import read_split_list, split_images
from deconvnet.datasets.palette import VOC_CLASSES
from deconvnet.datasets.validation.check import REPORT_FILE, SHEET_FILE, check_dataset
from deconvnet.datasets.writing.new_folder import check_new, new_folder
from deconvnet.datasets.writing.voc_writer import (
    CLASSES_FILE,
    REJECTS_FILE,
    ImportSummary,
    most_common_reasons,
    write_voc_layout,
)
from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.local_executor import available_cpus
from proposals.edgebox import EdgeBoxOptions
from workflows import cli
from workflows.settings.import_data import ImportSettings

logger = logging.getLogger(__name__)

DOWNLOAD_COMMAND = "python workflows/download.py vgg16 --to data"
CLASS_TABLE_FILE = "values.txt"
"""File in an imported folder that says to which class each mask value belongs."""

FORMATS_OF_OPTION = {
    "boxes": ("coco", "cvat", "label_studio", "supervisely", "yolo"),
    "crowd": ("coco",),
    "run_order": ("kaggle",),
    **dict.fromkeys(("others", "overlap"), tuple(name for name in formats.format_names() if name != "masks")),
    **dict.fromkeys(("table", "mask_suffix", "image_suffix", "strange", "transparent"), ("masks",)),
    "report": ("check",),
    **dict.fromkeys(("train_split", "val_split"), ("check", "add_to")),
}
"""The formats in which an option has an effect, for options that don't apply to every import. "check" stands for the check of a
folder, "add_to" for every import with --add_to."""
OPTIONS_OF_CHECK = ("check", "report", "train_split", "val_split", "classes", "encoding", "max_pixels", "threads")
"""Options that have an effect on the check of a folder."""


def import_dataset(settings: ImportSettings, dry_run: bool) -> None:
    """Import an annotated data set into VOC's folder layout, check the new folder, and log the command that trains on it.

    Args:
        settings: settings of the command. `to` names the new folder, which appears only when it is complete.
        dry_run: True to read all images and annotations and log what would be imported and what not, without writing anything.

    Raises:
        UserError: if the data can't be read, too many images or annotations can't be used, or the folder exists and is not empty.
        Locked: if another import creates the same folder.
        Interrupted: if another import took over the lock.
    """
    folder = local_folder(settings.to or "")
    log_options_without_effect(settings)
    dataset = read_dataset(settings)
    splits = split_dataset(settings, dataset)
    counts = Counter(splits.values())
    logger.info(
        f"{len(splits):,} annotated images ({counts['train']:,} train, {counts['val']:,} val), {len(dataset.rejects):,} unusable"
    )
    log_classes(dataset)
    origin = {"from": settings.from_, "annotations": [settings.annotations, *filter(None, [settings.val_annotations])]}
    write = partial(
        write_voc_layout,
        dataset,
        splits,
        max_rejects=settings.max_rejects,
        max_void=settings.max_void,
        threads=count_threads(settings.threads),
        origin=origin,
    )
    if dry_run:
        check_new(folder)
        logged = len(dataset.notes)
        summary = write(None)
        log_lost(summary)
        logger.info("\n".join(f"note: {note}" for note in dataset.notes[logged:]))
        logger.info(f"would import {sum(map(len, summary.splits.values())):,} images; unusable: {rejects_text(summary)}")
        return
    with new_folder(folder) as temporary:
        summary = write(temporary)
        if dataset.class_table:
            (temporary / CLASS_TABLE_FILE).write_text(dataset.class_table, "utf-8")
        write_check(settings, str(temporary), dataset.classes, ("train", "val"), str(temporary), folder.name)
    log_lost(summary)
    if summary.rejects or summary.lost_annotations:
        logger.info(
            f"not imported: {len(summary.rejects):,} images, {len(summary.lost_annotations):,} annotations; see {REJECTS_FILE}"
        )
    log_files(folder)
    logger.info("\nto train on it (the first line once, for VGG-16's weights):")
    logger.info(f"{DOWNLOAD_COMMAND}\n{train_command(folder, dataset.classes)}")


def split_dataset(settings: ImportSettings, dataset: AnnotatedDataset, existing_ids: Collection[str] = ()) -> dict[str, str]:
    """Assign each image to train or val, as the settings say.

    Args:
        settings: settings of the command: lists of images, or the share and the seed of a random choice.
        dataset: the images to split.
        existing_ids: ids of the images of the data set to which they are added.

    Returns:
        "train" or "val" by image id. Images that are left out are missing.

    Raises:
        UserError: if a list can't be read.
    """
    lists = {
        name: read_split_list(uri, name, settings.encoding)
        for name in ("train_list", "val_list")
        if (uri := getattr(settings, name))
    }
    return split_images(dataset, **lists, val_share=settings.val_share, seed=settings.seed, existing_ids=existing_ids)


def log_classes(dataset: AnnotatedDataset) -> None:
    """Log the classes of a data set, the notes on it, and the table of its mask values."""
    logger.info(f"classes: {', '.join(dataset.classes)}")
    table = [f"\n{dataset.class_table}"] if dataset.class_table else []
    logger.info("\n".join([*(f"note: {note}" for note in dataset.notes), *table]))


def rejects_text(summary: ImportSummary) -> str:
    """Return the number of images that can't be used, with the most common reasons."""
    reasons = f" ({most_common_reasons([reject.reason for reject in summary.rejects])})" if summary.rejects else ""
    return f"{len(summary.rejects):,}{reasons}"


def log_files(folder: Path) -> None:
    """Log where a data set and its check are."""
    logger.info(f"data           {folder}\ncheck          {folder / REPORT_FILE}\ncontact sheet  {folder / SHEET_FILE}")


def log_lost(summary: ImportSummary) -> None:
    """Log the number of annotations that were not imported as objects, by class and reason."""
    for label, reason, count in summary.count_lost():
        logger.info(f"no objects: {count:,}× {label} {reason}")


def check_folder(settings: ImportSettings, root: str) -> None:
    """Check a folder in VOC's layout, log the report, and write it to check.md.

    A contact sheet, which is a picture of some images with their masks, is written beside it.

    Args:
        settings: settings of the command. They name the two splits, and optionally the classes and the folder for the report.
        root: path or URI of the folder to check. The report is written there if the settings name no other folder.

    Raises:
        UserError: if the folder does not have VOC's layout, or the report can't be written.
    """
    voc.VocDataset(root)  # raises before anything is written
    log_options_without_effect(settings)
    classes = settings.classes or read_classes(root, settings.encoding)
    report = settings.report or root
    write_check(settings, root, classes, (settings.train_split, settings.val_split), report, Path(root).name)
    logger.info(f"check          {storage.join(report, REPORT_FILE)}")
    logger.info(f"contact sheet  {storage.join(report, SHEET_FILE)}")


def train_command(folder: Path, classes: tuple[str, ...]) -> str:
    """Return a shell command that trains on an imported folder.

    Args:
        folder: the imported folder, in VOC's layout.
        classes: class names in the order of their ids.

    Returns:
        The command with quoted arguments, in one line.
    """
    names = cli.names_text(classes)
    command = ["python", "workflows/train_pipeline.py", "--config", "workflows/configs/own_data.yaml"]
    command += ["--data.root", str(folder), "--data.classes", names, "--workspace", f"runs/{folder.name}"]
    return shlex.join(command)


def log_options_without_effect(settings: ImportSettings) -> None:
    """Log a note for each option that was given another value than its default, but has no effect on this import or check."""
    what = "check" if settings.check else settings.from_ or ""
    kinds = {what, "add_to"} if settings.add_to else {what}
    for name, field in ImportSettings.model_fields.items():
        if (value := getattr(settings, name)) == field.default:
            continue
        used = name in OPTIONS_OF_CHECK if settings.check else kinds & {*FORMATS_OF_OPTION.get(name, kinds)}
        if not used:
            logger.info(f"note: {name} {value} has no effect on {'a check' if what == 'check' else what}")


def read_dataset(settings: ImportSettings, known: tuple[str, ...] = ()) -> AnnotatedDataset:
    """Read the annotations that the settings name. The images themselves are read later.

    Args:
        settings: settings of the command: the format, the sources and the options of the import.
        known: names of the classes of the data set to which the images are added.

    Returns:
        The annotated images, the classes, and the images that can't be used.

    Raises:
        UserError: if the annotations can't be read.
    """
    annotations = settings.annotations or ""
    images = settings.images or annotations
    given = settings.val_annotations
    sources = [AnnotationSource(images, annotations, "train" if given else None)]
    if given:
        sources.append(AnnotationSource(settings.val_images or settings.images or given, given, "val"))
    options = ImportOptions(
        classes=settings.classes,
        existing_classes=known,
        background=settings.background,
        fold_case=settings.fold_case,
        small_over_large=settings.overlap == "small",
        crowd_void=settings.crowd == "void",
        boxes_void=settings.boxes == "void",
        run_order=settings.run_order,
        others_void=settings.others == "void",
        unknown_void=settings.strange == "void",
        transparent=settings.transparent,
        class_table_uri=settings.table,
        mask_suffix=settings.mask_suffix,
        image_suffix=settings.image_suffix,
        max_pixels=settings.max_pixels,
        encoding=settings.encoding,
    )
    return formats.get_format(settings.from_ or "").read(sources, options)


def read_classes(root: str, encoding: str | None = None) -> tuple[str, ...]:
    """Read the class names from the file classes.txt of a folder in VOC's layout, which has one name a line.

    Args:
        root: path or URI of the folder.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.

    Returns:
        The names in the order of their ids. If there is no such file, the names of PASCAL VOC's classes are returned, and a
        message is logged.

    Raises:
        UserError: if the file is in another encoding, or has an empty line before its last name.
    """
    file = storage.join(root, CLASSES_FILE)
    if not storage.exists(file):
        logger.info(f"{root} has no {CLASSES_FILE}: VOC's classes are assumed (or give --classes)")
        return VOC_CLASSES
    try:
        return tuple(parse_class_names(read_text(file, encoding)))
    except BadInput as error:
        raise UserError(f"the class names {file} can't be used: {error}") from None


def write_check(
    settings: ImportSettings, root: str, classes: tuple[str, ...], splits: tuple[str, str], to: str, title: str
) -> None:
    """Check a folder in VOC's layout, log the report, and write the report and a contact sheet.

    The contact sheet is a picture of some images with their masks.

    Args:
        settings: settings of the command.
        root: path or URI of the folder to check.
        classes: class names in the order of their ids.
        splits: names of the split for training and of the split for validation.
        to: folder to which the report and the contact sheet are written.
        title: name of the data set, for the headings of the report.

    Raises:
        UserError: if the folder or a split can't be read, or the report can't be written.
    """
    if to != root or settings.check:
        storage.check_writable(to)
    report, sheet = check_dataset(
        root,
        classes,
        EdgeBoxOptions(),
        title=title,
        splits=splits,
        max_pixels=settings.max_pixels,
        threads=count_threads(settings.threads),
    )
    logger.info(f"\n{report.text}")
    storage.write_bytes(storage.join(to, REPORT_FILE), report.text.encode())
    if sheet:
        storage.write_bytes(storage.join(to, SHEET_FILE), sheet)


def count_threads(threads: int | None) -> int:
    """Return `threads`, the value of a setting. If it is None, return the number of CPUs that this process may use."""
    return available_cpus() if threads is None else threads


def local_folder(uri: str, option: str = "to") -> Path:
    """Return the path of the folder that the option `--to` (or another) names. Raise UserError if it is in a bucket."""
    if storage.in_bucket(uri):
        raise UserError(f"--{option} {uri} is in a bucket: name a folder on this machine, and copy it there")
    return storage.local_path(uri)
