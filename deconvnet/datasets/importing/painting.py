"""Painting class masks and object masks from the regions of an image's objects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deconvnet.datasets.importing.dataset import AnnotatedImage, ImportRules
from deconvnet.datasets.importing.images import annotated_as_stored, apply_orientation, as_layout_file, displayed_size
from deconvnet.datasets.importing.regions import Region
from infra.errors import BadInput
from proposals.masks import VOID_ID, VOID_ID_16BIT

MakeRegions = Callable[[int, int], tuple[list[Region], list[str]]]
"""A function that turns an image's annotations into regions.

It is called with the height and width of the image that was annotated. It returns the regions, and a sentence with the reason for
each annotation that it skipped.
"""


@dataclass(frozen=True)
class PaintedMasks:
    """The masks of one image, and numbers that tell how much its objects overlap.

    Attributes:
        class_mask: uint8 array (H, W) of class ids; 255 is void.
        object_mask: array (H, W) of object ids, counted from 1 in the order in which the regions were given; 0 is background. It
            is uint8 with void 255, or uint16 with void 65535 if there are more than 254 objects.
        overlap_pixels: number of pixels that more than one object covers.
        hidden_objects: number of objects that lie wholly under others.
    """

    class_mask: np.ndarray
    object_mask: np.ndarray
    overlap_pixels: int
    hidden_objects: int


def paint_masks(regions: Sequence[Region], height: int, width: int, small_over_large: bool = True) -> PaintedMasks:
    """Paint the regions of an image's objects on background.

    Void regions are painted first, so that they never hide an object.

    Args:
        regions: regions of the objects. A region of class 0 is background, which hides the objects that lie under it.
        height: height of the image in px.
        width: width of the image in px.
        small_over_large: True to paint large objects before small ones. False to paint objects in the order given, so that the
            last one lies on top.

    Returns:
        The masks, and how much the objects overlap.

    Raises:
        BadInput: if there are more objects than 16 bits can number.
    """
    objects = list(enumerate((region for region in regions if region.class_id != VOID_ID), start=1))
    if len(objects) >= VOID_ID_16BIT:
        raise BadInput(f"more than {VOID_ID_16BIT - 1:,} objects")
    from_bottom = sorted(objects, key=lambda pair: -pair[1].area) if small_over_large else objects
    class_mask = np.zeros((height, width), np.uint8)
    covered = np.zeros((height, width), np.uint16)
    ids = np.zeros((height, width), np.int32)
    for region in regions:
        if region.class_id == VOID_ID:
            class_mask[region.window][region.pixels] = VOID_ID
    for number, region in from_bottom:
        class_mask[region.window][region.pixels] = region.class_id
        ids[region.window][region.pixels] = number if region.class_id else 0
        covered[region.window] += region.pixels
    hidden = {number for number, region in objects if region.class_id} - set(np.unique(ids).tolist())
    eight_bits = len(objects) < VOID_ID
    object_mask = ids.astype(np.uint8 if eight_bits else np.uint16)
    object_mask[class_mask == VOID_ID] = VOID_ID if eight_bits else VOID_ID_16BIT
    return PaintedMasks(class_mask, object_mask, int((covered > 1).sum()), len(hidden))


def paint_image(image: bytes, name: str, size: tuple[Any, Any], rules: ImportRules, make_regions: MakeRegions) -> AnnotatedImage:
    """Make the masks of an image from its annotated shapes.

    Args:
        image: encoded bytes of the image.
        name: file name of the image, whose suffix tells its format.
        size: width and height, in px, that the annotations give for the image. If they are not both integers, the image is taken
            to be annotated as displayed.
        rules: rules that the user chose; `small_over_large` and `max_pixels` apply.
        make_regions: function that turns the annotated shapes into regions. It is called with the annotated height and width. It
            returns the regions, and a sentence with the reason for each shape that was skipped.

    Returns:
        The image, with masks that fit it as displayed.

    Raises:
        BadInput: if the image or its annotations can't be used.
    """
    width, height = size if all(isinstance(side, int) for side in size) else displayed_size(image, rules.max_pixels)
    as_stored = annotated_as_stored(image, (width, height), rules.max_pixels)
    regions, skipped = make_regions(height, width)
    painted = paint_masks(regions, height, width, rules.small_over_large)
    class_mask, object_mask = painted.class_mask, painted.object_mask
    if as_stored:
        class_mask, object_mask = apply_orientation(image, class_mask), apply_orientation(image, object_mask)
    counts = painted.overlap_pixels, painted.hidden_objects
    return AnnotatedImage(*as_layout_file(image, name), class_mask, object_mask, *counts, tuple(skipped))
