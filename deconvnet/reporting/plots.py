"""Charts of results, as PNG bytes of 1,200 px width. Each network has a colour, darker with the CRF: told apart by the colour-blind."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from deconvnet.reporting.figure import TITLES, page, plain, png

if TYPE_CHECKING:
    from proposals.recall import Recall

_COLOURS = {
    "fcn8s": "#8a8f98",
    "deconvnet": "#9ecae1",
    "deconvnet_crf": "#2171b5",
    "edeconvnet": "#fdae6b",
    "edeconvnet_crf": "#d94801",
}
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # behind numbers that lines cross
_MOST_NUMBERS = 30  # classes of a confusion matrix with numbers in its cells


def iou_by_class(results: Mapping[str, Any]) -> bytes:
    """Bars of IoU by class for the five results of a `results.json`; a class without an IoU (null) is left empty."""
    classes = list(results["classes"])
    names = [name for name in TITLES if name in results["rows"]]
    thick = 0.8 / max(len(names), 1)
    figure = page(1.4 + 0.2 * len(classes) * max(len(names), 2) * 0.6 + 0.2 * len(classes))
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
    plain(axes)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return png(figure)


def training_curves(curves: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]]) -> bytes:
    """A panel for each entry of `curves` (title → line's name → steps and values), two a row. Raises ValueError for none."""
    if not curves:
        raise ValueError("no curves to draw")
    lines = -(-len(curves) // 2)
    figure = page(3.4 * lines)
    panels = figure.subplots(lines, 2, squeeze=False).ravel()
    for axes, (title, series) in zip(panels, curves.items(), strict=False):
        axes.set_prop_cycle(color=_LINES)
        for name, (steps, values) in series.items():
            size = 6 if len(steps) == 1 else 3
            axes.plot(steps, values, label=name, linewidth=1.5, marker="o" if len(steps) < 30 else None, markersize=size)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.grid(color="0.92")
        if series:
            axes.legend(frameon=False, fontsize=9)
        plain(axes)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    return png(figure)


def recall_curves(recalls: Mapping[str, "Recall"], most: int = 1000) -> bytes:
    """Recall of proposals, a colour for each name: over the number of boxes at IoU 0.5 and 0.7, and over IoU.

    Over IoU it is that of `most` boxes, or of the largest number measured up to that. Raises ValueError for none.
    """
    if not recalls:
        raise ValueError("no recall to draw")
    figure = page(4.6)
    by_count, by_iou = figure.subplots(1, 2, sharey=True)
    for i, (name, recall) in enumerate(recalls.items()):
        colour = _LINES[i % len(_LINES)]
        for threshold, style in ((0.5, "-"), (0.7, "--")):
            by_count.plot(
                recall.counts, recall.at_iou(threshold), style, color=colour, label=f"{name}, IoU {threshold}", marker="."
            )
        row = max(range(len(recall.counts)), key=lambda k: (recall.counts[k] <= most, recall.counts[k]))
        by_iou.plot(
            np.linspace(0.5, 1, 51), recall.by_iou()[row, 50:], color=colour, label=f"{name}, {recall.counts[row]:,} boxes"
        )
    by_count.set_xscale("log")
    by_count.xaxis.set_major_formatter("{x:,.0f}")
    by_count.set_xlabel("boxes a photograph")
    by_iou.set_xlabel("intersection over union")
    by_count.set_ylabel("share of objects found")
    by_count.set_ylim(0, 1)
    for axes in (by_count, by_iou):
        axes.grid(color="0.92")
        axes.legend(frameon=False, fontsize=9)
        plain(axes)
    return png(figure)


def iou_by_proposals(results: Mapping[str, Any], analysis: Mapping[str, Any]) -> bytes:
    """DeconvNet's mean IoU after the first k proposals of each photograph, and FCN-8s', which needs none.

    results: a `results.json`; analysis: an `analysis.json` (`Analysis.as_dict`), both of the same photographs.
    """
    counts, values = analysis["proposals"]["counts"], analysis["proposals"]["mean_iou"]
    figure = page(4.2)
    axes = figure.subplots()
    axes.plot(
        counts, [np.nan if v is None else v for v in values], color=_COLOURS["deconvnet_crf"], marker="o", label="DeconvNet"
    )
    for count, value in zip(counts, values, strict=True):
        if value is not None:
            axes.annotate(
                f"{value:.3f}", (count, value), (0, 7), textcoords="offset points", ha="center", fontsize=9, bbox=_PAPER
            )
    whole = results["rows"]["fcn8s"]["mean_iou"]
    if whole is not None:
        axes.axhline(whole, color="0.4", linestyle="--", linewidth=1.2, label=f"FCN-8s, no proposals  ({whole:.3f})")
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{k:,}" for k in counts])
    axes.minorticks_off()
    axes.set_xlabel("proposals a photograph, best first")
    axes.set_ylabel("mean IoU")
    axes.set_ylim(0, 1.18 * max([v for v in (*values, whole) if v is not None], default=1) or 1)
    axes.set_title(f"{results['dataset']}, {results['images']:,} photographs", loc="left", fontsize=11)
    axes.grid(color="0.92")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    plain(axes)
    return png(figure)


def iou_by_size(analysis: Mapping[str, Any]) -> bytes:
    """Bars of the objects' mean IoU by their share of the photograph, for the results of an `analysis.json`."""
    sizes = analysis["sizes"]
    edges, objects = sizes["edges"], sizes["objects"]
    names = [name for name in TITLES if name in sizes["mean_iou"]]
    figure = page(4.6)
    axes = figure.subplots()
    places, thick = np.arange(len(objects)), 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        values = [np.nan if v is None else v for v in sizes["mean_iou"][name]]
        axes.bar(places + (i - (len(names) - 1) / 2) * thick, values, thick * 0.9, color=_COLOURS[name], label=TITLES[name])
    spans = [f"{100 * low:g}–{100 * high:g} %" for low, high in pairwise(edges)]
    axes.set_xticks(places, [f"{span}\n{n:,} object{'' if n == 1 else 's'}" for span, n in zip(spans, objects, strict=True)])
    axes.set_xlim(-0.5, len(objects) - 0.5)
    axes.set_ylim(0, 1)
    axes.set_xlabel("share of the photograph that the object covers")
    axes.set_ylabel("IoU, mean of the objects")
    axes.grid(axis="y", color="0.9")
    plain(axes)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return png(figure)


def confusion(counts: np.ndarray, classes: Sequence[str], title: str) -> bytes:
    """A confusion matrix: each row the share, in per cent, of a true class' pixels that were given each class.

    counts: (C, C) pixels by true (row) and given class. Up to 30 classes the shares from 0.5 % on stand in the cells. Raises
    ValueError where `classes` are not C.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(counts, np.float64)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"{len(classes)} classes, and counts of {counts.shape}")
    total = counts.sum(axis=1, keepdims=True)
    shares = 100 * np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    side = max(2.4, min(9.6, 0.6 * len(classes)))
    figure = page(side + 1.9)
    axes = figure.subplots()
    shade = PowerNorm(0.5, 0, 100)  # so that 5 % can be told from nothing
    image = axes.imshow(shares, cmap="Blues", norm=shade, aspect="auto")
    size = 9 if len(classes) > 12 else 11
    if len(classes) <= _MOST_NUMBERS:
        for row, column in np.argwhere(shares >= 0.5).tolist():
            share = shares[row, column]
            ink = "white" if shade(share) > 0.6 else "0.1"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=size, color=ink)
    for row in np.flatnonzero(total[:, 0] == 0).tolist():
        axes.text(-0.4, row, "not in these photographs", va="center", fontsize=size, color="0.45")
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.set_xlabel("labelled as")
    axes.set_ylabel("true class")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="% of the class' pixels", shrink=0.6)
    return png(figure)
