"""Add annotated images to a folder in PASCAL VOC's layout, or replace the masks of its images."""

import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from deconvnet.datasets.importing.dataset import BACKGROUND, BACKGROUND_NAMES
from deconvnet.datasets.voc import VocDataset
from deconvnet.datasets.writing.addition import Addition, check_same_classes, temporary_folder
from deconvnet.datasets.writing.voc_writer import CLASSES_FILE, load_images
from infra.errors import UserError
from workflows.operations.data_import import (
    count_threads,
    local_folder,
    log_classes,
    log_files,
    log_lost,
    log_options_without_effect,
    read_classes,
    read_dataset,
    rejects_text,
    split_dataset,
    write_check,
)
from workflows.settings.import_data import ImportSettings

logger = logging.getLogger(__name__)


def add_images(settings: ImportSettings, dry_run: bool) -> None:
    """Add annotated images to a folder in VOC's layout, or replace the masks of its images, and check the folder.

    Args:
        settings: settings of the command. `add_to` names the folder.
        dry_run: True to read everything and log which images would be added, replaced, left unchanged or refused; nothing is
            written.

    Raises:
        UserError: if the data or the folder can't be read, the classes are not those of the folder, too many images or
            annotations can't be used, or the folder has other images of the same names. Then nothing is written.
        Locked: if another import adds images to the folder.
        Interrupted: if another import took over the lock. The same command completes the addition.
    """
    folder = local_folder(settings.add_to or "", "add_to")
    VocDataset(str(folder))  # raises before anything is written
    log_options_without_effect(settings)
    known = _known_classes(settings, folder)
    # The split lists are read under the lock, because another addition may change them until then.
    with nullcontext((None, None)) if dry_run else temporary_folder(folder) as (temporary, lock):
        addition = Addition(folder, settings.train_split, settings.val_split)
        dataset = read_dataset(settings, known)
        log_classes(dataset)
        check_same_classes(dataset.classes, known, folder)
        logged = len(dataset.notes)
        splits = split_dataset(settings, dataset, addition.splits)
        if settings.train_list or settings.val_list or dataset.has_splits:
            dataset.notes += addition.describe_kept(splits)
        summary = load_images(
            dataset,
            splits,
            partial(addition.compare, temporary=temporary),
            max_rejects=settings.max_rejects,
            max_void=settings.max_void,
            threads=count_threads(settings.threads),
        )
        log_lost(summary)
        for note in dataset.notes[logged:]:
            logger.info(f"note: {note}")
        outcome = f"{addition.describe(splits)}; unusable: {rejects_text(summary)}"
        if dry_run or addition.refused:
            logger.info(f"would be {outcome}")
        addition.check_refused()
        if temporary is None or lock is None:
            return
        addition.apply(temporary, splits, summary, lock)
        logger.info(outcome)
    write_check(settings, str(folder), known, (settings.train_split, settings.val_split), str(folder), folder.name)
    log_files(folder)
    logger.info("\nto train on it again, with the settings of the last training:")
    logger.info("python workflows/retrain.py --config FILE --dry-run")


def _known_classes(settings: ImportSettings, folder: Path) -> tuple[str, ...]:
    """Return the class names of the folder to which images are added, background first.

    Args:
        settings: settings of the command. Their `classes` are used if the folder has no classes.txt.
        folder: the folder, in VOC's layout.

    Raises:
        UserError: if classes.txt can't be read, or the folder has none and the settings name no classes.
    """
    if (folder / CLASSES_FILE).exists():
        return read_classes(str(folder), settings.encoding)
    if not settings.classes:
        raise UserError(f"{folder} has no {CLASSES_FILE}: name its classes by --classes, in the order of their ids")
    first = settings.classes[0].lower() in BACKGROUND_NAMES
    return settings.classes if first else (BACKGROUND, *settings.classes)
