"""Writing predictions as CVAT's XML, "CVAT for images 1.1" (https://docs.cvat.ai/docs/other/xml_format): polygons or masks.

When you create the task, paste its labels (labels.json) under *Raw*. Each label has an attribute `score`, which CVAT shows beside
a shape.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from deconvnet.datasets.exporting import ExportFormat, ExportOptions, ImageExport, PredictedImage, PredictedObject
from deconvnet.datasets.exporting.outlines import run_lengths
from deconvnet.datasets.palette import class_palette

_FILE = "annotations.xml"
_SCORE = "score"
_SHAPE = {"source": "auto", "occluded": "0", "z_order": "0"}


def to_cvat(image: PredictedImage, objects: Sequence[PredictedObject], options: ExportOptions) -> ImageExport:
    """Convert an image to an element <image> with a shape for each object.

    Args:
        image: the image with its mask and score.
        objects: its objects.
        options: options of the export; `classes` and `shapes` apply.

    Returns:
        An export whose entry is the element; it has no id yet.
    """
    element = Element("image", name=image.name, width=str(image.width), height=str(image.height))
    for each in objects:
        region = each.region
        common = {"label": options.classes[region.class_id], **_SHAPE}
        if options.shapes == "polygons":
            corners = each.polygon.tolist()
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in corners)
            shape = SubElement(element, "polygon", common, points=points)
        else:
            height, width = region.pixels.shape
            window = {"left": region.left, "top": region.top, "width": width, "height": height}
            runs = ", ".join(map(str, run_lengths(region.pixels.ravel())))
            shape = SubElement(element, "mask", common, rle=runs, **{key: str(value) for key, value in window.items()})
        SubElement(shape, "attribute", name=_SCORE).text = f"{image.class_scores[region.class_id]:.3f}"
    return ImageExport(element)


def cvat_files(entries: Sequence[Any], options: ExportOptions) -> Mapping[str, bytes]:
    """Return the XML file of all images and the labels of the task, by file name.

    Args:
        entries: the elements of `to_cvat`, in order.
        options: options of the export; `classes` and `background` apply.
    """
    palette = class_palette(options.background)
    colours = {number: "#{:02x}{:02x}{:02x}".format(*palette[number]) for number in options.labels}
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for number, name in options.labels.items():
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "color").text = colours[number]
        attribute = SubElement(SubElement(label, "attributes"), "attribute")
        for key, value in _attribute().items():
            SubElement(attribute, key).text = str(value)
    for number, element in enumerate(entries):
        element.set("id", str(number))
        root.append(element)
    ElementTree.indent(root)
    constructor = [
        {"name": name, "color": colours[number], "attributes": [{**_attribute(), "mutable": False, "values": [""]}]}
        for number, name in options.labels.items()
    ]
    return {
        _FILE: ElementTree.tostring(root, encoding="utf-8", xml_declaration=True),
        "labels.json": json.dumps(constructor, ensure_ascii=False, indent=1).encode(),
    }


def _attribute() -> dict[str, str]:
    """Return the description of a label's attribute `score`, which both files contain."""
    return {"name": _SCORE, "mutable": "False", "input_type": "text", "default_value": "", "values": ""}


FORMAT = ExportFormat(to_cvat, cvat_files, annotations=_FILE)
