"""The contact sheet of a check: a PNG, 1,200 px wide, that shows some images with their masks painted over them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.datasets.validation.image_statistics import ImageStatistics
from proposals.masks import VOID_ID

COLUMNS = 4
_DPI = 100
# Lengths in inches.
_WIDTH = 12.0
_GAP = 0.12
_CELL_WIDTH = (_WIDTH - _GAP * (COLUMNS + 1)) / COLUMNS
_CELL_HEIGHT = _CELL_WIDTH * 0.78
_CAPTION_HEIGHT = 0.36
_LEGEND_ROW = 0.24
_HEADING_HEIGHT = 0.5
_ROW_HEIGHT = _CELL_HEIGHT + _CAPTION_HEIGHT + _GAP
_LEGEND_COLUMNS = 7
_CAPTION_CHARACTERS = 38
_LEGEND_CHARACTERS = 18
_WARNING_COLOUR = "#d94801"


@dataclass(frozen=True)
class SheetCell:
    """An image for a contact sheet.

    Attributes:
        image: uint8 array (H, W, 3), RGB.
        mask: uint8 array (H, W) of class ids; 255 is void.
        title: caption of the image, usually its id.
        warning: text that says what is suspicious about the image; empty if nothing is.
    """

    image: np.ndarray
    mask: np.ndarray
    title: str
    warning: str = ""


def select_images(
    statistics: Sequence[ImageStatistics], suspicious: Mapping[str, Mapping[str, str]], most: int = 32
) -> list[str]:
    """Choose the images of a data set for its contact sheet.

    Suspicious images are chosen first. They fill at most half of the sheet, and those with the same kind of suspicion at most a
    quarter. Then, for each class that no chosen image shows, starting with the rarest, the image with the largest share of that
    class is added. The remaining places go to images that are evenly spread over the data set.

    Args:
        statistics: measurements of all images; unusable images are not chosen.
        suspicious: the suspicious images, as in `CheckReport.suspicious`.
        most: number of images to choose; if there are fewer usable images, all are chosen.

    Returns:
        Ids of the images, suspicious ones first.
    """
    usable = [image for image in statistics if image.usable]
    usable_ids = {image.image_id for image in usable}
    by_kind: dict[str, list[str]] = {}
    for image_id, kinds in suspicious.items():
        if image_id in usable_ids:
            by_kind.setdefault(next(iter(kinds)), []).append(image_id)
    # One image of each kind, then a second one of each, and so on.
    turns = sorted((turn, k, i) for k, ids in enumerate(by_kind.values()) for turn, i in enumerate(ids[: most // 4]))
    selected = [image_id for _, _, image_id in turns][: most // 2]
    by_class: dict[int, list[ImageStatistics]] = {}
    for image in usable:
        for class_id in image.pixels:
            if class_id not in (0, VOID_ID):
                by_class.setdefault(class_id, []).append(image)
    for class_id, images in sorted(by_class.items(), key=lambda item: len(item[1])):
        if len(selected) < most and not any(image.image_id in selected for image in images):
            selected.append(max(images, key=lambda image: image.pixels[class_id] / (image.width * image.height)).image_id)
    rest = [image.image_id for image in usable if image.image_id not in selected]
    spread = np.linspace(0, len(rest) - 1, min(len(rest), most - len(selected))).round().astype(int)
    selected += [rest[i] for i in spread]
    return sorted(selected, key=lambda image_id: image_id not in suspicious)


def draw_contact_sheet(cells: Sequence[SheetCell], classes: Sequence[str], title: str) -> bytes:
    """Draw a contact sheet.

    Args:
        cells: images to draw, four in a row; at least one.
        classes: class names by id; the legend lists the classes that occur.
        title: heading of the sheet.

    Returns:
        The sheet as the bytes of a PNG file.

    Raises:
        ValueError: if there is no image.
    """
    if not cells:
        raise ValueError("no images to show")
    small = [_scale_to_cell(cell.image, cell.mask) for cell in cells]
    shown = sorted({int(i) for _, mask in small for i in np.unique(mask)} - {0})
    legend = _LEGEND_ROW * -(-max(len(shown), 1) // _LEGEND_COLUMNS) + 0.1
    height = _HEADING_HEIGHT + -(-len(cells) // COLUMNS) * _ROW_HEIGHT + legend
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(_GAP / _WIDTH, 1 - 0.14 / height, title, va="top", fontsize=13)
    for number, (cell, (image, mask)) in enumerate(zip(cells, small, strict=True)):
        row, column = divmod(number, COLUMNS)
        left = _GAP + column * (_CELL_WIDTH + _GAP)
        bottom = height - _HEADING_HEIGHT - row * _ROW_HEIGHT - _CELL_HEIGHT
        axes = figure.add_axes((left / _WIDTH, bottom / height, _CELL_WIDTH / _WIDTH, _CELL_HEIGHT / height))
        axes.imshow(_paint_cell(image, mask, classes), interpolation="nearest")
        axes.set_axis_off()
        if cell.warning:
            h, w = mask.shape
            frame = Rectangle((-0.5, -0.5), w, h, fill=False, edgecolor=_WARNING_COLOUR, linewidth=4, clip_on=False)
            axes.add_patch(frame)
        caption = f"{_shorten(cell.title, _CAPTION_CHARACTERS)}\n{_shorten(cell.warning, _CAPTION_CHARACTERS)}"
        figure.text(
            (left + _CELL_WIDTH / 2) / _WIDTH,
            (bottom - 0.04) / height,
            caption,
            ha="center",
            va="top",
            fontsize=9,
            color=_WARNING_COLOUR if cell.warning else "black",
            parse_math=False,  # ids and classes may contain "$"
        )
    if shown:
        patches = [Patch(facecolor=VOC_PALETTE[i] / 255, edgecolor="0.4", label=_legend_name(i, classes)) for i in shown]
        figure.legend(handles=patches, loc="lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9, borderaxespad=0.2)
    sink = io.BytesIO()
    canvas.print_png(sink)
    return sink.getvalue()


def _scale_to_cell(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale an image and its mask up or down so that they just fit a cell of the sheet.

    Args:
        image: uint8 array (H, W, 3), RGB.
        mask: uint8 array (H, W) of class ids.

    Returns:
        The scaled image and the scaled mask; their aspect ratio is kept.
    """
    height, width = mask.shape
    scale = min(_CELL_WIDTH * _DPI / width, _CELL_HEIGHT * _DPI / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)


def _paint_cell(image: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Paint the classes of a mask over its image and write their names. Void pixels are only made paler.

    Args:
        image: uint8 array (H, W, 3), RGB.
        mask: uint8 array (H, W) of class ids; 255 is void.
        classes: class names by id.

    Returns:
        uint8 array (H, W, 3), RGB.
    """
    void = mask == VOID_ID
    pale = np.where(void[..., None], image * 0.4 + VOC_PALETTE[VOID_ID] * 0.6, image).astype(np.uint8)
    return overlay(pale, np.where(void, 0, mask).astype(np.uint8), classes)


def _legend_name(class_id: int, classes: Sequence[str]) -> str:
    """Return the name of a class for the legend of the sheet.

    Args:
        class_id: id of the class; 255 is void.
        classes: class names by id.

    Returns:
        The class name, shortened to 18 characters, or "void" for the id 255.
    """
    return "void" if class_id == VOID_ID else _shorten(classes[class_id], _LEGEND_CHARACTERS)


def _shorten(text: str, most: int) -> str:
    """Cut a text to a number of characters.

    Args:
        text: the text.
        most: largest number of characters that are kept.

    Returns:
        The text itself, or its beginning and "…" if it was too long, together `most` characters.
    """
    return text if len(text) <= most else text[: most - 1] + "…"
