"""Reading data sets in LabelMe's format: one JSON file for each image (https://github.com/wkentaro/labelme).

Polygons, rectangles, rotated rectangles, circles and masks are read. Points and lines are skipped, as they cover no area. Shapes
with the same label and group_id form one object. The label `__ignore__` means void, and `_background_` means background. The
image is the file that imagePath names in the folder of images. If there is no such file, or it shows another image, the image
embedded in the JSON file as imageData is used.
"""

import base64
import binascii
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.image_folder import ENDINGS, visible_files
from deconvnet.datasets.importing import shapes
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions
from deconvnet.datasets.importing.image_index import ImageIndex, normalise
from deconvnet.datasets.importing.images import SourceImage, read_json, same_image
from deconvnet.datasets.importing.painting import ImagePainter
from deconvnet.datasets.importing.regions import parse_points
from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.progress import progress
from proposals.image_codec import DAMAGE_ERRORS, decode_mask
from proposals.masks import VOID_ID

VOID_LABEL, BACKGROUND_LABEL = "__ignore__", "_background_"
_POLYGONS = ("polygon", "rectangle", "oriented_rectangle", "rotation", "quadrilateral")  # the last two are X-AnyLabeling's
_NO_AREA = ("point", "points", "line", "linestrip")  # types of shapes without pixels
_MAX_MASK_PIXELS = 100_000_000  # limit for a shape of type mask
_NOT_THE_FILE = "was taken from its JSON file (imageData), because its image file shows another image"
_EMBEDDED_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}  # file name suffix by name of the format in Pillow


def read_labelme(sources: Sequence[AnnotationSource], options: ImportOptions) -> AnnotatedDataset:
    """Read one or two folders of LabelMe files as one data set.

    Args:
        sources: folders of JSON files, each with its folder of images, which may be the same folder.
        options: options of the import. Those about boxes, crowds, Kaggle's tables and folders of masks have no effect.

    Returns:
        The data set. If `options.classes` is empty, its classes are all labels, in alphabetical order.

    Raises:
        UserError: if a folder has no JSON file, no shape has an area, or the classes can't be chosen, for example because no
            shape has any of the labels in `options.classes`.
    """
    labels: set[str] = set()
    kinds: set[str] = set()
    files: list[tuple[AnnotationSource, dict[str, str]]] = []  # a source, and imagePath by name of the JSON file
    rejects: list[tuple[str, str, str]] = []
    for source in sources:
        names = visible_files(source.annotations, ".json")
        if not names:
            raise UserError(f"--annotations {source.annotations} holds no .json file: name the folder that LabelMe saved to")
        files.append((source, image_paths := {}))
        for name in progress(names, len(names), "reading annotations", "files"):
            uri = storage.join(source.annotations, name)
            try:
                document = _read_document(uri, options.encoding)
            except BadInput as error:
                rejects.append((name, uri, str(error)))
                continue
            labels |= {label for shape in document["shapes"] if (label := _label_of(shape))}
            kinds |= {_kind_of(shape) for shape in document["shapes"]}
            image_paths[name] = str(document.get("imagePath") or "")
    if not any(image_paths for _, image_paths in files):
        _, uri, reason = rejects[0]
        raise UserError(f"none of the {len(rejects):,} .json files can be used; {uri}: {reason}")
    if kinds and kinds <= set(_NO_AREA):
        folders = " and ".join(source.annotations for source in sources)
        raise UserError(f"{folders}: no shape has an area, all are of the type {' or '.join(sorted(kinds))}: annotate polygons")
    annotated = sorted(labels - {VOID_LABEL, BACKGROUND_LABEL})
    dataset = AnnotatedDataset()
    ids = {**dataset.choose_classes(annotated, options, must_exist=False), VOID_LABEL: VOID_ID, BACKGROUND_LABEL: 0}
    for reject in rejects:
        dataset.reject(*reject)
    for source, image_paths in files:
        painter, index = ImagePainter(options), _index_or_none(source.images)
        images, notes = _find_images(index, image_paths) if index else ({}, [])
        dataset.notes += notes
        sharing: dict[str, list[str]] = defaultdict(list)
        for name, image in images.items():
            sharing[image].append(name)
        for name, image_path in image_paths.items():
            image, uri = images.get(name, ""), storage.join(source.annotations, name)
            twins = [storage.join(source.annotations, other) for other in sharing.get(image, ()) if other != name]
            file = _File(uri, image_path, index, image, _find_rival(index, name, image), twins, ids, options.encoding)
            dataset.add(name, file.uri, source.split, painter.plan(file.read_image, file.read_shapes))
    return dataset


FORMAT = DatasetFormat("the folder of LabelMe's .json files", read_labelme, images_beside_annotations=True)


def _index_or_none(folder: str) -> ImageIndex | None:
    """List the images in a folder that may have none, because the images may be embedded in the JSON files instead.

    Args:
        folder: local folder or bucket prefix of the images.

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
        uri: path or URI of the file.
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


def _kind_of(shape: Mapping[str, Any]) -> str:
    """Return the type of a LabelMe shape, such as "polygon". A shape without a type is a polygon."""
    return str(shape.get("shape_type") or "polygon")


def _find_images(index: ImageIndex, image_paths: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Find the image files of the LabelMe files of a folder.

    An imagePath is relative to the folder of its LabelMe file. If no image is there, an image of the same file name is used
    instead, but only from one folder: the one that has the same relative path as the folder of the LabelMe file.

    Args:
        index: images of the source.
        image_paths: imagePath ("" if it is missing) by the path of the LabelMe file, relative to the folder of annotations.

    Returns:
        images: path of the image in the folder of images, by path of the LabelMe file. Files without an image are left out.
        notes: sentences for the user about images that were found by file name, whatever their folder.
    """
    listed = {name: PurePosixPath(name).parent / path.replace("\\", "/") for name, path in image_paths.items() if path}
    found, _, notes = index.find_listed(str(path) for path in listed.values())
    images = {name: found[str(path)] for name, path in listed.items() if str(path) in found}
    taken = set(images.values())
    for name in listed.keys() - images.keys():
        beside = str(PurePosixPath(name).parent / listed[name].name)
        if index.find(beside) == beside and beside not in taken:
            images[name] = beside
    return images, notes


def _find_rival(index: ImageIndex | None, name: str, image: str) -> str | None:
    """Find a second image to which a LabelMe file may belong, because it has the file's name.

    LabelMe names a file after its image, and writes the image's path into it (imagePath). If both files were renamed later, the
    path is out of date: `b.json` may still say `a.jpg`, although `b.jpg` is its image.

    Args:
        index: images of the source; None if it has none.
        name: path of the LabelMe file, relative to the folder of annotations.
        image: path, in the folder of images, of the image that imagePath names; "" if it was not found.

    Returns:
        The path, in the folder of images, of the image with the file's name; None if there is none or imagePath names it.
    """
    path = PurePosixPath(name).with_suffix("")
    if index is None or not image or normalise(PurePosixPath(image).stem) == normalise(path.name):
        return None
    candidates = [f"{path}{suffix}" for suffix in ENDINGS]
    return next((each for each in candidates if index.find(each) == each), None)


@dataclass(frozen=True)
class _File:
    """A LabelMe file. Its methods read it anew each time, so that a large data set needs little memory.

    Attributes:
        uri: path or URI of the file.
        image_path: value of imagePath in the file.
        index: images of the source; None if the source has no image files, so that the image must be embedded.
        image: path of its image in the source's folder; "" if there is no such file.
        rival: path of another image in this folder that has the name of the LabelMe file; None if there is none.
        twins: paths or URIs of other LabelMe files with the same image.
        ids: class id by label; 255 (void) or 0 (background) for classes that are not imported.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.
    """

    uri: str
    image_path: str
    index: ImageIndex | None
    image: str
    rival: str | None
    twins: Sequence[str]
    ids: Mapping[str, int]
    encoding: str | None

    def read_image(self) -> SourceImage:
        """Read the image: its file, or the embedded image if there is no file or the file shows another image.

        Returns:
            The image. Its remark says if the file shows another image.

        Raises:
            BadInput: if neither can be used, another LabelMe file has the same image, or it is not clear whether imagePath or
                `rival` names the right image.
        """
        text = _read_document(self.uri, self.encoding).get("imageData")
        if not self.index or not self.image:
            return _decode_embedded(text, self.image_path, self.index)
        if self.rival and not text:
            raise BadInput(
                f"its imagePath is {self.image_path}, but its name fits {self.rival}: correct imagePath, or remove one image"
            )
        data = self.index.read(self.image)
        if other := self._read_other(self.uri, data):
            return other._replace(remark=_NOT_THE_FILE)
        if twins := [uri for uri in self.twins if not self._read_other(uri, data)]:
            raise BadInput(f"its image, {self.image}, is also that of {twins[0]}: put all shapes into one file")
        return SourceImage(data, self.image)

    def _read_other(self, uri: str, image: bytes) -> SourceImage | None:
        """Read the image that is embedded in a LabelMe file. Returns None if it is the given one, damaged, or missing."""
        with suppress(BadInput):
            embedded = _decode_embedded(_read_document(uri, self.encoding).get("imageData"), self.image_path, self.index)
            if not same_image(image, embedded.data):
                return embedded
        return None

    def read_shapes(self) -> shapes.ImageAnnotations:
        """Return the shapes in the file with their class ids. Raise BadInput if the file or a shape is malformed."""
        document = _read_document(self.uri, self.encoding)
        annotations = []
        for number, shape in enumerate(document["shapes"], start=1):
            if not (label := _label_of(shape)):
                raise BadInput(f"shape {number} has no label")
            class_id = self.ids[label] if label == BACKGROUND_LABEL else self.ids[label] or None  # others hide nothing
            name, kind, group = f"shape {number}", _kind_of(shape), shape.get("group_id")
            if kind in _NO_AREA:
                annotations.append(shapes.Annotation(name, label, class_id, None, f"is a {kind}, which covers no area"))
                continue
            with shapes.prefix_errors(f"{name} ({label})"):
                converted = _convert_shape(shape, kind)
            group = None if group is None else repr(group)
            annotations.append(shapes.Annotation(name, label, class_id, converted, group=group))
        return shapes.ImageAnnotations((document.get("imageWidth"), document.get("imageHeight")), annotations)


def _decode_embedded(text: Any, image_path: str, index: ImageIndex | None) -> SourceImage:
    """Decode the image that is embedded in a LabelMe file, and give it a file name. Raise BadInput if it is missing or damaged.

    Args:
        text: value of imageData in the file: the bytes of the image in base64. None or "" if there is none.
        image_path: value of imagePath in the file, for the error message.
        index: images of the source, for the error message; None if the source has no image files.
    """
    if not text:
        where = f" below {index.folder}" if index else ""
        raise BadInput(f"no image {image_path or 'is named'}{where}, and none is embedded")
    try:
        data = base64.b64decode(text, validate=False)
        kind = Image.open(io.BytesIO(data)).format or ""
    except DAMAGE_ERRORS:
        raise BadInput("the embedded image (imageData) is damaged") from None
    return SourceImage(data, f"embedded{_EMBEDDED_SUFFIXES.get(kind, '.other')}")


def _convert_shape(shape: Mapping[str, Any], kind: str) -> shapes.Shape:
    """Convert a LabelMe shape.

    Args:
        shape: the shape, as the file has it.
        kind: its shape_type, such as "polygon".

    Returns:
        The converted shape.

    Raises:
        BadInput: if the shape is malformed or its type is unknown.
    """
    points = parse_points(shape.get("points") or [[0, 0]], f"its {kind}")
    if kind == "circle":
        if len(points) != 2:
            raise BadInput(f"a circle has 2 points, this one {len(points)}")
        (x, y), (rim_x, rim_y) = points.tolist()
        return shapes.circle(x, y, math.hypot(rim_x - x, rim_y - y))
    if kind == "rectangle" and len(points) == 2:
        return shapes.box(*points.ravel().tolist())
    if kind == "mask":
        return _decode_mask(shape, points)
    if kind not in _POLYGONS:
        raise BadInput(f"the shape type {kind} is not supported: use polygon, rectangle, circle or mask")
    return shapes.polygons([points], f"its {kind}")


def _decode_mask(shape: Mapping[str, Any], points: np.ndarray) -> shapes.Shape:
    """Decode a shape of type mask.

    Args:
        shape: the shape; its entry "mask" is a small PNG in base64, whose pixels are not 0 where the object is.
        points: float64 array (N, 2) of x, y; the first point is the position of the PNG's top left corner in the image.

    Returns:
        The converted shape.

    Raises:
        BadInput: if the PNG is damaged or larger than any image.
    """
    try:
        mask = decode_mask(base64.b64decode(shape.get("mask") or ""), _MAX_MASK_PIXELS)
    except (binascii.Error, TypeError, ValueError):
        raise BadInput("its mask is damaged") from None
    left, top = (round(float(v)) for v in points[0].clip(-1e6, 1e6))
    return shapes.bitmap(mask > 0, left, top)
