"""An annotated data set in memory, whatever format it was read from: its classes, its images and how to load each of them.

The modules of `deconvnet.datasets.formats` make an `AnnotatedDataset`; `deconvnet.datasets.importing.voc_writer` writes one to
disk.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from deconvnet.datasets.voc import invalid_id_reason
from infra.errors import UserError
from infra.storage.tables import Reject
from proposals.masks import VOID_ID

STAGE = "import"
BACKGROUND = "background"
_MOST_CLASSES = 254  # beside background: ids are 8 bits, and 255 is void


@dataclass(frozen=True)
class ImportRules:
    """How annotations become masks. A format ignores the rules that mean nothing to it.

    Attributes:
        classes: names of the classes to import, in the order of their ids, with or without background; empty imports all.
        small_over_large: where objects overlap, the smaller lies on top; False: the one that comes later in the file does.
        crowd_void: crowds (COCO's iscrowd) become void; False: each becomes one object.
        others_void: classes that are not imported become void; False: background.
        unknown_void: mask values without a class become void; False: their image is rejected.
        class_table_uri: text file of class names and mask values (see `class_table.read_table`); None: inferred from the masks.
        mask_suffix: what a mask's file name has after the image's, such as `_mask` for `a_mask.png`.
        max_pixels: images with more pixels are rejected.
    """

    classes: tuple[str, ...] = ()
    small_over_large: bool = True
    crowd_void: bool = True
    others_void: bool = False
    unknown_void: bool = False
    class_table_uri: str | None = None
    mask_suffix: str = ""
    max_pixels: int = 100_000_000


@dataclass(frozen=True)
class AnnotationSource:
    """Where to read images and their annotations from: a whole data set, or one split of it.

    Attributes:
        images: folder or s3:// prefix of images.
        annotations: annotation file, or folder or prefix of annotation files, as the format needs.
        split: "train" or "val" if all its images belong to that split; None if the split is still to be drawn.
    """

    images: str
    annotations: str
    split: str | None = None


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its masks, in memory. Masks have the size of the image as displayed (EXIF orientation applied).

    Attributes:
        image: encoded bytes of the image file.
        suffix: file name suffix for these bytes: ".jpg", ".jpeg" or ".png".
        class_mask: uint8 array (H, W) of class ids; 255 is void.
        object_mask: uint8 array (H, W) of object ids (0 background, 255 void) or uint16 (65535 void); None if objects are
            unknown.
        overlap_pixels: number of pixels that more than one object covers.
        hidden_objects: number of objects that lie wholly under others.
        skipped: annotations that were left out, each with the reason.
    """

    image: bytes
    suffix: str
    class_mask: np.ndarray
    object_mask: np.ndarray | None = None
    overlap_pixels: int = 0
    hidden_objects: int = 0
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetEntry:
    """An image of a data set that is not loaded yet.

    Attributes:
        image_id: name of its files in the imported data set, without suffix.
        uri: file that messages about this image name.
        split: "train" or "val" if the source gives it, else None.
        load: reads the image and makes its masks; raises BadInput with the reason if that is not possible.
    """

    image_id: str
    uri: str
    split: str | None
    load: Callable[[], AnnotatedImage]


@dataclass
class AnnotatedDataset:
    """What a format's reader found.

    Attributes:
        classes: class names by id; the first is background.
        entries: images to import, in the order in which the source lists them.
        rejects: images that can't be used, with reasons, as far as is known before any is loaded.
        notes: sentences for the user about the data set as a whole.
        source_names: what the source calls each image (a path), by image id.
        class_table_text: text of the table of mask values, for formats whose masks have values; else None.
    """

    classes: tuple[str, ...]
    entries: list[DatasetEntry] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source_names: dict[str, str] = field(default_factory=dict, repr=False)
    class_table_text: str | None = None

    def add(self, name: str, uri: str, split: str | None, load: Callable[[], AnnotatedImage]) -> None:
        """Add an image, or reject it if its name is not possible as an id or gives the id of an earlier image.

        Args:
            name: what the source calls the image: a file name or relative path.
            uri: file that messages about this image name.
            split: "train", "val" or None, as in `DatasetEntry`.
            load: loads the image, as in `DatasetEntry`.
        """
        image_id = image_id_of(name)
        if reason := invalid_id_reason(image_id):
            self.reject(name, uri, reason)
        elif image_id != image_id.strip():
            self.reject(name, uri, "its name begins or ends with a blank")
        elif image_id in self.source_names:
            self.reject(name, uri, f"its id would be {image_id}, which is that of {self.source_names[image_id]}")
        else:
            self.source_names[image_id] = name
            self.entries.append(DatasetEntry(image_id, uri, split, load))

    def reject(self, name: str, uri: str, reason: str) -> None:
        """Record an image that can't be used.

        Args:
            name: what the source calls the image or its annotation.
            uri: file that the reason is about.
            reason: why, for `rejects.csv`.
        """
        self.rejects.append(Reject(image_id_of(name), uri, STAGE, reason))


def image_id_of(name: str) -> str:
    """Return the image id for the name of an image.

    Args:
        name: file name or relative path, with "/" or "\\" between folders.

    Returns:
        Its folders and its file name without suffix, joined by "_": "a_b" for "a/b.jpg".
    """
    path = PurePosixPath(name.replace("\\", "/"))
    return "_".join([*(part for part in path.parent.parts if part not in ("/", "..")), path.stem])


def select_classes(annotated: Sequence[str], requested: Sequence[str], must_exist: bool = True) -> tuple[str, ...]:
    """Choose the classes of the imported data set.

    Args:
        annotated: class names in the annotations, in the order of their ids; background and repetitions are ignored.
        requested: names to import, in this order; empty for all.
        must_exist: refuse if any requested name is not in the annotations; False: only if none of them is.

    Returns:
        Class names by id, background first.

    Raises:
        UserError: for requested names that are not in the annotations, no class, too many, or unprintable names.
    """
    annotated = [name for name in dict.fromkeys(annotated) if name.lower() != BACKGROUND]
    names = [name for name in requested if name.lower() != BACKGROUND] or annotated
    unknown = [name for name in names if name not in annotated]
    if unknown and (must_exist or len(unknown) == len(names)):
        known = ", ".join(annotated[:20]) + (", …" if len(annotated) > 20 else "")
        raise UserError(f"--classes: {', '.join(unknown)} is not in the annotations, which have {known or 'no class'}")
    if not 1 <= len(names) <= _MOST_CLASSES:
        raise UserError(
            f"the annotations have {len(names)} classes beside background, 1 to {_MOST_CLASSES} are possible: choose by --classes"
        )
    if unprintable := [name for name in names if not name.strip() or not name.isprintable()]:
        raise UserError(f"the annotations have a class named {unprintable[0]!r}: give it a printable name")
    return (BACKGROUND, *names)


def class_ids(classes: Sequence[str], annotated: Sequence[str], rules: ImportRules) -> Mapping[str, int]:
    """Map each annotated class name to the id that its pixels get.

    Args:
        classes: class names by id, from `select_classes`.
        annotated: class names in the annotations.
        rules: `others_void` decides what classes that were not selected become.

    Returns:
        Id by name: the index in `classes`, 0 for background, and 0 or 255 (void) for names that are not in `classes`.
    """
    other = VOID_ID if rules.others_void else 0
    ids = {name: index for index, name in enumerate(classes)}
    return {name: 0 if name.lower() == BACKGROUND else ids.get(name, other) for name in annotated}
