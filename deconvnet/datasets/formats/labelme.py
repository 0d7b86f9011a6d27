"""LabelMe: a JSON file for each photograph, with polygons, rectangles, circles and masks.

Shapes of one label and group_id are one object. The label `__ignore__` is void and `_background_` is background. Points and lines
cover no area and are passed over; a shape that can't be read sets its photograph aside, since its mask would be wrong. The
photograph is the file that imagePath names, looked for below the photographs' folder alone, else the one embedded as imageData.
"""

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from deconvnet.datasets.importing.regions import Region, bitmap, box, disc, points, polygon, union
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
from infra.runtime.progress import progress
from proposals.image_codec import decode_mask
from proposals.masks import VOID_ID

IGNORE, BACKGROUND = "__ignore__", "_background_"
_NO_AREA = ("point", "points", "line", "linestrip")
_FORMATS = {"JPEG": ".jpg", "PNG": ".png"}


def read_labelme(parts: Sequence[Part], wanted: Sequence[str], rules: Rules) -> Source:
    """What the JSON files below the folders of `parts` hold. wanted: names of classes, () for all, by alphabet.

    Raises UserError for a folder without any.
    """
    found: set[str] = set()
    files: list[tuple[Part, str, str]] = []
    rejects: list[tuple[str, str, str]] = []
    for part in parts:
        names = [name for name in storage.list_files(part.annotations) if _is_json(name)]
        if not names:
            raise UserError(f"--annotations {part.annotations} holds no .json file: name the folder that LabelMe saved to")
        for name in progress(names, len(names), "reading labels", "files"):
            uri = storage.join(part.annotations, name)
            try:
                document = _document(uri)
            except BadInput as error:
                rejects.append((name, uri, str(error)))
                continue
            found |= {label for shape in document["shapes"] if (label := _label_of(shape))}
            files.append((part, name, str(document.get("imagePath") or "")))
    labels = sorted(found - {IGNORE, BACKGROUND})
    source = Source(chosen_classes(labels, wanted, must_exist=False))
    if absent := [name for name in source.classes[1:] if name not in found]:
        source.notes.append(f"no shape has the label {', '.join(absent)}")
    for reject in rejects:
        source.reject(*reject)
    ids = {**class_ids(source.classes, labels, rules), IGNORE: VOID_ID, BACKGROUND: 0}
    photographs = {part.images: _photographs(part.images) for part in parts}
    for part, name, image in files:
        uri = storage.join(part.annotations, name)
        source.add(name, uri, part.split, partial(_label, photographs[part.images], uri, name, image, ids, rules))
    return source


def _is_json(name: str) -> bool:
    return name.lower().endswith(".json") and not any(part.startswith(".") for part in PurePosixPath(name).parts)


def _photographs(folder: str) -> Photographs | None:
    """None where the folder has none: they may all be embedded."""
    try:
        return Photographs(folder)
    except UserError:
        return None


def _document(uri: str) -> dict[str, Any]:
    document = read_json(read_input(uri))
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise BadInput("not a LabelMe file: it has no list of shapes")
    return dict(document)


def _label_of(shape: Mapping[str, Any]) -> str:
    return str(shape.get("label") or "").strip()


def _label(photographs: Photographs | None, uri: str, name: str, image: str, ids: Mapping[str, int], rules: Rules) -> Labelled:
    document = _document(uri)
    file = _find(photographs, name, image)
    if photographs and file:
        data = photographs.read(file)
    else:
        data, file = _embedded(document.get("imageData"), image, photographs)
    size = (document.get("imageWidth"), document.get("imageHeight"))
    given = (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None
    return outlined(data, file, given, rules, partial(_regions, document["shapes"], ids))


def _find(photographs: Photographs | None, name: str, image: str) -> str | None:
    """The photograph of the annotation file `name`: imagePath counts from that file's folder."""
    if photographs is None or not image:
        return None
    path = PurePosixPath(image.replace("\\", "/"))
    return photographs.find(str(PurePosixPath(name).parent / path)) or photographs.find(path.name)


def _embedded(text: Any, image: str, photographs: Photographs | None) -> tuple[bytes, str]:
    """The photograph in a LabelMe file, and a name with the suffix that fits it. Raises BadInput."""
    if not text:
        where = f" below {photographs.folder}" if photographs else ""
        raise BadInput(f"no photograph {image or 'is named'}{where}, and none is embedded")
    try:
        data = base64.b64decode(text, validate=False)
        kind = Image.open(io.BytesIO(data)).format or ""
    except (binascii.Error, TypeError, ValueError, UnidentifiedImageError, OSError):
        raise BadInput("the embedded photograph (imageData) is damaged") from None
    return data, f"embedded{_FORMATS.get(kind, '.other')}"


def _regions(
    shapes: Sequence[Mapping[str, Any]], ids: Mapping[str, int], height: int, width: int
) -> tuple[list[Region], list[str]]:
    objects: dict[Any, list[Region]] = {}
    others: set[Any] = set()
    passed_over = []
    for number, shape in enumerate(shapes, start=1):
        label, kind = _label_of(shape), str(shape.get("shape_type") or "polygon")
        if not label:
            raise BadInput(f"shape {number} has no label")
        if kind in _NO_AREA:
            passed_over.append(f"shape {number} ({label}): a {kind} covers no area")
            continue
        try:
            region = _region(shape, kind, ids[label], height, width)
        except BadInput as error:
            raise BadInput(f"shape {number} ({label}): {error}") from None
        if not region.area:
            passed_over.append(f"shape {number} ({label}) covers no pixel")
            continue
        group = shape.get("group_id")
        key = number if group is None else (label, repr(group))
        objects.setdefault(key, []).append(region)
        if ids[label] == 0 and label != BACKGROUND:
            others.add(key)
    return [union(pieces) for key, pieces in objects.items() if key not in others], passed_over


def _region(shape: Mapping[str, Any], kind: str, class_id: int, height: int, width: int) -> Region:
    outline = points(shape.get("points") or [[0, 0]], f"its {kind}")
    if kind == "circle":
        _need(outline, 2, kind)
        (x, y), (rim_x, rim_y) = outline.tolist()
        return disc(class_id, x, y, math.hypot(rim_x - x, rim_y - y), height, width)
    if kind == "rectangle" and len(outline) == 2:
        (x0, y0), (x1, y1) = outline.tolist()
        return box(class_id, x0, y0, x1, y1, height, width)
    if kind == "mask":
        return _bitmap(shape, outline, class_id, height, width)
    if kind not in ("polygon", "rectangle", "oriented_rectangle"):
        raise BadInput(f"shapes of the type {kind} are not known here: polygon, rectangle, circle and mask are")
    return polygon(class_id, outline, height, width)


def _bitmap(shape: Mapping[str, Any], outline: Any, class_id: int, height: int, width: int) -> Region:
    """A PNG of the window whose first corner `outline` names."""
    try:
        mask = decode_mask(base64.b64decode(shape.get("mask") or ""), height * width)
    except (binascii.Error, TypeError, ValueError):
        raise BadInput("its mask is damaged") from None
    left, top = (round(float(v)) for v in outline[0].clip(-1e6, 1e6))
    return bitmap(class_id, mask > 0, top, left, height, width)


def _need(outline: Any, count: int, kind: str) -> None:
    if len(outline) != count:
        raise BadInput(f"a {kind} has {count} points, this one {len(outline)}")
