"""Contact sheets: PNGs, 1,200 px wide, that show some images with their masks painted over them."""

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import class_palette
from deconvnet.datasets.validation.image_statistics import ImageStatistics
from proposals.masks import VOID_ID

_COLUMNS, _LEGEND_COLUMNS = 4, 7
_DPI = 100
_WIDTH, _ROW_HEIGHT = 12.0, 2.7  # inches
_CELL_WIDTH, _CELL_HEIGHT = 288, 225  # largest size of an image on the sheet, px
_CAPTION_CHARACTERS, _LEGEND_CHARACTERS = 34, 18
_WARNING_COLOUR = "#d94801"
_SMOOTHING = 9  # px of a cell within which the borders of outlined regions are smoothed
_OUTLINE = ((255, 255, 255), 3), ((230, 0, 230), 1)  # colours and widths of the lines round doubtful regions


@dataclass(frozen=True)
class SheetCell:
    """An image for a contact sheet.

    Attributes:
        image: uint8 array (H, W, 3), RGB.
        mask: uint8 array (H, W) of class ids; 255 is void.
        title: caption of the image, usually its id.
        warning: text that says what is suspicious about the image; empty if nothing is.
        note: second line of the caption of an image without warning.
        doubtful: bool array (H, W), True in the uncertain regions, which are outlined; None for none.
    """

    image: np.ndarray
    mask: np.ndarray
    title: str
    warning: str = ""
    note: str = ""
    doubtful: np.ndarray | None = None


def select_images(
    statistics: Sequence[ImageStatistics], suspicious: Mapping[str, Mapping[str, str]], count: int = 32
) -> list[str]:
    """Choose the images of a data set for its contact sheet.

    Suspicious images are chosen first. They fill at most half of the sheet, and images with one kind of suspicion at most a
    quarter. Then, for each class that no chosen image shows, starting with the rarest, the image with the largest share of that
    class is added. The remaining places go to images that are evenly spread over the data set.

    Args:
        statistics: measurements of all images; unusable images are not chosen.
        suspicious: the suspicious images, as in `CheckReport.suspicious`.
        count: number of images to choose; if there are fewer usable images, all are chosen.

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
    turns = sorted((turn, k, i) for k, ids in enumerate(by_kind.values()) for turn, i in enumerate(ids[: count // 4]))
    selected = [image_id for _, _, image_id in turns][: count // 2]
    by_class: dict[int, list[ImageStatistics]] = {}
    for image in usable:
        for class_id in image.pixels:
            if class_id not in (0, VOID_ID):
                by_class.setdefault(class_id, []).append(image)
    for class_id, images in sorted(by_class.items(), key=lambda item: len(item[1])):
        if len(selected) < count and not any(image.image_id in selected for image in images):
            selected.append(max(images, key=lambda image: image.pixels[class_id] / (image.width * image.height)).image_id)
    rest = [image.image_id for image in usable if image.image_id not in selected]
    spread = np.linspace(0, len(rest) - 1, min(len(rest), count - len(selected))).round().astype(int)
    selected += [rest[i] for i in spread]
    return sorted(selected, key=lambda image_id: image_id not in suspicious)


def draw_contact_sheet(cells: Sequence[SheetCell], classes: Sequence[str], title: str, background: bool = True) -> bytes:
    """Draw a contact sheet.

    Args:
        cells: images to draw, four in a row; at least one.
        classes: class names by id; the legend lists the classes that occur.
        title: heading of the sheet.
        background: whether class 0 is the background. If not, it is painted and listed like any other class.

    Returns:
        The sheet as the bytes of a PNG file.

    Raises:
        ValueError: if there is no image.
    """
    if not cells:
        raise ValueError("no images to show")
    rows = -(-len(cells) // _COLUMNS)
    figure = Figure(figsize=(_WIDTH, _ROW_HEIGHT * rows + 1), dpi=_DPI, facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, parse_math=False)  # names may contain "$"
    shown: set[int] = set()
    for axes, cell in itertools.zip_longest(figure.subplots(rows, _COLUMNS).flat, cells):
        if cell is None:  # the last row has fewer images
            axes.set_axis_off()
            continue
        image, mask = _scale_to_cell(cell.image, cell.mask)
        shown |= set(np.unique(mask).tolist()) - ({0} if background else set())
        painted = overlay(image, mask, classes, background).copy()
        if cell.doubtful is not None:
            _outline(painted, cell.doubtful)
        axes.imshow(painted, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=bool(cell.warning), color=_WARNING_COLOUR, linewidth=4)
        caption = f"{_shorten(cell.title, _CAPTION_CHARACTERS)}\n{_shorten(cell.warning or cell.note, _CAPTION_CHARACTERS)}"
        axes.set_xlabel(caption, fontsize=9, color=_WARNING_COLOUR if cell.warning else "black", parse_math=False)
    if shown:
        palette = class_palette(background)
        names = {VOID_ID: "void", **dict(enumerate(classes))}
        patches = [
            Patch(facecolor=palette[i] / 255, edgecolor="0.4", label=_shorten(names[i], _LEGEND_CHARACTERS))
            for i in sorted(shown)
        ]
        legend = figure.legend(handles=patches, loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
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
    scale = min(_CELL_WIDTH / width, _CELL_HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)


def _outline(painted: np.ndarray, regions: np.ndarray) -> None:
    """Outline regions in an image of a cell, in place. Regions and holes of a few pixels are left out: they would hide the image.

    Args:
        painted: uint8 array (h, w, 3), RGB.
        regions: bool array (H, W), True inside the regions, of any size.
    """
    height, width = painted.shape[:2]
    scaled = cv2.resize(regions.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
    inside = cv2.blur(scaled, (_SMOOTHING, _SMOOTHING)) >= 128
    outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    for colour, thickness in _OUTLINE:
        cv2.drawContours(painted, outlines, -1, colour, thickness)


def _shorten(text: str, length: int) -> str:
    """Cut a text to a number of characters.

    Args:
        text: the text.
        length: largest number of characters that are kept.

    Returns:
        The text itself, or its beginning and "…" if it was too long, together `length` characters.
    """
    return text if len(text) <= length else text[: length - 1] + "…"
