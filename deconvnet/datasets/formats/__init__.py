"""Formats of annotated data sets that can be imported. One module a format; its name is what `--from` takes.

To add a format, add one module here that defines `FORMAT`, a `DatasetFormat`. Its `read` function gets the places to read from and
the import rules, and returns an `AnnotatedDataset`:

1. Read the annotation files (`importing.images.read_input`, `read_json`), and find their images (`importing.images.ImageIndex`).
2. Choose the classes: `importing.dataset.select_classes`, `class_ids`.
3. Call `dataset.add` for each image with a function that loads it and makes its masks. It is called later, in a thread, and once an
   image; what it needs is bound by `functools.partial`. Shapes become `importing.regions.Region` objects, which
   `importing.painting.paint_image` paints to masks by the rules. Masks that are there are read by `importing.class_table`.

What goes wrong is reported in one of four ways: `UserError` if the whole data set can't be imported; `dataset.reject` for an image
known to be unusable while reading; `BadInput` from the loading function if an annotation can't be understood, which rejects its image,
as the mask would be wrong; `AnnotatedImage.skipped` for an annotation that can be left out without harm.
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
    """A format that can be imported.

    Attributes:
        annotations: what `--annotations` names in this format, for error messages: "the folder of masks".
        read: reads a data set from its sources (all of it, or one source each for train and val). Raises UserError if they hold no
            data set of this format.
        images_beside_annotations: True if images may lie in the folder of the annotations, so that `--images` can be left out.
    """

    annotations: str
    read: "Callable[[Sequence[AnnotationSource], ImportRules], AnnotatedDataset]"
    images_beside_annotations: bool = False


def format_names() -> list[str]:
    """Return the names of all formats, sorted, without importing their modules."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get_format(name: str) -> DatasetFormat:
    """Return the format of this name, one of `format_names()`."""
    found: DatasetFormat = importlib.import_module(f"{__name__}.{name}").FORMAT
    return found
