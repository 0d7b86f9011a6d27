"""Reading data sets in COCO's JSON format (https://cocodataset.org/#format-data).

Polygons, run lengths (compressed or not) and crowds are read. Category ids may be any integers. If an annotation has a box but no
outline, all pixels in its box become void, because it is not known which of them belong to the object.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.importing.dataset import (
    AnnotatedDataset,
    AnnotatedImage,
    AnnotationSource,
    ImportRules,
)
from deconvnet.datasets.importing.images import ImageIndex, read_json
from deconvnet.datasets.importing.painting import paint_image
from deconvnet.datasets.importing.regions import Region, box_region, merge_regions, parse_points, polygon_region
from deconvnet.datasets.importing.rle import run_length_region
from infra import storage
from infra.errors import BadInput, UserError
from proposals.masks import VOID_ID

_SECTIONS = ("images", "annotations", "categories")


def read_coco(sources: Sequence[AnnotationSource], rules: ImportRules) -> AnnotatedDataset:
    """Read one or two COCO JSON files as one data set.

    Args:
        sources: the JSON files, each with its folder of images.
        rules: rules that the user chose. `classes`, `others_void`, `crowd_void`, `small_over_large` and `max_pixels` apply.

    Returns:
        The data set. If `rules.classes` is empty, its classes are all categories, in the order of their ids.

    Raises:
        UserError: if a file is not COCO JSON, the classes can't be chosen, or no annotation of any file has an outline.
    """
    documents = [_read_document(source.annotations, rules.encoding) for source in sources]
    names = [_category_names(document, source) for source, document in zip(sources, documents, strict=True)]
    annotated = [name for by_id in names for _, name in sorted(by_id.items())]
    dataset = AnnotatedDataset()
    ids = dataset.choose_classes(annotated, rules)
    if not any(annotation.get("segmentation") for document in documents for annotation in document["annotations"]):
        files = " and ".join(source.annotations for source in sources)
        raise UserError(f"{files}: no annotation has an outline (segmentation); boxes alone can't become masks")
    for source, document, by_id in zip(sources, documents, names, strict=True):
        _add_images(dataset, source, document, {category: ids[name] for category, name in by_id.items()}, rules)
    return dataset


FORMAT = DatasetFormat("the COCO JSON file", read_coco)


def _read_document(uri: str, encoding: str | None) -> dict[str, Any]:
    """Read a COCO JSON file.

    Args:
        uri: path or s3:// address of the file.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.

    Returns:
        The file's lists "images", "annotations" and "categories", by name. Entries that are not JSON objects are left out.

    Raises:
        UserError: if the file can't be read or is not COCO JSON.
    """
    try:
        document = read_json(uri, encoding)
    except BadInput as error:
        raise UserError(f"--annotations {uri} is no COCO JSON: {error}") from None
    if not isinstance(document, dict) or not all(isinstance(document.get(section), list) for section in _SECTIONS):
        raise UserError(f"--annotations {uri} is no COCO JSON: it needs the lists images, annotations and categories")
    return {section: [entry for entry in document[section] if isinstance(entry, dict)] for section in _SECTIONS}


def _category_names(document: Mapping[str, Any], source: AnnotationSource) -> dict[int, str]:
    """Return the category names of a COCO file.

    Args:
        document: content of the file.
        source: source of the file, for the error message.

    Returns:
        Category names by category id.

    Raises:
        UserError: if a category has no name or no integer id.
    """
    try:
        return {int(category["id"]): str(category["name"]).strip() for category in document["categories"]}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"--annotations {source.annotations}: each category needs an id (a whole number) and a name") from None


def _add_images(
    dataset: AnnotatedDataset, source: AnnotationSource, document: Mapping[str, Any], ids: Mapping[int, int], rules: ImportRules
) -> None:
    """Add the images of one COCO file to a data set, without loading them.

    Images that can't be used are added to `dataset.rejects`. A note in `dataset.notes` tells how many annotations belong to
    images that the file does not list.

    Args:
        dataset: data set to add to.
        source: the file and its folder of images.
        document: content of the file.
        ids: class id by category id; 255 (void) or 0 (background) for classes that are not imported.
        rules: rules that the user chose, for painting the masks.
    """
    index = ImageIndex(source.images)
    annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in document["annotations"]:
        annotations[_hashable(annotation.get("image_id"))].append(annotation)
    listed: set[Any] = set()
    found, missing = index.find_all(name for image in document["images"] if isinstance(name := image.get("file_name"), str))
    for image in document["images"]:
        key, name = _hashable(image.get("id")), image.get("file_name")
        if not isinstance(name, str) or not name:
            dataset.reject(f"image {image.get('id')}", source.annotations, "it has no file_name")
        elif key in listed:
            dataset.reject(name, source.annotations, f"its image id {key} is in the file twice")
        elif name in missing:
            dataset.reject(name, source.annotations, missing[name])
        else:
            file = found[name]
            load = partial(_load, index, file, image, annotations[key], ids, rules)
            dataset.add(name, storage.join(source.images, file), source.split, load)
        listed.add(key)
    if unlisted := sum(len(found) for key, found in annotations.items() if key not in listed):
        dataset.notes.append(f"{source.annotations}: {unlisted:,} annotations are of images that it does not list")


def _hashable(value: Any) -> Any:
    """Convert the image id of a COCO file to a value that can be a dictionary key.

    Args:
        value: the id, which should be an integer or a string, but may be anything in a malformed file.

    Returns:
        The id itself if it is an integer or a string; otherwise, for example for a list, its text.
    """
    return value if isinstance(value, int | str) else repr(value)


def _load(
    index: ImageIndex,
    file: str,
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    ids: Mapping[int, int],
    rules: ImportRules,
) -> AnnotatedImage:
    """Load one image and paint its masks from its annotations.

    Args:
        index: images of the source.
        file: path of the image in the source's folder.
        image: the image's entry in the COCO file.
        annotations: the COCO file's annotations of this image.
        ids: class id by category id; 255 (void) or 0 (background) for classes that are not imported.
        rules: rules that the user chose, for painting the masks.

    Returns:
        The image with its masks.

    Raises:
        BadInput: if the image or an annotation can't be used.
    """
    size = (image.get("width"), image.get("height"))
    return paint_image(index.read(file), file, size, rules, partial(_make_regions, annotations, ids, rules))


def _make_regions(
    annotations: Sequence[Mapping[str, Any]], ids: Mapping[int, int], rules: ImportRules, height: int, width: int
) -> tuple[list[Region], list[str]]:
    """Turn the annotations of an image into regions of pixels.

    Args:
        annotations: the COCO file's annotations of this image.
        ids: class id by category id; 255 (void) or 0 (background) for classes that are not imported.
        rules: rules that the user chose; `crowd_void` applies.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The regions, and a sentence with the reason for each annotation that was skipped. An annotation of a class that is not
        imported becomes a region only if it becomes void; otherwise it is in neither list.

    Raises:
        BadInput: if an annotation is malformed.
    """
    regions, skipped = [], []
    for annotation in annotations:
        name = f"annotation {annotation.get('id')}"
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in ids:
            raise BadInput(f"{name} has the category {category}, which the file does not name")
        crowd = bool(annotation.get("iscrowd")) and rules.crowd_void
        try:
            region = _make_region(annotation, VOID_ID if crowd else ids[category], height, width)
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None
        if region is None:
            skipped.append(f"{name} has neither outline nor box")
        elif not region.area:
            skipped.append(f"{name} covers no pixel")
        elif ids[category] != 0 or region.class_id == VOID_ID:
            regions.append(region)
    return regions, skipped


def _make_region(annotation: Mapping[str, Any], class_id: int, height: int, width: int) -> Region | None:
    """Turn an annotation into a region of pixels.

    Args:
        annotation: one annotation of the COCO file.
        class_id: class id for the region.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The region. If the annotation has a box but no outline, it is the box with the class void. If it has neither, None.

    Raises:
        BadInput: if the annotation is malformed.
    """
    outline = annotation.get("segmentation")
    if not outline:
        box = annotation.get("bbox")
        if not box:
            return None
        if len(box) != 4:
            raise BadInput("its box has not four numbers")
        (x, y), (w, h) = parse_points(box, "its box")
        return box_region(VOID_ID, (x, y, x + w, y + h), height, width)
    if isinstance(outline, dict):
        if (size := outline.get("size")) != [height, width]:
            raise BadInput(f"its run lengths are for {size}, the image is [{height}, {width}]")
        return run_length_region(class_id, outline.get("counts"), height, width)
    if not isinstance(outline, list):
        raise BadInput(f"its segmentation is a {type(outline).__name__}")
    polygons = outline if isinstance(outline[0], list) else [outline]
    return merge_regions([polygon_region(class_id, parse_points(each, "its polygon"), height, width) for each in polygons])
