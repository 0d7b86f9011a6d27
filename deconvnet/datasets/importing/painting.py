"""Painting class masks and object masks from the regions of an image's objects."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from deconvnet.datasets.importing.dataset import AnnotatedImage, ImportOptions, LostAnnotation
from deconvnet.datasets.importing.images import SourceImage, as_layout_file
from deconvnet.datasets.importing.orientation import Evidence, FrameChooser, apply_orientation, collect_evidence, is_reoriented
from deconvnet.datasets.importing.regions import Region, merge_regions
from deconvnet.datasets.importing.shapes import Annotation, ImageAnnotations, prefix_errors
from infra.errors import BadInput
from proposals.masks import VOID_ID, VOID_ID_16BIT


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


class ImagePainter:
    """Makes the masks of all images of one annotation file, or of one folder of them.

    Call `plan` for all images first. It returns a function for each image, which paints the image when it is called. If an image
    has an EXIF orientation, all planned images help to find out whether it was annotated as stored or as displayed.
    """

    def __init__(self, options: ImportOptions) -> None:
        """Create a painter. Of the options `options` of the import, `small_over_large` and `max_pixels` apply."""
        self._options = options
        self._frames = FrameChooser()

    def plan(
        self, read_image: Callable[[], SourceImage], read_annotations: Callable[[], ImageAnnotations]
    ) -> Callable[[], AnnotatedImage]:
        """Prepare to load and paint an image.

        Args:
            read_image: function that returns the image. It may be called more than once, in any thread, and may raise BadInput.
            read_annotations: function that returns the annotations of the image. It may also be called more than once, in any
                thread, and may raise BadInput.

        Returns:
            A function for `AnnotatedDataset.add`, which paints the image. It raises BadInput if the image or an annotation can't
            be used.
        """
        self._frames.evidence_readers.append(
            lambda: self._collect_evidence(image, read_annotations()) if is_reoriented(image := read_image().data) else None
        )
        return lambda: self._paint(read_image(), read_annotations())

    def _collect_evidence(self, image: bytes, annotated: ImageAnnotations) -> Evidence:
        """Collect the evidence of an image for whether it was annotated as stored or as displayed.

        Args:
            image: encoded bytes of the image.
            annotated: its annotations.

        Returns:
            The evidence, for `FrameChooser.choose`.

        Raises:
            BadInput: if the image can't be used, or its annotations fit it neither way.
        """
        drawn = {each.name: each.shape for each in annotated.annotations if each.shape}
        points = np.concatenate([np.zeros((0, 2)), *(shape.points for shape in drawn.values())])
        masks = {name: shape.mask_size for name, shape in drawn.items() if shape.mask_size}
        return collect_evidence(image, annotated.size, points, masks, self._options.max_pixels)

    def _paint(self, image: SourceImage, annotated: ImageAnnotations) -> AnnotatedImage:
        """Make the masks of an image.

        Args:
            image: the image.
            annotated: its annotations.

        Returns:
            The image, with masks that fit it as displayed.

        Raises:
            BadInput: if the image or an annotation can't be used.
        """
        evidence = self._collect_evidence(image.data, annotated)
        frame, remark = self._frames.choose(evidence)
        width, height = evidence.sizes[frame]
        regions, lost, crowds = _draw(annotated.annotations, height, width)
        painted = paint_masks(regions, height, width, self._options.small_over_large)
        class_mask, object_mask = painted.class_mask, painted.object_mask
        if frame == "stored":
            class_mask, object_mask = apply_orientation(image.data, class_mask), apply_orientation(image.data, object_mask)
        return AnnotatedImage(
            *as_layout_file(image.data, image.name),
            class_mask,
            object_mask,
            painted.overlap_pixels,
            painted.hidden_objects,
            sum(each.class_id is not None for each in annotated.annotations),
            tuple(lost),
            " and ".join(filter(None, (crowds, image.remark, remark))),
        )


def _draw(annotations: Sequence[Annotation], height: int, width: int) -> tuple[list[Region], list[LostAnnotation], str]:
    """Draw the annotations of an image.

    Args:
        annotations: the annotations.
        height: height of the image in px, as it was annotated.
        width: width of the image in px, as it was annotated.

    Returns:
        regions: a region for each object and each void area. Annotations of one group make one region.
        lost: the annotations that become void or are left out although their class is imported.
        crowds: phrase for the user about crowds that become void although their class is not imported, with the names of their
            classes; "" if there are none.

    Raises:
        BadInput: if an annotation can't be drawn.
    """
    groups: dict[Hashable, list[Region]] = defaultdict(list)
    lost, crowds = [], set[str]()
    for number, each in enumerate(annotations):
        reason = each.why_lost
        if each.shape and (each.class_id is not None or each.crowd):
            with prefix_errors(each.name):
                region = each.shape.fill(VOID_ID if reason or each.class_id is None else each.class_id, height, width)
            if region.area:
                crowds.update([each.label] if each.class_id is None else [])
                groups[number if each.group is None else (each.label, each.group, region.class_id)].append(region)
            else:
                reason = "covers no pixel"
        if reason and each.class_id is not None:
            lost.append(LostAnnotation(each.name, each.label, reason, each.remedy))
    others = f"has crowds of classes that are not imported ({', '.join(sorted(crowds))}), which become void" if crowds else ""
    return [merge_regions(pieces) for pieces in groups.values()], lost, others
