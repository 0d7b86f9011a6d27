"""Pictures of results, as PNG bytes of 1,200 px width. Masks are painted in VOC's colours.

Figures are made without pyplot, so nothing global changes and any thread may draw.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deconvnet.data.palette import VOC_PALETTE, colourise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from proposals.recall import Recall

VOID = 255
TITLES = {
    "fcn8s": "FCN-8s",
    "deconvnet": "DeconvNet",
    "deconvnet_crf": "DeconvNet+CRF",
    "edeconvnet": "EDeconvNet",
    "edeconvnet_crf": "EDeconvNet+CRF",
}  # the paper's five results, in its order
_COLOURS = {
    "fcn8s": "#8a8f98",
    "deconvnet": "#9ecae1",
    "deconvnet_crf": "#2171b5",
    "edeconvnet": "#fdae6b",
    "edeconvnet_crf": "#d94801",
}  # a hue for each network, darker with the CRF
_COMPARED = ("fcn8s", "deconvnet", "edeconvnet_crf")

_DPI = 100
_WIDTH = 12.0  # inches
_LEGEND_COLUMNS = 7
_LEGEND_ROW = 0.26  # inches
_GAP = 0.05


def comparison(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> bytes:
    """Photograph | truth | FCN-8s | DeconvNet | EDeconvNet+CRF, a row for each photograph, and a legend of the classes seen.

    rows: `image` uint8 H×W×3 RGB; `truth`, `fcn8s`, `deconvnet`, `edeconvnet_crf` uint8 H×W class ids (255 void), None where
    there is none (a photograph without truth); `title`, text. Raises ValueError for no rows.
    """
    columns = {"image": "photograph", "truth": "truth"} | {name: TITLES[name] for name in _COMPARED}
    cells = [[_picture(row.get(name)) for name in columns] for row in rows]
    masks = [row[name] for row in rows for name in columns if name != "image" and row.get(name) is not None]
    return _grid(cells, list(columns.values()), [[str(row.get("title", ""))] for row in rows], masks, classes)


def examples_sheet(examples: Sequence[Mapping[str, Any]], classes: Sequence[str], columns: int = 4) -> bytes:
    """Training crops beside their labels, `columns` pairs a row.

    examples: `image` uint8 S×S×3 RGB, `mask` uint8 S×S class ids (255 void), `title` text. Raises ValueError for none.
    """
    cells: list[list[np.ndarray | None]] = []
    titles = []
    for start in range(0, len(examples), columns):
        line = examples[start : start + columns]
        row = [picture for e in line for picture in (_picture(e["image"]), _picture(e["mask"]))]
        cells.append(row + [None] * (2 * columns - len(row)))
        titles.append([str(e.get("title", "")) for e in line] + [""] * (columns - len(line)))
    return _grid(cells, ["crop", "label"] * columns, titles, [e["mask"] for e in examples], classes)


def iou_by_class(results: Mapping[str, Any]) -> bytes:
    """Bars of IoU by class for the five results of a `results.json`; a class without an IoU (null) is left empty."""
    classes = list(results["classes"])
    names = [name for name in TITLES if name in results["rows"]]
    thick = 0.8 / max(len(names), 1)
    figure = _figure(1.4 + 0.2 * len(classes) * max(len(names), 2) * 0.6 + 0.2 * len(classes))
    axes = figure.subplots()
    places = np.arange(len(classes))
    for i, name in enumerate(names):
        row = results["rows"][name]
        values = [row["iou"].get(c) for c in classes]
        values = [np.nan if v is None else v for v in values]
        mean = row["mean_iou"]
        label = TITLES[name] if mean is None else f"{TITLES[name]}  (mean {mean:.3f})"
        axes.barh(places + (i - (len(names) - 1) / 2) * thick, values, thick * 0.9, color=_COLOURS[name], label=label)
    for place, name in enumerate(classes):
        if all(results["rows"][n]["iou"].get(name) is None for n in names):
            axes.text(0.005, place, "not in these photographs", va="center", fontsize=8, color="0.45")
    axes.set_yticks(places, classes)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel("intersection over union")
    axes.grid(axis="x", color="0.9")
    _plain(axes)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return _png(figure)


def training_curves(curves: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]]) -> bytes:
    """A panel for each entry of `curves` (title → line's name → steps and values), two a row. Raises ValueError for none."""
    if not curves:
        raise ValueError("no curves to draw")
    lines = -(-len(curves) // 2)
    figure = _figure(3.4 * lines)
    panels = figure.subplots(lines, 2, squeeze=False).ravel()
    for axes, (title, series) in zip(panels, curves.items(), strict=False):
        for name, (steps, values) in series.items():
            axes.plot(steps, values, label=name, linewidth=1.5, marker="o" if len(steps) < 30 else None, markersize=3)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.grid(color="0.92")
        axes.legend(frameon=False, fontsize=9)
        _plain(axes)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    return _png(figure)


def recall_curves(recalls: Mapping[str, "Recall"], most: int = 1000) -> bytes:
    """Recall of proposals, a colour for each name: over the number of boxes at IoU 0.5 and 0.7, and over IoU.

    Over IoU it is that of `most` boxes, or of the largest number measured up to that. Raises ValueError for none.
    """
    if not recalls:
        raise ValueError("no recall to draw")
    figure = _figure(4.6)
    by_count, by_iou = figure.subplots(1, 2, sharey=True)
    for i, (name, recall) in enumerate(recalls.items()):
        for threshold, style in ((0.5, "-"), (0.7, "--")):
            by_count.plot(recall.counts, recall.at(threshold), f"C{i}{style}", label=f"{name}, IoU {threshold}", marker=".")
        row = max(range(len(recall.counts)), key=lambda k: (recall.counts[k] <= most, recall.counts[k]))
        by_iou.plot(np.linspace(0.5, 1, 51), recall.over_iou()[row, 50:], f"C{i}", label=f"{name}, {recall.counts[row]:,} boxes")
    by_count.set_xscale("log")
    by_count.xaxis.set_major_formatter("{x:,.0f}")
    by_count.set_xlabel("boxes a photograph")
    by_iou.set_xlabel("intersection over union")
    by_count.set_ylabel("share of objects found")
    by_count.set_ylim(0, 1)
    for axes in (by_count, by_iou):
        axes.grid(color="0.92")
        axes.legend(frameon=False, fontsize=9)
        _plain(axes)
    return _png(figure)


def _picture(pixels: np.ndarray | None) -> np.ndarray | None:
    """A photograph as it is, a mask in its colours; no more pixels than can be seen."""
    if pixels is None:
        return None
    most = 480
    if (scale := most / max(pixels.shape[:2])) < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        how = Image.Resampling.BOX if pixels.ndim == 3 else Image.Resampling.NEAREST
        pixels = np.asarray(Image.fromarray(pixels).resize(size, how))
    return pixels if pixels.ndim == 3 else colourise(pixels)


def _grid(
    cells: Sequence[Sequence[np.ndarray | None]],
    heads: Sequence[str],
    titles: Sequence[Sequence[str]],
    masks: Sequence[np.ndarray],
    classes: Sequence[str],
) -> bytes:
    """Pictures in rows as high as they need, heads above the columns, titles spread above each row, a legend below."""
    if not cells:
        raise ValueError("no pictures to draw")
    width = _WIDTH / len(heads)
    tallest = [max((c.shape[0] / c.shape[1] for c in row if c is not None), default=1.0) for row in cells]
    heights = [width * min(ratio, 1.6) + 0.24 for ratio in tallest]  # a tower of a photograph doesn't stretch the page
    present = sorted({int(i) for mask in masks for i in np.unique(mask)})
    legend = _LEGEND_ROW * -(-len(present) // _LEGEND_COLUMNS) + 0.15
    figure = _figure(sum(heights) + 0.3 + legend, constrained=False)
    total = figure.get_figheight()
    top = total - 0.3
    for column, head in enumerate(heads):
        figure.text((column + 0.5) / len(heads), 1 - 0.16 / total, head, ha="center", va="center", fontsize=11)
    for row, spread, height in zip(cells, titles, heights, strict=True):
        for i, title in enumerate(spread):
            figure.text(i / len(spread) + 0.004, (top - 0.13) / total, title, ha="left", va="center", fontsize=8, color="0.35")
        for column, pixels in enumerate(row):
            if pixels is None:
                continue
            place = (column * width + _GAP / 2, top - height, width - _GAP, height - 0.24)
            axes = figure.add_axes((place[0] / _WIDTH, place[1] / total, place[2] / _WIDTH, place[3] / total))
            axes.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) < 120 else "antialiased")
            axes.set_axis_off()
        top -= height
    _legend(figure, present, classes)
    return _png(figure)


def _legend(figure: "Figure", present: Sequence[int], classes: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    names = {i: "void" if i == VOID else classes[i] if i < len(classes) else f"id {i}" for i in present}
    patches = [Patch(facecolor=VOC_PALETTE[i] / 255, edgecolor="0.4", linewidth=0.5, label=names[i]) for i in present]
    figure.legend(handles=patches, loc="lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9, borderaxespad=0.2)


def _figure(height: float, constrained: bool = True) -> "Figure":
    from matplotlib.figure import Figure

    return Figure((_WIDTH, height), dpi=_DPI, facecolor="white", layout="constrained" if constrained else None)


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _png(figure: "Figure") -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()
