"""The formats of annotated data sets that can be imported: one module for each, named as the user names it in `--from`.

To add a format, add one module here that defines `FORMAT = DatasetFormat(…)`. Then add its name to the setting `from` of
import_data.py (`ImportSettings` in workflows/settings/import_data.py). Its `read` function is called with two arguments:

* `sources`, a sequence of `AnnotationSource`, says where the images and annotations are. There is one source for the whole data
  set, or one each for train and val.
* `options`, an `ImportOptions`, has the options of the import: which classes, which object is on top, and so on.

It returns an `AnnotatedDataset`. It usually works in three steps:

1. Read the annotation files (`importing.images.read_json`), and find the images by the names that they list
   (`importing.image_index.ImageIndex.find_listed`).
2. Choose the classes and their ids (`AnnotatedDataset.choose_classes`).
3. Call `AnnotatedDataset.add` for each image, with a function that loads the image and returns an `AnnotatedImage`. That function
   is called later, once, in any thread; bind its arguments with `functools.partial`.
   * If the annotations are shapes, make the function with `importing.painting.ImagePainter.plan`. Give it a function that reads
     the image, and one that converts its annotations to an `importing.shapes.ImageAnnotations`. Use one painter for each
     annotation file (or folder of annotation files): it decides for all its images whether they were annotated as stored or as
     displayed.
   * If the annotations are masks, the function reads them with an `importing.class_table.ClassTable`.

Errors are reported in four ways:

* If the data set can't be imported at all, `read` raises `UserError`.
* If an image is known to be unusable before it is loaded, `read` calls `AnnotatedDataset.reject`.
* If an annotation can't be understood, the loading function raises `BadInput`. The image is then rejected, as its mask would be
  wrong.
* If an annotation can't become an object, because it has no outline or is a crowd, its `importing.shapes.Annotation.why_lost`
  says why. Such annotations are counted by class and reason and shown to the user; if they are more than a tenth, the import
  stops.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions


@dataclass(frozen=True)
class DatasetFormat:
    """A format of annotated data sets that can be imported.

    Attributes:
        annotations: description, for error messages, of what `--annotations` must name in this format, such as "the folder of
            masks".
        read: function that reads a data set. Its first argument is the sources: one for the whole data set, or one each for train
            and val. Its second argument is the options of the import. It raises UserError if a source is not of this format.
        images_beside_annotations: True if the images may lie in the folder of the annotations, so that `--images` can be omitted.
    """

    annotations: str
    read: "Callable[[Sequence[AnnotationSource], ImportOptions], AnnotatedDataset]"
    images_beside_annotations: bool = False


def format_names() -> list[str]:
    """Return the names of all formats that can be imported, sorted. Their modules are not loaded by this."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get_format(name: str) -> DatasetFormat:
    """Load the module that reads a format, and return its description of the format.

    Args:
        name: name of the format, one of `format_names()`.

    Returns:
        The object `FORMAT` of the module `deconvnet.datasets.formats.NAME`.

    Raises:
        ModuleNotFoundError: if there is no such format.
    """
    found: DatasetFormat = importlib.import_module(f"{__name__}.{name}").FORMAT
    return found
