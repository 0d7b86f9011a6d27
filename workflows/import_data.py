"""Bring your own data: from COCO JSON, LabelMe or a folder of masks to the layout that training takes, with a check of it.

  python workflows/import_data.py --from coco    --images DIR --annotations instances.json --to my-data
  python workflows/import_data.py --from labelme --annotations DIR_OF_JSON_FILES --to my-data
  python workflows/import_data.py --from masks   --images DIR --annotations DIR_OF_MASKS --to my-data [--table colours.txt]
  … --val_annotations WHAT [--val_images DIR]       a split that is given (else --train_list, --val_list; else a fifth is drawn)
  … --dry-run                                       what would be imported
  python workflows/import_data.py --check my-data   the check alone, of any folder in VOC's layout

The folder appears whole or not at all. In it: JPEGImages (files as they were), SegmentationClass, SegmentationObject (where objects are
known), ImageSets/Segmentation, classes.txt, rejects.csv (what was set aside, and why), and the check: check.md and contact_sheet.png.
It ends with the command that trains on it.

Exit codes: 0 done; 2 a mistake in the settings or the data; 75 interrupted: nothing was written.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from deconvnet.datasets import formats, voc
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportRules
from deconvnet.datasets.importing.train_val_split import SplitRules, read_split_list, split_images
from deconvnet.datasets.importing.voc_writer import CLASSES_FILE, IMPORT_FILE, REJECTS_FILE, new_folder, write_voc_layout
from deconvnet.datasets.palette import VOC_CLASSES
from deconvnet.datasets.validation.check import REPORT_FILE, SHEET_FILE, check_dataset
from deconvnet.datasets.validation.image_statistics import ProposalLimits
from infra import storage
from infra.errors import UserError
from proposals.settings import ProposalSettings
from workflows import cli
from workflows.settings import CONFIGS, ImportSettings

FETCH = "python workflows/download.py vgg16 --to data"
TABLE_FILE = "values.txt"  # what the masks' values were taken for


def main(argv: list[str] | None = None) -> int:
    command = cli.SettingsParser(__doc__ or "", ImportSettings, CONFIGS / "import_data.yaml")
    command.add_argument("--dry-run", action="store_true", help="print what would be imported, and write nothing")
    settings, options = command.parse_settings(argv)
    if settings.check:
        _check_alone(settings, settings.check)
    else:
        _import(settings, _local(settings.to or "", "to"), options.dry_run)
    return 0


def _import(settings: ImportSettings, folder: Path, dry_run: bool) -> None:
    """Import the data set that the settings name to `folder`, check it and print how to train on it."""
    dataset = _read_dataset(settings)
    lists = {
        name: read_split_list(uri, name) if (uri := getattr(settings, name)) else None for name in ("train_list", "val_list")
    }
    splits = split_images(dataset, SplitRules(lists["train_list"], lists["val_list"], settings.val_share, settings.seed))
    counts = {split: sum(each == split for each in splits.values()) for split in ("train", "val")}
    print(
        f"{len(splits):,} annotated images ({counts['train']:,} train, {counts['val']:,} val), {len(dataset.rejects):,} unusable"
    )
    print(f"classes: {', '.join(dataset.classes)}")
    inferred = dataset.class_table if not settings.table else None
    print("\n".join([*(f"note: {note}" for note in dataset.notes), *([f"\n{inferred}"] if inferred else [])]))
    if dry_run:
        return
    with new_folder(folder) as temporary:
        origin = {"from": settings.from_, "annotations": [settings.annotations, *filter(None, [settings.val_annotations])]}
        summary = write_voc_layout(
            dataset, splits, temporary, max_rejects=settings.max_rejects, threads=_threads(settings), origin=origin
        )
        if dataset.class_table:
            (temporary / TABLE_FILE).write_text(dataset.class_table, "utf-8")
        _check(settings, str(temporary), dataset.classes, ("train", "val"), str(temporary), folder.name)
    if summary.rejects or summary.skipped:
        print(f"not imported: {len(summary.rejects):,} images, {len(summary.skipped):,} annotations; see {REJECTS_FILE}")
    print(f"data           {folder}\ncheck          {folder / REPORT_FILE}\ncontact sheet  {folder / SHEET_FILE}")
    print(f"\nto train on it (the first line once, for VGG-16's weights):\n{FETCH}\n{train_command(folder, dataset.classes)}")


def _read_dataset(settings: ImportSettings) -> AnnotatedDataset:
    """Read the data set that the settings name."""
    annotations = settings.annotations or ""
    images = settings.images or annotations
    given = settings.val_annotations
    sources = [AnnotationSource(images, annotations, "train" if given else None)]
    if given:
        sources.append(AnnotationSource(settings.val_images or settings.images or given, given, "val"))
    rules = ImportRules(
        classes=settings.classes,
        small_over_large=settings.overlap == "small",
        crowd_void=settings.crowd == "void",
        others_void=settings.others == "void",
        unknown_void=settings.strange == "void",
        class_table=settings.table,
        mask_suffix=settings.mask_suffix,
        max_pixels=settings.max_pixels,
    )
    return formats.get_format(settings.from_ or "").read(sources, rules)


def _check_alone(settings: ImportSettings, root: str) -> None:
    voc.VocDataset(root)  # refused before anything is written
    classes = settings.classes or _classes_of(root)
    _check(settings, root, classes, (settings.train_split, settings.val_split), settings.report or root, Path(root).name)
    print(f"check          {storage.join(settings.report or root, REPORT_FILE)}")
    print(f"contact sheet  {storage.join(settings.report or root, SHEET_FILE)}")


def _classes_of(root: str) -> tuple[str, ...]:
    """The classes that the folder's classes.txt names, else VOC's."""
    try:
        names = storage.read_bytes(storage.join(root, CLASSES_FILE)).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        print(f"{root} has no {CLASSES_FILE}: VOC's classes are assumed (or give --classes)")
        return VOC_CLASSES
    return tuple(name.strip() for name in names if name.strip())


def _check(settings: ImportSettings, root: str, classes: tuple[str, ...], splits: tuple[str, str], to: str, title: str) -> None:
    """Print the check of `root`, and write it and its pictures below `to`."""
    found = ProposalSettings()
    place = storage.join(root, IMPORT_FILE)
    imported: dict[str, Any] | None = storage.read_json(place) if storage.exists(place) else None
    if to != root or settings.check:
        storage.check_writable(to)
    report, sheet = check_dataset(
        root,
        classes,
        ProposalLimits(found.min_box_area, found.max_side),
        title=title,
        splits=splits,
        max_pixels=settings.max_pixels,
        threads=_threads(settings),
        imported=imported,
    )
    print(f"\n{report.text}", flush=True)
    storage.write_bytes(storage.join(to, REPORT_FILE), report.text.encode())
    if sheet:
        storage.write_bytes(storage.join(to, SHEET_FILE), sheet)


def train_command(folder: Path, classes: tuple[str, ...]) -> str:
    """What trains on `folder`, ready for a shell."""
    plain = all("," not in name and name == name.strip() for name in classes) and not classes[0].startswith("[")
    names = ",".join(classes) if plain else json.dumps(classes, ensure_ascii=False)
    command = ["python", "workflows/train_pipeline.py", "--config", "workflows/configs/own_data.yaml"]
    command += ["--data.root", str(folder), "--data.classes", names, "--workspace", f"runs/{folder.name}"]
    return shlex.join(command)


def _threads(settings: ImportSettings) -> int:
    return settings.threads or len(os.sched_getaffinity(0))


def _local(place: str, setting: str) -> Path:
    """A folder on this machine. Raises UserError for other places."""
    if storage.is_s3(place):
        raise UserError(f"--{setting} {place} is in a bucket: import to a folder on this machine, and copy it there")
    return storage.local_path(place)


if __name__ == "__main__":
    sys.exit(cli.run(main, interrupted="nothing was written"))
