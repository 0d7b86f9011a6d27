"""LabelMe's format: one JSON file an image, with polygons, rectangles, circles and masks. https://github.com/wkentaro/labelme

Shapes of one label and group_id are one object. The label `__ignore__` means void and `_background_` background. Points and lines
cover no area and are skipped. An image is the file that imagePath names, below the folder of images, or the one that is embedded
as imageData.
"""

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.importing.dataset import (
    AnnotatedDataset,
    AnnotatedImage,
    AnnotationSource,
    ImportRules,
    class_ids,
    select_classes,
)
from deconvnet.datasets.importing.images import ImageIndex, read_json
from deconvnet.datasets.importing.painting import paint_image
from deconvnet.datasets.importing.regions import (
    Region,
    bitmap_region,
    box_region,
    circle_region,
    merge_regions,
    parse_points,
    polygon_region,
)
from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.progress import progress
from proposals.image_codec import decode_mask
from proposals.masks import VOID_ID

VOID_LABEL, BACKGROUND_LABEL = "__ignore__", "_background_"
_NO_AREA = ("point", "points", "line", "linestrip")
_EMBEDDED_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}


def read_labelme(sources: Sequence[AnnotationSource], rules: ImportRules) -> AnnotatedDataset:
    """Read folders of LabelMe files.

    Args:
        sources: a folder of JSON files and a folder of images each, which may be the same; all together make one data set.
        rules: `classes`, `others_void`, `small_over_large` and `max_pixels` apply.

    Returns:
        The data set; if `rules.classes` is empty its classes are all labels, in alphabetical order.

    Raises:
        UserError: for a folder without JSON files, or if none of `rules.classes` is a label.
    """
    labels: set[str] = set()
    files: list[tuple[AnnotationSource, str, str]] = []  # source, name of the JSON file, imagePath
    rejects: list[tuple[str, str, str]] = []
    for source in sources:
        names = [name for name in storage.list_files(source.annotations) if _is_annotation_file(name)]
        if not names:
            raise UserError(f"--annotations {source.annotations} holds no .json file: name the folder that LabelMe saved to")
        for name in progress(names, len(names), "reading annotations", "files"):
            uri = storage.join(source.annotations, name)
            try:
                document = _read_document(uri)
            except BadInput as error:
                rejects.append((name, uri, str(error)))
                continue
            labels |= {label for shape in document["shapes"] if (label := _label_of(shape))}
            files.append((source, name, str(document.get("imagePath") or "")))
    annotated = sorted(labels - {VOID_LABEL, BACKGROUND_LABEL})
    dataset = AnnotatedDataset(select_classes(annotated, rules.classes, must_exist=False))
    if absent := [name for name in dataset.classes[1:] if name not in labels]:
        dataset.notes.append(f"no shape has the label {', '.join(absent)}")
    for reject in rejects:
        dataset.reject(*reject)
    ids = {**class_ids(dataset.classes, annotated, rules), VOID_LABEL: VOID_ID, BACKGROUND_LABEL: 0}
    indexes = {source.images: _index_or_none(source.images) for source in sources}
    for source, name, image_path in files:
        uri = storage.join(source.annotations, name)
        dataset.add(name, uri, source.split, partial(_load, indexes[source.images], uri, name, image_path, ids, rules))
    return dataset


FORMAT = DatasetFormat("the folder of LabelMe's .json files", read_labelme, images_beside_annotations=True)


def _is_annotation_file(name: str) -> bool:
    """Tell by its relative path whether a file is JSON and neither hidden nor in a hidden folder."""
    return name.lower().endswith(".json") and not any(part.startswith(".") for part in PurePosixPath(name).parts)


def _index_or_none(folder: str) -> ImageIndex | None:
    """List the images of a folder. Returns None if it has none, as images may be embedded in the JSON files."""
    try:
        return ImageIndex(folder)
    except UserError:
        return None


def _read_document(uri: str) -> dict[str, Any]:
    """Read a LabelMe file. Raises BadInput if it is damaged or of another kind."""
    document = read_json(uri)
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise BadInput("not a LabelMe file: it has no list of shapes")
    return dict(document)


def _label_of(shape: Mapping[str, Any]) -> str:
    """Return the label of a shape, or "" if it has none."""
    return str(shape.get("label") or "").strip()


def _load(
    index: ImageIndex | None, uri: str, name: str, image_path: str, ids: Mapping[str, int], rules: ImportRules
) -> AnnotatedImage:
    """Load the image of one JSON file and make its masks.

    Args:
        index: the images of the source; None if it has only embedded ones.
        uri: the JSON file.
        name: its path relative to the folder of annotations.
        image_path: imagePath of the file.
        ids: class id by label.
        rules: how annotations become masks.

    Raises:
        BadInput: if the file, the image or a shape can't be used.
    """
    document = _read_document(uri)
    file = _find_image(index, name, image_path)
    if index and file:
        data = index.read(file)
    else:
        data, file = _decode_embedded(document.get("imageData"), image_path, index)
    size = (document.get("imageWidth"), document.get("imageHeight"))
    return paint_image(data, file, size, rules, partial(_make_regions, document["shapes"], ids))


def _find_image(index: ImageIndex | None, name: str, image_path: str) -> str | None:
    """Find the image of the JSON file `name`.

    Its imagePath is relative to the folder of the JSON file; if there is no such image, one of the same file name is taken.
    Returns None if there is none either.
    """
    if index is None or not image_path:
        return None
    path = PurePosixPath(image_path.replace("\\", "/"))
    return index.find(str(PurePosixPath(name).parent / path)) or index.find(path.name)


def _decode_embedded(text: Any, image_path: str, index: ImageIndex | None) -> tuple[bytes, str]:
    """Decode the image that is embedded in a JSON file.

    Args:
        text: imageData of the file: the image in base64.
        image_path: imagePath of the file, for the error message.
        index: the images of the source, for the error message.

    Returns:
        The bytes of the image, and a file name with the suffix of its format.

    Raises:
        BadInput: if there is no embedded image, or it is damaged.
    """
    if not text:
        where = f" below {index.folder}" if index else ""
        raise BadInput(f"no image {image_path or 'is named'}{where}, and none is embedded")
    try:
        data = base64.b64decode(text, validate=False)
        kind = Image.open(io.BytesIO(data)).format or ""
    except (binascii.Error, TypeError, ValueError, UnidentifiedImageError, OSError):
        raise BadInput("the embedded image (imageData) is damaged") from None
    return data, f"embedded{_EMBEDDED_SUFFIXES.get(kind, '.other')}"


def _make_regions(
    shapes: Sequence[Mapping[str, Any]], ids: Mapping[str, int], height: int, width: int
) -> tuple[list[Region], list[str]]:
    """Make the regions of the objects in an image of this size.

    Returns:
        A region an object, and the shapes that were skipped, each with the reason.

    Raises:
        BadInput: if a shape is malformed.
    """
    objects: dict[Any, list[Region]] = {}
    skipped = []
    for number, shape in enumerate(shapes, start=1):
        label, kind = _label_of(shape), str(shape.get("shape_type") or "polygon")
        if not label:
            raise BadInput(f"shape {number} has no label")
        if kind in _NO_AREA:
            skipped.append(f"shape {number} ({label}): a {kind} covers no area")
            continue
        try:
            region = _make_region(shape, kind, ids[label], height, width)
        except BadInput as error:
            raise BadInput(f"shape {number} ({label}): {error}") from None
        if not region.area:
            skipped.append(f"shape {number} ({label}) covers no pixel")
        elif ids[label] != 0 or label == BACKGROUND_LABEL:  # classes that are not imported hide nothing
            group = shape.get("group_id")
            objects.setdefault(number if group is None else (label, repr(group)), []).append(region)
    return [merge_regions(pieces) for pieces in objects.values()], skipped


def _make_region(shape: Mapping[str, Any], kind: str, class_id: int, height: int, width: int) -> Region:
    """Make the region of a shape in an image of this size; `kind` is its shape_type. Raises BadInput if it is malformed."""
    points = parse_points(shape.get("points") or [[0, 0]], f"its {kind}")
    if kind == "circle":
        if len(points) != 2:
            raise BadInput(f"a circle has 2 points, this one {len(points)}")
        (x, y), (rim_x, rim_y) = points.tolist()
        return circle_region(class_id, (x, y), math.hypot(rim_x - x, rim_y - y), height, width)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points.tolist()
        return box_region(class_id, (x0, y0, x1, y1), height, width)
    if kind == "mask":
        return _mask_region(shape, points, class_id, height, width)
    if kind not in ("polygon", "rectangle", "oriented_rectangle"):
        raise BadInput(f"shapes of the type {kind} are not known here: polygon, rectangle, circle and mask are")
    return polygon_region(class_id, points, height, width)


def _mask_region(shape: Mapping[str, Any], points: np.ndarray, class_id: int, height: int, width: int) -> Region:
    """Make the region of a shape of type mask: a PNG in base64 whose top left corner lies at the first of `points`."""
    try:
        mask = decode_mask(base64.b64decode(shape.get("mask") or ""), height * width)
    except (binascii.Error, TypeError, ValueError):
        raise BadInput("its mask is damaged") from None
    left, top = (round(float(v)) for v in points[0].clip(-1e6, 1e6))
    return bitmap_region(class_id, mask > 0, top, left, height, width)
