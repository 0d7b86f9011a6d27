"""Reading data sets in COCO's JSON format (https://cocodataset.org/#format-data).

Polygons, run lengths (compressed or not) and crowds (regions in which objects are not told apart) are read. Category
ids may be any integers. If an annotation has a box but no outline, all pixels in its box become void, because it is not known
which of them belong to the object. The user can choose that boxes become objects instead.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.importing import shapes
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions, LostAnnotation, case_folded
from deconvnet.datasets.importing.image_index import ImageIndex, common_spelling, complete_name
from deconvnet.datasets.importing.images import read_json
from deconvnet.datasets.importing.painting import ImagePainter
from deconvnet.datasets.importing.regions import as_int, parse_points
from infra import storage
from infra.errors import BadInput, UserError
from proposals.masks import VOID_ID

_SECTIONS = ("images", "annotations", "categories")


def read_coco(sources: Sequence[AnnotationSource], options: ImportOptions) -> AnnotatedDataset:
    """Read one or two COCO JSON files as one data set.

    Args:
        sources: the JSON files, each with its folder of images.
        options: options of the import. Those about Kaggle's tables and about folders of masks have no effect.

    Returns:
        The data set. If `options.classes` is empty, its classes are all categories, in the order of their ids. Categories that
        only group others are left out, unless `options.background` names them.

    Raises:
        UserError: if a file is not COCO JSON, the classes can't be chosen, or no annotation of any file has an outline.
    """
    documents = [_read_document(source.annotations, options.encoding) for source in sources]
    names = [_category_names(document, source) for source, document in zip(sources, documents, strict=True)]
    annotated = [name for by_id in names for _, name in sorted(by_id.items())]
    dataset = AnnotatedDataset()
    key = case_folded if options.fold_case else str
    groups = {name for name in _group_names(documents, names) if not options.background or key(name) != key(options.background)}
    if groups and not options.classes:
        annotated = [name for name in annotated if name not in groups]
        dataset.notes.append(
            f"left out, because they only group other categories (supercategory): {', '.join(sorted(groups))} "
            "(--classes can include them)"
        )
    ids = dataset.choose_classes(annotated, options)
    outlined = any(annotation.get("segmentation") for document in documents for annotation in document["annotations"])
    if options.boxes_void and not outlined:
        files = " and ".join(source.annotations for source in sources)
        raise UserError(f"{files}: no annotation has an outline (segmentation); boxes alone can't become masks (see --boxes)")
    for source, document, by_id in zip(sources, documents, names, strict=True):
        crowd_void = options.crowd_void
        if crowd_void and document["annotations"] and _only_masks_as_crowds(document):
            crowd_void = False
            dataset.notes.append(
                f"{source.annotations}: every annotation is a crowd (iscrowd) with run lengths, so each is an object"
            )
        _add_images(dataset, source, document, _Converter(by_id, ids, crowd_void, options.boxes_void), options)
    return dataset


FORMAT = DatasetFormat("the COCO JSON file", read_coco)


def _read_document(uri: str, encoding: str | None) -> dict[str, Any]:
    """Read a COCO JSON file.

    Args:
        uri: path or URI of the file.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.

    Returns:
        The file's lists "images", "annotations" and "categories", by name. Entries that are not JSON objects become empty.

    Raises:
        UserError: if the file can't be read or is not COCO JSON.
    """
    try:
        document = read_json(uri, encoding)
    except BadInput as error:
        raise UserError(f"--annotations {uri} is not COCO JSON: {error}") from None
    if not isinstance(document, dict) or not all(isinstance(document.get(section), list) for section in _SECTIONS):
        raise UserError(f"--annotations {uri} is not COCO JSON: it needs the lists images, annotations and categories")
    return {section: [entry if isinstance(entry, dict) else {} for entry in document[section]] for section in _SECTIONS}


def _category_names(document: Mapping[str, Any], source: AnnotationSource) -> dict[int, str]:
    """Return the category names of a COCO file.

    Args:
        document: content of the file, as `_read_document` returns it.
        source: location of the file, for the error message.

    Returns:
        Category names by category id.

    Raises:
        UserError: if a category has no name or no integer id, or two categories of different names have the same id.
    """
    names: dict[int, str] = {}
    try:
        for category in document["categories"]:
            category_id, name = as_int(category["id"], "id"), str(category["name"]).strip()
            if names.setdefault(category_id, name) != name:
                raise UserError(
                    f"--annotations {source.annotations}: the category id {category_id} is that of {names[category_id]} and of "
                    f"{name}: give each its own"
                )
    except (KeyError, BadInput):
        raise UserError(f"--annotations {source.annotations}: each category needs an id (a whole number) and a name") from None
    return names


def _group_names(documents: Sequence[Mapping[str, Any]], names: Sequence[Mapping[int, str]]) -> set[str]:
    """Return the names of categories that only group others: no annotation has them, and others name them as supercategory.

    Roboflow writes such a category first, for example {"id": 0, "name": "objects", "supercategory": "none"}.

    Args:
        documents: contents of the files, as `_read_document` returns them.
        names: category names by category id, for each file.
    """
    used, groups = set[str](), set[str]()
    for document, by_id in zip(documents, names, strict=True):
        for annotation in document["annotations"]:
            with suppress(BadInput):  # its image is rejected when it is loaded
                used.add(by_id.get(as_int(annotation.get("category_id"), "category_id"), ""))
        for category in document["categories"]:
            if (group := str(category.get("supercategory") or "").strip()) != str(category["name"]).strip():
                groups.add(group)
    return groups & {name for by_id in names for name in by_id.values()} - used


def _add_images(
    dataset: AnnotatedDataset,
    source: AnnotationSource,
    document: Mapping[str, Any],
    converter: "_Converter",
    options: ImportOptions,
) -> None:
    """Add the images of one COCO file to a data set, without loading them.

    Images that can't be used are added to `dataset.rejects`, and annotations of images that the file does not list to
    `dataset.lost_annotations`.

    Args:
        dataset: data set to add to.
        source: the file and its folder of images.
        document: content of the file, as `_read_document` returns it.
        converter: converts the annotations of the file to shapes.
        options: options of the import, for painting the masks.

    Raises:
        UserError: if no annotation belongs to an image that the file lists.
    """
    index, painter = ImageIndex(source.images), ImagePainter(options)
    annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in document["annotations"]:
        annotations[_image_key(annotation.get("image_id"))].append(annotation)
    names: dict[Any, set[str]] = defaultdict(set)
    for image in document["images"]:
        names[_image_key(image.get("id"))].add(str(image.get("file_name")))
    found, missing, notes = index.find_listed(name for of_image in names.values() for name in of_image)
    dataset.notes += notes
    ids_of = Counter(file for of_image in names.values() for file in {found[name] for name in of_image if name in found})
    added = set()
    for image in document["images"]:
        key, name = _image_key(image.get("id")), image.get("file_name")
        if not isinstance(name, str) or not name:
            dataset.reject(f"image {image.get('id')}", source.annotations, "it has no file_name")
        elif key is None:
            dataset.reject(name, source.annotations, "it has no id")
        elif key in added or len(names[key]) > 1:  # it is unclear to which image the annotations belong
            dataset.reject(name, source.annotations, f"its image id {key} is in the file twice")
        elif name in missing:
            dataset.reject(name, source.annotations, missing[name])
        elif ids_of[file := found[name]] > 1:
            dataset.reject(name, source.annotations, "it is listed with several ids, which share its annotations")
        else:
            load = painter.plan(partial(index.read_named, file), partial(converter.convert, image, annotations[key]))
            name = name if name.endswith(PurePosixPath(file).name) else common_spelling(name)  # keeps the id plain
            dataset.add(complete_name(name, file), storage.join(source.images, file), source.split, load)
            added.add(key)
    unlisted = [annotation for key, of_image in annotations.items() if key is None or key not in names for annotation in of_image]
    if unlisted and len(unlisted) == len(document["annotations"]):
        raise UserError(f"--annotations {source.annotations}: no annotation has the id of one of its images (image_id)")
    lost = [(f"image {each.get('image_id')}", source.annotations, converter.describe_unlisted(each)) for each in unlisted]
    dataset.lost_annotations += [(image, uri, each) for image, uri, each in lost if each]
    if unlisted and (without := sum(not annotations[key] for key in names)):
        dataset.notes.append(f"{source.annotations}: {without:,} images that it lists have no annotation")


def _image_key(value: Any) -> Any:
    """Convert the image id of a COCO file to a value that can be a dictionary key.

    Args:
        value: the id, which should be a whole number or text, but may be anything in a malformed file.

    Returns:
        An integer if the id is a whole number, even one written as text. Other text is returned unchanged. None if there is no
        id. Any other value is converted to text.
    """
    try:
        return as_int(value, "id")
    except BadInput:
        return None if value in (None, "") else str(value)


@dataclass(frozen=True)
class _Converter:
    """Converts the annotations of a COCO file to shapes.

    Attributes:
        names: name of each category by its id.
        ids: class id by category name; 255 (void) or 0 (background) for classes that are not imported.
        crowd_void: True if crowds become void.
        boxes_void: True if boxes without an outline become void.
    """

    names: Mapping[int, str]
    ids: Mapping[str, int]
    crowd_void: bool
    boxes_void: bool

    def convert(self, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> shapes.ImageAnnotations:
        """Convert the annotations of an image.

        Args:
            image: the image's entry in the COCO file.
            annotations: the COCO file's annotations of this image.

        Returns:
            The annotations as shapes.

        Raises:
            BadInput: if an annotation is malformed.
        """
        converted = []
        for annotation in annotations:
            name = f"annotation {annotation.get('id')}"
            with shapes.prefix_errors(name):
                converted.append(self._convert_one(name, annotation))
        return shapes.ImageAnnotations((image.get("width"), image.get("height")), converted)

    def describe_unlisted(self, annotation: Mapping[str, Any]) -> LostAnnotation | None:
        """Describe an annotation whose image the file does not list. Returns None if its class is not imported."""
        category = annotation.get("category_id")
        with suppress(BadInput):
            category = as_int(category, "category_id")
        label = self.names.get(category, f"category {category}") if isinstance(category, int) else f"category {category}"
        if self.ids.get(label, VOID_ID) == 0:
            return None
        return LostAnnotation(
            f"annotation {annotation.get('id')}", label, "is of an image that the file does not list under images"
        )

    def _convert_one(self, name: str, annotation: Mapping[str, Any]) -> shapes.Annotation:
        """Convert one annotation of a COCO file.

        Args:
            name: name of the annotation for error messages.
            annotation: entry of the annotation in the COCO file.

        Returns:
            The annotation with its class id, and its shape if it has one.

        Raises:
            BadInput: if the annotation is malformed.
        """
        try:
            label = self.names[as_int(annotation.get("category_id"), "category_id")]
        except (BadInput, KeyError):
            raise BadInput(f"it has the category {annotation.get('category_id')}, which the file does not name") from None
        class_id = self.ids[label] or None  # classes that are not imported hide nothing
        if segmentation := annotation.get("segmentation"):
            shape = _parse_segmentation(segmentation)
            if self.crowd_void and _is_crowd(annotation):
                reason, remedy = "is a crowd, which becomes void", "--crowd object"
                return shapes.Annotation(name, label, class_id, shape, reason, remedy, crowd=True)
            return shapes.Annotation(name, label, class_id, shape)
        if not (box := annotation.get("bbox")):
            return shapes.Annotation(name, label, class_id, None, "has neither outline nor box")
        if len(numbers := parse_points(box, "its box")) != 2:
            raise BadInput("its box does not consist of four numbers")
        (x, y), (width, height) = numbers.tolist()
        shape = shapes.box(x, y, x + width, y + height)
        reason, remedy = ("has a box and no outline: its box becomes void", "--boxes object") if self.boxes_void else ("", "")
        return shapes.Annotation(name, label, class_id, shape, reason, remedy)


def _is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Return whether an annotation of a COCO file is a crowd, that is, a group of objects annotated as one.

    Args:
        annotation: the annotation. If it has no value `iscrowd`, it is not a crowd.

    Raises:
        BadInput: if the value `iscrowd` is not a whole number.
    """
    return as_int(annotation.get("iscrowd") or 0, "its iscrowd") != 0


def _parse_segmentation(value: Any) -> shapes.Shape:
    """Convert the segmentation of an annotation to a shape.

    Args:
        value: value of "segmentation", which is not empty: an object with run lengths, or a list of polygons. A polygon is a list
            of numbers x, y, x, y, … or of pairs [x, y]. A single polygon need not be in a list.

    Returns:
        The shape.

    Raises:
        BadInput: if the value is malformed.
    """
    if isinstance(value, dict):
        size = value.get("size")
        if not isinstance(size, list) or len(size) != 2:
            raise BadInput(f"its run lengths are for {size}, a height and a width are needed")
        height, width = (as_int(side, "the size of its run lengths") for side in size)
        return shapes.run_lengths(value.get("counts"), width, height)
    if not isinstance(value, list):
        raise BadInput(f"its segmentation is a {type(value).__name__}")
    one_polygon = all(not isinstance(each, list) or (len(each) == 2 and not isinstance(each[0], list)) for each in value)
    return shapes.polygons([value] if one_polygon else value)


def _only_masks_as_crowds(document: Mapping[str, Any]) -> bool:
    """Return whether all annotations of a COCO file are crowds with run lengths.

    CVAT exports each painted mask as such a crowd. So if all annotations are such crowds, each is in fact a single object.

    Args:
        document: content of the COCO file.
    """
    try:
        return all(_is_crowd(each) and isinstance(each.get("segmentation"), dict) for each in document["annotations"])
    except BadInput:
        return False
