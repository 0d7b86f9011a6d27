"""The formats of annotated data sets that can be imported: one module a format, named as `--from` names it.

To add a format, add one module here that defines `FORMAT = DatasetFormat(…)`, and its name to the setting `from` of
import_data.py (`ImportSettings` in workflows/settings.py). The format's `read` function is called with

* `sources`, a sequence of `AnnotationSource`: where images and annotations are; one for the whole data set, or one each for train
  and val;
* `rules`, an `ImportRules`: what the user chose about classes, overlaps and so on;

and returns an `AnnotatedDataset`. It usually works in three steps:

1. Read the annotation files (`importing.images.read_input`, `read_json`) and list the images (`importing.images.ImageIndex`).
2. Choose the classes and their ids (`importing.dataset.select_classes`, `class_ids`).
3. Call `AnnotatedDataset.add` for each image, with a function that loads the image and returns an `AnnotatedImage`. That function
   is called later, once, in any thread; `functools.partial` gives it what it needs. If the annotations are shapes, it makes a
   `importing.regions.Region` of each, and `importing.painting.paint_image` paints them by the rules. If they are masks, it reads
   them by an `importing.class_table.ClassTable`.

Errors are reported in four ways:

* raise `UserError` from `read` if the data set can't be imported at all;
* call `AnnotatedDataset.reject` in `read` for an image that is known to be unusable;
* raise `BadInput` from the loading function if an annotation can't be understood: the image is rejected, as its mask would be
  wrong;
* list an annotation in `AnnotatedImage.skipped` if it can be left out without harm.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportRules


@dataclass(frozen=True)
class DatasetFormat:
    """A format of annotated data sets that can be imported.

    Attributes:
        annotations: description, for error messages, of what `--annotations` must name in this format, such as "the folder of
            masks".
        read: function that reads a data set. Its first argument is the sources: one for the whole data set, or one each for train
            and val. Its second argument is the rules that the user chose. It raises UserError if a source is not of this format.
        images_beside_annotations: True if the images may lie in the folder of the annotations, so that `--images` can be omitted.
    """

    annotations: str
    read: "Callable[[Sequence[AnnotationSource], ImportRules], AnnotatedDataset]"
    images_beside_annotations: bool = False


def format_names() -> list[str]:
    """Return the names of all formats, sorted, without importing their modules."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get_format(name: str) -> DatasetFormat:
    """Import the module of a format and return the format.

    Args:
        name: name of the format, one of `format_names()`.

    Returns:
        The `FORMAT` that the module defines.
    """
    found: DatasetFormat = importlib.import_module(f"{__name__}.{name}").FORMAT
    return found
