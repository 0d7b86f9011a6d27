"""The report of a check as Markdown text, and the list of the suspicious images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deconvnet.datasets.validation.duplicates import find_identical, find_near_duplicates
from deconvnet.datasets.validation.image_statistics import (
    MUCH_VOID,
    ONE_CLASS,
    SPECKLE_PIXELS,
    ImageStatistics,
    count_overlapping,
)
from proposals.edgebox import EdgeBoxOptions
from proposals.masks import VOID_ID

SPLITS = ("train", "val")
SMALL, LARGE = 0.01, 0.1  # share of the image that an object covers: below SMALL it is small, above LARGE it is large
MAX_CLASS_SHARE = 0.5  # share of all pixels; an object class that holds more may be the background
FEW_IMAGES = 5  # a class in fewer train images than this has too few to be learned
_MAX_EXAMPLES = 5
_NEAR_DUPLICATE = "near duplicate"
KINDS = {
    "unusable": "training would leave these out",
    "blended edges": "masks that were resized with interpolation, antialiased or saved as JPEG: export them again without",
    _NEAR_DUPLICATE: "the same or almost the same image in train and val: results on val would be too good",
    "one class": f"one class covers over {ONE_CLASS:.0%}: is it annotated, or filled in?",
    "empty": "nothing is annotated: fine if there is nothing to annotate",
    "void": f"over {MUCH_VOID:.0%} is void: little to learn from",
    "speckles": f"objects under {SPECKLE_PIXELS} px: slips of the brush, or remains of objects under others",
}
"""The kinds of suspicion about an image, the most serious first, each with an explanation for the user."""


@dataclass(frozen=True)
class CheckReport:
    """The result of a check.

    Attributes:
        text: the report in Markdown.
        suspicious: the suspicious images by id. For each image there is a dictionary with a sentence for each kind of suspicion.
            The most serious kinds come first, both among the images and within each dictionary.
    """

    text: str
    suspicious: Mapping[str, Mapping[str, str]]


def make_report(
    images: Sequence[ImageStatistics],
    classes: Sequence[str],
    proposals: EdgeBoxOptions,
    title: str,
    imported: Mapping[str, Any] | None = None,
) -> CheckReport:
    """Compose the report on a data set.

    Args:
        images: measurements of all images, including unusable ones.
        classes: class names by id, background first.
        proposals: options of EdgeBox, which proposes boxes that may hold an object. The report counts the objects that are too
            small for it.
        title: name of the data set.
        imported: content of import.json, in which an import records its origin and counts; None if the data set was not imported.

    Returns:
        The report, with the suspicious images.
    """
    by_kind: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for image in images:
        for kind, sentence in image.suspicions.items():
            by_kind[kind][image.image_id] = sentence
    for train, val, bits in find_near_duplicates(images):
        how = "same file" if train.digest == val.digest else f"{bits} of 256 bits differ"
        by_kind[_NEAR_DUPLICATE].setdefault(val.image_id, f"{train.image_id} in train ({how})")
    suspicious: dict[str, dict[str, str]] = {}
    for kind, found in by_kind.items():
        for image_id, sentence in found.items():
            suspicious.setdefault(image_id, {})[kind] = sentence
    usable = [image for image in images if image.usable]
    sections = [
        f"# Check of {title}",
        _split_table(images, usable),
        "## Classes\n\n" + _class_table(usable, classes, proposals),
        "## Overlaps\n\n" + _describe_overlaps(usable, imported),
        "## Suspicious\n\n" + _list_suspicions(images, usable, classes, by_kind),
    ]
    if imported and imported.get("losses"):
        sections.insert(3, "## Annotations that are not objects\n\n" + _lost_table(imported))
    if imported and imported.get("notes"):
        sections.insert(2, "When the folder was imported:\n\n" + "\n".join(f"* {note}" for note in imported["notes"]))
    return CheckReport("\n\n".join(sections) + "\n", suspicious)


def _split_table(images: Sequence[ImageStatistics], usable: Sequence[ImageStatistics]) -> str:
    """Make the Markdown table of the splits: number of images and objects, and the smallest, the median and the largest image.

    Args:
        images: measurements of all images, including unusable ones.
        usable: measurements of the usable images only.

    Returns:
        The table.
    """
    rows = []
    for split in SPLITS:
        members = [image for image in usable if image.split == split]
        sizes = sorted((image.width * image.height, f"{image.width}×{image.height}") for image in members) or [(0, "–")]
        unusable = sum(image.split == split for image in images) - len(members)
        objects = sum(len(image.objects) for image in members)
        examples = [sizes[0][1], sizes[len(sizes) // 2][1], sizes[-1][1]]
        rows.append([split, f"{len(members):,}", f"{unusable:,}", f"{objects:,}", *examples])
    return markdown_table(["split", "images", "unusable", "objects", "smallest", "median", "largest"], rows)


def _class_table(usable: Sequence[ImageStatistics], classes: Sequence[str], proposals: EdgeBoxOptions) -> str:
    """Make the Markdown table of the classes: images and objects in each split, share of the pixels, sizes of the objects.

    Args:
        usable: measurements of the usable images.
        classes: class names by id, background first.
        proposals: options of EdgeBox, for the column of objects that are too small to be proposed by it.

    Returns:
        The table, followed by a paragraph that explains its columns.
    """
    pixels: Counter[int] = Counter()
    images_with: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
    for image in usable:
        pixels.update(image.pixels)
        images_with[image.split].update(image.pixels.keys())
    # One row for each object; the columns are class id, share of the image, 1 if too small for EdgeBox, and 0 (train) or 1 (val).
    objects = np.concatenate([np.zeros((0, 4)), *(_object_rows(image, proposals) for image in usable)])
    total = max(sum(pixels.values()), 1)
    rows = []
    for class_id, name in [*enumerate(classes), (VOID_ID, "(void)")]:
        counts = [f"{images_with[split][class_id]:,}" for split in SPLITS]
        members = objects[objects[:, 0] == class_id] if 0 < class_id < VOID_ID else None
        rows.append([name, *counts, *_count_by_split(members), _percent(pixels[class_id] / total), *_size_shares(members)])
    counts = [f"{sum(image.split == split for image in usable):,}" for split in SPLITS]
    rows.append(["all objects", *counts, *_count_by_split(objects), "", *_size_shares(objects)])
    heads = ["class", "images train", "val", "objects train", "val", "pixels", "small", "medium", "large", "unfindable"]
    return (
        f"{markdown_table(heads, rows)}\n\nSmall, medium, large: objects that cover under {SMALL:.0%}, up to {LARGE:.0%} and "
        f"over {LARGE:.0%} of their image. Unfindable: their box is smaller than {proposals.min_box_area:,.0f} px², the smallest "
        "that EdgeBox proposes (proposals.min_box_area); larger boxes may still cover them."
    )


def _object_rows(image: ImageStatistics, proposals: EdgeBoxOptions) -> np.ndarray:
    """Collect numbers about each object of an image. The table of the classes is made from these numbers.

    Args:
        image: measurements of the image.
        proposals: options of EdgeBox, which proposes boxes that may hold an object.

    Returns:
        float64 array (N, 4) with one row for each object. Its columns are: class id; share of the image's pixels; 1 if the object
        is too small for EdgeBox, else 0; and 0 if the image is in train, 1 if it is in val.
    """
    split = np.full(len(image.objects), SPLITS.index(image.split))
    return np.stack([image.objects[:, 0], image.object_shares, image.too_small_for_proposals(proposals), split], axis=1).astype(
        np.float64
    )


def _count_by_split(objects: np.ndarray | None) -> list[str]:
    """Count objects in each split, for the table of classes.

    Args:
        objects: float64 array (N, 4) of objects, as from `_object_rows`. Column 3 is 0 for train and 1 for val. None for a class
            that has no objects by definition, such as background.

    Returns:
        Two table cells with the number of objects in train and in val; both are empty for None.
    """
    return ["" if objects is None else f"{int((objects[:, 3] == i).sum()):,}" for i in range(len(SPLITS))]


def _size_shares(objects: np.ndarray | None) -> list[str]:
    """Compute how large the objects of a class are, for the table of classes.

    Args:
        objects: float64 array (N, 4) of objects, as from `_object_rows`. Column 1 is the share of the image's pixels; column 2 is
            1 if the object is too small to be proposed. None for a class that has no objects by definition, such as background.

    Returns:
        Four table cells with the share of objects that are small (cover less than 1 % of their image), medium, large (over 10 %),
        and too small to be proposed by EdgeBox. They are empty if there are no objects.
    """
    if objects is None or not len(objects):
        return [""] * 4
    share = objects[:, 1]
    groups = [share < SMALL, (share >= SMALL) & (share <= LARGE), share > LARGE, objects[:, 2] > 0]
    return [_percent(group.mean()) for group in groups]


def _describe_overlaps(usable: Sequence[ImageStatistics], imported: Mapping[str, Any] | None) -> str:
    """Describe how much the objects overlap, in the masks and, if the data set was imported, as they were annotated.

    Args:
        usable: measurements of the usable images.
        imported: content of import.json, in which an import records its origin and counts; None if the data set was not imported.

    Returns:
        One or two sentences.
    """
    objects = sum(len(image.objects) for image in usable)
    overlapping = sum(count_overlapping(image.objects) for image in usable)
    sentences = [f"{overlapping:,} of {objects:,} objects have a box that overlaps another object's by an IoU of 0.5 or more."]
    if imported and (found := imported.get("overlaps")):
        images = found.get("images", found.get("photographs", 0))  # the key in files of earlier versions
        sentences.append(
            f"When the folder was imported, objects overlapped in {images:,} images ({_percent(found['share_of_pixels'])} of all "
            f"pixels); {found['hidden_objects']:,} objects lay wholly under others."
        )
    return " ".join(sentences)


def _lost_table(imported: Mapping[str, Any]) -> str:
    """Make the Markdown table of the annotations that the import turned into void or left out.

    Args:
        imported: content of import.json, in which the import recorded them.

    Returns:
        Markdown text: a sentence with the number of lost annotations, and a table with a row for each class and reason.
    """
    lost = imported["losses"]
    count, total = sum(each["annotations"] for each in lost), max(imported["annotations"], 1)
    rows = [[each["class"], f"{each['annotations']:,}", each["reason"]] for each in lost]
    heading = (
        f"When the folder was imported, {count:,} of {total:,} annotations ({_percent(count / total)}) did not become objects."
    )
    where = "rejects.csv lists them, and those of images that were added later."
    return f"{heading} {where}\n\n" + markdown_table(["class", "annotations", "each"], rows)


def _list_suspicions(
    images: Sequence[ImageStatistics],
    usable: Sequence[ImageStatistics],
    classes: Sequence[str],
    by_kind: Mapping[str, Mapping[str, str]],
) -> str:
    """List everything suspicious as Markdown: classes with too few images, identical files, and suspicious images.

    The images are grouped by kind of suspicion. Up to five images are named for each kind.

    Args:
        images: measurements of all images, including unusable ones.
        usable: measurements of the usable images only.
        classes: class names by id, background first.
        by_kind: for each kind of suspicion, such as "void", a dictionary from image id to a sentence for the user.

    Returns:
        The list, or a sentence that nothing was found.
    """
    lines = _check_classes(usable, classes)
    for same in find_identical(images)[:_MAX_EXAMPLES]:
        ids = ", ".join(image.image_id for image in same[:_MAX_EXAMPLES])
        lines.append(f"* the same file {len(same)} times in {same[0].split}: {ids}")
    for kind, found in by_kind.items():
        if found:
            examples = "; ".join(f"{image_id}: {sentence}" for image_id, sentence in list(found.items())[:_MAX_EXAMPLES])
            more = "; …" if len(found) > _MAX_EXAMPLES else ""
            lines.append(f"* **{kind}**, {_count_images(len(found))} ({KINDS[kind]}): {examples}{more}")
    return "\n".join(lines) or "Nothing suspicious was found."


def _check_classes(usable: Sequence[ImageStatistics], classes: Sequence[str]) -> list[str]:
    """Find the classes that are missing from a split, that occur in fewer than five train images, or that may be the background.

    Args:
        usable: measurements of the usable images.
        classes: class names by id, background first.

    Returns:
        A line of Markdown for each such class.
    """
    pixels: Counter[int] = Counter()
    for image in usable:
        pixels.update({class_id: count for class_id, count in image.pixels.items() if class_id != VOID_ID})
    lines = []
    if usable and not pixels[0]:
        lines.append(f"* the background, **{classes[0]}**, has no pixels: is one of the classes the background (--background)?")
    for class_id, name in enumerate(classes[1:], start=1):
        if pixels[class_id] > MAX_CLASS_SHARE * pixels.total():
            share = _percent(pixels[class_id] / pixels.total())
            lines.append(f"* class **{name}** covers {share} of the pixels: is it the background (--background)?")
        train, val = (sum(class_id in image.pixels for image in usable if image.split == split) for split in SPLITS)
        if not train and not val:
            lines.append(f"* class **{name}** is in no image: is it in the list by mistake?")
        elif not train:
            lines.append(f"* class **{name}** is only in val ({_count_images(val)}): it can't be learned")
        elif not val:
            lines.append(f"* class **{name}** is only in train ({_count_images(train)}): it can't be evaluated")
        elif train < FEW_IMAGES:
            lines.append(f"* class **{name}** is in {_count_images(train)} of train: few to learn from")
    return lines


def _count_images(count: int) -> str:
    """Write a number of images as text, such as "1 image" or "2 images"."""
    return f"{count:,} image{'' if count == 1 else 's'}"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a Markdown table whose columns also line up when it is read as plain text.

    Args:
        heads: column headings.
        rows: cells of each row, as many as there are headings.

    Returns:
        The table. Its first column is aligned left, the others right.
    """
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    rule = [f":{'-' * (widths[0] - 1)}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]

    def align(row: Sequence[str]) -> list[str]:
        return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]

    return "\n".join(f"| {' | '.join(line)} |" for line in [align(heads), rule, *map(align, rows)])


def _percent(share: float) -> str:
    """Write a share in [0, 1] as a percentage, such as "12.3 %" or "<0.1 %"."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.1f} %"
