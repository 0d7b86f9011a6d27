"""COCO's JSON: polygons, run lengths (compressed or not), crowds; category ids may be any integers.

https://cocodataset.org/#format-data. An annotation with a box and no outline is void over its box: something is there, and which
pixels are its is not known. One that covers no area is passed over. One that can't be read sets its photograph aside, since its
mask would be wrong.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from deconvnet.datasets.importing.regions import Region, box, points, polygon, runs, union
from deconvnet.datasets.importing.source import (
    Labelled,
    Part,
    Photographs,
    Rules,
    Source,
    chosen_classes,
    class_ids,
    outlined,
    read_input,
    read_json,
)
from infra import storage
from infra.errors import BadInput, UserError
from proposals.masks import VOID_ID


def read_coco(parts: Sequence[Part], wanted: Sequence[str], rules: Rules) -> Source:
    """What the JSON files of `parts` list. wanted: names of classes, () for all, in the order of their category ids.

    Raises UserError for a file that is no COCO JSON, or that outlines nothing.
    """
    files = [(part, _document(part.annotations)) for part in parts]
    names = _category_names([document for _, document in files], [part.annotations for part, _ in files])
    found = [name for by_id in names for _, name in sorted(by_id.items())]
    source = Source(chosen_classes(found, wanted))
    if not any(_outlined(each) for _, document in files for each in document["annotations"]):
        where = " and ".join(part.annotations for part, _ in files)
        raise UserError(f"{where}: no annotation has an outline (segmentation); boxes alone can't become masks")
    ids = class_ids(source.classes, found, rules)
    for (part, document), by_id in zip(files, names, strict=True):
        _add(source, part, document, {category: ids[name] for category, name in by_id.items()}, rules)
    return source


def _document(uri: str) -> dict[str, Any]:
    try:
        document = read_json(read_input(uri))
    except BadInput as error:
        raise UserError(f"--annotations {uri} is no COCO JSON: {error}") from None
    sections = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(s), list) for s in sections):
        raise UserError(f"--annotations {uri} is no COCO JSON: it needs the lists images, annotations and categories")
    for section in sections:
        document[section] = [each for each in document[section] if isinstance(each, dict)]
    return document


def _category_names(documents: Sequence[Mapping[str, Any]], files: Sequence[str]) -> list[dict[int, str]]:
    names: list[dict[int, str]] = []
    for document, file in zip(documents, files, strict=True):
        try:
            names.append({int(each["id"]): str(each["name"]).strip() for each in document["categories"]})
        except (KeyError, TypeError, ValueError):
            raise UserError(f"--annotations {file}: each category needs an id (a whole number) and a name") from None
    return names


def _outlined(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("segmentation"))


def _add(source: Source, part: Part, document: Mapping[str, Any], ids: Mapping[int, int], rules: Rules) -> None:
    photographs = Photographs(part.images)
    annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for each in document["annotations"]:
        annotations[_key(each.get("image_id"))].append(each)
    listed: set[Any] = set()
    for image in document["images"]:
        key, name = _key(image.get("id")), image.get("file_name")
        if not isinstance(name, str) or not name:
            source.reject(f"image {image.get('id')}", part.annotations, "it has no file_name")
        elif key in listed:
            source.reject(name, part.annotations, f"its image id {key} stands in the file twice")
        elif (file := photographs.find(name)) is None:
            source.reject(name, part.annotations, f"no such photograph below {part.images}")
        else:
            label = partial(_label, photographs, file, image, annotations[key], ids, rules)
            source.add(name, storage.join(part.images, file), part.split, label)
        listed.add(key)
    if strays := sum(len(found) for key, found in annotations.items() if key not in listed):
        source.notes.append(f"{part.annotations}: {strays:,} annotations are of photographs that it does not list")


def _key(value: Any) -> Any:
    """An id to look up by: a list or an object can't be one."""
    return value if isinstance(value, int | str) else repr(value)


def _label(
    photographs: Photographs,
    file: str,
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    ids: Mapping[int, int],
    rules: Rules,
) -> Labelled:
    size = (image.get("width"), image.get("height"))
    given = (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None
    return outlined(photographs.read(file), file, given, rules, partial(_regions, annotations, ids, rules))


def _regions(
    annotations: Sequence[Mapping[str, Any]], ids: Mapping[int, int], rules: Rules, height: int, width: int
) -> tuple[list[Region], list[str]]:
    made, passed_over = [], []
    for annotation in annotations:
        name = f"annotation {annotation.get('id')}"
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in ids:
            raise BadInput(f"{name} has the category {category}, which the file does not name")
        crowd = bool(annotation.get("iscrowd")) and rules.crowd_void
        try:
            region = _region(annotation, VOID_ID if crowd else ids[category], height, width)
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None
        if region is None:
            passed_over.append(f"{name} has neither outline nor box")
        elif not region.area:
            passed_over.append(f"{name} covers no pixel")
        elif ids[category] != 0 or region.class_id == VOID_ID:
            made.append(region)
    return made, passed_over


def _region(annotation: Mapping[str, Any], class_id: int, height: int, width: int) -> Region | None:
    """The pixels of an annotation; None where it has neither an outline nor a box. Raises BadInput."""
    outline = annotation.get("segmentation")
    if not outline:
        corners = annotation.get("bbox")
        if not corners:
            return None
        if len(corners) != 4:
            raise BadInput("its box has not four numbers")
        (x, y), (w, h) = points(corners, "its box")
        return box(VOID_ID, x, y, x + w, y + h, height, width)
    if isinstance(outline, dict):
        if (size := outline.get("size")) != [height, width]:
            raise BadInput(f"its run lengths are for {size}, the photograph is [{height}, {width}]")
        return runs(class_id, outline.get("counts"), height, width)
    if not isinstance(outline, list):
        raise BadInput(f"its segmentation is a {type(outline).__name__}")
    pieces = [outline] if not isinstance(outline[0], list) else outline
    return union([polygon(class_id, points(piece, "its polygon"), height, width) for piece in pieces])
