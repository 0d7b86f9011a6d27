"""Reading tables of run lengths as in Kaggle's competitions: a CSV file with a line for each object, or each class of an image.

One column names the image, one has the run lengths, and a third may have the class. Run lengths are pairs of a start and a
length, such as `1 3 10 5`. The pixels are counted from 1, down the columns of the image (as in EncodedPixels) or along its rows.
A line without run lengths says that the image has no object of its class.
"""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.importing import shapes
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions
from deconvnet.datasets.importing.image_index import ImageIndex
from deconvnet.datasets.importing.images import read_text
from deconvnet.datasets.importing.painting import ImagePainter
from deconvnet.datasets.importing.regions import Region, mask_region
from infra import storage
from infra.errors import BadInput, UserError

# How the pixels are counted, by the name of the column of run lengths in lower case.
_RUNS = dict.fromkeys(("encodedpixels", "rle", "rle_mask", "encoding"), "columns") | dict.fromkeys(
    ("annotation", "segmentation"), "rows"
)
_IMAGES = ("imageid", "image_id", "image", "img_id", "img", "filename", "file_name", "id", "imageid_classid", "image_label")
_CLASSES = ("classid", "class_id", "class", "class_name", "label", "category", "cell_type")
_IN_ONE = ("imageid_classid", "image_label")  # columns of image and class, such as a.jpg_1
_NONE = ("", "-1", "nan")  # run lengths of an image without an object
_MIN_PIXELS = 20  # smaller objects don't show whether their pixels are counted along rows or columns


@dataclass(frozen=True)
class _Line:
    """A line of the table.

    Attributes:
        name: name of the line for error messages, such as "line 7".
        label: name of the class.
        runs: run lengths; "" if the image has no object of the class.
        size: width and height of the image as text; None if the table does not state them.
    """

    name: str
    label: str
    runs: str
    size: tuple[str | None, str | None]


def read_kaggle(sources: Sequence[AnnotationSource], options: ImportOptions) -> AnnotatedDataset:
    """Read one or two tables of run lengths as one data set.

    Args:
        sources: the CSV files, each with its folder of images.
        options: options of the import. Those about boxes, crowds and folders of masks have no effect. If a table has no
            classes, `classes` may have one name, by default "object".

    Returns:
        The data set. If `options.classes` is empty, its classes are all classes in the tables, ordered by number or name.

    Raises:
        UserError: if a file is not a table of run lengths, or the classes can't be chosen.
    """
    tables = [_read_table(source.annotations, options) for source in sources]
    labels = {line.label for table, _ in tables for lines in table.values() for line in lines if line.label}
    dataset = AnnotatedDataset()
    by_number = sorted(labels, key=lambda label: (int(label) if label.isdecimal() else math.inf, label))
    ids = dataset.choose_classes(by_number, options, must_exist=False)
    for source, (table, order) in zip(sources, tables, strict=True):
        dataset.notes.append(f"{source.annotations}: the pixels of run lengths are counted along the {order} (see --run_order)")
        index, painter = ImageIndex(source.images), ImagePainter(options)
        found, missing, notes = index.find_listed(table)
        dataset.notes += notes
        lines_of: dict[str, list[_Line]] = defaultdict(list)
        for name, lines in table.items():
            if name in found:
                lines_of[found[name]] += lines
            else:
                dataset.reject(name, source.annotations, missing[name])
        for file, lines in lines_of.items():
            load = painter.plan(partial(index.read_named, file), partial(_convert, lines, order, ids))
            dataset.add(file, storage.join(source.images, file), source.split, load)
        if without := len(index.names) - len(lines_of):
            dataset.notes.append(f"{without:,} images below {source.images} are not in the table and are left out")
    return dataset


FORMAT = DatasetFormat("the CSV file of run lengths", read_kaggle)


def _read_table(file: str, options: ImportOptions) -> tuple[dict[str, list[_Line]], str]:
    """Read a table of run lengths.

    Args:
        file: path or URI of the CSV file.
        options: options of the import; `classes`, `run_order` and `encoding` apply.

    Returns:
        lines: the lines of the table by name of the image.
        order: how the pixels are counted: "columns" or "rows".

    Raises:
        UserError: if the file can't be read, or lacks a column.
    """
    try:
        text = read_text(file, options.encoding)
    except BadInput as error:
        raise UserError(f"--annotations {file} can't be read: {error}") from None
    header = text.partition("\n")[0].strip()
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    columns = [name.strip().lower() for name in next(reader, [])]
    image, runs, label = (next((name for name in names if name in columns), "") for names in (_IMAGES, _RUNS, _CLASSES))
    if not image or not runs:
        raise UserError(
            f"--annotations {file} is not a table of run lengths: its columns are {header[:200]}, and ImageId and EncodedPixels "
            "are needed, or other names that Kaggle uses"
        )
    only = options.classes[0] if len(options.classes) == 1 else "object"
    table: dict[str, list[_Line]] = defaultdict(list)
    for fields in filter(any, reader):
        if len(fields) != len(columns):
            raise UserError(
                f"--annotations {file}, line {reader.line_num}: {len(fields)} fields, and the heading has {len(columns)}"
            )
        row = dict(zip(columns, map(str.strip, fields), strict=True))
        name, _, class_name = row[image].rpartition("_") if image in _IN_ONE else (row[image], "", row.get(label, only))
        size = row.get("width"), row.get("height")
        table[name].append(_Line(f"line {reader.line_num}", class_name, "" if row[runs].lower() in _NONE else row[runs], size))
    if not any(line.runs for lines in table.values() for line in lines):
        raise UserError(f"--annotations {file} has no line with run lengths")
    return dict(table), options.run_order or _RUNS[runs]


def _convert(lines: Sequence[_Line], order: str, ids: Mapping[str, int]) -> shapes.ImageAnnotations:
    """Convert the table lines of one image to shapes.

    Args:
        lines: all lines of the table that belong to the image.
        order: how the pixels are counted: "columns" or "rows".
        ids: class id by class name; 255 (void) or 0 (background) for classes that are not imported.

    Returns:
        The shapes of the image with their class ids.

    Raises:
        BadInput: if run lengths are malformed.
    """
    converted = []
    for line in lines:
        if line.runs:
            with shapes.prefix_errors(line.name):
                if not line.label:
                    raise BadInput("it has run lengths and no class")
                shape = _make_shape(line.runs, order)
            converted.append(shapes.Annotation(line.name, line.label, ids[line.label] or None, shape))
    return shapes.ImageAnnotations(lines[0].size, converted)


def _make_shape(text: str, order: str) -> shapes.Shape:
    """Make the shape of an object from run lengths.

    Args:
        text: pairs of the first pixel of a run, counted from 1, and the number of its pixels.
        order: how the pixels are counted: "columns" or "rows".

    Returns:
        The shape. If the run lengths don't fit the image, BadInput is raised later, when the shape is drawn.

    Raises:
        BadInput: if the run lengths are malformed.
    """
    try:
        numbers = np.array(text.split(), np.int64)
    except (ValueError, OverflowError):
        raise BadInput("its run lengths have words that are not whole numbers") from None
    if numbers.size % 2:
        raise BadInput(f"its run lengths have {numbers.size} numbers, pairs are needed")
    starts, ends = numbers[::2] - 1, numbers[::2] - 1 + numbers[1::2]
    if starts[0] < 0 or (ends <= starts).any() or (starts[1:] < ends[:-1]).any():
        raise BadInput("its runs are not in ascending order: starts count from 1 at the first pixel, not from the run before")

    def fill(class_id: int, height: int, width: int) -> Region:
        if ends[-1] > height * width:
            raise BadInput(f"its run lengths end at pixel {ends[-1]:,}, the image has {height * width:,} ({width}×{height})")
        steps = np.zeros(height * width + 1, np.int8)
        steps[starts] += 1
        steps[ends] -= 1
        flat = np.cumsum(steps[:-1], dtype=np.int8) > 0
        masks = {"columns": flat.reshape(width, height).T, "rows": flat.reshape(height, width)}
        mask, other = masks[order], masks["rows" if order == "columns" else "columns"]
        if height != width and mask.sum() >= _MIN_PIXELS and _border(mask) > 2 * _border(other):
            raise BadInput(f"its run lengths make stripes when the pixels are counted along the {order}: see --run_order")
        return mask_region(class_id, mask)

    return shapes.Shape(fill, np.zeros((0, 2)))


def _border(mask: np.ndarray) -> int:
    """Return the length of the border of an object: how many pairs of adjacent pixels differ in its bool mask (H, W)."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())
