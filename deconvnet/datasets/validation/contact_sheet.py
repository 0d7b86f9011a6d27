"""A contact sheet: photographs with their masks over them, suspicious ones first, as a PNG of 1,200 px width."""

import io
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from deconvnet.datasets.overlay import overlay
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.datasets.validation.measure import Measured
from proposals.masks import VOID_ID

COLUMNS = 4
_DPI = 100
_WIDTH = 12.0  # inches
_GAP = 0.12  # inches
_CELL = (_WIDTH - _GAP * (COLUMNS + 1)) / COLUMNS
_PICTURE = _CELL * 0.78  # height
_CAPTION = 0.36
_LEGEND_COLUMNS = 7
_LEGEND_ROW = 0.24
_HEAD = 0.5
_CALLED = 38  # characters of a caption's line
_SUSPICIOUS = "#d94801"


def choose(photographs: Sequence[Measured], marked: Mapping[str, Mapping[str, str]], most: int = 32) -> list[str]:
    """Ids of the photographs to show, those of `marked` (suspicions by id and kind) first.

    Of these half the sheet at most, and of a kind a quarter, one of each before a second; then such that every class is seen, the
    rarest first; then evenly spread. Unusable ones can't be shown.
    """
    usable = [each for each in photographs if "unusable" not in each.suspicions]
    there = {each.image_id for each in usable}
    kinds: dict[str, list[str]] = {}
    for image_id, found in marked.items():
        if image_id in there:
            kinds.setdefault(next(iter(found)), []).append(image_id)
    turns = sorted((p, k, image_id) for k, ids in enumerate(kinds.values()) for p, image_id in enumerate(ids[: most // 4]))
    chosen = [image_id for _, _, image_id in turns][: most // 2]
    classes: dict[int, list[Measured]] = {}
    for each in usable:
        for class_id in each.pixels:
            if class_id not in (0, VOID_ID):
                classes.setdefault(class_id, []).append(each)
    for class_id in sorted(classes, key=lambda i: len(classes[i])):
        if len(chosen) < most and not any(each.image_id in chosen for each in classes[class_id]):
            chosen.append(max(classes[class_id], key=lambda each: each.pixels[class_id] / (each.width * each.height)).image_id)
    rest = [each.image_id for each in usable if each.image_id not in chosen]
    spread = np.linspace(0, len(rest) - 1, min(len(rest), most - len(chosen))).round().astype(int)
    chosen += [rest[i] for i in spread]
    return sorted(chosen, key=lambda image_id: image_id not in marked)


def contact_sheet(cells: Sequence[Mapping[str, object]], classes: Sequence[str], title: str) -> bytes:
    """PNG of `cells`, four a row: `image` uint8 H×W×3 RGB, `mask` uint8 H×W class ids (255 void), `title` text, `mark` what is
    suspicious about it, or "". The legend names the classes seen. Raises ValueError for none.
    """
    if not cells:
        raise ValueError("no photographs to show")
    small = [_small(np.asarray(cell["image"]), np.asarray(cell["mask"])) for cell in cells]
    seen = sorted({int(i) for _, mask in small for i in np.unique(mask)} - {0})
    rows = -(-len(cells) // COLUMNS)
    legend = _LEGEND_ROW * -(-max(len(seen), 1) // _LEGEND_COLUMNS) + 0.1
    height = _HEAD + rows * (_PICTURE + _CAPTION + _GAP) + legend
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(_GAP / _WIDTH, 1 - 0.14 / height, title, va="top", fontsize=13)
    for number, (cell, (image, mask)) in enumerate(zip(cells, small, strict=True)):
        row, column = divmod(number, COLUMNS)
        x = _GAP + column * (_CELL + _GAP)
        y = height - _HEAD - row * (_PICTURE + _CAPTION + _GAP) - _PICTURE
        axes = figure.add_axes((x / _WIDTH, y / height, _CELL / _WIDTH, _PICTURE / height))
        axes.imshow(_painted(image, mask, classes), interpolation="nearest")
        axes.set_axis_off()
        mark = str(cell["mark"])
        if mark:
            high, wide = mask.shape
            axes.add_patch(Rectangle((-0.5, -0.5), wide, high, fill=False, edgecolor=_SUSPICIOUS, linewidth=4, clip_on=False))
        caption = f"{_cut(str(cell['title']))}\n{_cut(mark)}"
        figure.text(
            (x + _CELL / 2) / _WIDTH, (y - 0.04) / height, caption, ha="center", va="top", fontsize=9,
            color=_SUSPICIOUS if mark else "black", parse_math=False,
        )  # fmt: skip
    if seen:
        figure.legend(
            handles=[Patch(facecolor=VOC_PALETTE[i] / 255, edgecolor="0.4", label=_named(i, classes)) for i in seen],
            loc="lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9, borderaxespad=0.2,
        )  # fmt: skip
    sink = io.BytesIO()
    canvas.print_png(sink)
    return sink.getvalue()


def _small(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Photograph and mask at the size they are shown at."""
    height, width = mask.shape
    scale = min(_CELL * _DPI / width, _PICTURE * _DPI / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)


def _painted(image: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The photograph with its classes named over it; void pale and without a name, as it lies round every object."""
    void = mask == VOID_ID
    pale = np.where(void[..., None], image * 0.4 + VOC_PALETTE[VOID_ID] * 0.6, image).astype(np.uint8)
    return overlay(pale, np.where(void, 0, mask).astype(np.uint8), classes)


def _named(class_id: int, classes: Sequence[str]) -> str:
    return "void" if class_id == VOID_ID else _cut(classes[class_id], 18)


def _cut(text: str, most: int = _CALLED) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
