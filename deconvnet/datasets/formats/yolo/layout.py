"""The files beside YOLO's text files: the class names (data.yaml, classes.txt, obj.names), and the splits of data.yaml."""

import posixpath
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import yaml

from deconvnet.datasets.image_folder import visible_files
from deconvnet.datasets.importing.dataset import BACKGROUND_NAMES, AnnotatedDataset, ImportOptions, parse_class_names
from deconvnet.datasets.importing.image_index import ImageIndex
from deconvnet.datasets.importing.images import read_text
from infra import storage
from infra.errors import BadInput, UserError

_YAML = (".yaml", ".yml")
NAMES_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
"""Files of class names, the preferred first."""


@dataclass(frozen=True)
class Layout:
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


def find_layout(annotations: str, options: ImportOptions) -> Layout:
    """Find the class names of a data set and the splits that it names.

    Args:
        annotations: path or URI of data.yaml or classes.txt, or of a folder. In the latter case, the file with the
            class names is searched for in the folder, in its subfolder `labels`, and in the two folders above it.
        options: options of the import; `classes` are the names if there is no file of names.

    Returns:
        The class names, and the splits if data.yaml names any.

    Raises:
        UserError: if there are no class names, or the file of names can't be read.
    """
    if annotations.lower().endswith((*_YAML, ".txt", ".names")):
        return _read_names(annotations, options)
    own = [name for name in visible_files(annotations, _YAML) if "/" not in name]
    for name in dict.fromkeys((*NAMES_FILES, *own)):
        if storage.exists(file := storage.join(annotations, name)):
            return _read_names(file, options)
    for name in NAMES_FILES:
        if storage.exists(file := storage.join(annotations, "labels", name)):
            return replace(_read_names(file, options), root=annotations)
    for file in (_resolve(annotations, f"{up}/{name}") for up in ("..", "../..") for name in NAMES_FILES):
        if storage.exists(file):
            return _read_names(file, options)
    if not options.classes:
        raise UserError(
            f"--annotations {annotations}: there is no data.yaml or classes.txt with the class names: name it by --annotations, "
            "or give the names of the classes 0, 1, … by --classes"
        )
    if any(name.lower() in BACKGROUND_NAMES for name in options.classes):
        raise UserError(
            f"--classes {','.join(options.classes)}: YOLO counts the classes of objects from 0, so leave background out"
        )
    return Layout(dict(enumerate(options.classes)), annotations)


def _resolve(folder: str, path: str) -> str:
    """Return the address of a path that is relative to a folder (a path or URI), with "." and ".." resolved."""
    scheme, separator, rest = posixpath.join(folder, path.replace("\\", "/")).rpartition("://")
    return scheme + separator + posixpath.normpath(rest)


def _read_names(file: str, options: ImportOptions) -> Layout:
    """Read the class names, and from data.yaml also the splits.

    Args:
        file: path or URI of data.yaml, classes.txt or obj.names.
        options: options of the import; `encoding` applies.

    Returns:
        The class names, and the splits if the file is a data.yaml.

    Raises:
        UserError: if the file can't be read or has no class names.
    """
    root = file.rpartition("/")[0]
    try:
        text = read_text(file, options.encoding)
        if not file.lower().endswith(_YAML):
            return Layout(dict(enumerate(parse_class_names(text))), root, file)
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
    if entries["val"] == entries["train"]:  # some examples do this; val is then drawn
        entries["val"] = None
    splits = {split: value if isinstance(value, list) else [value] for split, value in entries.items() if value}
    return Layout(by_number, storage.absolute(inside) if storage.exists(inside) else root, file, splits)


def find_splits(dataset: AnnotatedDataset, layout: Layout, index: ImageIndex, encoding: str | None) -> dict[str, str]:
    """Find the split of each image in data.yaml.

    Args:
        dataset: data set that gets a reject for each listed image that does not exist. It also gets notes about splits without
            images, and about folders that were found only by the end of their path.
        layout: the layout of the data set.
        index: the images.
        encoding: name of the encoding of lists that are not in UTF-8, as for `read_text`.

    Returns:
        The split ("train", "val" or "test") by path of the image. Images that belong to no split are left out. Empty if data.yaml
        names no split.

    Raises:
        UserError: if data.yaml names splits, and train or val can't be found or no image is in any of them, if an image is in two
            splits, or a list can't be read.
    """
    split_of: dict[str, str] = {}
    missing: list[str] = []
    names = {storage.join(index.folder, name): name for name in index.names}
    for split, entry in ((split, str(entry)) for split, entries in layout.splits.items() for entry in entries):
        location, by_end = _find_entry(entry, layout.root, index.folder, names)
        if location is None:
            if split == "test":  # Roboflow names it always
                dataset.notes.append(f"{layout.file}: there is no {entry}, which it names for test")
            else:
                missing.append(f"{split}: {entry}")
            continue
        if by_end:
            dataset.notes.append(f"{layout.file}: there is no {entry}, so {location} is taken for {split}")
        if location.endswith(".txt"):
            found: list[str] = []
            for line in _read_list(location, encoding):
                paths = [_resolve(base, line) for base in (layout.root, posixpath.dirname(location))]
                if there := {names[path] for path in paths if path in names} or {*filter(None, [index.find(line)])}:
                    found += there
                elif split != "test":  # test is not imported
                    dataset.reject(line, location, f"listed, but there is no such image below {index.folder}")
        else:
            found = [name for path, name in names.items() if path.startswith(f"{location}/")]
        if not found:
            dataset.notes.append(f"{layout.file}: no image below {index.folder} is in {split}: {entry}")
        for name in found:
            if split_of.setdefault(name, split) != split:
                raise UserError(f"{layout.file}: {name} is in {split_of[name]} and in {split}, and an image belongs to one split")
    if missing or (layout.splits and not split_of):
        entries = missing or [f"{split}: {entry}" for split, entries in layout.splits.items() for entry in entries]
        raise UserError(
            f"{layout.file} names {', '.join(entries)}, and no image below {index.folder} is there: correct these paths, name "
            "the folder that has them by --images, or delete them from the file to import all images"
        )
    return split_of


def _read_list(file: str, encoding: str | None) -> list[str]:
    """Read a list of images, without its empty lines. Raise UserError if the file can't be read or is in another encoding."""
    try:
        return [line.strip() for line in read_text(file, encoding).splitlines() if line.strip()]
    except BadInput as error:
        raise UserError(f"the list of images {file} can't be used: {error}") from None


def _find_entry(entry: str, root: str, images: str, names: Collection[str]) -> tuple[str | None, bool]:
    """Find a folder or list of images that data.yaml names.

    Args:
        entry: path in data.yaml. It may have been made on another machine, such as /content/x/images/train.
        root: path or URI of the folder of the data set.
        images: path or URI of the folder of images.
        names: paths or URIs of all images.

    Returns:
        path: path or URI of the folder or list. If the path does not exist, the folder or list below `root` or `images` that
            matches the longest end of the path, such as images/train. None if there is neither.
        by_end: True if only the end of the path matched.
    """
    # Roboflow writes ../train/images for train/images.
    direct = [_resolve(root, path) for path in (entry, entry.removeprefix("../"))]
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    tails = [parts[start:] for start in range(len(parts)) if parts[start:] != ["images"]]  # tells no split
    ends = [storage.join(base, *tail) for tail in tails for base in (root, images)]
    for tries in ([*direct, *map(storage.absolute, direct)], ends):  # images are listed without symbolic links
        if there := [path for path in dict.fromkeys(tries) if storage.exists(path)]:
            used = (path for path in there if path.endswith(".txt") or any(name.startswith(f"{path}/") for name in names))
            return next(used, there[0]), tries is ends
    return None, False
