"""Create figures: empty matplotlib figures of 1,200 px width, grids of images with titles, and legends of class colours.

pyplot is not used, because it keeps global state and these figures may be drawn in any thread.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from deconvnet.datasets.palette import VOC_PALETTE, colourise
from proposals.masks import VOID_ID

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULT_TITLES = {
    "fcn8s": "FCN-8s",
    "deconvnet": "DeconvNet",
    "deconvnet_crf": "DeconvNet+CRF",
    "edeconvnet": "EDeconvNet",
    "edeconvnet_crf": "EDeconvNet+CRF",
}
"""Names of the five results in Noh et al. (ICCV 2015), by the names used in files and code, in the order of that paper."""

_DPI = 100
_WIDTH = 12.0  # inches; the heights below are in inches, too
_LEGEND_COLUMNS = 7
_LEGEND_ROW = 0.26
_TITLE_ROW = 0.24
_GAP = 0.05
_MAX_SIDE = 480  # px; smaller images are not enlarged
_MAX_ASPECT = 1.6  # largest height / width of a grid cell, so that very tall images do not make a row taller


def new_figure(height: float, constrained: bool = True) -> "Figure":
    """Create an empty figure, 1,200 px wide.

    Args:
        height: height of the figure in inches; an inch is 100 px.
        constrained: whether matplotlib's constrained layout places the axes; False if the caller places them.

    Returns:
        The figure, without axes.
    """
    from matplotlib.figure import Figure

    return Figure((_WIDTH, height), dpi=_DPI, facecolor="white", layout="constrained" if constrained else None)


def to_png(figure: "Figure") -> bytes:
    """Return a figure encoded as the content of a PNG file. Texts are drawn as they are: names may contain "$"."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def style_axes(axes: "Axes", grid: Literal["x", "y", "both"] = "both") -> None:
    """Hide the top and right spines of the axes and draw grid lines behind the data.

    Args:
        axes: the axes to change.
        grid: the axis at whose ticks grid lines are drawn, "x", "y" or "both".
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="0.91")


def thumbnail(pixels: np.ndarray, palette: np.ndarray = VOC_PALETTE) -> np.ndarray:
    """Prepare an image or a mask for a cell of an image grid. Its longer side is shrunk to at most 480 pixels.

    Args:
        pixels: an image, uint8 (H, W, 3), RGB; or a mask of class ids, uint8 (H, W).
        palette: uint8 (256, 3), RGB colour of each class id, see `class_palette`.

    Returns:
        An RGB image, uint8 (h, w, 3). A mask has the colours of `palette`.
    """
    if (scale := _MAX_SIDE / max(pixels.shape[:2])) < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        how = Image.Resampling.BOX if pixels.ndim == 3 else Image.Resampling.NEAREST
        pixels = np.asarray(Image.fromarray(pixels).resize(size, how))
    return pixels if pixels.ndim == 3 else colourise(pixels, palette)


def image_grid(
    cells: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[Sequence[str]],
    classes: Sequence[str],
    headers: Sequence[str] = (),
    palette: np.ndarray = VOC_PALETTE,
) -> bytes:
    """Draw images and masks in rows and columns. A legend below them shows the classes that occur in the masks.

    Args:
        cells: rows of images, uint8 (H, W, 3), RGB, and masks of class ids, uint8 (H, W). None leaves a cell empty. All rows
            have the same length.
        titles: for each row, the texts above it. The texts of a row are spread evenly over its width. A row may have more or
            fewer texts than columns.
        classes: class names, ordered by id.
        headers: headings of the columns; empty for none.
        palette: uint8 (256, 3), RGB colour of each class id, see `class_palette`.

    Returns:
        The content of a PNG file, 1,200 px wide.

    Raises:
        ValueError: if there are no cells.
    """
    if not cells:
        raise ValueError("no images to draw")
    columns = len(cells[0])
    width = _WIDTH / columns
    tallest = [max((c.shape[0] / c.shape[1] for c in row if c is not None), default=1.0) for row in cells]
    title_rows = [_TITLE_ROW if any(row) else 0.0 for row in titles]
    heights = [width * min(ratio, _MAX_ASPECT) + title for ratio, title in zip(tallest, title_rows, strict=True)]
    present = sorted({int(i) for row in cells for c in row if c is not None and c.ndim == 2 for i in np.unique(c)})
    below = _LEGEND_ROW * -(-len(present) // _LEGEND_COLUMNS) + 0.15
    above = 0.3 if headers else 0.06
    figure = new_figure(sum(heights) + above + below, constrained=False)
    total = figure.get_figheight()
    top = total - above
    for column, header in enumerate(headers):
        figure.text((column + 0.5) / columns, 1 - 0.16 / total, header, ha="center", va="center", fontsize=11)
    for row, texts, height, title_row in zip(cells, titles, heights, title_rows, strict=True):
        for i, title in enumerate(texts):
            figure.text(i / len(texts) + 0.004, (top - 0.13) / total, title, ha="left", va="center", fontsize=9, color="0.25")
        for column, pixels in enumerate(row):
            if pixels is None:
                continue
            pixels = thumbnail(pixels, palette)
            left, cell_width = column * width + _GAP / 2, width - _GAP
            bottom, cell_height = top - height, height - title_row
            axes = figure.add_axes((left / _WIDTH, bottom / total, cell_width / _WIDTH, cell_height / total))
            axes.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) < 120 else "antialiased")
            axes.set_axis_off()
        top -= height
    add_legend(figure, present, classes, palette)
    return to_png(figure)


def add_legend(figure: "Figure", class_ids: Sequence[int], classes: Sequence[str], palette: np.ndarray = VOC_PALETTE) -> None:
    """Add a legend of class names and colours at the bottom of a figure.

    Args:
        figure: the figure to change.
        class_ids: ids of the classes to show; 255 is void.
        classes: class names, ordered by id.
        palette: uint8 (256, 3), RGB colour of each class id, see `class_palette`.
    """
    from matplotlib.patches import Patch

    names = {i: "void" if i == VOID_ID else classes[i] if i < len(classes) else f"id {i}" for i in class_ids}
    patches = [Patch(facecolor=palette[i] / 255, edgecolor="0.4", linewidth=0.5, label=names[i]) for i in class_ids]
    figure.legend(handles=patches, loc="lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9, borderaxespad=0.2)
