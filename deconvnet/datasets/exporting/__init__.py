"""Exporting predicted masks as annotations that a labelling tool can edit: one module for each format.

An export takes three steps. `outlines` finds the objects in a mask, which are the connected regions of its classes, and their
polygons. A module of this package converts them to its format. `export_writer` does this for all images, and copies the images
beside their annotations.

`fiftyone` is not one of these formats: it makes a data set for looking at predictions, not for correcting them.

To add a format, add one module here that defines `FORMAT = ExportFormat(…)`, then add its name to the setting `format` of
export.py (`ExportSettings` in workflows/settings). `deconvnet.datasets.formats` must be able to import the annotations: add
a round trip to tests/deconvnet/datasets/exporting/test_round_trips.py.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from deconvnet.datasets.importing.regions import Region

FORMAT_NAMES = ("coco", "cvat", "labelme", "labelstudio", "voc", "yolo")
"""Names of all formats, as the user gives them."""
_MODULES = {"labelstudio": "label_studio"}  # where the name of the module differs


@dataclass(frozen=True)
class PredictedImage:
    """An image and its predicted mask.

    Attributes:
        name: path of the image file relative to the folder of images, with "/" between folders.
        mask: uint8 array (H, W) of class ids, of the size of the image as displayed (EXIF orientation applied).
        score: mean probability of the predicted class before the CRF, over the image, 0 to 1.
        class_scores: mean probability of each class, before the CRF, over its pixels in the mask, by class id. It is the score of
            every object of the class.
    """

    name: str
    mask: "np.ndarray"
    score: float
    class_scores: Mapping[int, float]

    @property
    def height(self) -> int:
        """Return the height of the image in px."""
        return int(self.mask.shape[0])

    @property
    def width(self) -> int:
        """Return the width of the image in px."""
        return int(self.mask.shape[1])


@dataclass(frozen=True)
class PredictedObject:
    """An object in a predicted mask: a connected region of one class.

    Attributes:
        region: its pixels.
        polygon: float64 array (N, 2) of the corners x, y of the polygon round it, in px of the image; empty if the export is of
            masks.
    """

    region: "Region"
    polygon: "np.ndarray"


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export, and the classes of the masks.

    Attributes:
        classes: class names by id.
        background: True if class 0 is the background, which is not annotated. False if it is a class like the others.
        shapes: "polygons" or "masks". Masks are written as bitmaps or as run lengths, depending on the format.
        tolerance: how far a polygon may lie from the edges of the pixels, in px; 0 to follow them exactly.
        min_area: objects with fewer pixels are left out.
        image_url: Label Studio: prefix of the images' URLs, which the path of an image follows.
        model: URI of the model that predicted the masks, such as "models:/edeconvnet/3".
    """

    classes: tuple[str, ...]
    background: bool = True
    shapes: Literal["polygons", "masks"] = "polygons"
    tolerance: float = 0.75
    min_area: int = 0
    image_url: str = ""
    model: str = ""

    @property
    def labels(self) -> dict[int, str]:
        """Return the names of the classes to annotate, by id: all but the background."""
        return {number: name for number, name in enumerate(self.classes) if number or not self.background}


@dataclass(frozen=True)
class ImageExport:
    """What an image adds to an export.

    Attributes:
        entry: the image's part of the files that describe the whole data set, as `ExportFormat.dataset_files` takes it.
        files: contents of the files that belong only to this image, by their path in the export.
    """

    entry: Any
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportFormat:
    """A format of annotations that predictions can be exported to.

    Attributes:
        convert: function that converts one image. Its arguments are the image, its objects (largest first) and the options.
        dataset_files: function that returns the contents of the files of the whole data set, by their path in the export:
            annotations and a configuration for the tool. Its arguments are the entries of all images in order, and the options.
        annotations: path in the export that import_data.py reads with `--annotations`; "" for the folder of the export.
        image_path: function that returns the path of an image in the export, given its name. It raises BadInput if the image
            can't have a path. If the suffix differs from that of the name, the image is saved as PNG.
        has_polygons: True if the format has polygons. If not, masks are always written.
    """

    convert: "Callable[[PredictedImage, Sequence[PredictedObject], ExportOptions], ImageExport]"
    dataset_files: Callable[[Sequence[Any], ExportOptions], Mapping[str, bytes]]
    annotations: str = ""
    image_path: Callable[[str], str] = "images/{}".format
    has_polygons: bool = True


def get_format(name: str) -> ExportFormat:
    """Load the module that writes a format, and return its description of the format.

    Args:
        name: name of the format, one of `FORMAT_NAMES`.

    Returns:
        The object `FORMAT` of the format's module.
    """
    found: ExportFormat = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}").FORMAT
    return found
