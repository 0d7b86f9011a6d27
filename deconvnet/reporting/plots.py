"""Draw charts of results, as PNGs, 1,200 px wide.

A result is one of the five ways of predicting masks: FCN-8s, DeconvNet, DeconvNet+CRF, EDeconvNet (the ensemble of both networks)
and EDeconvNet+CRF. Each network has its own colour, which is darker for the results with the CRF. Colour-blind readers can tell
the colours apart.

Arguments called `results` are the content of `report/results.json`, and `breakdowns` is the content of `report/analysis.json`
(see `deconvnet.evaluation.breakdowns`). In both, None stands for an undefined number, such as the IoU of a class that does not
occur.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from deconvnet.reporting.figure import RESULT_TITLES, new_figure, style_axes, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from proposals.recall import Recall

_COLOURS = {
    "fcn8s": "#8a8f98",
    "deconvnet": "#9ecae1",
    "deconvnet_crf": "#2171b5",
    "edeconvnet": "#fdae6b",
    "edeconvnet_crf": "#d94801",
}
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # the palette of Okabe and Ito
_NUMBER_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # keeps numbers readable where lines cross them
_MAX_NUMBERED = 30  # a confusion matrix with more classes has no numbers in its cells
_ABSENT = "not in these images"

Line = tuple[list[int], list[float]]
"""The steps and the values of one curve, two lists of equal length."""
History = Mapping[str, Mapping[str, Line]]
"""Curves by training stage, then by metric name."""

TRAINING_STAGES = {"fcn8s": "FCN-8s", "stage1": "DeconvNet, stage 1", "stage2": "DeconvNet, stage 2"}
"""Titles of the training stages by name: FCN-8s on whole images, DeconvNet on crops around objects, then around proposals."""
_ACCURACIES = {
    "pixel_accuracy": "pixel accuracy on training batches",
    "dev_mean_iou": "mean IoU on dev",
    "final_dev_mean_iou": "mean IoU on dev, final batch norms",
}
TRAINING_METRICS = ("loss", *_ACCURACIES)
"""Names of the metrics that are drawn."""


def iou_by_class(results: Mapping[str, Any]) -> bytes:
    """Draw horizontal bars of the IoU, one for each class and result. A class without an IoU has no bar.

    Args:
        results: the content of `report/results.json`: a dict with `dataset` (name), `images` (number), `classes` (names) and
            `rows`. The rows are metrics by result name. Each has `mean_iou`, `pixel_accuracy` and `iou`, a dict by class.

    Returns:
        The content of a PNG file, 1,200 px wide.
    """
    classes = list(results["classes"])
    rows = {name: results["rows"][name] for name in RESULT_TITLES if name in results["rows"]}
    figure = new_figure(1.4 + 0.2 * len(classes) * (1 + 0.6 * max(len(rows), 2)))
    axes = figure.subplots()
    means = {name: "" if row["mean_iou"] is None else f"  (mean {row['mean_iou']:.3f})" for name, row in rows.items()}
    bars = {name: [row["iou"].get(c) for c in classes] for name, row in rows.items()}
    _grouped_bars(axes, bars, means, horizontal=True)
    for y, name in enumerate(classes):
        if all(row["iou"].get(name) is None for row in rows.values()):
            axes.text(0.005, y, _ABSENT, va="center", fontsize=8, color="0.45")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel("intersection over union")
    style_axes(axes, "x")
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return to_png(figure)


def draw_training_curves(history: History) -> dict[str, bytes]:
    """Draw two panels for each training stage: the loss on the left, pixel accuracy and mean IoU on the right.

    Args:
        history: curves by training stage ("fcn8s", "stage1" or "stage2"), then by metric name. A curve is a pair of equally long
            lists, the training steps and the metric's values at these steps. The metrics "loss", "pixel_accuracy", "dev_mean_iou"
            and "final_dev_mean_iou" are drawn, and others are ignored.

    Returns:
        A dict from the file name "training_curves.png" to the content of the PNG; empty if `history` has no stage.
    """
    if not history:
        return {}
    panels: dict[str, dict[str, Line]] = {}
    for stage, lines in history.items():
        title = TRAINING_STAGES.get(stage, stage)
        panels[f"{title}: loss"] = {name: lines[name] for name in ("loss",) if name in lines}
        panels[f"{title}: accuracy"] = {text: lines[name] for name, text in _ACCURACIES.items() if name in lines}
    figure = new_figure(3.4 * len(history))
    for axes, (title, lines) in zip(figure.subplots(len(history), 2).flat, panels.items(), strict=True):
        axes.set_prop_cycle(color=_LINES)
        for name, (steps, values) in lines.items():
            size = 6 if len(steps) == 1 else 3
            axes.plot(steps, values, label=name, linewidth=1.5, marker="o" if len(steps) < 30 else None, markersize=size)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        style_axes(axes)
        if lines:
            axes.legend(frameon=False, fontsize=9)
    return {"training_curves.png": to_png(figure)}


def recall_curves(recalls: Mapping[str, "Recall"], max_boxes: int = 1000) -> bytes:
    """Draw the recall of proposals, which is the share of annotated objects that boxes find, in two panels.

    The first panel shows the recall at IoU 0.5 and 0.7 against the number of boxes. The second panel shows the recall against the
    IoU that a box must reach.

    Args:
        recalls: measured recalls by their name in the legend. Each has its own colour.
        max_boxes: the second panel shows the recall of this number of boxes. If it was not measured for this number, the panel
            shows it for the largest smaller number, or else for the largest number measured.

    Returns:
        The content of a PNG file, 1,200 px wide.

    Raises:
        ValueError: if `recalls` is empty.
    """
    from matplotlib.ticker import LogFormatter

    if not recalls:
        raise ValueError("no recall to draw")
    figure = new_figure(4.6)
    by_count, by_iou = figure.subplots(1, 2, sharey=True)
    for i, (name, recall) in enumerate(recalls.items()):
        colour = _LINES[i % len(_LINES)]
        for threshold, style in ((0.5, "-"), (0.7, "--")):
            by_count.plot(
                recall.counts, recall.at_iou(threshold), style, color=colour, label=f"{name}, IoU {threshold}", marker="."
            )
        row = max(range(len(recall.counts)), key=lambda k: (recall.counts[k] <= max_boxes, recall.counts[k]))
        label = f"{name}, {recall.counts[row]:,} boxes"
        by_iou.plot(np.linspace(0.5, 1, 51), recall.by_iou()[row, 50:], color=colour, label=label)
    by_count.set_xscale("log")
    by_count.xaxis.set_major_formatter("{x:,.0f}")
    by_count.xaxis.set_minor_formatter(LogFormatter())  # the default writes formulas
    by_count.set_xlabel("boxes per image")
    by_iou.set_xlabel("intersection over union")
    by_count.set_ylabel("share of objects found")
    by_count.set_ylim(0, 1)
    for axes in (by_count, by_iou):
        axes.legend(frameon=False, fontsize=9)
        style_axes(axes)
    return to_png(figure)


def iou_by_proposals(results: Mapping[str, Any], breakdowns: Mapping[str, Any]) -> bytes:
    """Draw DeconvNet's mean IoU against the number of proposals. FCN-8s needs no proposals, so it is drawn as a horizontal line.

    Args:
        results: the content of `report/results.json`: a dict with `dataset` (name), `images` (number), `classes` (names) and
            `rows`. The rows are metrics by result name. Each has `mean_iou`, `pixel_accuracy` and `iou`, a dict by class.
        breakdowns: the content of `report/analysis.json` for the same images. Its entry `proposals` has `counts` (numbers of
            proposals, ascending) and `mean_iou` (DeconvNet's mean IoU with each of these numbers, or None).

    Returns:
        The content of a PNG file, 1,200 px wide.
    """
    counts, values = breakdowns["proposals"]["counts"], breakdowns["proposals"]["mean_iou"]
    figure = new_figure(4.2)
    axes = figure.subplots()
    axes.plot(counts, np.array(values, float), color=_COLOURS["deconvnet_crf"], marker="o", label="DeconvNet")
    for count, value in zip(counts, values, strict=True):
        if value is not None:
            axes.annotate(
                f"{value:.3f}", (count, value), (0, 7), textcoords="offset points", ha="center", fontsize=9, bbox=_NUMBER_BOX
            )
    whole = results["rows"]["fcn8s"]["mean_iou"]
    if whole is not None:
        axes.axhline(whole, color="0.4", linestyle="--", linewidth=1.2, label=f"FCN-8s, no proposals  ({whole:.3f})")
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{k:,}" for k in counts])
    axes.minorticks_off()
    axes.set_xlabel("proposals per image, best first")
    axes.set_ylabel("mean IoU")
    axes.set_ylim(0, 1.18 * max([v for v in (*values, whole) if v is not None], default=1) or 1)
    axes.set_title(f"{results['dataset']}, {results['images']:,} images", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    style_axes(axes)
    return to_png(figure)


def iou_by_size(breakdowns: Mapping[str, Any]) -> bytes:
    """Draw bars of the mean IoU of the objects in each size bin, one for each result. Sizes are shares of the image's area.

    Args:
        breakdowns: the content of `report/analysis.json`. Its entry `sizes` has `edges` (the limits of the bins, as shares of
            the image's area), `objects` (the number of objects in each bin) and `mean_iou` (a list with one value for each bin,
            by result name).

    Returns:
        The content of a PNG file, 1,200 px wide.
    """
    sizes = breakdowns["sizes"]
    edges, objects = sizes["edges"], sizes["objects"]
    figure = new_figure(4.6)
    axes = figure.subplots()
    _grouped_bars(axes, {name: sizes["mean_iou"][name] for name in RESULT_TITLES if name in sizes["mean_iou"]}, {})
    spans = [f"{100 * low:g}–{100 * high:g} %" for low, high in pairwise(edges)]
    labels = [f"{span}\n{n:,} object{'' if n == 1 else 's'}" for span, n in zip(spans, objects, strict=True)]
    axes.set_xticks(range(len(objects)), labels)
    axes.set_xlim(-0.5, len(objects) - 0.5)
    axes.set_ylim(0, 1)
    axes.set_xlabel("share of the image that the object covers")
    axes.set_ylabel("mean IoU of the objects")
    style_axes(axes, "y")
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return to_png(figure)


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], title: str) -> bytes:
    """Draw a confusion matrix in per cent.

    Each row shows how the pixels of a true class are divided among the predicted classes. If there are at most 30 classes, every
    cell of at least 0.5 % shows its number.

    Args:
        counts: numbers of pixels by true class (row) and predicted class (column), (C, C).
        classes: the C class names, ordered by id.
        title: text above the matrix.

    Returns:
        The content of a PNG file, 1,200 px wide.

    Raises:
        ValueError: if the shape of `counts` does not fit the number of classes.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(counts, np.float64)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"{len(classes)} classes, and counts of {counts.shape}")
    total = counts.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    side = max(2.4, min(9.6, 0.6 * len(classes)))
    figure = new_figure(side + 1.9)
    axes = figure.subplots()
    shade = PowerNorm(0.5, 0, 100)  # so that 5 % differs visibly from 0
    image = axes.imshow(shares, cmap="Blues", norm=shade, aspect="auto")
    size = 9 if len(classes) > 12 else 11
    if len(classes) <= _MAX_NUMBERED:
        for row, column in np.argwhere(shares >= 0.5).tolist():
            share = shares[row, column]
            ink = "white" if shade(share) > 0.6 else "0.1"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=size, color=ink)
    for row in np.flatnonzero(total[:, 0] == 0).tolist():
        axes.text(-0.4, row, _ABSENT, va="center", fontsize=size, color="0.45")
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="% of the true class's pixels", shrink=0.6)
    return to_png(figure)


def reliability_diagram(calibration: Mapping[str, Any], error: float | None, title: str) -> bytes:
    """Draw how often pixels are predicted correctly by the probability of their predicted class, and how many pixels there are.

    Args:
        calibration: the entry `calibration` of `report/analysis.json`: `edges` (limits of the bins), and by bin `pixels`,
            `confidence` (mean probability) and `accuracy` (see `deconvnet.evaluation.calibration`).
        error: the expected calibration error, 0 to 1; None if no pixel was counted.
        title: text above the diagram.

    Returns:
        The content of a PNG file, 1,200 px wide.
    """
    edges = np.array(calibration["edges"])
    centres, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges) * 0.92
    pixels = np.array(calibration["pixels"], float)
    figure = new_figure(5.4)
    axes, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    axes.bar(
        centres,
        np.array(calibration["accuracy"], float),
        width,
        color=_COLOURS["deconvnet"],
        label="share of pixels that are right",
    )
    confidence, accuracy = (np.array(calibration[name], float) for name in ("confidence", "accuracy"))
    axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1.2, label="perfect calibration")
    axes.plot(
        confidence,
        accuracy,
        color=_COLOURS["edeconvnet_crf"],
        marker="o",
        linestyle="",
        clip_on=False,
        label="mean probability of a bin's pixels",
    )
    axes.set_ylim(0, 1)
    axes.set_xlim(0, 1)
    axes.set_ylabel("accuracy")
    error_text = "" if error is None else f"; expected calibration error {error:.3f}"
    axes.set_title(f"{title}{error_text}", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    below.bar(centres, 100 * pixels / max(1.0, pixels.sum()), width, color="0.7")
    below.set_ylabel("% of pixels")
    below.set_xlabel("probability of the predicted class")
    for each in (axes, below):
        style_axes(each, "y")
    return to_png(figure)


def _grouped_bars(
    axes: "Axes", bars: Mapping[str, Sequence[float | None]], suffixes: Mapping[str, str], *, horizontal: bool = False
) -> None:
    """Draw groups of bars with one bar per result. The groups are at the positions 0, 1, 2, … of an axis.

    Args:
        axes: the axes to draw on.
        bars: the lengths of the bars by result name, such as "deconvnet": one value per position, or None for no bar.
        suffixes: texts by result name that are added to the results' titles in the legend. Results may be missing.
        horizontal: whether the bars extend to the right instead of upwards.
    """
    thick = 0.8 / max(len(bars), 1)
    for i, (name, values) in enumerate(bars.items()):
        positions = np.arange(len(values)) + (i - (len(bars) - 1) / 2) * thick
        label = RESULT_TITLES[name] + suffixes.get(name, "")
        # None becomes nan, for which matplotlib draws nothing
        (axes.barh if horizontal else axes.bar)(
            positions, np.array(values, float), thick * 0.9, color=_COLOURS[name], label=label
        )
