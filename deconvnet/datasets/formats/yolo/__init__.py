"""Reading data sets in the YOLO segmentation format: one text file for each image, with one object a line.

A line has the class, counted from 0, and the corners of a polygon as shares of the image's width and height: `0 0.1 0.2 0.3 …`. A
line of a class and four numbers is a box: its centre and size. The class names are in a file such as data.yaml (Ultralytics,
Roboflow, CVAT) or classes.txt (Label Studio, labelImg). An image without a text file has no objects. The text file of
images/a.jpg is labels/a.txt, or a.txt beside the image.
"""

import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath

import numpy as np

from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.formats.yolo.layout import NAMES_FILES, Layout, find_layout, find_splits
from deconvnet.datasets.image_folder import visible_files
from deconvnet.datasets.importing import shapes
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions
from deconvnet.datasets.importing.image_index import ImageIndex, normalise
from deconvnet.datasets.importing.images import read_text
from deconvnet.datasets.importing.painting import ImagePainter
from deconvnet.datasets.importing.regions import Region, polygon_region
from infra import storage
from infra.errors import BadInput, UserError

_TOLERANCE = 0.01  # how far outside the image a corner may lie, as a share of the image's side


def read_yolo(sources: Sequence[AnnotationSource], options: ImportOptions) -> AnnotatedDataset:
    """Read one or two data sets in the YOLO format as one.

    Args:
        sources: each a data.yaml or a folder with text files, and a folder of images. By default, data.yaml names that folder.
        options: options of the import. If there is no file of class names, `classes` are the names of the classes 0, 1, ….
            Options about crowds, Kaggle's tables and folders of masks have no effect.

    Returns:
        The data set. Its images have the splits train and val that data.yaml gives them, if data.yaml names both splits.

    Raises:
        UserError: if the class names or the images can't be found, or no image has a text file.
    """
    layouts = [find_layout(storage.absolute(source.annotations), options) for source in sources]
    dataset = AnnotatedDataset()
    ids = dataset.choose_classes([name for layout in layouts for _, name in sorted(layout.names.items())], options)
    for source, layout in zip(sources, layouts, strict=True):
        _add_images(dataset, source, layout, ids, options)
    return dataset


FORMAT = DatasetFormat("data.yaml, or the folder of YOLO's text files", read_yolo, images_beside_annotations=True)


def _add_images(
    dataset: AnnotatedDataset, source: AnnotationSource, layout: Layout, ids: Mapping[str, int], options: ImportOptions
) -> None:
    """Add the images of a data set in the YOLO format, without loading them.

    Images of the split test are left out. Text files without an image are added to `dataset.rejects`.

    Args:
        dataset: data set to add to.
        source: the source, as the user named it.
        layout: the layout of the source.
        ids: class id by class name; 255 (void) or 0 (background) for classes that are not imported.
        options: options of the import, for painting the masks.

    Raises:
        UserError: if no image has a text file, or the splits that data.yaml names can't be found.
    """
    given = source.images != source.annotations
    annotations = storage.absolute(source.annotations)
    images = storage.absolute(source.images) if given else layout.root
    texts = layout.root if annotations in (layout.file, posixpath.dirname(layout.file)) else annotations
    index, painter = ImageIndex(images), ImagePainter(options)
    files = [storage.join(texts, name) for name in visible_files(texts, ".txt")]
    labels = _match_files(index.names, images, files, texts)
    if not labels:
        raise UserError(
            f"no text file below {texts} has the name of an image below {images}: labels/a.txt is that of images/a.jpg"
        )
    split_of = {} if source.split else find_splits(dataset, layout, index, options.encoding)
    splits = set(split_of.values()) - {"test"}
    used = [name for name in index.names if (split_of.get(name) in splits if splits else name not in split_of)]
    for name in used:
        label = labels.get(name, [None])[0]
        if len(labels.get(name, ())) > 1:
            dataset.reject(name, labels[name][0], f"{' and '.join(labels[name])} are both of this image: keep one")
            continue
        split = source.split or (split_of.get(name) if len(splits) == 2 else None)
        load = painter.plan(partial(index.read_named, name), partial(_convert, label, layout.names, ids, options))
        short = "/".join(part for part in name.split("/") if part != "images")
        dataset.add(short, label or storage.join(images, name), split, load)
    if left_out := len(index.names) - len(used):
        dataset.notes.append(f"{left_out:,} images below {images} are in neither train nor val of {layout.file} and are left out")
    if without := sum(name not in labels for name in used):
        dataset.notes.append(f"{without:,} images have no text file, so they are all background")
    for file in sorted(set(files) - {file for texts_of_image in labels.values() for file in texts_of_image}):
        of_images = "/labels/" in file and "/images/".join(file.rsplit("/labels/", 1)).startswith(f"{images}/")
        if (of_images or texts != layout.root or not layout.file) and PurePosixPath(file).name not in NAMES_FILES:
            dataset.reject(PurePosixPath(file).name, file, f"no image of this name below {images}")


def _match_files(names: Sequence[str], images: str, files: Sequence[str], texts: str) -> dict[str, list[str]]:
    """Find the text files of images.

    Args:
        names: paths of the images relative to their folder.
        images: path or URI of this folder.
        files: paths or URIs of the text files.
        texts: path or URI of the folder of the text files.

    Returns:
        A list of text files for each image, by the path of the image. If a list has more than one file, it is not clear
        which of them belongs to the image. Images without a text file are left out.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_stem[normalise(file[: -len(".txt")])].append(file)
    found: dict[str, list[str]] = {}
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(""))
        before, _, after = f"{images}/{stem}".rpartition("/images/")
        tries = (f"{before}/labels/{after}", f"{texts}/{stem}", f"{images}/{stem}")
        if there := dict.fromkeys(file for each in tries for file in by_stem.get(normalise(each), ())):
            found[name] = list(there)
    return found


def _convert(
    label: str | None, names: Mapping[int, str], ids: Mapping[str, int], options: ImportOptions
) -> shapes.ImageAnnotations:
    """Read the text file of one image and convert its lines to shapes.

    Args:
        label: path or URI of the text file; None if the image has none.
        names: class names by number.
        ids: class id by class name; 255 (void) or 0 (background) for classes that are not imported.
        options: options of the import; `boxes_void` and `encoding` apply.

    Returns:
        An annotation for each line that is not empty.

    Raises:
        BadInput: if the file can't be read or a line is malformed.
    """
    converted = []
    seen: set[str] = set()
    for number, line in enumerate(read_text(label, options.encoding).splitlines() if label else (), start=1):
        if not (words := line.split()):
            continue
        name = f"line {number}"
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise BadInput(f"{name} has words that are not numbers") from None
        if values[0] not in names:
            raise BadInput(f"{name} has the class {words[0]}, but only the classes 0–{max(names)} have names")
        label_name = names[int(values[0])]
        shape: shapes.Shape | None = _make_shape(values[1:], name)
        if line in seen:
            reason, remedy, shape = "repeats an earlier line", "", None
        elif len(values) == 5 and options.boxes_void:
            reason, remedy = "is a box without an outline, which becomes void", "--boxes object"
        else:
            reason = remedy = ""
        seen.add(line)
        converted.append(shapes.Annotation(name, label_name, ids[label_name] or None, shape, reason, remedy))
    return shapes.ImageAnnotations((None, None), converted)


def _make_shape(values: Sequence[float], name: str) -> shapes.Shape:
    """Make the shape of an object from the numbers of its line.

    Args:
        values: x, y, x, y, … of the corners of a polygon, or x, y of the centre of a box and its width and height. They are
            shares of the width and height of the image.
        name: name of the line for error messages.

    Returns:
        The shape.

    Raises:
        BadInput: if the numbers are neither a polygon nor a box.
    """
    if len(values) % 2 or len(values) < 4:
        raise BadInput(f"{name} has {len(values)} numbers after the class; a polygon has an even number, at least 6, and a box 4")
    points = np.array(values).reshape(-1, 2)
    if not np.isfinite(points).all() or points.min() < -_TOLERANCE or points.max() > 1 + _TOLERANCE:
        raise BadInput(f"{name} has numbers outside 0–1: they must be shares of the image's width and height")
    if len(points) == 2:
        (x, y), (w, h) = points.tolist()
        points = np.array([[x - w / 2, y - h / 2], [x + w / 2, y - h / 2], [x + w / 2, y + h / 2], [x - w / 2, y + h / 2]])

    def fill(class_id: int, height: int, width: int) -> Region:
        return polygon_region(class_id, points * (width, height), height, width)

    return shapes.Shape(fill, np.zeros((0, 2)))
