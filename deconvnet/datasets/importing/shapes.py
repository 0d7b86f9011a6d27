"""Annotations of an image as shapes. The modules of `deconvnet.datasets.formats` make them; `painting` turns them into masks.

A format makes an `Annotation` for each annotated object. Its `Shape` says which pixels belong to the object. Use the functions
of this module to make it: `polygons`, `box`, `circle`, `bitmap`, `whole_mask` or `run_lengths`.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from deconvnet.datasets.importing.regions import (
    Region,
    bitmap_region,
    box_region,
    circle_region,
    mask_region,
    merge_regions,
    parse_points,
    polygon_region,
    run_length_region,
)
from infra.errors import BadInput


@dataclass(frozen=True)
class Shape:
    """The pixels of an annotated object, not drawn yet, because the size of the image is not known yet.

    Attributes:
        fill: function that draws the pixels. It is called with the class id, and with the height and width of the image in px.
            It raises BadInput if they can't be drawn.
        points: float64 array (N, 2) of x, y, which should lie inside the image. They show whether the image was annotated as
            stored or as displayed (EXIF orientation).
        mask_size: width and height of the image, in px, if the pixels are a mask of a whole image; otherwise None.
    """

    fill: Callable[[int, int, int], Region]
    points: np.ndarray
    mask_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Annotation:
    """An annotation of an image: an object, or something that can't become an object.

    Attributes:
        name: name for messages to the user, such as "annotation 7".
        label: name of its class in the annotations.
        class_id: id of its class. 255 means void. 0 means background, and cuts holes into the objects below. None means that the
            annotation is not painted, because its class is not imported.
        shape: its pixels; None if it has none.
        why_lost: empty for an object. Otherwise the reason why it can't become one, which follows its name in messages, such as
            "is a crowd, which becomes void". Its pixels, if it has any, become void.
        remedy: option of import_data.py that makes it an object, such as "--crowd object"; empty if there is none.
        group: annotations of an image with the same label and the same group form one object. None for an object of its own.
        crowd: True for a group of objects annotated as one, whose pixels become void even if its class is not imported.
    """

    name: str
    label: str
    class_id: int | None
    shape: Shape | None
    why_lost: str = ""
    remedy: str = ""
    group: Hashable = None
    crowd: bool = False


@dataclass(frozen=True)
class ImageAnnotations:
    """All annotations of an image.

    Attributes:
        size: width and height of the image, in px, as stated in the annotations. If they are not stated, both may be anything
            that is not a number, such as None.
        annotations: the annotations. If they overlap, the order may decide which of them lies on top (see `paint_masks`).
    """

    size: tuple[Any, Any]
    annotations: Sequence[Annotation]


@contextmanager
def prefix_errors(name: str, *kinds: type[Exception]) -> Iterator[None]:
    """Put the name of an annotation before the error messages of a `with` block.

    Args:
        name: name of the annotation, such as "annotation 7".
        *kinds: types of exceptions that become BadInput.

    Raises:
        BadInput: if the block raises BadInput or one of `kinds`. Its message is `name` and the original message.
    """
    caught: tuple[type[Exception], ...] = (BadInput, *kinds)
    try:
        yield
    except caught as error:
        raise BadInput(f"{name}: {error}") from None


def polygons(outlines: Sequence[Any], name: str = "its polygon") -> Shape:
    """Make a shape from one or more polygons, whose pixels are joined.

    Args:
        outlines: for each polygon a list of pairs [x, y], or a flat list [x, y, x, y, …], in px. At least one polygon.
        name: name of the shape, for error messages.

    Returns:
        The shape.

    Raises:
        BadInput: if the coordinates are not pairs of finite numbers.
    """
    parsed = [parse_points(outline, name) for outline in outlines]

    def fill(class_id: int, height: int, width: int) -> Region:
        return merge_regions([polygon_region(class_id, points, height, width) for points in parsed])

    return Shape(fill, np.concatenate(parsed))


def box(x0: float, y0: float, x1: float, y1: float) -> Shape:
    """Make a rectangle from two opposite corners in px. Raises BadInput if they are not finite numbers."""
    corners = (x0, y0, x1, y1)
    return Shape(lambda class_id, *size: box_region(class_id, corners, *size), parse_points(corners, "its box"))


def circle(x: float, y: float, radius: float) -> Shape:
    """Make a circle from its centre and its radius in px. The circle may reach out of the image."""
    return Shape(lambda class_id, *size: circle_region(class_id, (x, y), radius, *size), np.array([[x, y]], np.float64))


def bitmap(mask: np.ndarray, left: int, top: int) -> Shape:
    """Make a shape from a small bitmap that lies somewhere in the image.

    Args:
        mask: bool array (h, w), True where the object is.
        left: column of the image where the first column of the bitmap lies; may be negative.
        top: row of the image where the first row of the bitmap lies; may be negative.

    Returns:
        The shape.
    """
    corners = np.array([[left, top], [left + mask.shape[1], top + mask.shape[0]]], np.float64)
    return Shape(lambda class_id, *size: bitmap_region(class_id, mask, top, left, *size), corners)


def whole_mask(mask: np.ndarray) -> Shape:
    """Make a shape from a mask of the whole image, a bool array (H, W)."""
    size = (mask.shape[1], mask.shape[0])
    return Shape(lambda class_id, height, width: mask_region(class_id, mask), np.zeros((0, 2)), size)


def run_lengths(counts: Any, width: int, height: int) -> Shape:
    """Make a shape from COCO's run lengths of a mask of the whole image.

    Args:
        counts: run lengths, a list or compressed text (see `regions.parse_run_lengths`).
        width: width of the mask in px.
        height: height of the mask in px.

    Returns:
        The shape. Damaged run lengths raise BadInput when they are drawn.
    """
    mask_size = (width, height)
    return Shape(lambda class_id, *size: run_length_region(class_id, counts, *size), np.zeros((0, 2)), mask_size)
