"""Reading data sets in Supervisely's JSON format.

The format is described at https://developer.supervisely.com/getting-started/supervisely-annotation-format.
A project has a meta.json with its classes, and data sets: folders with the images in img/ and a JSON file for each image in ann/.
Polygons (with holes) and bitmaps are read, and rectangles if the user wants them as objects.
"""

import base64
import binascii
import io
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.image_folder import ENDINGS, visible_files
from deconvnet.datasets.importing import shapes
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions
from deconvnet.datasets.importing.image_index import ImageIndex, normalise
from deconvnet.datasets.importing.images import read_json
from deconvnet.datasets.importing.painting import ImagePainter
from deconvnet.datasets.importing.regions import Region, parse_points, polygon_region
from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.progress import progress

_MAX_BYTES, _MAX_PIXELS = 1 << 28, 100_000_000  # limits of a bitmap's PNG file


def read_supervisely(sources: Sequence[AnnotationSource], options: ImportOptions) -> AnnotatedDataset:
    """Read one or two Supervisely projects as one data set.

    Args:
        sources: each a folder of a project or of one of its data sets, and a folder of images, which may be the same folder.
        options: options of the import. Those about crowds, Kaggle's tables and folders of masks have no
            effect.

    Returns:
        The data set. If `options.classes` is empty, its classes are the classes of meta.json in their order, then all others.

    Raises:
        UserError: if a folder has no annotation file, or the classes can't be chosen.
    """
    labels: list[str] = []
    empty = 0  # images without an object
    dataset = AnnotatedDataset()
    files: list[tuple[AnnotationSource, str]] = []  # source, path of the annotation file
    for source in sources:
        names = [name for name in visible_files(source.annotations, ".json") if _is_annotation_file(name, source.annotations)]
        if not names:
            raise UserError(f"--annotations {source.annotations} has no .json file in a folder ann: name a Supervisely project")
        labels += _meta_classes(source.annotations, options.encoding)
        for name in progress(names, len(names), "reading annotations", "files"):
            try:
                document = _read_document(storage.join(source.annotations, name), options.encoding)
            except BadInput as error:
                dataset.reject(name, storage.join(source.annotations, name), str(error))
                continue
            empty += not document["objects"]
            labels += [label for each in document["objects"] if (label := _label_of(each))]
            files.append((source, name))
    if empty:
        dataset.notes.append(f"{empty:,} images have no object, so they are all background")
    if not files:
        raise UserError(f"no annotation file can be used; {dataset.rejects[0].path}: {dataset.rejects[0].reason}")
    ids = dataset.choose_classes(labels, options)
    for source in sources:
        index, painter = ImageIndex(source.images), ImagePainter(options)
        images = {normalise(name): name for name in index.names}
        names = [name for each, name in files if each is source]
        data_sets = {PurePosixPath(name).parent.parent.name for name in names}
        shown = next((part for part in PurePosixPath(index.folder).parts[-2:] if part in data_sets), "")
        found = {name: _find_image(index, images, name, shown) for name in names}
        claims = Counter(found.values())  # if two files fit the same image, one must be wrong
        for name, file in found.items():
            uri = storage.join(source.annotations, name)
            if file is None or claims[file] > 1:
                several = f"{file}, its image below {source.images}, is also that of another annotation file"
                dataset.reject(name, uri, several if file else f"its image is not below {source.images}")
                continue
            load = painter.plan(partial(index.read_named, file), partial(_convert, uri, ids, options))
            dataset.add("/".join(part for part in file.split("/") if part != "img"), uri, source.split, load)
    return dataset


FORMAT = DatasetFormat("the folder of a Supervisely project", read_supervisely, images_beside_annotations=True)


def _is_annotation_file(name: str, folder: str) -> bool:
    """Return whether a JSON file is the annotation file of an image: whether it lies directly in a folder ann.

    Args:
        name: path of the file relative to `folder`.
        folder: path or URI of the folder of annotations, which may itself be the folder ann.
    """
    return (PurePosixPath(folder.rpartition("/")[2]) / name).parent.name == "ann"


def _meta_classes(folder: str, encoding: str | None) -> list[str]:
    """Return the class names that meta.json lists, in its order.

    Args:
        folder: path or URI of a folder. The file may lie in it or in one of the two folders above it.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.

    Returns:
        The class names; [] if there is no meta.json.

    Raises:
        UserError: if the file can't be read, or has no classes with titles.
    """
    for parent in (folder, folder.rpartition("/")[0], folder.rpartition("/")[0].rpartition("/")[0]):
        if parent and storage.exists(file := storage.join(parent, "meta.json")):
            try:
                return [str(each["title"]).strip() for each in read_json(file, encoding)["classes"]]
            except (BadInput, KeyError, TypeError) as error:
                raise UserError(f"{file} is not a meta.json of Supervisely: {error}") from None
    return []


def _read_document(uri: str, encoding: str | None) -> dict[str, Any]:
    """Read an annotation file.

    Args:
        uri: path or URI of the file.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.

    Returns:
        The content of the file. Its entry "objects" is sure to be a list of JSON objects, and "size" a JSON object.

    Raises:
        BadInput: if the file can't be read or is not an annotation file of Supervisely.
    """
    document = read_json(uri, encoding)
    objects = document.get("objects") if isinstance(document, dict) else None
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        raise BadInput("not an annotation file of Supervisely: it has no list of objects")
    return {**document, "size": document["size"] if isinstance(document.get("size"), dict) else {}}


def _label_of(figure: Mapping[str, Any]) -> str:
    """Return the class name of an object in an annotation file; "" if it has none."""
    return str(figure.get("classTitle") or "").strip()


def _find_image(index: ImageIndex, images: Mapping[str, str], name: str, shown: str) -> str | None:
    """Find the image of an annotation file.

    The image of ds/ann/a.jpg.json is ds/img/a.jpg. Older projects call the file ds/ann/a.json. The folder of images may also be
    ds/img itself, or hold the images of all data sets.

    Args:
        index: images of the source.
        images: path of each image, by the same path with accented letters in Unicode's composed form.
        name: path of the annotation file relative to the folder of annotations.
        shown: name of the data set whose images lie directly in the folder of images; "" if it may be any.

    Returns:
        The path of the image relative to the folder of images; None if it is not found, or more than one fits.
    """
    path = PurePosixPath(name)
    stem = path.name[: -len(path.suffix)]
    directly = shown in ("", path.parent.parent.name)
    for folder in (
        path.parent.parent / "img",
        path.parent.parent,
        *([PurePosixPath("img"), PurePosixPath()] if directly else []),
    ):
        paths = [normalise(str(folder / f"{stem}{suffix}")) for suffix in ("", *ENDINGS)]
        if there := [images[path] for path in paths if path in images]:
            return there[0] if len(there) == 1 or paths[0] in images else None
    found = index.find(str(path.parent.parent / stem))
    return found if found and (directly or "/" in found) else None


def _convert(uri: str, ids: Mapping[str, int], options: ImportOptions) -> shapes.ImageAnnotations:
    """Read an annotation file and convert its objects to shapes.

    Args:
        uri: path or URI of the file.
        ids: class id by class name; 255 (void) or 0 (background) for classes that are not imported.
        options: options of the import; `boxes_void` and `encoding` apply.

    Returns:
        The shapes of the image with their class ids.

    Raises:
        BadInput: if the file or an object is malformed.
    """
    document = _read_document(uri, options.encoding)
    converted = []
    for number, figure in enumerate(document["objects"], start=1):
        name, label = f"object {number}", _label_of(figure)
        kind = str(figure.get("geometryType") or ("bitmap" if "bitmap" in figure else "polygon"))
        if label not in ids:
            raise BadInput(f"{name} has no class")
        with shapes.prefix_errors(f"{name} ({label})"):
            shape = _make_shape(figure, kind)
        reason, remedy = "" if shape else f"is a {kind}, which covers no area", ""
        if kind == "rectangle" and options.boxes_void:
            reason, remedy = "is a rectangle without an outline, which becomes void", "--boxes object"
        converted.append(shapes.Annotation(name, label, ids[label] or None, shape, reason, remedy))
    size = document["size"]
    return shapes.ImageAnnotations((size.get("width"), size.get("height")), converted)


def _make_shape(figure: Mapping[str, Any], kind: str) -> shapes.Shape | None:
    """Make the shape of an object.

    Args:
        figure: the entry of the object in the annotation file.
        kind: its geometryType, such as "polygon".

    Returns:
        The shape; None if objects of this kind cover no area.

    Raises:
        BadInput: if the object is malformed.
    """
    if kind in ("bitmap", "alpha_mask"):
        bitmap = figure.get("bitmap")
        try:
            mask = _decode_bitmap(bitmap["data"])  # type: ignore[index]
            left, top = (int(each) for each in bitmap["origin"])  # type: ignore[index]
        except (KeyError, TypeError, ValueError, OSError, binascii.Error, zlib.error, SyntaxError):
            raise BadInput("its bitmap is damaged") from None
        return shapes.bitmap(mask, left, top)
    if kind not in ("polygon", "rectangle"):
        return None
    points = figure.get("points")
    if not isinstance(points, dict):
        raise BadInput(f"its {kind} has no points")
    exterior = parse_points(points.get("exterior") or [], f"its {kind}").reshape(-1, 2)
    if kind == "rectangle":
        if len(exterior) != 2:
            raise BadInput(f"a rectangle has 2 points, this one {len(exterior)}")
        return shapes.box(*exterior.ravel().tolist())
    interior = points.get("interior") or []
    if not isinstance(interior, list):
        raise BadInput(f"the holes of its {kind} are not a list")
    holes = [parse_points(hole, "its hole") for hole in interior]

    def fill(class_id: int, height: int, width: int) -> Region:
        region = polygon_region(class_id, exterior, height, width)
        whole = np.zeros((height, width), bool)
        for hole in holes:
            inside = polygon_region(class_id, hole, height, width)
            whole[inside.window] |= inside.pixels
        return replace(region, pixels=region.pixels & ~whole[region.window])

    return shapes.Shape(fill, exterior)


def _decode_bitmap(text: str) -> np.ndarray:
    """Decode the bitmap of an object.

    Args:
        text: a PNG file, compressed by zlib and written in base64.

    Returns:
        bool array (h, w), True where the object is: where the PNG is opaque if it has transparency, otherwise where it is not 0.

    Raises:
        ValueError: if the PNG is too large. A damaged one raises ValueError, TypeError, OSError, SyntaxError, binascii.Error or
            zlib.error.
    """
    data = zlib.decompressobj().decompress(base64.b64decode(text), _MAX_BYTES)
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    if image.width * image.height > _MAX_PIXELS:
        raise ValueError("larger than any image")
    if "A" in image.getbands() or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))[..., 3] > 0
    return np.asarray(image.convert("L") if image.mode != "P" else image) > 0
