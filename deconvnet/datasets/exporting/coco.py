"""Writing predictions as COCO's JSON (https://cocodataset.org/#format-data): polygons, or run lengths of whole masks."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deconvnet.datasets.exporting import ExportFormat, ExportOptions, ImageExport, PredictedImage, PredictedObject
from deconvnet.datasets.exporting.outlines import run_lengths

_FILE = "annotations/instances_default.json"  # the name that CVAT and Datumaro look for


def to_coco(image: PredictedImage, objects: Sequence[PredictedObject], options: ExportOptions) -> ImageExport:
    """Convert an image to an entry of COCO's list of images and the annotations of its objects, which have no ids yet.

    Args:
        image: the image with its mask and score.
        objects: its objects.
        options: options of the export; `shapes` applies.

    Returns:
        An export whose entry is a pair: the image, and its annotations, each with a `score`.
    """
    listed = {"file_name": image.name, "width": image.width, "height": image.height}
    annotations = []
    for each in objects:
        region = each.region
        height, width = region.pixels.shape
        segmentation: Any
        if options.shapes == "polygons":
            segmentation = [each.polygon.ravel().tolist()]
        else:
            pixels = region.in_image(image.height, image.width)
            segmentation = {"size": [image.height, image.width], "counts": run_lengths(pixels.T.ravel())}
        annotations.append(
            {
                "category_id": region.class_id,
                "segmentation": segmentation,
                "bbox": [region.left, region.top, width, height],
                "area": region.area,
                "iscrowd": 0,
                "score": image.class_scores[region.class_id],
            }
        )
    return ImageExport((listed, annotations))


def coco_files(entries: Sequence[Any], options: ExportOptions) -> Mapping[str, bytes]:
    """Return the COCO file of all images, by file name. Ids of images and annotations count from 1; category ids are class ids.

    Args:
        entries: the entries of `to_coco`, in order.
        options: options of the export; `classes`, `background` and `model` apply.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (image, of_image) in enumerate(entries, start=1):
        images.append({"id": image_id, **image})
        annotations += [{"id": len(annotations) + n, "image_id": image_id, **a} for n, a in enumerate(of_image, start=1)]
    document = {
        "info": {"description": f"predicted by {options.model}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in options.labels.items()],
    }
    return {_FILE: json.dumps(document, ensure_ascii=False).encode()}


FORMAT = ExportFormat(to_coco, coco_files, annotations=_FILE)
