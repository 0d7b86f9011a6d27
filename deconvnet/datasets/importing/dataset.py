"""An annotated data set in memory, independent of the format it was read from.

It holds the class names, the list of images, and a function for each image that loads the image and makes its masks. The modules
of `deconvnet.datasets.formats` make such a data set, and those of `deconvnet.datasets.writing` write it to disk.
"""

import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from deconvnet.datasets.voc import invalid_id_reason
from infra.errors import BadInput, UserError
from infra.storage.tables import Reject
from proposals.masks import VOID_ID

STAGE = "import"
BACKGROUND = "background"
BACKGROUND_NAMES = (BACKGROUND, "_background_", "__background__")
"""Class names, in lower case, that always mean background."""
_MAX_CLASSES = 254  # classes besides background: ids have 8 bits, and 255 is void


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import: how annotations become masks. A format ignores the options that do not apply to it.

    Attributes:
        classes: names of the classes to import, in the order of their ids, with or without background. If empty, all are
            imported.
        existing_classes: class names of the data set that the images are added to, in the order of their ids; empty for a new
            data set. If `classes` is empty, these classes are imported. Then any other class in the annotations is an
            error, but not every one of these classes must occur.
        background: name of the background class, if it is not "background". For masks it may also be the mask value of that
            class, or "none" if all classes are objects. None to recognise the background by its name.
        fold_case: True to merge class names that differ only in case, blanks or Unicode form.
        small_over_large: which of two overlapping objects is on top: the smaller one (True), or the one later in the file
            (False).
        crowd_void: True turns groups of objects annotated as one (COCO's iscrowd) into void. False makes each group one object.
        boxes_void: True turns boxes without an outline into void. False makes each an object.
        run_order: "columns" or "rows", along which the pixels of Kaggle's run lengths are counted. None to recognise it by the
            names of the table's columns.
        others_void: True turns classes that are not imported into void. False turns them into background.
        unknown_void: True turns mask values without a class into void. False rejects the image.
        transparent: what transparent pixels of masks become: "background" or "void". "opaque" ignores transparency.
        class_table_uri: path or URI of a text file with class names and mask values (see `class_table.read_table`). If
            None, the table is inferred from the masks.
        mask_suffix: text that the name of a mask has after the name of its image, such as "_mask" in "a_mask.png" for "a.jpg".
        image_suffix: text that the name of an image has in place of `mask_suffix`, such as "_leftImg8bit" in Cityscapes.
        max_pixels: an image with more pixels is rejected.
        encoding: name of the encoding of annotation files that are not in UTF-8, such as "gbk". If None, they are refused.
    """

    classes: tuple[str, ...] = ()
    existing_classes: tuple[str, ...] = ()
    background: str | None = None
    fold_case: bool = False
    small_over_large: bool = True
    crowd_void: bool = True
    boxes_void: bool = True
    run_order: str | None = None
    others_void: bool = False
    unknown_void: bool = False
    transparent: str = "background"
    class_table_uri: str | None = None
    mask_suffix: str = ""
    image_suffix: str = ""
    max_pixels: int = 100_000_000
    encoding: str | None = None


@dataclass(frozen=True)
class AnnotationSource:
    """The location of the images and annotations of a data set, or of one of its splits.

    Attributes:
        images: folder or bucket prefix of the images.
        annotations: path or URI of the annotation file, or of the folder of annotation files, depending on the format.
        split: "train" or "val" if all images of the source belong to that split. None if they are still to be split.
    """

    images: str
    annotations: str
    split: str | None = None


@dataclass(frozen=True)
class LostAnnotation:
    """An annotation that is left out or becomes void instead of an object, although its class is imported.

    Attributes:
        name: name of the annotation for messages to the user, such as "annotation 7".
        label: name of its class in the annotations.
        reason: why it does not become an object, as a phrase that follows its name, such as "is a crowd, which becomes void".
        remedy: option of import_data.py that makes such annotations objects, such as "--crowd object"; empty if there is none.
    """

    name: str
    label: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return a sentence for the user."""
        return f"{self.name} ({self.label}) {self.reason}"


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
        annotations: number of annotations of classes to import; 0 if it is not known.
        lost_annotations: the annotations that become void or are left out, with the reasons.
        remark: phrase about the image for the user, such as "is tiny"; "" if there is none. The summary of the import counts the
            images with each remark.
    """

    image: bytes
    suffix: str
    class_mask: np.ndarray
    object_mask: np.ndarray | None = None
    overlap_pixels: int = 0
    hidden_objects: int = 0
    annotations: int = 0
    lost_annotations: tuple[LostAnnotation, ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class DatasetEntry:
    """An image of a data set, which is not loaded yet.

    Attributes:
        image_id: id of the image in the imported data set, which is the name of its files without suffix.
        uri: path or URI of a file, by which messages to the user identify this image.
        split: "train", "val" or "test" if the source says so, otherwise None. Images of test are imported only if the user
            lists them.
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
        rejects: a Reject (an input that can't be used, with the reason) for each image that is known to be unusable before any
            image is loaded.
        lost_annotations: annotations of imported classes whose image is not in the source, as tuples: id or name of the missing
            image, path or URI of the annotation file, and the reason.
        notes: sentences for the user about the data set as a whole.
        source_names: name of each image in the source, such as a relative path, by image id.
        class_table: text of the class table, which says which class each mask value stands for. None for formats whose
            annotations are not masks.
    """

    classes: tuple[str, ...] = ()
    entries: list[DatasetEntry] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    lost_annotations: list[tuple[str, str, LostAnnotation]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source_names: dict[str, str] = field(default_factory=dict, repr=False)
    class_table: str | None = None

    def add(self, name: str, uri: str, split: str | None, load: Callable[[], AnnotatedImage], source_name: str = "") -> None:
        """Add an image to the data set, without loading it.

        The id of the image is made from its name by `image_id_of`. If that is not a valid id, or another image has it already,
        the image is added to `rejects` instead.

        Args:
            name: name of the image in the source, a file name or relative path, from which its id is derived.
            uri: path or URI of a file, by which messages to the user identify this image.
            split: "train", "val" or "test" if the source says so, otherwise None.
            load: function that reads the image and makes its masks, as in `DatasetEntry`.
            source_name: name of the image in the source, if it differs from `name`.
        """
        image_id = image_id_of(name)
        if reason := invalid_id_reason(image_id):
            self.reject(name, uri, reason)
        elif image_id != image_id.strip():
            self.reject(name, uri, "its name begins or ends with a blank")
        elif image_id in self.source_names:
            self.reject(name, uri, f"its id would be {image_id}, which is that of {self.source_names[image_id]}")
        else:
            self.source_names[image_id] = source_name or name
            self.entries.append(DatasetEntry(image_id, uri, split, load))

    @property
    def has_splits(self) -> bool:
        """Return whether the source assigns any image to train or val."""
        return any(entry.split in ("train", "val") for entry in self.entries)

    def choose_classes(self, annotated: Sequence[str], options: ImportOptions, must_exist: bool = True) -> dict[str, int]:
        """Choose the classes of the data set, and the class id of each class name in the annotations.

        Sentences for the user about the choice are added to `notes`, for example that names differ only in case.

        Args:
            annotated: class names in the annotations, in the order of their ids; they may repeat.
            options: options of the import. `classes`, `existing_classes`, `others_void`, `background` and `fold_case` apply.
            must_exist: True to raise an error if any of `options.classes` is missing from the annotations, False only if all are.

        Returns:
            Class id by class name, for all names in `annotated`. Names that are not imported have 255 (void) or 0 (background).

        Raises:
            UserError: if classes of `options.classes` or `options.background` are missing, a class is not among
                `options.existing_classes`, there are no classes or more than 254, or a name is empty or unprintable.
        """
        key = case_folded if options.fold_case else str
        first: dict[str, str] = {}
        for name in annotated:
            first.setdefault(key(name), name)
        asked = options.background and key(options.background)
        if asked and asked not in first:
            raise UserError(f"--background {options.background} is not in the annotations, which have {_some(first.values())}")
        background = {each for each, name in first.items() if each == asked or name.lower() in BACKGROUND_NAMES}
        chosen = options.classes or options.existing_classes
        requested = {key(name): name for name in chosen if name.lower() not in BACKGROUND_NAMES and key(name) != asked}
        found = {each: name for each, name in first.items() if each not in background}
        strange = [name for each, name in found.items() if each not in requested]
        if strange and options.existing_classes and not options.classes:
            raise UserError(
                f"the annotations have the class {_some(strange)}, and the data set has {_some(requested.values())}: rename it "
                "in the annotations, or leave it out by naming the others in --classes"
            )
        names = requested or found
        unknown = [name for each, name in names.items() if each not in found]
        if unknown and not options.existing_classes and (must_exist or len(unknown) == len(names)):
            raise UserError(f"--classes: {', '.join(unknown)} is not in the annotations, which have {_some(found.values())}")
        check_class_names(list(names.values()))
        if unknown:
            self.notes.append(f"no annotation has the class {', '.join(unknown)}")
        self.classes = (BACKGROUND, *names.values())
        self.notes += [f"{first[each]} is the background" for each in background if first[each].lower() != BACKGROUND]
        self.notes += describe_variants(annotated, options.fold_case)
        ids = dict.fromkeys(background, 0) | {each: index for index, each in enumerate(names, start=1)}
        return {name: ids.get(key(name), VOID_ID if options.others_void else 0) for name in annotated}

    def reject(self, name: str, uri: str, reason: str) -> None:
        """Add an image that can't be used to the list of rejects.

        Args:
            name: name of the image in the source, or of its annotation file.
            uri: path or URI of the file that the reason is about.
            reason: sentence for the user, which is written to `rejects.csv`.
        """
        self.rejects.append(Reject(image_id_of(name), uri, STAGE, reason))


def _some(names: Collection[str]) -> str:
    """Write the first 20 of some class names as text, separated by commas, or "no class" if there is none."""
    return ", ".join(list(names)[:20]) + (", …" if len(names) > 20 else "") or "no class"


def image_id_of(name: str) -> str:
    """Make the id of an image from its name in the source.

    Args:
        name: file name or relative path, with "/" or "\\" between folders.

    Returns:
        The names of its folders and its file name without suffix, joined by "_": "a_b" for "a/b.jpg".
    """
    path = PurePosixPath(name.replace("\\", "/"))
    return "_".join([*(part for part in path.parent.parts if part not in ("/", "..")), path.stem])


def case_folded(name: str) -> str:
    """Return a form of a class name that is equal for names that differ only in upper and lower case, blanks or Unicode form."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def describe_variants(names: Iterable[str], joined: bool) -> list[str]:
    """Describe class names that differ only in case, blanks or Unicode form.

    Args:
        names: class names.
        joined: True if they were made one class (`ImportOptions.fold_case`), False if each remains a class.

    Returns:
        One sentence for the user for each group of such names. The list is empty if there is no such group.
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(case_folded(name), []).append(name)
    notes = []
    for group in (group for group in groups.values() if len(group) > 1):
        only_case = len({name.casefold() for name in group}) == 1
        differ = f"differ only in {'case' if only_case else 'case, blanks or Unicode form'}"
        what = "were merged" if joined else f"{differ} and stay separate classes: --fold_case merges them"
        notes.append(f"{', '.join(group)} {what}")
    return notes


def parse_class_names(text: str) -> list[str]:
    """Read class names from a text with one name a line, in the order of their ids, without the blanks around them.

    Args:
        text: the text. Empty lines at its end are ignored.

    Returns:
        The names, at least one.

    Raises:
        BadInput: if another line is empty, so that it is not clear which ids the classes after it have, or there is no name.
    """
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise BadInput("it has no class name")
    if "" in names:
        raise BadInput(f"line {names.index('') + 1} is empty: delete it, or put the name of the class of this id there")
    return names


def check_class_names(names: Sequence[str]) -> None:
    """Check that the names of classes can be used.

    Args:
        names: names of all classes but background.

    Raises:
        UserError: if there is none or more than 254, or a name is empty or unprintable.
    """
    if not 1 <= len(names) <= _MAX_CLASSES:
        raise UserError(
            f"the annotations have {len(names)} classes beside background, 1 to {_MAX_CLASSES} are possible: choose by --classes"
        )
    if unprintable := [name for name in names if not name.strip() or not name.isprintable()]:
        raise UserError(f"the annotations have a class named {unprintable[0]!r}: give it a printable name")
