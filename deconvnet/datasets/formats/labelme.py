"""Reading data sets in LabelMe's format: one JSON file for each image (https://github.com/wkentaro/labelme).

Polygons, rectangles, rotated rectangles, circles and masks are read. Points and lines are skipped, as they cover no area. Shapes with the same label
and group_id form one object. The label `__ignore__` means void, and `_background_` means background. The image is the file that
imagePath names, in the folder of images, or else it is embedded in the JSON file as imageData.
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
_NO_AREA = ("point", "points", "line", "linestrip")  # types of shapes without pixels
_EMBEDDED_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}  # file name suffix by name of the format in Pillow


def read_labelme(sources: Sequence[AnnotationSource], rules: ImportRules) -> AnnotatedDataset:
    """Read one or two folders of LabelMe files as one data set.

    Args:
        sources: folders of JSON files, each with its folder of images, which may be the same folder.
        rules: rules that the user chose. `classes`, `others_void`, `small_over_large` and `max_pixels` apply.

    Returns:
        The data set. If `rules.classes` is empty, its classes are all labels, in alphabetical order.

    Raises:
        UserError: if a folder has no JSON file, or the classes can't be chosen, for example because no shape has any of the
            labels in `rules.classes`.
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
                document = _read_document(uri, rules.encoding)
            except BadInput as error:
                rejects.append((name, uri, str(error)))
                continue
            labels |= {label for shape in document["shapes"] if (label := _label_of(shape))}
            files.append((source, name, str(document.get("imagePath") or "")))
    if not files:
        _, uri, reason = rejects[0]
        raise UserError(f"none of the {len(rejects):,} .json files can be used; {uri}: {reason}")
    annotated = sorted(labels - {VOID_LABEL, BACKGROUND_LABEL})
    dataset = AnnotatedDataset()
    ids = {**dataset.choose_classes(annotated, rules, must_exist=False), VOID_LABEL: VOID_ID, BACKGROUND_LABEL: 0}
    for reject in rejects:
        dataset.reject(*reject)
    indexes = {source.images: _index_or_none(source.images) for source in sources}
    for source, name, image_path in files:
        uri = storage.join(source.annotations, name)
        dataset.add(name, uri, source.split, partial(_load, indexes[source.images], uri, name, image_path, ids, rules))
    return dataset


FORMAT = DatasetFormat("the folder of LabelMe's .json files", read_labelme, images_beside_annotations=True)


def _is_annotation_file(name: str) -> bool:
    """Tell by the path of a file whether it is a JSON file that is not hidden.

    It must have the suffix .json, and neither its name nor that of a folder may begin with ".".

    Args:
        name: path of the file relative to the folder of annotations.

    Returns:
        True if it is such a file.
    """
    return name.lower().endswith(".json") and not any(part.startswith(".") for part in PurePosixPath(name).parts)


def _index_or_none(folder: str) -> ImageIndex | None:
    """List the images in a folder that may have none, because the images may be embedded in the JSON files instead.

    Args:
        folder: local folder or s3:// prefix of the images.

    Returns:
        The list of the images; None if there is no such folder, or no image in it.
    """
    try:
        return ImageIndex(folder)
    except UserError:
        return None


def _read_document(uri: str, encoding: str | None) -> dict[str, Any]:
    """Read a LabelMe file.

    Args:
        uri: path or s3:// address of the file.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.

    Returns:
        The content of the file as a dictionary. Its entry "shapes" is sure to be a list of JSON objects.

    Raises:
        BadInput: if the file can't be read or is not a LabelMe file.
    """
    document = read_json(uri, encoding)
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise BadInput("not a LabelMe file: it has no list of shapes")
    return dict(document)


def _label_of(shape: Mapping[str, Any]) -> str:
    """Return the label of a LabelMe shape without surrounding blanks, or "" if the shape has no label."""
    return str(shape.get("label") or "").strip()


def _load(
    index: ImageIndex | None, uri: str, name: str, image_path: str, ids: Mapping[str, int], rules: ImportRules
) -> AnnotatedImage:
    """Load the image of one LabelMe file and paint its masks from its shapes.

    Args:
        index: images of the source; None if the source has no image files, so that the image must be embedded.
        uri: path or s3:// address of the LabelMe file.
        name: path of the LabelMe file relative to the folder of annotations.
        image_path: value of imagePath in the LabelMe file.
        ids: class id by label; 255 (void) or 0 (background) for classes that are not imported.
        rules: rules that the user chose, for painting the masks.

    Returns:
        The image with its masks.

    Raises:
        BadInput: if the file, the image or a shape can't be used.
    """
    document = _read_document(uri, rules.encoding)
    file = _find_image(index, name, image_path)
    if index and file:
        data = index.read(file)
    else:
        data, file = _decode_embedded(document.get("imageData"), image_path, index)
    size = (document.get("imageWidth"), document.get("imageHeight"))
    return paint_image(data, file, size, rules, partial(_make_regions, document["shapes"], ids))


def _find_image(index: ImageIndex | None, name: str, image_path: str) -> str | None:
    """Find the image file that belongs to a LabelMe file.

    The imagePath is first taken relative to the folder of the LabelMe file. If there is no such image, the image with the same
    file name is taken, wherever it lies in the folder of images.

    Args:
        index: images of the source; None if the source has no image files.
        name: path of the LabelMe file relative to the folder of annotations.
        image_path: value of imagePath in the LabelMe file.

    Returns:
        The path of the image in the folder of images; None if it is not found.
    """
    if index is None or not image_path:
        return None
    path = PurePosixPath(image_path.replace("\\", "/"))
    return index.find(str(PurePosixPath(name).parent / path)) or index.find(path.name)


def _decode_embedded(text: Any, image_path: str, index: ImageIndex | None) -> tuple[bytes, str]:
    """Decode the image that is embedded in a LabelMe file.

    Args:
        text: value of imageData in the file: the bytes of the image in base64. None or "" if there is none.
        image_path: value of imagePath in the file, for the error message.
        index: images of the source, for the error message; None if the source has no image files.

    Returns:
        The bytes of the image, and a made-up file name with the suffix of its format.

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
    """Turn the shapes of a LabelMe file into regions of pixels, one for each object.

    Args:
        shapes: shapes of the file.
        ids: class id by label; 255 (void) or 0 (background) for classes that are not imported.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The regions, and a sentence with the reason for each shape that was skipped. A shape of a class that is not imported
        becomes a region only if its id is 255 (void); otherwise it is in neither list.

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
    """Turn a shape into a region of pixels.

    Args:
        shape: one shape of the LabelMe file.
        kind: its shape_type, such as "polygon".
        class_id: class id for the region.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The region.

    Raises:
        BadInput: if the shape is malformed or its type is unknown.
    """
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
    if kind not in ("polygon", "rectangle", "oriented_rectangle", "rotation"):
        raise BadInput(f"shapes of the type {kind} are not known here: polygon, rectangle, rotation, circle and mask are")
    return polygon_region(class_id, points, height, width)


def _mask_region(shape: Mapping[str, Any], points: np.ndarray, class_id: int, height: int, width: int) -> Region:
    """Turn a shape of type mask into a region of pixels.

    Args:
        shape: the shape; its entry "mask" is a small PNG in base64, whose pixels are not 0 where the object is.
        points: float64 array (N, 2) of x, y; the first point is the position of the PNG's top left corner in the image.
        class_id: class id for the region.
        height: height of the image in px.
        width: width of the image in px.

    Returns:
        The region.

    Raises:
        BadInput: if the PNG is damaged or has more pixels than the image.
    """
    try:
        mask = decode_mask(base64.b64decode(shape.get("mask") or ""), height * width)
    except (binascii.Error, TypeError, ValueError):
        raise BadInput("its mask is damaged") from None
    left, top = (round(float(v)) for v in points[0].clip(-1e6, 1e6))
    return bitmap_region(class_id, mask > 0, top, left, height, width)
