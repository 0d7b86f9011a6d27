"""Reading data sets in the YOLO segmentation format: one text file for each image, with one object a line.

A line has the class, counted from 0, and the corners of a polygon as shares of the image's width and height: `0 0.1 0.2 0.3 …`. A
line of a class and four numbers is a box: its centre and size. The class names are in a file such as data.yaml (Ultralytics,
Roboflow, CVAT) or classes.txt (Label Studio, labelImg). An image without a text file has no objects. The text file of
images/a.jpg is labels/a.txt, or a.txt beside the image.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath

import numpy as np
import yaml

from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.importing import shapes
from deconvnet.datasets.importing.dataset import BACKGROUND_NAMES, AnnotatedDataset, AnnotationSource, ImportRules
from deconvnet.datasets.importing.images import ImageIndex, normalise, read_text
from deconvnet.datasets.importing.painting import ImagePainter
from deconvnet.datasets.importing.regions import Region, polygon_region
from infra import storage
from infra.errors import BadInput, UserError

_YAML = (".yaml", ".yml")
_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")  # files of class names, the preferred first
_TOLERANCE = 0.01  # how far outside the image a corner may lie, as a share of the image's side


@dataclass(frozen=True)
class _Layout:
    """The class names and the folders of a data set in the YOLO format.

    Attributes:
        names: class names by number.
        root: path or URI of the folder of the data set, to which the paths in data.yaml are relative.
        file: path or URI of the file of class names; "" if there is none.
        splits: for each split that data.yaml names ("train", "val" or "test"), its folders of images and lists of images.
    """

    names: dict[int, str]
    root: str
    file: str = ""
    splits: dict[str, list[str]] = field(default_factory=dict)


def read_yolo(sources: Sequence[AnnotationSource], rules: ImportRules) -> AnnotatedDataset:
    """Read one or two data sets in the YOLO format as one.

    Args:
        sources: each a data.yaml or a folder with text files, and a folder of images. By default, data.yaml names that folder.
        rules: rules that the user chose. If there is no file of class names, `classes` are the names of the classes 0, 1, ….
            Rules about crowds, Kaggle's tables and folders of masks have no effect.

    Returns:
        The data set. Its images have the splits train and val that data.yaml gives them, if data.yaml names both splits.

    Raises:
        UserError: if the class names or the images can't be found, or no image has a text file.
    """
    layouts = [_find_layout(storage.absolute(source.annotations), rules) for source in sources]
    dataset = AnnotatedDataset()
    ids = dataset.choose_classes([name for layout in layouts for _, name in sorted(layout.names.items())], rules)
    for source, layout in zip(sources, layouts, strict=True):
        _add_images(dataset, source, layout, ids, rules)
    return dataset


FORMAT = DatasetFormat("data.yaml, or the folder of YOLO's text files", read_yolo, images_beside_annotations=True)


def _find_layout(annotations: str, rules: ImportRules) -> _Layout:
    """Find the class names of a data set and the splits that it names.

    Args:
        annotations: path or URI of data.yaml or classes.txt, or of a folder. In the latter case, the file with the
            class names is searched for in the folder, in its subfolder `labels`, and in the two folders above it.
        rules: rules that the user chose; `classes` are the names if there is no file of names.

    Returns:
        The class names, and the splits if data.yaml names any.

    Raises:
        UserError: if there are no class names, or the file of names can't be read.
    """
    if annotations.lower().endswith((*_YAML, ".txt", ".names")):
        return _read_names(annotations, rules)
    own = [name for name in storage.list_files(annotations) if "/" not in name and name.lower().endswith(_YAML)]
    for name in dict.fromkeys((*_NAMES, *own)):
        if storage.exists(file := storage.join(annotations, name)):
            return _read_names(file, rules)
    for name in _NAMES:
        if storage.exists(file := storage.join(annotations, "labels", name)):
            return replace(_read_names(file, rules), root=annotations)
    for file in (_resolve(annotations, f"{up}/{name}") for up in ("..", "../..") for name in _NAMES):
        if storage.exists(file):
            return _read_names(file, rules)
    if not rules.classes:
        raise UserError(
            f"--annotations {annotations}: there is no data.yaml or classes.txt with the class names: name it by --annotations, or "
            "give the names of the classes 0, 1, … by --classes"
        )
    if any(name.lower() in BACKGROUND_NAMES for name in rules.classes):
        raise UserError(
            f"--classes {','.join(rules.classes)}: YOLO counts the classes of objects from 0, so leave background out"
        )
    return _Layout(dict(enumerate(rules.classes)), annotations)


def _resolve(folder: str, path: str) -> str:
    """Return the address of a path that is relative to a folder (a path or URI), with "." and ".." resolved."""
    scheme, separator, rest = posixpath.join(folder, path.replace("\\", "/")).rpartition("://")
    return scheme + separator + posixpath.normpath(rest)


def _read_names(file: str, rules: ImportRules) -> _Layout:
    """Read the class names, and from data.yaml also the splits.

    Args:
        file: path or URI of data.yaml, classes.txt or obj.names.
        rules: rules that the user chose; `encoding` applies.

    Returns:
        The class names, and the splits if the file is a data.yaml.

    Raises:
        UserError: if the file can't be read or has no class names.
    """
    root = file.rpartition("/")[0]
    try:
        text = read_text(file, rules.encoding)
        if not file.lower().endswith(_YAML):
            return _Layout(dict(enumerate(line.strip() for line in text.splitlines() if line.strip())), root, file)
        document = yaml.load(text, Loader=yaml.BaseLoader)  # all values are text: the class `no` is not False
        names = document.get("names") if isinstance(document, dict) else None
        if not names or not isinstance(names, list | dict):
            raise BadInput("it has no list of names")
        by_number = {
            int(key): str(name).strip() for key, name in (names.items() if isinstance(names, dict) else enumerate(names))
        }
        if int(document.get("nc") or len(by_number)) != len(by_number):
            raise BadInput(f"nc is {document['nc']}, and it has {len(by_number)} names")
        if "kpt_shape" in document:
            raise BadInput("its objects are keypoints (kpt_shape), which cover no area")
    except (BadInput, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"--annotations {file} can't be used: {' '.join(str(error).split())}") from None
    inside = _resolve(root, str(document.get("path") or "."))
    entries = {"train": document.get("train"), "val": document.get("val") or document.get("valid"), "test": document.get("test")}
    if entries["val"] == entries["train"]:  # as in examples; then val is drawn
        entries["val"] = None
    splits = {split: value if isinstance(value, list) else [value] for split, value in entries.items() if value}
    return _Layout(by_number, inside if storage.exists(inside) else root, file, splits)


def _split_of_images(dataset: AnnotatedDataset, layout: _Layout, index: ImageIndex) -> dict[str, str] | None:
    """Find the split of each image in data.yaml.

    Args:
        dataset: data set to whose `rejects` the images are added that a list names and that do not exist.
        layout: the layout of the data set.
        index: the images.

    Returns:
        The split ("train", "val" or "test") by path of the image. Images that belong to no split are left out. None if a folder
        or list that data.yaml names for train or val does not exist.

    Raises:
        UserError: if an image is in two splits.
    """
    split_of: dict[str, str] = {}
    names = {storage.join(index.folder, name): name for name in index.names}
    for split, entry in ((split, str(entry)) for split, entries in layout.splits.items() for entry in entries):
        # Roboflow writes ../train/images for train/images.
        tries = [_resolve(layout.root, entry), _resolve(layout.root, entry.removeprefix("../"))]
        place = next((each for each in tries if storage.exists(each)), None)
        if place is None:
            if split != "test":
                return None
            continue
        if place.endswith(".txt"):
            lines = [line.strip() for line in read_text(place).splitlines() if line.strip()]
            found: list[str] = []
            for line in lines:
                paths = [_resolve(base, line) for base in (layout.root, posixpath.dirname(place))]
                if there := {names[path] for path in paths if path in names} or {*filter(None, [index.find(line)])}:
                    found += there
                elif split != "test":  # which is not imported
                    dataset.reject(line, place, f"listed, but there is no such image below {index.folder}")
        else:
            found = [name for path, name in names.items() if path.startswith(f"{place}/")]
        for name in found:
            if split_of.setdefault(name, split) != split:
                raise UserError(f"{layout.file}: {name} is in {split_of[name]} and in {split}, and an image belongs to one split")
    return split_of


def _add_images(
    dataset: AnnotatedDataset, source: AnnotationSource, layout: _Layout, ids: Mapping[str, int], rules: ImportRules
) -> None:
    """Add the images of a data set in the YOLO format, without loading them.

    Images of the split test are left out. Text files without an image are added to `dataset.rejects`.

    Args:
        dataset: data set to add to.
        source: the source, as the user named it.
        layout: the layout of the source.
        ids: class id by class name; 255 (void) or 0 (background) for classes that are not imported.
        rules: rules that the user chose, for painting the masks.

    Raises:
        UserError: if no image has a text file, or the folders that data.yaml names are not there.
    """
    given = source.images != source.annotations
    annotations = storage.absolute(source.annotations)
    images = storage.absolute(source.images) if given else layout.root
    texts = layout.root if annotations in (layout.file, posixpath.dirname(layout.file)) else annotations
    index, painter = ImageIndex(images), ImagePainter(rules)
    files = [storage.join(texts, name) for name in storage.list_files(texts) if name.lower().endswith(".txt")]
    labels = _match_files(index.names, images, files, texts)
    if not labels:
        raise UserError(
            f"no text file below {texts} has the name of an image below {images}: labels/a.txt is that of images/a.jpg"
        )
    split_of = {} if source.split else _split_of_images(dataset, layout, index)
    if split_of is None and not given:
        raise UserError(
            f"{layout.file}: the folders of images that it names don't exist: correct them, or name the folder of images by --images"
        )
    splits = set((split_of or {}).values()) - {"test"}
    used = [name for name in index.names if not splits or (split_of or {}).get(name) in splits]
    for name in used:
        label = labels.get(name, [None])[0]
        if len(labels.get(name, ())) > 1:
            dataset.reject(name, labels[name][0], f"{' and '.join(labels[name])} are both of this image: keep one")
            continue
        split = source.split or ((split_of or {}).get(name) if len(splits) == 2 else None)
        load = painter.plan(partial(index.read_named, name), partial(_convert, label, layout.names, ids, rules))
        short = "/".join(part for part in name.split("/") if part != "images")
        dataset.add(short, label or storage.join(images, name), split, load)
    if left_out := len(index.names) - len(used):
        dataset.notes.append(f"{left_out:,} images below {images} are in neither train nor val of {layout.file} and are left out")
    if without := sum(name not in labels for name in used):
        dataset.notes.append(f"{without:,} images have no text file, so they are all background")
    for file in sorted(set(files) - {file for same in labels.values() for file in same}):
        of_images = "/labels/" in file and "/images/".join(file.rsplit("/labels/", 1)).startswith(f"{images}/")
        if (of_images or texts != layout.root or not layout.file) and PurePosixPath(file).name not in _NAMES:
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
    by_spelling = {normalise(file): file for file in files}
    found: dict[str, list[str]] = {}
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(""))
        before, _, after = f"{images}/{stem}".rpartition("/images/")
        tries = (f"{before}/labels/{after}.txt", f"{texts}/{stem}.txt", f"{images}/{stem}.txt")
        if there := dict.fromkeys(by_spelling[key] for key in map(normalise, tries) if key in by_spelling):
            found[name] = list(there)
    return found


def _convert(label: str | None, names: Mapping[int, str], ids: Mapping[str, int], rules: ImportRules) -> shapes.ImageAnnotations:
    """Read the text file of one image and convert its lines to shapes.

    Args:
        label: path or URI of the text file; None if the image has none.
        names: class names by number.
        ids: class id by class name; 255 (void) or 0 (background) for classes that are not imported.
        rules: rules that the user chose; `boxes_void` and `encoding` apply.

    Returns:
        An annotation for each line that is not empty.

    Raises:
        BadInput: if the file can't be read or a line is malformed.
    """
    converted = []
    seen: set[str] = set()
    for number, line in enumerate(read_text(label, rules.encoding).splitlines() if label else (), start=1):
        if not (words := line.split()):
            continue
        name = f"line {number}"
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise BadInput(f"{name} has words that are no numbers") from None
        if values[0] not in names:
            raise BadInput(f"{name} has the class {words[0]}, but only the classes 0–{max(names)} have names")
        label_name = names[int(values[0])]
        outline: shapes.Outline | None = _outline(values[1:], name)
        if line in seen:
            loss, remedy, outline = "repeats an earlier line", "", None
        elif len(values) == 5 and rules.boxes_void:
            loss, remedy = "is a box without an outline, which becomes void", "--boxes object"
        else:
            loss = remedy = ""
        seen.add(line)
        converted.append(shapes.Annotation(name, label_name, ids[label_name] or None, outline, loss, remedy))
    return shapes.ImageAnnotations((None, None), converted)


def _outline(values: Sequence[float], name: str) -> shapes.Outline:
    """Make the outline of an object from the numbers of its line.

    Args:
        values: x, y, x, y, … of the corners of a polygon, or x, y of the centre of a box and its width and height. They are
            shares of the width and height of the image.
        name: name of the line for error messages.

    Returns:
        The outline.

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

    return shapes.Outline(fill, np.zeros((0, 2)))
