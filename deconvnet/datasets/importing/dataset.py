"""An annotated data set in memory, independent of the format it was read from.

It holds the class names, the list of images, and a function for each image that loads the image and makes its masks. The modules
of `deconvnet.datasets.formats` make such a data set, and `deconvnet.datasets.importing.voc_writer` writes it to disk.
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
_MOST_CLASSES = 254  # besides background, as ids have 8 bits and 255 is void


@dataclass(frozen=True)
class ImportRules:
    """Rules that the user chose for turning annotations into masks. A format ignores the rules that do not concern it.

    Attributes:
        classes: names of the classes to import, in the order of their ids, with or without background. If empty, all are
            imported.
        small_over_large: where objects overlap, True puts the smaller one on top. False puts the one on top that comes later in
            the file.
        crowd_void: True turns groups of objects annotated as one (COCO's iscrowd) into void. False makes each group one object.
        others_void: True turns classes that are not imported into void. False turns them into background.
        unknown_void: True turns mask values without a class into void. False rejects the image.
        class_table_uri: path or s3:// address of a text file with class names and mask values (see `class_table.read_table`). If
            None, the table is inferred from the masks.
        mask_suffix: text that the name of a mask has after the name of its image, such as "_mask" in "a_mask.png" for "a.jpg".
        max_pixels: an image with more pixels is rejected.
        encoding: name of the encoding of annotation files that are not in UTF-8, such as "gbk". If None, they are refused.
    """

    classes: tuple[str, ...] = ()
    small_over_large: bool = True
    crowd_void: bool = True
    others_void: bool = False
    unknown_void: bool = False
    class_table_uri: str | None = None
    mask_suffix: str = ""
    max_pixels: int = 100_000_000
    encoding: str | None = None


@dataclass(frozen=True)
class AnnotationSource:
    """The location of the images and annotations of a data set, or of one of its splits.

    Attributes:
        images: folder or s3:// prefix of the images.
        annotations: path or s3:// address of the annotation file, or of the folder of annotation files, depending on the format.
        split: "train" or "val" if all images of the source belong to that split. None if they are still to be split.
    """

    images: str
    annotations: str
    split: str | None = None


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its masks in memory. The masks have the size of the image as displayed (EXIF orientation applied).

    Attributes:
        image: encoded bytes of the image file.
        suffix: file name suffix for these bytes: ".jpg", ".jpeg" or ".png".
        class_mask: uint8 array (H, W) of class ids; 255 is void.
        object_mask: array (H, W) of object ids, with background 0 and void 255 if it is uint8, or 65535 if it is uint16. None if
            the objects are unknown.
        overlap_pixels: number of pixels that more than one object covers.
        hidden_objects: number of objects that lie wholly under others.
        skipped: a sentence with the reason for each annotation that was left out.
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
    """An image of a data set, which is not loaded yet.

    Attributes:
        image_id: id of the image in the imported data set, which is the name of its files without suffix.
        uri: path or s3:// address of a file, by which messages to the user identify this image.
        split: "train" or "val" if the source says so, otherwise None.
        load: function that reads the image and makes its masks. It raises BadInput with the reason if that is not possible.
    """

    image_id: str
    uri: str
    split: str | None
    load: Callable[[], AnnotatedImage]


@dataclass
class AnnotatedDataset:
    """A data set that was read from some format: its classes and its images, which are not loaded yet.

    Attributes:
        classes: class names by id; the first is background.
        entries: images to import, in the order in which the source lists them.
        rejects: a Reject with the reason for each image that is known to be unusable before any is loaded.
        notes: sentences for the user about the data set as a whole.
        source_names: name of each image in the source, such as a relative path, by image id.
        class_table_text: text of the class table (see `class_table`); None for formats whose annotations are not masks.
    """

    classes: tuple[str, ...]
    entries: list[DatasetEntry] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source_names: dict[str, str] = field(default_factory=dict, repr=False)
    class_table_text: str | None = None

    def add(self, name: str, uri: str, split: str | None, load: Callable[[], AnnotatedImage]) -> None:
        """Add an image to the data set, without loading it.

        The id of the image is made from its name by `image_id_of`. If that is no valid id, or another image has it already, the
        image is added to `rejects` instead.

        Args:
            name: name of the image in the source, a file name or relative path, from which its id is derived.
            uri: path or s3:// address of a file, by which messages to the user identify this image.
            split: "train" or "val" if the source says so, otherwise None.
            load: function that reads the image and makes its masks, as in `DatasetEntry`.
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
        """Add an image that can't be used to the list of rejects.

        Args:
            name: name of the image in the source, or of its annotation file.
            uri: path or s3:// address of the file that the reason is about.
            reason: sentence for the user, which is written to `rejects.csv`.
        """
        self.rejects.append(Reject(image_id_of(name), uri, STAGE, reason))


def image_id_of(name: str) -> str:
    """Make the id of an image from its name in the source.

    Args:
        name: file name or relative path, with "/" or "\\" between folders.

    Returns:
        The names of its folders and its file name without suffix, joined by "_": "a_b" for "a/b.jpg".
    """
    path = PurePosixPath(name.replace("\\", "/"))
    return "_".join([*(part for part in path.parent.parts if part not in ("/", "..")), path.stem])


def select_classes(annotated: Sequence[str], requested: Sequence[str], must_exist: bool = True) -> tuple[str, ...]:
    """Choose the classes of the imported data set.

    Args:
        annotated: class names in the annotations, in the order of their ids. Background and repetitions are ignored.
        requested: names of the classes that the user wants, in the order of their ids. If empty, all are chosen.
        must_exist: True to refuse if any requested class is missing from the annotations. False to refuse only if all are
            missing.

    Returns:
        Class names by id, background first.

    Raises:
        UserError: if requested classes are missing (see `must_exist`), there is no class or more than 254, or a name is empty or
            unprintable.
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
    """Choose the class id of each class name in the annotations.

    Args:
        classes: class names by id, from `select_classes`.
        annotated: class names in the annotations.
        rules: rules that the user chose; `others_void` says whether classes that are not imported become void or background.

    Returns:
        Class id by class name, for all names in `annotated`. Names that are not in `classes` have 255 (void) or 0 (background).
    """
    other = VOID_ID if rules.others_void else 0
    ids = {name: index for index, name in enumerate(classes)}
    return {name: 0 if name.lower() == BACKGROUND else ids.get(name, other) for name in annotated}
