"""The page that figures are drawn on: 1,200 px wide, without pyplot, so that nothing global changes and any thread may draw."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deconvnet.datasets.palette import VOC_PALETTE, colourise
from proposals.masks import VOID_ID

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "fcn8s": "FCN-8s",
    "deconvnet": "DeconvNet",
    "deconvnet_crf": "DeconvNet+CRF",
    "edeconvnet": "EDeconvNet",
    "edeconvnet_crf": "EDeconvNet+CRF",
}  # the paper's five results, in its order

_DPI = 100
_WIDTH = 12.0  # inches
_LEGEND_COLUMNS = 7
_LEGEND_ROW = 0.26  # inches
_TITLE_ROW = 0.24
_GAP = 0.05


def page(height: float, constrained: bool = True) -> "Figure":
    """An empty page, `height` inches (of 100 px) high."""
    from matplotlib.figure import Figure

    return Figure((_WIDTH, height), dpi=_DPI, facecolor="white", layout="constrained" if constrained else None)


def png(figure: "Figure") -> bytes:
    """The page as a PNG."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def plain(axes: "Axes") -> None:
    """Only the frame's left and bottom; grid lines lie behind what is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def picture(pixels: np.ndarray | None, most: int = 480) -> np.ndarray | None:
    """A photograph (H×W×3) as it is, a mask (H×W) in its colours: no side over `most` px, as no more can be seen."""
    if pixels is None:
        return None
    if (scale := most / max(pixels.shape[:2])) < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        how = Image.Resampling.BOX if pixels.ndim == 3 else Image.Resampling.NEAREST
        pixels = np.asarray(Image.fromarray(pixels).resize(size, how))
    return pixels if pixels.ndim == 3 else colourise(pixels)


def grid(
    cells: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[Sequence[str]],
    masks: Sequence[np.ndarray],
    classes: Sequence[str],
    heads: Sequence[str] = (),
) -> bytes:
    """Pictures in rows as high as they need, a legend below of the classes in `masks`. Raises ValueError for no pictures.

    heads: above the columns. titles: above each row, spread evenly over it, however many there are.
    """
    if not cells:
        raise ValueError("no pictures to draw")
    columns = len(cells[0])
    width = _WIDTH / columns
    tallest = [max((c.shape[0] / c.shape[1] for c in row if c is not None), default=1.0) for row in cells]
    # A tower of a photograph doesn't stretch the page.
    heights = [
        width * min(ratio, 1.6) + (_TITLE_ROW if any(above) else 0.0) for ratio, above in zip(tallest, titles, strict=True)
    ]
    present = sorted({int(i) for mask in masks for i in np.unique(mask)})
    below = _LEGEND_ROW * -(-len(present) // _LEGEND_COLUMNS) + 0.15
    above = 0.3 if heads else 0.06
    figure = page(sum(heights) + above + below, constrained=False)
    total = figure.get_figheight()
    top = total - above
    for column, head in enumerate(heads):
        figure.text((column + 0.5) / columns, 1 - 0.16 / total, head, ha="center", va="center", fontsize=11)
    for row, spread, height in zip(cells, titles, heights, strict=True):
        title_row = _TITLE_ROW if any(spread) else 0.0
        for i, title in enumerate(spread):
            figure.text(i / len(spread) + 0.004, (top - 0.13) / total, title, ha="left", va="center", fontsize=9, color="0.25")
        for column, pixels in enumerate(row):
            if pixels is None:
                continue
            place = (column * width + _GAP / 2, top - height, width - _GAP, height - title_row)
            axes = figure.add_axes((place[0] / _WIDTH, place[1] / total, place[2] / _WIDTH, place[3] / total))
            axes.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) < 120 else "antialiased")
            axes.set_axis_off()
        top -= height
    legend(figure, present, classes)
    return png(figure)


def legend(figure: "Figure", present: Sequence[int], classes: Sequence[str]) -> None:
    """The names and colours of the ids `present`, at the page's foot."""
    from matplotlib.patches import Patch

    names = {i: "void" if i == VOID_ID else classes[i] if i < len(classes) else f"id {i}" for i in present}
    patches = [Patch(facecolor=VOC_PALETTE[i] / 255, edgecolor="0.4", linewidth=0.5, label=names[i]) for i in present]
    figure.legend(handles=patches, loc="lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9, borderaxespad=0.2)
