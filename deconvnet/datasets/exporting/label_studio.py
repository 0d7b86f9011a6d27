"""Writing predictions as tasks of Label Studio (https://labelstud.io/guide/predictions): polygons, or brush labels.

Paste the project's labelling configuration (label_config.xml) under *Labeling Interface*, *Code*. Each task has the URL of its
image. By default, the URLs are those of local files in the export, from where Label Studio must be set up to serve them.
"""

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from deconvnet.datasets.exporting import ExportFormat, ExportOptions, ImageExport, PredictedImage, PredictedObject
from deconvnet.datasets.formats.label_studio.brush_runs import encode_brush
from deconvnet.datasets.palette import class_palette

_FILE = "tasks.json"
_CONTROL, _IMAGE = "label", "image"  # names that the tasks and the configuration share
_TAGS = {"polygons": ("PolygonLabels", "polygonlabels"), "masks": ("BrushLabels", "brushlabels")}


def to_label_studio(image: PredictedImage, objects: Sequence[PredictedObject], options: ExportOptions) -> ImageExport:
    """Convert an image to a task with a prediction, which has a result for each object.

    Args:
        image: the image with its mask and score.
        objects: its objects.
        options: options of the export; `classes`, `shapes`, `image_url` and `model` apply.

    Returns:
        An export whose entry is the task.
    """
    kind = _TAGS[options.shapes][1]
    results = []
    for number, each in enumerate(objects, start=1):
        region = each.region
        value: dict[str, Any]
        if options.shapes == "polygons":
            points = each.polygon * 100 / (image.width, image.height)
            value = {"points": points.tolist(), "closed": True}
        else:
            value = {"format": "rle", "rle": encode_brush(region.in_image(image.height, image.width))}
        results.append(
            {
                "id": f"object-{number}",
                "from_name": _CONTROL,
                "to_name": _IMAGE,
                "type": kind,
                "original_width": image.width,
                "original_height": image.height,
                "image_rotation": 0,
                "score": image.class_scores[region.class_id],
                "value": {**value, kind: [options.classes[region.class_id]]},
            }
        )
    prediction = {"model_version": options.model, "score": image.score, "result": results}
    return ImageExport({"data": {_IMAGE: options.image_url + urllib.parse.quote(image.name)}, "predictions": [prediction]})


def label_studio_files(entries: Sequence[Any], options: ExportOptions) -> Mapping[str, bytes]:
    """Return the file of tasks and the labelling configuration of the project, by file name.

    Args:
        entries: the tasks of `to_label_studio`, in order.
        options: options of the export; `classes`, `background` and `shapes` apply.
    """
    palette = class_palette(options.background)
    view = Element("View")
    SubElement(view, "Image", name=_IMAGE, value=f"${_IMAGE}", zoom="true")
    control = SubElement(view, _TAGS[options.shapes][0], name=_CONTROL, toName=_IMAGE)
    for number, name in options.labels.items():
        SubElement(control, "Label", value=name, background="#{:02x}{:02x}{:02x}".format(*palette[number]))
    ElementTree.indent(view)
    return {
        _FILE: json.dumps(entries, ensure_ascii=False).encode(),
        "label_config.xml": ElementTree.tostring(view, encoding="utf-8"),
    }


FORMAT = ExportFormat(to_label_studio, label_studio_files, annotations=_FILE)
