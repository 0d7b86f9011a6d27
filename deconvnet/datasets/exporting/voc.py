"""Writing predictions as a folder in PASCAL VOC's layout, which CVAT reads as "Segmentation mask 1.1": the masks as they are.

The format has no room for scores; those of the images are in scores.csv.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from deconvnet.datasets import voc
from deconvnet.datasets.exporting import ExportFormat, ExportOptions, ImageExport, PredictedImage, PredictedObject
from deconvnet.datasets.exporting.score_table import SCORES, score_table
from deconvnet.datasets.importing.dataset import image_id_of
from deconvnet.datasets.palette import class_palette
from deconvnet.datasets.writing.voc_writer import CLASSES_FILE
from infra.errors import BadInput
from proposals.image_codec import encode_mask

_SUFFIXES = (".jpg", ".jpeg", ".png")


def image_path(name: str) -> str:
    """Return the path of an image in the export, JPEGImages/ID.SUFFIX, where the ID of a/b.jpg is a_b.

    Args:
        name: name of the image.

    Raises:
        BadInput: if the ID is not possible in VOC's layout.
    """
    image_id, suffix = image_id_of(name), PurePosixPath(name).suffix.lower()
    if reason := voc.invalid_id_reason(image_id):
        raise BadInput(reason)
    return f"{voc.IMAGES_DIR}/{image_id}{suffix if suffix in _SUFFIXES else '.png'}"


def to_voc(image: PredictedImage, objects: Sequence[PredictedObject], options: ExportOptions) -> ImageExport:
    """Convert an image to a paletted PNG of class ids.

    Args:
        image: the image with its mask and score.
        objects: its objects. The pixels of objects that are not among them, because they are too small, become background.
        options: options of the export; `background` and `min_area` apply.

    Returns:
        An export with the mask. The entry is the ID of the image and its score.
    """
    mask = image.mask
    if options.min_area and options.background:
        mask = mask * 0
        for each in objects:
            mask[each.region.window][each.region.pixels] = each.region.class_id
    image_id = image_id_of(image.name)
    return ImageExport(
        (image_id, image.score), {f"{voc.CLASS_MASKS_DIR}/{image_id}.png": encode_mask(mask, class_palette(options.background))}
    )


LABEL_MAP = "labelmap.txt"
"""CVAT's table of labels, which gives each class a colour."""


def has_label_map(classes: Sequence[str]) -> bool:
    """Return whether an export with these class names has CVAT's table of labels, where no name may contain ":" or "#"."""
    return not any(set(name) & set(":#") for name in classes)


def voc_files(entries: Sequence[Any], options: ExportOptions) -> Mapping[str, bytes]:
    """Return the list of images, the class names, CVAT's table of labels (labelmap.txt), and the table of scores, by file name.

    The table of labels is left out if it can't hold the name of a class (see `has_label_map`).

    Args:
        entries: the entries of `to_voc`, in order.
        options: options of the export; `classes` and `background` apply.
    """
    palette = class_palette(options.background)
    labels = [f"{name}:{','.join(map(str, palette[number]))}::" for number, name in enumerate(options.classes)]
    files = {
        "ImageSets/Segmentation/train.txt": "".join(f"{image_id}\n" for image_id, _ in entries).encode(),
        CLASSES_FILE: "".join(f"{name}\n" for name in options.classes).encode(),
        SCORES: score_table(entries),
    }
    if has_label_map(options.classes):
        files[LABEL_MAP] = "\n".join(["# label:color_rgb:parts:actions", *labels, ""]).encode()
    return files


FORMAT = ExportFormat(to_voc, voc_files, annotations=voc.CLASS_MASKS_DIR, image_path=image_path, has_polygons=False)
