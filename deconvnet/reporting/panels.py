"""Draw figures of images and masks, as PNGs, 1,200 px wide. Masks have PASCAL VOC's colours, with a legend below.

Each function takes `background`, which says whether class 0 is the background. The colours depend on it (`class_palette`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from deconvnet.datasets.palette import class_palette
from deconvnet.reporting.figure import RESULT_TITLES, image_grid, thumbnail

COMPARED = ("fcn8s", "deconvnet", "edeconvnet", "edeconvnet_crf")
"""Names of the results whose masks a figure of comparisons shows by default."""
T = TypeVar("T")
_NEW_BOX, _OLD_BOX = (255, 176, 0), (255, 255, 255)


@dataclass(frozen=True)
class ComparisonRow:
    """A row of a figure that compares predictions: an image, its ground truth and its predicted masks.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        truth: annotated class ids, uint8 (H, W), where 255 is void; None if the image is not annotated.
        masks: predicted class ids, uint8 (H, W), by name of the mask. The name is a result's, such as "edeconvnet_crf", or a
            model's, such as "champion".
        title: text above the image.
        mean_iou: mean IoU of each mask on this image alone, 0 to 1, by name of the mask. Each value is shown above its mask.
            Nothing is shown above a mask whose value is None or missing.
    """

    image: np.ndarray
    truth: np.ndarray | None
    masks: Mapping[str, np.ndarray]
    title: str = ""
    mean_iou: Mapping[str, float | None] = field(default_factory=dict)


def comparison(
    rows: Sequence[ComparisonRow], classes: Sequence[str], columns: Mapping[str, str] | None = None, background: bool = True
) -> bytes:
    """Draw images beside their ground truth and predictions, one row per image, as in Figures 7 to 9 of Noh et al. (ICCV 2015).

    Args:
        rows: the images, from top to bottom.
        classes: class names, ordered by id.
        columns: a dict from the name of a mask (see `ComparisonRow.masks`) to the heading of its column, from left to right. None
            for four results: FCN-8s, DeconvNet, their ensemble, and their ensemble with CRF.
        background: whether class 0 is the background.

    Returns:
        The content of a PNG file, 1,200 px wide.

    Raises:
        ValueError: if there are no rows.
    """
    columns = columns or {name: RESULT_TITLES[name] for name in COMPARED}
    cells = [[row.image, row.truth, *(row.masks[name] for name in columns)] for row in rows]
    titles = [[row.title, "", *(_score(row.mean_iou.get(name)) for name in columns)] for row in rows]
    return image_grid(cells, titles, classes, ["image", "ground truth", *columns.values()], class_palette(background))


def _score(mean_iou: float | None) -> str:
    """Format a mean IoU from 0 to 1 as the text above a mask, such as "mean IoU 72 %", or as "" if it is None."""
    return "" if mean_iou is None else f"mean IoU {100 * mean_iou:.0f} %"


def _in_rows(items: Sequence[T], columns: int, empty: T) -> list[list[T]]:
    """Divide a list of items into rows of equal length.

    Args:
        items: the items, in the order of the rows.
        columns: number of items in a row.
        empty: the value that fills the empty places of the last row.

    Returns:
        The rows, from top to bottom.
    """
    filled = [*items, *[empty] * (-len(items) % columns)]
    return [filled[start : start + columns] for start in range(0, len(filled), columns)]


def example_crops(crops: Sequence[tuple[str, np.ndarray, np.ndarray]], classes: Sequence[str], background: bool = True) -> bytes:
    """Draw training crops beside their masks, four in a row.

    Args:
        crops: for each crop, the text above it, the crop and its mask. A crop is uint8 (S, S, 3), RGB. A mask holds class ids,
            uint8 (S, S), where 255 is void.
        classes: class names, ordered by id.
        background: whether class 0 is the background.

    Returns:
        The content of a PNG file, 1,200 px wide.

    Raises:
        ValueError: if there are no crops.
    """
    columns = 4
    lines = _in_rows(crops, columns, ("", None, None))
    cells = [[pixels for _, crop, mask in line for pixels in (crop, mask)] for line in lines]
    titles = [[title for title, _, _ in line] for line in lines]
    return image_grid(cells, titles, classes, ["crop", "mask"] * columns, class_palette(background))


def instances(
    image: np.ndarray,
    truth: np.ndarray | None,
    boxes: np.ndarray,
    masks_by_count: Mapping[int, np.ndarray],
    classes: Sequence[str],
    title: str = "",
    background: bool = True,
) -> bytes:
    """Draw the masks that DeconvNet predicts from more and more boxes, as in Figure 6 of Noh et al. (ICCV 2015).

    Each step shows the boxes used so far on the image, and below it the mask predicted from them. Boxes that are new in a step
    are orange, and earlier ones are white.

    Args:
        image: uint8 (H, W, 3), RGB.
        truth: annotated class ids, uint8 (H, W), shown after the last step; None if the image is not annotated.
        boxes: boxes x1, y1, x2, y2 in pixels, (N, 4), in the order in which they are used.
        masks_by_count: predicted class ids, uint8 (H, W), by the number of boxes used, in ascending order of this number. Each
            gives one step.
        classes: class names, ordered by id.
        title: text that is put before the title of the first step, such as the image's id.
        background: whether class 0 is the background.

    Returns:
        The content of a PNG file, 1,200 px wide.
    """
    panels = []
    before = 0
    for count, mask in masks_by_count.items():
        name = f"{count} proposal{'' if count == 1 else 's'}"
        panels.append((name, _with_boxes(image, boxes[:before], boxes[before:count]), mask))
        before = count
    if truth is not None:
        panels.append(("ground truth", image, truth))
    if title:
        panels[0] = (f"{title}  {panels[0][0]}", *panels[0][1:])
    columns = 3 if image.shape[0] < 0.9 * image.shape[1] else 6  # three columns of upright images would need scrolling
    cells, titles = [], []
    for line in _in_rows(panels, columns, ("", None, None)):
        cells += [[above for _, above, _ in line], [below for _, _, below in line]]
        titles += [[name for name, _, _ in line], []]
    return image_grid(cells, titles, classes, palette=class_palette(background))


def _with_boxes(image: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Draw boxes on a reduced copy of an image.

    Args:
        image: uint8 (H, W, 3), RGB.
        old: boxes x1, y1, x2, y2 in pixels of the image, (N, 4), drawn in white.
        new: boxes in the same form, (M, 4), drawn in orange.

    Returns:
        The reduced image with the boxes, uint8 (h, w, 3), RGB. Its longer side is at most 480 pixels.
    """
    small = thumbnail(image)
    drawn = Image.fromarray(np.ascontiguousarray(small))
    draw = ImageDraw.Draw(drawn)
    scale = small.shape[1] / image.shape[1]
    for boxes, colour, width in ((old, _OLD_BOX, 1), (new, _NEW_BOX, 2)):
        for x1, y1, x2, y2 in (np.asarray(boxes, np.float64).reshape(-1, 4) * scale).round().astype(int).tolist():
            draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
    return np.asarray(drawn)


def unpooling(
    crop: np.ndarray,
    maps: Mapping[str, np.ndarray],
    mask: np.ndarray,
    classes: Sequence[str],
    title: str = "input",
    background: bool = True,
) -> bytes:
    """Draw a crop, an activation map of each layer of DeconvNet's decoder, and the predicted mask.

    Figure 4 of Noh et al. (ICCV 2015) shows such maps.

    Args:
        crop: the network's input, uint8 (S, S, 3), RGB.
        maps: activation maps by layer name, in the order in which they are drawn. Each is a float array (h, w) with values of at
            least 0. The larger a value is, the brighter is its pixel.
        mask: predicted class ids, uint8 (S, S).
        classes: class names, ordered by id.
        title: text above the crop.
        background: whether class 0 is the background.

    Returns:
        The content of a PNG file, 1,200 px wide.
    """
    from matplotlib import colormaps

    panels = [(title, crop)]
    for name, values in maps.items():
        bright = np.asarray(values, np.float64) / (values.max() or 1)
        panels.append((f"{name}, {values.shape[1]}×{values.shape[0]}", colormaps["inferno"](bright, bytes=True)[..., :3]))
    panels.append(("predicted mask", mask))
    lines = _in_rows(panels, 4, ("", None))
    cells, titles = [[pixels for _, pixels in line] for line in lines], [[name for name, _ in line] for line in lines]
    return image_grid(cells, titles, classes, palette=class_palette(background))
