"""Reading the JSON that Label Studio exports of a project: polygons, brush labels and rectangles.

A region of an annotation is a *result*. Its coordinates are in percent of the width and height of the image. The predictions that
a task may have beside its annotations are not read, because nobody has accepted them.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from deconvnet.datasets.formats.label_studio.brush_runs import decode_brush
from deconvnet.datasets.formats.label_studio.task_images import choose_images, find_images
from deconvnet.datasets.importing import shapes
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions
from deconvnet.datasets.importing.image_index import ImageIndex
from deconvnet.datasets.importing.images import read_json
from deconvnet.datasets.importing.painting import ImagePainter
from deconvnet.datasets.importing.regions import as_int, parse_points
from infra.errors import BadInput, UserError

Task = Mapping[str, Any]


def read_results(sources: Sequence[AnnotationSource], options: ImportOptions) -> AnnotatedDataset:
    """Read one or two JSON exports of Label Studio as one data set.

    Args:
        sources: the JSON files, each with its folder of images.
        options: options of the import. Those about crowds, Kaggle's tables and folders of masks have no effect.

    Returns:
        The data set. If `options.classes` is empty, its classes are all labels, in alphabetical order.

    Raises:
        UserError: if a file is not a JSON export of Label Studio, or no task has an annotation.
    """
    exports = [_read_export(source.annotations, options.encoding) for source in sources]
    dataset = AnnotatedDataset()
    labels = {label for tasks in exports for task in tasks for found in _annotations(task) for label in _labels(found)}
    if not labels:
        raise UserError(
            f"--annotations {' and '.join(source.annotations for source in sources)}: no task has an annotation with a label; "
            "predictions are not read before someone has accepted them (in Label Studio: Submit)"
        )
    ids = dataset.choose_classes(sorted(labels), options, must_exist=False)
    for source, tasks in zip(sources, exports, strict=True):
        _add_tasks(dataset, source, tasks, ids, options)
    return dataset


def _read_export(uri: str, encoding: str | None) -> list[Task]:
    """Read a JSON export of Label Studio.

    Args:
        uri: path or URI of the file.
        encoding: name of the encoding if the file is not in UTF-8, as for `read_text`.

    Returns:
        The tasks. Tasks in a file that was made for import into Label Studio have no id and no annotations.

    Raises:
        UserError: if the file can't be read or is not such an export.
    """
    try:
        tasks = read_json(uri, encoding)
    except BadInput as error:
        raise UserError(f"--annotations {uri} can't be read: {error}") from None
    if not isinstance(tasks, list) or not all(map(_is_task, tasks)):
        raise UserError(
            f"--annotations {uri} is not a JSON export of Label Studio (a list of tasks with id and data): export `JSON`, not "
            "`JSON-MIN`; for `Brush labels to PNG`, name the folder of the PNG files"
        )
    return tasks


def _is_task(value: Any) -> bool:
    """Return whether a value in a JSON file is a task of Label Studio, which has an id if it has annotations."""
    return isinstance(value, dict) and "data" in value and ("id" in value or "annotations" not in value)


def _annotations(task: Task) -> list[list[Mapping[str, Any]]]:
    """Return the results of each annotation of a task. Annotations that were cancelled (skipped) are left out."""
    listed = task.get("annotations")
    kept = (
        [each for each in listed if isinstance(each, dict) and not each.get("was_cancelled")] if isinstance(listed, list) else []
    )
    return [[each for each in annotation.get("result") or () if isinstance(each, dict)] for annotation in kept]


def _value_and_labels(result: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Return the value of a result and its labels. A result without labels, such as a choice or a text, is not a region."""
    value = result.get("value")
    value = value if isinstance(value, dict) else {}
    labels = value.get(str(result.get("type"))) if str(result.get("type")).endswith("labels") else None
    return value, [str(label) for label in labels] if isinstance(labels, list) else []


def _labels(results: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the labels that occur in results."""
    return {label for result in results for label in _value_and_labels(result)[1]}


def _add_tasks(
    dataset: AnnotatedDataset, source: AnnotationSource, tasks: Sequence[Task], ids: Mapping[str, int], options: ImportOptions
) -> None:
    """Add the images of an export to a data set, without loading them.

    Tasks without annotation are left out and counted; those with several, or without image, are added to `dataset.rejects`.

    Args:
        dataset: data set to add to.
        source: the export and its folder of images.
        tasks: the tasks of the export.
        ids: class id by label; 255 (void) or 0 (background) for classes that are not imported.
        options: options of the import, for painting the masks.
    """
    index, painter = ImageIndex(source.images), ImagePainter(options)
    annotated = {str(task["id"]): found for task in tasks if (found := _annotations(task))}
    exported = [task for task in tasks if "id" in task]
    counts, uris = {task: len(found) for task, found in annotated.items()}, dict.fromkeys(annotated, source.annotations)
    images = find_images(index, annotated, exported)
    for task, image in choose_images(dataset, index, images, counts, uris, exported).items():
        convert = partial(_convert, annotated[task][0], ids, options)
        dataset.add(image, source.annotations, source.split, painter.plan(partial(index.read_named, image), convert))
    if without := sum(not _annotations(task) for task in tasks):
        dataset.notes.append(
            f"{source.annotations}: {without:,} tasks have no annotation and are left out (predictions are not read)"
        )


def _convert(results: Sequence[Mapping[str, Any]], ids: Mapping[str, int], options: ImportOptions) -> shapes.ImageAnnotations:
    """Convert the results of an annotation to shapes.

    Args:
        results: the results. One without labels is not a region, or adds to the region of another result with the same id.
        ids: class id by label; 255 (void) or 0 (background) for classes that are not imported.
        options: options of the import; `boxes_void` and `max_pixels` apply.

    Returns:
        The shapes of the image with their class ids.

    Raises:
        BadInput: if a result is malformed or is a region without a label, or two are of images of different sizes.
    """
    converted = []
    sizes = set()
    labelled = {str(result["id"]) for result in results if "id" in result and _value_and_labels(result)[1]}
    for number, result in enumerate(results, start=1):
        value, labels = _value_and_labels(result)
        name = f"result {number}"
        if not labels:
            if {"points", "rle", "x"} & value.keys() and str(result.get("id")) not in labelled:
                raise BadInput(f"{name} has no label")
            continue
        if len(labels) > 1:
            raise BadInput(f"{name} has the labels {' and '.join(labels)}: keep one")
        with shapes.prefix_errors(f"{name} ({labels[0]})"):
            width, height = (as_int(result.get(f"original_{side}"), f"its original_{side}") for side in ("width", "height"))
            if min(width, height) < 1 or width * height > options.max_pixels:
                raise BadInput(
                    f"it is of an image of {width}×{height} px; 1 to {options.max_pixels:,} px are allowed (--max_pixels)"
                )
            if result.get("image_rotation"):
                raise BadInput(f"the image was turned by {result['image_rotation']}° in Label Studio: turn it back there")
            sizes.add((width, height))
            shape, reason, remedy = _make_shape(value, width, height, options.boxes_void)
        converted.append(shapes.Annotation(name, labels[0], ids[labels[0]] or None, shape, reason, remedy))
    if len(sizes) > 1:
        raise BadInput(f"its results are of images of different sizes: {', '.join(f'{w}×{h}' for w, h in sorted(sizes))}")
    return shapes.ImageAnnotations(sizes.pop() if sizes else (None, None), converted)


def _make_shape(value: Mapping[str, Any], width: int, height: int, boxes_void: bool) -> tuple[shapes.Shape | None, str, str]:
    """Make the shape of a result.

    Args:
        value: value of the result, whose keys tell its kind.
        width: width of the image in px.
        height: height of the image in px.
        boxes_void: True if rectangles become void.

    Returns:
        shape: the shape; None if the kind is not read.
        reason: why the result does not become an object; "" if it does.
        remedy: option of import_data.py that makes it an object; "" if there is none.

    Raises:
        BadInput: if the value is malformed.
    """
    scale = np.array([width, height]) / 100
    if "points" in value:
        return shapes.polygons([parse_points(value["points"], "its polygon") * scale]), "", ""
    if "rle" in value:
        return shapes.whole_mask(decode_brush(value["rle"], height, width)), "", ""
    if {"x", "y", "width", "height"} <= value.keys():
        x, y, w, h = parse_points([value[key] for key in ("x", "y", "width", "height")], "its rectangle").ravel().tolist()
        turn = np.deg2rad(
            parse_points([value.get("rotation") or 0, 0], "its rotation")[0, 0]
        )  # clockwise, about the first corner
        sides = np.array([[0, 0], [w, 0], [w, h], [0, h]]) * scale
        corners = sides @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + np.array([x, y]) * scale
        reason, remedy = ("is a rectangle without an outline, which becomes void", "--boxes object") if boxes_void else ("", "")
        return shapes.polygons([corners]), reason, remedy
    return None, "is not a polygon, brush label or rectangle, the only kinds that are read", ""
