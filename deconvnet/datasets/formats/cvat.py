"""Reading data sets in CVAT's XML format, "CVAT for images 1.1" (https://docs.cvat.ai/docs/other/xml_format).

Polygons, masks and ellipses are read, and rectangles if the user wants them as objects. Shapes of an image with one label and one
group_id form an object. If shapes of a file differ in z_order, the shape with the higher z_order lies on top.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.importing import shapes
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions
from deconvnet.datasets.importing.image_index import ImageIndex, complete_name
from deconvnet.datasets.importing.images import read_text
from deconvnet.datasets.importing.painting import ImagePainter
from deconvnet.datasets.importing.regions import as_int, parse_points
from infra import storage
from infra.errors import BadInput, UserError

_SPLITS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("val", "valid", "validation"), "val") | {"test": "test"}
_CORNERS = 256  # corners of the polygon that is drawn for an ellipse


def read_cvat(sources: Sequence[AnnotationSource], options: ImportOptions) -> AnnotatedDataset:
    """Read one or two CVAT files as one data set.

    Args:
        sources: the XML files, or folders with an annotations.xml; and their folders of images.
        options: options of the import. Those about crowds, Kaggle's tables and folders of masks have no
            effect.

    Returns:
        The data set. If `options.classes` is empty, its classes are the labels of the task, in its order. An image of a project
        gets the split of its subset: train or val if the project has both Train and Validation, test if it has other subsets than
        Test.

    Raises:
        UserError: if a file is not of this format, or the classes can't be chosen.
    """
    files = [
        source.annotations if source.annotations.endswith(".xml") else f"{source.annotations}/annotations.xml"
        for source in sources
    ]
    documents = [_read_document(file, options.encoding) for file in files]
    labels = [label for document in documents for label in _labels(document)]
    dataset = AnnotatedDataset()
    ids = dataset.choose_classes(labels, options)
    for source, file, document in zip(sources, files, documents, strict=True):
        folder = file.rpartition("/")[0] if source.images == source.annotations else source.images
        _add_images(dataset, replace(source, images=folder, annotations=file), document, ids, options)
    return dataset


FORMAT = DatasetFormat("CVAT's annotations.xml", read_cvat, images_beside_annotations=True)


def _add_images(
    dataset: AnnotatedDataset, source: AnnotationSource, document: Element, ids: Mapping[str, int], options: ImportOptions
) -> None:
    """Add the images of a CVAT file to a data set, without loading them.

    Args:
        dataset: data set to add to. Images that can't be used are added to its `rejects` (those of the split test are only
            counted), and what was assumed to its `notes`.
        source: the XML file and its folder of images.
        document: the root of its XML tree.
        ids: class id by label; 255 (void) or 0 (background) for classes that are not imported.
        options: options of the import.
    """
    file, index = source.annotations, ImageIndex(source.images)
    images = list(document.iterfind("image"))
    layers = len({shape.get("z_order", "0") for image in images for shape in image}) > 1
    if layers:
        dataset.notes.append(f"{file}: of overlapping shapes, the one with the higher z_order is on top")
    if empty := sum(all(shape.tag == "tag" for shape in image) for image in images):
        dataset.notes.append(f"{file}: {empty:,} images have no shape, so they are all background")
    painter = ImagePainter(replace(options, small_over_large=False) if layers else options)
    names = [image.get("name", "") for image in images]
    paths = _listed_paths(images, index)
    found, missing, notes = index.find_listed(paths)
    counts = Counter(found[path] for path in paths if path in found)
    first = dict(zip(reversed(names), reversed(paths), strict=True))  # the first path of each name, which subsets may share
    dataset.notes += notes
    unusable = 0
    for image, name, path, split in zip(images, names, paths, _splits(images, source.split), strict=True):
        reason = missing.get(path)
        if reason is None and (count := counts[found[path]]) > 1:  # each entry may have only some of the shapes
            reason = f"it is in the file {count} times"
        if reason is None:
            load = painter.plan(partial(index.read_named, found[path]), partial(_convert, image, ids, options))
            full = complete_name(path, found[path])
            short = complete_name(name, found[path]) if first[name] == path else full
            dataset.add(short, storage.join(source.images, found[path]), split, load, source_name=full)
        elif split == "test":  # it is left out anyway, unless the user lists it
            unusable += 1
        else:
            dataset.reject(name or f"image {image.get('id')}", file, reason)
    if unusable:
        dataset.notes.append(f"{file}: {unusable:,} images of the subset Test are missing, or in the file twice")


def _splits(images: Sequence[Element], given: str | None) -> list[str | None]:
    """Return the split of each image, according to the subsets of the project.

    Args:
        images: the XML elements of the images.
        given: the split that the user gave for all images, or None.

    Returns:
        `given` for every image, if it is not None. Otherwise the split of the image's subset. It is None for a subset with
        another name, for train and val if only one of the two occurs, and for test if all images belong to Test.
    """
    splits = [_SPLITS.get(image.get("subset", "").strip().lower()) for image in images]
    both, others = {"train", "val"} <= {*splits}, {*splits} != {"test"}
    return [given or (split if (others if split == "test" else both) else None) for split in splits]


def _listed_paths(images: Sequence[Element], index: ImageIndex) -> list[str]:
    """Return the path by which each image of a CVAT file is to be searched.

    The export of a project has a folder for each subset: images/Train/a.jpg is the image a.jpg of the subset Train. If at least
    one such path exists, all images are searched by these paths, because several subsets may have an image a.jpg.

    Args:
        images: the XML elements of the images.
        index: images of the source.
    """
    names = [image.get("name", "") for image in images]
    subsets = [image.get("subset", "").strip() for image in images]
    in_subsets = [f"{subset}/{name}" if subset else name for subset, name in zip(subsets, names, strict=True)]
    there = any(subset and index.find(path) for subset, path in zip(subsets, in_subsets, strict=True))
    return in_subsets if there else names


def _read_document(file: str, encoding: str | None) -> Element:
    """Read a CVAT file.

    Args:
        file: path or URI of the file.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.

    Returns:
        The root of its XML tree.

    Raises:
        UserError: if the file can't be read or is not of the format "CVAT for images".
    """
    try:
        document = ElementTree.fromstring(read_text(file, encoding))
    except (BadInput, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"--annotations {file} can't be read as CVAT's XML: {error}") from None
    if document.find("track") is not None:
        raise UserError(f"--annotations {file} has tracks of a video: export it from CVAT as `CVAT for images 1.1`")
    if document.tag != "annotations" or document.find("image") is None:
        raise UserError(f"--annotations {file} is not of the format `CVAT for images 1.1`: it has no images in annotations")
    return document


def _labels(document: Element) -> list[str]:
    """Return the labels of a CVAT file: first the labels that its task or project lists, then others that occur in shapes."""
    listed = [label.findtext("name", "") for label in document.iterfind("meta//labels/label") if label.find("parent") is None]
    used = (shape.get("label", "") for image in document.iterfind("image") for shape in image if shape.tag != "tag")
    return [name for name in dict.fromkeys(map(str.strip, [*listed, *used])) if name]


def _convert(image: Element, ids: Mapping[str, int], options: ImportOptions) -> shapes.ImageAnnotations:
    """Convert the XML entries of one image to shapes.

    Args:
        image: the XML element of the image; its child elements are the shapes.
        ids: class id by label; 255 (void) or 0 (background) for classes that are not imported.
        options: options of the import; `boxes_void` applies.

    Returns:
        The shapes of the image with their class ids.

    Raises:
        BadInput: if a shape is malformed.
    """
    converted = []
    for number, element in enumerate(image, start=1):
        if element.tag == "tag":  # says something about the image as a whole
            continue
        label, name = element.get("label", "").strip(), f"{element.tag} {number}"
        if not label:
            raise BadInput(f"{name} has no label")
        with shapes.prefix_errors(f"{name} ({label})", ValueError, KeyError):
            shape = _make_shape(element)
            layer, group = (
                as_int(element.get("z_order", "0"), "its z_order"),
                as_int(element.get("group_id") or "0", "its group_id"),
            )
        reason, remedy = "" if shape else "covers no area", ""
        if element.tag == "box" and options.boxes_void:
            reason, remedy = "is a box without an outline: its box becomes void", "--boxes object"
        converted.append((layer, shapes.Annotation(name, label, ids[label] or None, shape, reason, remedy, group or None)))
    in_layers = [annotation for _, annotation in sorted(converted, key=lambda pair: pair[0])]
    return shapes.ImageAnnotations((image.get("width"), image.get("height")), in_layers)


def _make_shape(element: Element) -> shapes.Shape | None:
    """Make the shape of an annotation.

    Args:
        element: the entry of the annotation, such as <polygon points="1,2;3,4;…">.

    Returns:
        The shape; None if shapes of this kind cover no area.

    Raises:
        BadInput: if the shape is malformed.
        ValueError: if a number is malformed.
        KeyError: if an attribute is missing.
    """
    at = element.attrib
    if element.tag == "polygon":
        return shapes.polygons([[pair.split(",") for pair in at["points"].split(";")]])
    if element.tag == "mask":
        width, height = int(at["width"]), int(at["height"])
        runs = [int(run) for run in at["rle"].split(",")]  # background and object in turn, row by row in the mask's window
        if min(runs) < 0 or sum(runs) != width * height:
            raise BadInput(f"its run lengths are of {sum(runs):,} pixels, and its window is {width}×{height}")
        mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        return shapes.bitmap(mask, int(float(at["left"])), int(float(at["top"])))
    if element.tag not in ("box", "ellipse"):
        return None
    if element.tag == "box":
        (x0, y0), (x1, y1) = parse_points([float(at[key]) for key in ("xtl", "ytl", "xbr", "ybr")], "its box").tolist()
        corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    else:
        angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
        radii = float(at["rx"]), float(at["ry"])
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + (float(at["cx"]), float(at["cy"]))
    turn = np.deg2rad(float(at.get("rotation", 0)))  # clockwise, as y points down
    centre = corners.mean(axis=0)
    corners = (corners - centre) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + centre
    return shapes.polygons([corners])
