"""Reading a folder of masks and a folder of images. A mask belongs to the image of the same file name.

The pixel values of the masks are ids (in paletted or grey images) or colours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath

import numpy as np

from deconvnet.datasets import voc
from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.importing.class_table import ClassTable, infer_table, read_table
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotatedImage, AnnotationSource, ImportOptions
from deconvnet.datasets.importing.image_index import ImageIndex, normalise
from deconvnet.datasets.importing.images import as_layout_file, read_input, read_text
from deconvnet.datasets.importing.mask_values import MaskValues, read_mask_values
from deconvnet.datasets.importing.orientation import (
    Evidence,
    FrameChooser,
    apply_orientation,
    collect_evidence,
    displayed_size,
    is_reoriented,
)
from deconvnet.datasets.thread_map import thread_map
from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.local_executor import available_cpus
from proposals.image_codec import image_size

_TABLES = ("_classes.csv", "class_dict.csv", "labelmap.txt", "label_colors.txt")  # class tables that tools write beside masks
_SAMPLE = 200  # masks whose values are read to check a class table that the user named


def read_masks(sources: Sequence[AnnotationSource], options: ImportOptions) -> AnnotatedDataset:
    """Read one or two folders of masks as one data set.

    Args:
        sources: folders of masks, each with its folder of images.
        options: options of the import. Those about overlaps, crowds, boxes, Kaggle's tables and classes that are not imported
            have no effect. The class table (`class_table_uri`) says which class each value in the masks stands for. Without a
            table, `classes` are the class names by id. Without either, a table that a tool wrote beside the masks is used, or
            the classes are inferred from the values of all masks.

    Returns:
        The data set. Its `class_table` is the table that was given or inferred.

    Raises:
        UserError: if a folder of masks has no mask for any of its images, the table can't be read, or the values of the masks
            don't look like those of classes.
    """
    dataset = AnnotatedDataset()
    pairs: list[tuple[AnnotationSource, ImageIndex, str, str]] = []  # source, its images, name of an image, address of its mask
    for source in sources:
        index = ImageIndex(source.images)
        names = _match(dataset, source, index, options)
        pairs += [(source, index, name, storage.join(source.annotations, mask)) for name, mask in names]
    if not options.class_table_uri and not options.classes and (beside := _find_table(sources)):
        dataset.notes.append(f"the classes are those of {beside}; name another table by --table")
        options = replace(options, class_table_uri=beside)
    for source in sources:
        folder, _, name = source.annotations.rstrip("/").rpartition("/")
        if name == voc.CLASS_MASKS_DIR and storage.exists(storage.join(folder, voc.OBJECT_MASKS_DIR)):
            dataset.notes.append(
                f"{folder}/{voc.OBJECT_MASKS_DIR} is not read: each connected region of a class is taken for an object (a folder "
                "in VOC's layout needs no import)"
            )
    table = _make_table([uri for *_, uri in pairs], options)
    dataset.notes += table.notes
    dataset.classes, dataset.class_table = table.classes, table.to_text()
    frames = {source.annotations: FrameChooser() for source in sources}
    for source, index, name, uri in pairs:
        chooser = frames[source.annotations]
        chooser.evidence_readers.append(partial(_read_evidence, index, name, uri, options))
        dataset.add(name, uri, source.split, partial(_load, index, name, uri, table, chooser, options))
    return dataset


FORMAT = DatasetFormat("the folder of masks", read_masks)


def _match(
    dataset: AnnotatedDataset, source: AnnotationSource, index: ImageIndex, options: ImportOptions
) -> list[tuple[str, str]]:
    """Find the images and masks of a source that belong together.

    Args:
        dataset: data set whose `rejects` and `notes` tell what is left out.
        source: folder of masks and its folder of images.
        index: the images.
        options: options of the import; `image_suffix` and `mask_suffix` apply.

    Returns:
        Pairs of the path of an image and the path of its mask, each relative to its folder.

    Raises:
        UserError: if no image has a mask, or images and masks lie in one folder and their names can't be told apart.
    """
    if source.images == source.annotations and options.image_suffix == options.mask_suffix:
        raise UserError(
            f"the images and the masks are in one folder, {source.images}: say by --mask_suffix what the names of masks end in, "
            "such as _mask for a.jpg and a_mask.png"
        )
    masks = _choose_masks(dataset, source.annotations, options.mask_suffix)
    same_name = _by_stem(index.names, options.image_suffix)
    images = {stem: names[0] for stem, names in same_name.items()}
    if options.mask_suffix and source.images == source.annotations:
        images = {stem: name for stem, name in images.items() if not stem.endswith(options.mask_suffix)}
    matched = [stem for stem in images if stem in masks]
    if twins := [same_name[stem] for stem in matched if len(same_name[stem]) > 1]:
        dropped = sum(map(len, twins)) - len(twins)
        dataset.notes.append(
            f"{dropped:,} images are left out, because another image differs from each only in the suffix, such as {twins[0][1]} "
            f"beside {twins[0][0]}"
        )
    if not matched:
        examples = f"{next(iter(images.values()), 'none')} and {next(iter(masks.values()), 'none')}"
        raise UserError(
            f"no mask in {source.annotations} has the name of an image in {source.images} ({examples}, for example): "
            "a mask must have the name of its image, with --mask_suffix in place of --image_suffix"
        )
    for name in (masks[stem] for stem in masks if stem not in images):
        dataset.reject(name, storage.join(source.annotations, name), f"no image of this name in {source.images}")
    if others := len(index.names) - sum(map(len, same_name.values())):
        dataset.notes.append(f"{others:,} images in {source.images} don't end in {options.image_suffix} and are left out")
    if without := len(images) - len(matched):
        dataset.notes.append(f"{without:,} images in {source.images} have no mask and are left out")
    return [(images[stem], masks[stem]) for stem in matched]


def _choose_masks(dataset: AnnotatedDataset, folder: str, suffix: str) -> dict[str, str]:
    """List the masks of a folder.

    A JPEG or GIF beside another mask of the same name is taken for a picture of that mask, and left out. If several other
    files have one name, none of them is used.

    Args:
        dataset: data set whose `rejects` and `notes` tell what is left out.
        folder: folder or bucket prefix of the masks.
        suffix: ending of the names of masks.

    Returns:
        The path of each mask, by the key that it has in common with its image (see `_by_stem`).
    """
    masks: dict[str, str] = {}
    pictures = 0
    for stem, names in _by_stem(ImageIndex(folder).names, suffix).items():
        likely = [name for name in names if PurePosixPath(name).suffix.lower() not in (".jpg", ".jpeg", ".gif")] or names
        if len(likely) > 1:
            dataset.reject(names[0], storage.join(folder, names[0]), f"{' and '.join(likely)} are masks of one image: keep one")
        else:
            masks[stem] = likely[0]
            pictures += len(names) - 1
    if pictures:
        dataset.notes.append(f"{pictures:,} JPEGs or GIFs in {folder} have the name of another mask and are left out")
    return masks


def _find_table(sources: Sequence[AnnotationSource]) -> str | None:
    """Find the class table that a tool wrote into the folder of the masks or the one above it.

    Args:
        sources: folders of masks.

    Returns:
        The path or URI of the table; None if there is none.

    Raises:
        UserError: if the sources have tables that differ.
    """
    found: dict[bytes, str] = {}
    for source in sources:
        folder = source.annotations.rstrip("/")
        files = [storage.join(parent, name) for parent in (folder, folder.rpartition("/")[0]) if parent for name in _TABLES]
        if file := next(filter(storage.exists, files), None):
            found.setdefault(storage.read_bytes(file), file)
    if len(found) > 1:
        raise UserError(f"{' and '.join(found.values())} name different classes: name one by --table")
    return next(iter(found.values()), None)


def _by_stem(names: Sequence[str], suffix: str) -> dict[str, list[str]]:
    """Index files by a key that a mask and its image have in common.

    The key is the path of the file without the file name suffix, and without the ending that distinguishes masks or images. For
    example, "a/b_mask.png" has the key "a/b" if the ending is "_mask". Accented letters are in Unicode's composed form.

    Args:
        names: paths of the files, relative to their folder.
        suffix: ending of the names, such as "_mask"; "" if there is none. Files whose name does not have it are left out.

    Returns:
        The paths of the files by their key. Several files have the same key if they differ only in the file name suffix.
    """
    stems: dict[str, list[str]] = {}
    for name in names:
        stem = normalise(str(PurePosixPath(name).with_suffix("")))
        if stem.endswith(suffix):
            stems.setdefault(stem.removesuffix(suffix), []).append(name)
    return stems


def _make_table(uris: Sequence[str], options: ImportOptions) -> ClassTable:
    """Read the class table that the user named, or infer one from the values of the masks.

    Args:
        uris: paths or URIs of all masks.
        options: options of the import; `class_table_uri`, `classes`, `transparent` and `max_pixels` apply, and those of
            `class_table.infer_table`.

    Returns:
        The class of each mask value.

    Raises:
        UserError: if the table can't be read, or the values of the masks don't look like those of classes.
    """
    path = options.class_table_uri
    if path and len(uris) > _SAMPLE:  # some masks show whether a table can be right
        uris = uris[:: len(uris) // _SAMPLE]
    opaque = options.transparent == "opaque"

    def read(uri: str) -> MaskValues | str:
        try:
            return read_mask_values(read_input(uri), options.max_pixels, opaque)
        except BadInput as error:  # its image is rejected, with the reason, when it is loaded
            return f"{uri}: {error}"

    found = list(thread_map(read, uris, available_cpus(), "reading mask values", "masks"))
    masks = {uri: values for uri, values in zip(uris, found, strict=True) if isinstance(values, MaskValues)}
    if not masks and not path:
        raise UserError(f"none of the {len(uris):,} masks can be used; {found[0]}")
    differ = _describe_palettes(masks)
    if not path:
        if differ:
            raise UserError(
                f"{differ}, so it is not clear whether their ids or their colours are the classes: name the classes by --table, "
                "with the colours (`road, 128 64 128`) or the ids (`road, 7`)"
            )
        if any(mask.are_colours for mask in masks.values()):  # grey masks among them are colours as well
            for uri in [uri for uri, mask in masks.items() if not mask.are_colours and any(mask.classes)]:
                masks[uri] = read_mask_values(read_input(uri), options.max_pixels, opaque, as_colours=True)
        return infer_table(masks, options)
    try:
        text = read_text(path, options.encoding)
    except BadInput as error:
        raise UserError(f"--table {path} can't be read: {error}") from None
    table = read_table(text, path, options, list(masks.values()))
    if differ and not table.has_colours:
        table = replace(table, notes=(*table.notes, f"{differ}; their ids are read, as {path} names ids"))
    return table


def _describe_palettes(masks: Mapping[str, MaskValues]) -> str:
    """Describe the first id that has different colours in the palettes of different masks.

    Programs that order a palette by frequency write such masks. In them a class always has the same colour, but not the same id.

    Args:
        masks: the values that occur in each mask, by the address of its file.

    Returns:
        A clause for the user that names the id, two colours and two files; "" if the palettes agree.
    """
    first: dict[int, tuple[int, str]] = {}
    for uri, mask in masks.items():
        for i, colour in mask.palette.items():
            other, other_uri = first.setdefault(i, (colour, uri))
            if other != colour:
                return f"the palettes of the masks differ (id {i} is #{other:06x} in {other_uri} and #{colour:06x} in {uri})"
    return ""


def _read_evidence(index: ImageIndex, name: str, mask_uri: str, options: ImportOptions) -> Evidence | None:
    """Compare the sizes of a mask and its image to find out whether the image was annotated as stored or as displayed.

    Args:
        index: images of the source.
        name: path of the image in the source's folder.
        mask_uri: path or URI of the mask.
        options: options of the import; `max_pixels` applies.

    Returns:
        The evidence for one or the other. None if the image is displayed as it is stored.

    Raises:
        BadInput: if the image or the mask can't be used, or the mask has the size of the image neither as stored nor
            as displayed.
    """
    image = index.read(name)
    if not is_reoriented(image):
        return None
    size = image_size(read_input(mask_uri), options.max_pixels)
    return collect_evidence(image, size, np.zeros((0, 2)), {}, options.max_pixels)


def _load(
    index: ImageIndex, name: str, mask_uri: str, table: ClassTable, chooser: FrameChooser, options: ImportOptions
) -> AnnotatedImage:
    """Load one image and its class mask. No object mask is made.

    Args:
        index: images of the source.
        name: path of the image in the source's folder.
        mask_uri: path or URI of the mask.
        table: class of each mask value.
        chooser: decides whether images with an EXIF orientation were annotated as stored or as displayed.
        options: options of the import; `unknown_void` and `max_pixels` apply.

    Returns:
        The image with its class mask.

    Raises:
        BadInput: if the image or the mask can't be used, or they differ in size.
    """
    image = index.read(name)
    displayed_size(image, options.max_pixels)  # rejects a bad image before its mask is read
    class_mask, strange = table.read_class_mask(read_input(mask_uri), options)
    evidence = collect_evidence(image, class_mask.shape[::-1], np.zeros((0, 2)), {}, options.max_pixels)
    frame, remark = chooser.choose(evidence)
    if frame == "stored":
        class_mask = apply_orientation(image, class_mask)
    return AnnotatedImage(*as_layout_file(image, name), class_mask, remark=" and ".join(filter(None, (strange, remark))))
