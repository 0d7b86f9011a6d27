"""Reading the masks that Label Studio exports of brush labels ("Brush labels to PNG"): one file for each label of an image.

A file is called task-1-annotation-2-by-3-tag-Cat-0.png: the task, the annotation, who made it, the name of the labelling control,
the label, and the number of the region. Its pixels are not 0 where the region is. The JSON export of the project states
the image of each task. The export must lie in the folder of the masks or in the one above it. Without an export, each image must
be named by the number of its task: 1.jpg.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from deconvnet.datasets.formats.label_studio.task_images import choose_images, find_images
from deconvnet.datasets.image_folder import is_hidden, visible_files
from deconvnet.datasets.importing import shapes
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions, LostAnnotation
from deconvnet.datasets.importing.image_index import ImageIndex
from deconvnet.datasets.importing.images import read_input, read_json
from deconvnet.datasets.importing.painting import ImagePainter
from infra import storage
from infra.errors import BadInput, UserError
from proposals.image_codec import decode_mask
from proposals.masks import VOID_ID

_MASK_NAME = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-(?P<rest>.*-.+)-\d+\.png")
_OPAQUE = 128  # lowest value of a pixel that belongs to a region; brush strokes may have soft edges


def read_brush_masks(sources: Sequence[AnnotationSource], options: ImportOptions) -> AnnotatedDataset:
    """Read one or two folders of Label Studio's masks as one data set.

    Args:
        sources: folders of masks, each with its folder of images.
        options: options of the import. Those about boxes, crowds, Kaggle's tables and folders of masks have no effect.

    Returns:
        The data set. If `options.classes` is empty, its classes are all labels, in alphabetical order.

    Raises:
        UserError: if a folder has no masks, or the images of the tasks can't be found.
    """
    dataset = AnnotatedDataset()
    label_of: dict[str, str] = {}
    masks: list[dict[str, dict[str, list[str]]]] = []  # for each source: paths of the masks by task and annotation
    tasks: list[list[dict[str, Any]]] = []
    for source in sources:
        tasks.append(_read_tasks(source.annotations, options.encoding))
        controls = {str(result.get("from_name")) for task in tasks[-1] for result in _results(task)}
        masks.append(defaultdict(lambda: defaultdict(list)))
        for name in visible_files(source.annotations):
            uri = storage.join(source.annotations, name)
            if match := _MASK_NAME.fullmatch(PurePosixPath(name).name):
                masks[-1][match["task"]][match["annotation"]].append(uri)
                label_of[uri] = _cut_label(match["rest"], controls)
            elif name.lower().endswith(".png"):
                dataset.reject(name, uri, "its name does not have Label Studio's form: task-1-annotation-2-by-3-tag-Cat-0.png")
        if not masks[-1]:
            raise UserError(
                f"--annotations {source.annotations} has no masks such as task-1-annotation-2-by-3-tag-Cat-0.png: export the "
                "project from Label Studio as `Brush labels to PNG`"
            )
    unpainted = [{str(task["id"]): _shapes(task, "brush") for task in listed} for listed in tasks]
    others = {label for by_task in unpainted for shapes_of_task in by_task.values() for _, label in shapes_of_task}
    ids = dataset.choose_classes(sorted({*label_of.values(), *others}), options, must_exist=False)
    for source, by_task, listed, left_out in zip(sources, masks, tasks, unpainted, strict=True):
        index, painter = ImageIndex(source.images), ImagePainter(options)
        images = find_images(index, by_task, listed)
        dataset.lost_annotations += _lost_shapes(listed, by_task, ids, source)
        if not listed:
            dataset.notes.append(
                "there is no JSON export of the project, so the image of task 1 is assumed to be named 1, and so on"
            )
        files = {task: [uri for uris in annotations.values() for uri in uris] for task, annotations in by_task.items()}
        counts, uris = {task: len(each) for task, each in by_task.items()}, {task: each[0] for task, each in files.items()}
        for task, image in choose_images(dataset, index, images, counts, uris, listed).items():
            convert = partial(_convert, files[task], label_of, left_out.get(task, []), ids, options.max_pixels)
            dataset.add(image, uris[task], source.split, painter.plan(partial(index.read_named, image), convert))
        if without := len(index.names) - len({file for files in images.values() for file in files}):
            dataset.notes.append(f"{without:,} images below {source.images} have no mask and are left out")
    return dataset


def _cut_label(rest: str, controls: Collection[str]) -> str:
    """Cut the label out of the name of a mask.

    Args:
        rest: part of the name with the annotator, the control and the label, such as "me@x.org-tag-Cat". Each may contain "-".
        controls: names of the controls (labelling tools) in the JSON export. If none of them is in the name, the annotator and
            the control are assumed to contain no "-".

    Returns:
        The label.
    """
    cuts = [(cut, cut + len(control) + 2) for control in controls if (cut := rest.find(f"-{control}-")) >= 0]
    if cuts:
        return rest[min(cuts)[1] :]
    after_annotator = rest.partition("-")[2]
    return after_annotator.partition("-")[2] or after_annotator


def _read_tasks(folder: str, encoding: str | None) -> list[dict[str, Any]]:
    """Read the JSON export of a project.

    Args:
        folder: folder of the masks. The export lies in it or in the folder above.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.

    Returns:
        The tasks; [] if there is no export.

    Raises:
        UserError: if there are several exports, or one can't be read.
    """
    found: list[tuple[str, list[dict[str, Any]]]] = []
    for parent in (folder.rstrip("/"), folder.rstrip("/").rpartition("/")[0]):
        fs, path = storage.filesystem(parent)
        infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        names = [info.base_name for info in infos if info.base_name.lower().endswith(".json")]
        for file in (storage.join(parent, name) for name in names if not is_hidden(name)):
            try:
                document = read_json(file, encoding)
            except BadInput as error:
                raise UserError(f"{file} can't be read: {error}") from None
            if isinstance(document, list) and document and all(isinstance(task, dict) and "id" in task for task in document):
                found.append((file, document))
        if found:
            break
    if len(found) > 1:
        raise UserError(f"{' and '.join(file for file, _ in found)} are both exports of a Label Studio project: keep one")
    return found[0][1] if found else []


def _results(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the labelling results of a task, such as brush strokes and polygons, collected from all of its annotations."""
    annotations = task.get("annotations") or task.get("completions")
    results = [each.get("result") for each in annotations if isinstance(each, dict)] if isinstance(annotations, list) else []
    return [result for each in results if isinstance(each, list) for result in each if isinstance(result, dict)]


def _shapes(task: Mapping[str, Any], but: str = "") -> list[tuple[str, str]]:
    """Return the kind and the label of each shape in a task, such as ("polygon", "Cat"), leaving out those of the kind `but`."""
    found = []
    for result in _results(task):
        kind, value = str(result.get("type")), result.get("value")
        labels = value.get(kind) if isinstance(value, dict) else None
        if kind.endswith("labels") and kind != f"{but}labels" and isinstance(labels, list) and labels:
            found.append((kind.removesuffix("labels"), str(labels[0])))
    return found


def _lost_shapes(
    tasks: Sequence[Mapping[str, Any]], masked: Collection[str], ids: Mapping[str, int], source: AnnotationSource
) -> list[tuple[str, str, LostAnnotation]]:
    """Return an entry of `AnnotatedDataset.lost_annotations` for each shape of a class to import whose task has no mask.

    Args:
        tasks: the tasks of the JSON export.
        masked: the numbers of the tasks that have masks.
        ids: class id by label; 0 (background) for classes that are not imported.
        source: the source of the export.
    """
    return [
        (f"task-{task['id']}", source.annotations, LostAnnotation(f"a {kind}", label, "belongs to a task without masks"))
        for task in tasks
        if str(task["id"]) not in masked
        for kind, label in _shapes(task)
        if ids.get(label, VOID_ID)
    ]


def _convert(
    files: Sequence[str],
    label_of: Mapping[str, str],
    unpainted: Sequence[tuple[str, str]],
    ids: Mapping[str, int],
    max_pixels: int,
) -> shapes.ImageAnnotations:
    """Read the masks of one image as shapes.

    Args:
        files: paths or URIs of the masks.
        label_of: label of each mask, by its path or URI.
        unpainted: kind and label of the shapes that have no mask, because they were not painted with the brush.
        ids: class id by label; 255 (void) or 0 (background) for classes that are not imported.
        max_pixels: largest number of pixels that a mask may have.

    Returns:
        The shapes of the image with their class ids.

    Raises:
        BadInput: if a mask can't be decoded.
    """
    converted = []
    for uri in files:
        name = uri.rpartition("/")[2]
        with shapes.prefix_errors(name):
            mask = decode_mask(read_input(uri), max_pixels)
        opaque = mask >= min(_OPAQUE, max(1, int(mask.max())))
        converted.append(shapes.Annotation(name, label_of[uri], ids[label_of[uri]] or None, shapes.whole_mask(opaque)))
    for kind, label in unpainted:
        reason = "is in the JSON export, but only brush masks are read"
        converted.append(
            shapes.Annotation(f"a {kind}", label, ids[label] or None, None, reason, "--annotations with the JSON file")
        )
    return shapes.ImageAnnotations((None, None), converted)
