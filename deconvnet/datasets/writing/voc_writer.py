"""Writing an annotated data set as a new folder in VOC's layout.

The folder appears only when it is complete. Beside the files of VOC's layout, three files are written. classes.txt has the class
names, one on each line, in the order of their ids. rejects.csv has the images and annotations that were not imported, with the
reasons. import.json has the origin of the data set and the counts of the import.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from deconvnet.datasets import voc
from deconvnet.datasets.importing.dataset import STAGE, AnnotatedDataset, AnnotatedImage, DatasetEntry, LostAnnotation
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.datasets.thread_map import thread_map
from infra import storage
from infra.errors import BadInput, UserError
from infra.storage.tables import Reject
from proposals.image_codec import encode_mask

CLASSES_FILE, REJECTS_FILE, IMPORT_FILE = "classes.txt", "rejects.csv", "import.json"
REJECTS_HEADING = ("what", "id", "file", "reason")
_MIN_IMAGES = {"train": 2, "val": 1}


class _Written(NamedTuple):
    """The data about one written image that go into the summary of the import.

    Attributes:
        lost_annotations: annotations that became void or were left out.
        remark: phrase about the image, printed for the user, such as "is tiny"; "" if there is none.
        counts: numbers to add up over all images, as in `ImportSummary.counts`.
    """

    lost_annotations: tuple[LostAnnotation, ...]
    remark: str
    counts: Counter[str]


@dataclass
class ImportSummary:
    """The result of an import.

    Attributes:
        splits: sorted ids of the imported images by split, "train" and "val".
        rejects: a Reject (an input that can't be used, with the reason) for each image that could not be imported.
        lost_annotations: annotations that became void or were left out: the id of the image, the file that names it, and the
            reason.
        remarks: number of images by remark, a phrase about an image such as "is tiny".
        counts: numbers over all imported images: "pixels", "overlap_pixels" (that more than one object covers),
            "overlapping_images" (in which objects overlap), "hidden_objects" (that lie wholly under others) and "annotations" (of
            classes to import).
    """

    splits: dict[str, list[str]]
    rejects: list[Reject] = field(default_factory=list)
    lost_annotations: list[tuple[str, str, LostAnnotation]] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, entry: DatasetEntry, split: str, result: _Written | Reject) -> None:
        """Add the result of one image.

        Args:
            entry: the image.
            split: its split, "train" or "val".
            result: the data about the written image, or a Reject with the reason why it can't be used.
        """
        if isinstance(result, Reject):
            self.rejects.append(result)
            return
        self.splits[split].append(entry.image_id)
        self.lost_annotations += [(entry.image_id, entry.uri, lost) for lost in result.lost_annotations]
        self.remarks.update([result.remark] if result.remark else [])
        self.counts.update(result.counts)

    def reject_rows(self) -> list[tuple[str, str, str, str]]:
        """Return the rows of rejects.csv (the columns are `REJECTS_HEADING`): first the images, then the annotations."""
        return [
            *(("image", reject.image_id, reject.path, reject.reason) for reject in self.rejects),
            *(("annotation", image_id, uri, str(lost)) for image_id, uri, lost in self.lost_annotations),
        ]

    def count_lost(self) -> list[tuple[str, str, int]]:
        """Count the annotations that became void or were left out, by their class and the reason.

        Returns:
            Tuples of the class name in the annotations, the reason, and the number of such annotations, the largest number first.
        """
        counts = Counter((lost.label, lost.reason) for *_, lost in self.lost_annotations)
        return [(*key, count) for key, count in counts.most_common()]


def write_voc_layout(
    dataset: AnnotatedDataset,
    splits: Mapping[str, str],
    folder: Path | None,
    *,
    max_rejects: float,
    max_void: float = 0.1,
    threads: int,
    origin: Mapping[str, Any],
) -> ImportSummary:
    """Load the images of a data set, and write them with their masks and lists to a folder in VOC's layout.

    Args:
        dataset: the data set.
        splits: "train" or "val" by image id. Images without a split are not written.
        folder: existing empty folder to write to. None to load the images and make their masks, but write nothing.
        max_rejects: share of the images that may be unusable, in [0, 1].
        max_void: share of the annotations that may become void or be left out, in [0, 1].
        threads: number of threads that load and write images.
        origin: JSON values that describe the origin of the data set; they are written to import.json.

    Returns:
        A summary of what was imported and what was not.

    Raises:
        UserError: if more images than `max_rejects` allows are unusable, more annotations than `max_void` allows don't become
            objects, train has fewer than two images, or val has none. The caller must then delete the folder, as files that were
            already written stay in it.
    """
    if folder:
        for name in (voc.IMAGES_DIR, voc.CLASS_MASKS_DIR):
            (folder / name).mkdir()
    store = partial(_write_image, folder=folder) if folder else None
    summary = load_images(
        dataset, splits, store, max_rejects=max_rejects, max_void=max_void, threads=threads, min_images=_MIN_IMAGES
    )
    if folder:
        _write_lists(dataset, summary, folder, origin)
    return summary


def load_images(
    dataset: AnnotatedDataset,
    splits: Mapping[str, str],
    store: Callable[[str, AnnotatedImage], None] | None,
    *,
    max_rejects: float,
    max_void: float,
    threads: int,
    min_images: Mapping[str, int] = {},
) -> ImportSummary:
    """Load the images of a data set and make their masks. Progress is shown on stderr.

    Args:
        dataset: the data set. Remarks about its images are added to its notes.
        splits: "train" or "val" by image id. Images without a split are not loaded.
        store: called with the id of each usable image and the image, from several threads. None to load the images only.
        max_rejects: share of the images that may be unusable, in [0, 1].
        max_void: share of the annotations that may become void or be left out, in [0, 1].
        threads: number of threads that load and store images.
        min_images: least number of usable images by split.

    Returns:
        A summary of what was imported and what was not.

    Raises:
        UserError: if more images or annotations than allowed can't be used, or a split has too few images. By then, images were
            already given to `store`.
    """
    entries = [entry for entry in dataset.entries if entry.image_id in splits]
    summary = ImportSummary({"train": [], "val": []}, list(dataset.rejects), list(dataset.lost_annotations))
    summary.counts["annotations"] += len(dataset.lost_annotations)

    def import_one(entry: DatasetEntry) -> _Written | Reject:
        try:
            image = entry.load()
        except BadInput as error:
            return Reject(entry.image_id, entry.uri, STAGE, str(error))
        if store:
            store(entry.image_id, image)
        return _measure(image)

    for entry, result in zip(entries, thread_map(import_one, entries, threads, "importing", "images"), strict=True):
        summary.add(entry, splits[entry.image_id], result)
    _check_summary(summary, len(entries) + len(dataset.rejects), max_rejects, min_images)
    _check_lost(summary, max_void)
    dataset.notes += [f"{count:,}× an image {remark}" for remark, count in summary.remarks.items()]
    return summary


def _measure(image: AnnotatedImage) -> _Written:
    """Collect the data about an image that go into the summary of the import."""
    counts = Counter(
        pixels=image.class_mask.size,
        overlap_pixels=image.overlap_pixels,
        overlapping_images=int(image.overlap_pixels > 0),
        hidden_objects=image.hidden_objects,
        annotations=image.annotations,
    )
    return _Written(image.lost_annotations, image.remark, counts)


def _write_image(image_id: str, image: AnnotatedImage, folder: Path) -> None:
    """Write the image file and the masks of one image to a folder in VOC's layout.

    Args:
        image_id: id of the image, which is the name of its files without suffix.
        image: the image with its masks.
        folder: folder of the data set.
    """
    (folder / voc.IMAGES_DIR / f"{image_id}{image.suffix}").write_bytes(image.image)
    (folder / voc.CLASS_MASKS_DIR / f"{image_id}.png").write_bytes(encode_mask(image.class_mask, VOC_PALETTE))
    if image.object_mask is not None:
        (folder / voc.OBJECT_MASKS_DIR).mkdir(exist_ok=True)
        palette = VOC_PALETTE if image.object_mask.itemsize == 1 else None
        (folder / voc.OBJECT_MASKS_DIR / f"{image_id}.png").write_bytes(encode_mask(image.object_mask, palette))


def _check_summary(summary: ImportSummary, inputs: int, max_rejects: float, min_images: Mapping[str, int]) -> None:
    """Check that not too many images were rejected, and that each split has enough images.

    Args:
        summary: result of the import.
        inputs: number of images that the import tried to use.
        max_rejects: share of these images that may be unusable, in [0, 1].
        min_images: least number of images by split.

    Raises:
        UserError: if a larger share was rejected, or a split has too few images.
    """
    why = most_common_reasons([reject.reason for reject in summary.rejects])
    first = f"; the first is {summary.rejects[0].path}" if summary.rejects else ""
    if summary.rejects and len(summary.rejects) > max_rejects * inputs:
        raise UserError(
            f"{len(summary.rejects):,} of {inputs:,} images can't be used ({why}{first}), and max_rejects allows "
            f"{max_rejects:.0%}: correct them, or raise --max_rejects. Nothing was written"
        )
    for split, least in min_images.items():
        if len(summary.splits[split]) < least:
            raise UserError(
                f"{split} has {len(summary.splits[split])} images, and at least {least} are needed"
                f"{f' ({why})' if why else ''}: add some, or change the splits. Nothing was written"
            )


def _check_lost(summary: ImportSummary, max_void: float) -> None:
    """Check that not too many annotations became void or were left out.

    Args:
        summary: result of the import.
        max_void: share of the annotations for which that is allowed, in [0, 1].

    Raises:
        UserError: if the share is larger. The message names the options that turn such annotations into objects.
    """
    count, total = len(summary.lost_annotations), summary.counts["annotations"]
    if count > max_void * max(total, count):
        found = summary.count_lost()
        reasons = "; ".join(f"{number:,}× {label} {reason}" for label, reason, number in found[:5]) + ("; …" if found[5:] else "")
        remedies = dict.fromkeys(lost.remedy for *_, lost in summary.lost_annotations if lost.remedy)
        raise UserError(
            f"{count:,} of {total:,} annotations don't become objects ({reasons}), and max_void allows {max_void:.0%}: correct "
            f"them, {''.join(f'give {remedy}, ' for remedy in remedies)}leave their classes out by --classes, or raise "
            "--max_void. Nothing was written"
        )


def most_common_reasons(reasons: Sequence[str], count: int = 3) -> str:
    """Summarise in one line why many inputs can't be used.

    Args:
        reasons: the reason for each such input. Reasons that differ only in numbers are counted as the same.
        count: number of different reasons to show.

    Returns:
        The most common reasons with their counts, such as "12× the file is empty; 1× not an image".
    """
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        kinds.setdefault(re.sub(r"\d[\d,.]*", "…", reason), []).append(reason)
    ranked = sorted(kinds.values(), key=len, reverse=True)[:count]
    return "; ".join(f"{len(group):,}× {group[0]}" for group in ranked)


def _write_lists(dataset: AnnotatedDataset, summary: ImportSummary, folder: Path, origin: Mapping[str, Any]) -> None:
    """Write the lists of the splits, classes.txt, rejects.csv and import.json.

    Args:
        dataset: the data set, for its class names and notes.
        summary: result of the import; the ids of its splits are sorted in place.
        folder: folder of the data set.
        origin: JSON values that describe the origin of the data set, for import.json.
    """
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for ids in summary.splits.values():
        ids.sort()
    for split, ids in {**summary.splits, "trainval": sorted(summary.splits["train"] + summary.splits["val"])}.items():
        (lists / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids), "utf-8")
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in dataset.classes), "utf-8")
    with (folder / REJECTS_FILE).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([REJECTS_HEADING, *summary.reject_rows()])
    content = {
        **origin,
        "classes": dataset.classes,
        "images": {split: len(ids) for split, ids in summary.splits.items()},
        "rejects": len(summary.rejects),
        "annotations": summary.counts["annotations"],
        "losses": [{"class": label, "reason": reason, "annotations": n} for label, reason, n in summary.count_lost()],
        "overlaps": {
            "images": summary.counts["overlapping_images"],
            "share_of_pixels": summary.counts["overlap_pixels"] / summary.counts["pixels"],
            "hidden_objects": summary.counts["hidden_objects"],
        },
        "notes": dataset.notes,
    }
    storage.write_json(str(folder / IMPORT_FILE), content)
