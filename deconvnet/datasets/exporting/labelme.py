"""Writing predictions as LabelMe's JSON files (https://github.com/wkentaro/labelme), one beside each image: polygons or masks.

Open them with `labelme images --labels labels.txt`.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from deconvnet.datasets.exporting import ExportFormat, ExportOptions, ImageExport, PredictedImage, PredictedObject
from deconvnet.datasets.formats.labelme import BACKGROUND_LABEL, VOID_LABEL
from proposals.image_codec import encode_mask

_FOLDER = "images"
_VERSION = "5.5.0"  # version of LabelMe that introduced this form of mask shapes; later versions still use it


def to_labelme(image: PredictedImage, objects: Sequence[PredictedObject], options: ExportOptions) -> ImageExport:
    """Convert an image to a LabelMe file.

    Args:
        image: the image with its mask and score.
        objects: its objects.
        options: options of the export; `classes` and `shapes` apply.

    Returns:
        An export with the file, which lies beside the image. Each shape has a `score`, as X-AnyLabeling shows it.
    """
    path = PurePosixPath(_FOLDER, image.name)
    document: dict[str, Any] = {
        "version": _VERSION,
        "flags": {},
        "shapes": [_shape(each, image.class_scores[each.region.class_id], options) for each in objects],
        "imagePath": path.name,
        "imageData": None,
        "imageHeight": image.height,
        "imageWidth": image.width,
    }
    return ImageExport(None, {str(path.with_suffix(".json")): json.dumps(document, ensure_ascii=False, indent=1).encode()})


def _shape(each: PredictedObject, score: float, options: ExportOptions) -> dict[str, Any]:
    """Return an object as a shape of a LabelMe file."""
    region = each.region
    shape: dict[str, Any] = {
        "label": options.classes[region.class_id],
        "points": [],
        "group_id": None,
        "description": "",
        "shape_type": "polygon",
        "flags": {},
        "mask": None,
        "score": score,
    }
    if options.shapes == "polygons":
        return shape | {"points": each.polygon.tolist()}
    height, width = region.pixels.shape
    corners = [[region.left, region.top], [region.left + width - 1, region.top + height - 1]]
    pixels = base64.b64encode(encode_mask(region.pixels.astype(np.uint8) * 255)).decode()
    return shape | {"points": [[float(x), float(y)] for x, y in corners], "shape_type": "mask", "mask": pixels}


def labelme_files(entries: Sequence[Any], options: ExportOptions) -> Mapping[str, bytes]:
    """Return the list of labels for LabelMe, by file name. It also has the labels that mean void and background."""
    return {"labels.txt": "".join(f"{name}\n" for name in (VOID_LABEL, BACKGROUND_LABEL, *options.labels.values())).encode()}


FORMAT = ExportFormat(to_labelme, labelme_files, annotations=_FOLDER)
