"""Writing predictions in the YOLO segmentation format (https://docs.ultralytics.com/datasets/segment/): polygons only.

The format has no room for scores; those of the images are in scores.csv. Numbers of classes count from 0 without the background.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from deconvnet.datasets.exporting import ExportFormat, ExportOptions, ImageExport, PredictedImage, PredictedObject
from deconvnet.datasets.exporting.score_table import SCORES, score_table

_FILE = "data.yaml"


def to_yolo(image: PredictedImage, objects: Sequence[PredictedObject], options: ExportOptions) -> ImageExport:
    """Convert an image to a text file with a line for each object: its class, and the corners as shares of the image's sides.

    Args:
        image: the image with its mask and score.
        objects: its objects.
        options: options of the export; `background` applies.

    Returns:
        An export with the text file, which is empty without objects. The entry is the name of the image and its score.
    """
    first = min(options.labels, default=0)
    lines = []
    for each in objects:
        corners = each.polygon / (image.width, image.height)
        lines.append(" ".join([str(each.region.class_id - first), *(f"{value:.6f}" for value in corners.ravel())]))
    path = PurePosixPath("labels", image.name).with_suffix(".txt")
    return ImageExport((image.name, image.score), {str(path): "".join(f"{line}\n" for line in lines).encode()})


def yolo_files(entries: Sequence[Any], options: ExportOptions) -> Mapping[str, bytes]:
    """Return data.yaml and the table of scores, by file name. In data.yaml, both train and val are the folder of all images.

    Args:
        entries: the entries of `to_yolo`, in order.
        options: options of the export; `classes` and `background` apply.
    """
    document = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(options.labels.values()))}
    return {_FILE: yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode(), SCORES: score_table(entries)}


FORMAT = ExportFormat(to_yolo, yolo_files, annotations=_FILE)
