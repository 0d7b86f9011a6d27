"""Reading Label Studio's exports: a project's JSON, or the masks of brush labels with the JSON beside them."""

from collections.abc import Sequence

from deconvnet.datasets.formats import DatasetFormat
from deconvnet.datasets.formats.label_studio.brush_masks import read_brush_masks
from deconvnet.datasets.formats.label_studio.results import read_results
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions


def read_label_studio(sources: Sequence[AnnotationSource], options: ImportOptions) -> AnnotatedDataset:
    """Read one or two exports of Label Studio as one data set.

    Args:
        sources: exports, each with its folder of images. An export is a JSON file, of which polygons, brush labels and rectangles
            are read, or a folder of the masks of brush labels. If one is a JSON file, the other must be one too.
        options: options of the import. Those about crowds, Kaggle's tables and folders of masks have no effect.

    Returns:
        The data set. If `options.classes` is empty, its classes are all labels, in alphabetical order.

    Raises:
        UserError: if an export can't be read, or the images of the tasks can't be found.
    """
    are_json = any(source.annotations.lower().endswith(".json") for source in sources)
    return read_results(sources, options) if are_json else read_brush_masks(sources, options)


FORMAT = DatasetFormat("Label Studio's JSON export, or the folder of its masks", read_label_studio)
