"""Draw the training curves: loss, pixel accuracy and mean IoU of each training stage against the optimiser step.

The training stages are "fcn8s" (FCN-8s on whole images), "stage1" (DeconvNet on crops around annotated objects) and "stage2"
(DeconvNet on crops around proposals, which are boxes that may contain an object).
"""

from collections.abc import Mapping

from deconvnet.reporting.figure import new_figure, style_axes, to_png
from deconvnet.reporting.plots import LINE_COLOURS

Line = tuple[list[int], list[float]]
"""The steps and the values of one curve, two lists of equal length."""
History = Mapping[str, Mapping[str, Line]]
"""Curves by training stage, then by metric name."""

STAGES = {"fcn8s": "FCN-8s", "stage1": "DeconvNet, stage 1", "stage2": "DeconvNet, stage 2"}
"""Titles of the training stages by name."""
_ACCURACIES = {
    "pixel_accuracy": "pixel accuracy on training crops",
    "dev_mean_iou": "mean IoU on dev",
    "final_dev_mean_iou": "mean IoU on dev, final batch norms",
}
METRICS = ("loss", *_ACCURACIES)
"""Names of the metrics that are drawn."""


def draw_training_curves(history: History) -> dict[str, bytes]:
    """Draw two panels for each training stage: the loss on the left, pixel accuracy and mean IoU on the right.

    Args:
        history: curves by training stage ("fcn8s", "stage1" or "stage2"), then by metric name. A curve is a pair of equally long
            lists, the steps and the values. The metrics "loss", "pixel_accuracy", "dev_mean_iou" and "final_dev_mean_iou" are
            drawn, and others are ignored.

    Returns:
        A dict from the file name "training_curves.png" to the content of the PNG; empty if `history` has no stage.
    """
    if not history:
        return {}
    panels: dict[str, dict[str, Line]] = {}
    for stage, lines in history.items():
        title = STAGES.get(stage, stage)
        panels[f"{title}: loss"] = {name: lines[name] for name in ("loss",) if name in lines}
        panels[f"{title}: accuracy"] = {text: lines[name] for name, text in _ACCURACIES.items() if name in lines}
    figure = new_figure(3.4 * len(history))
    for axes, (title, lines) in zip(figure.subplots(len(history), 2).flat, panels.items(), strict=True):
        axes.set_prop_cycle(color=LINE_COLOURS)
        for name, (steps, values) in lines.items():
            size = 6 if len(steps) == 1 else 3
            axes.plot(steps, values, label=name, linewidth=1.5, marker="o" if len(steps) < 30 else None, markersize=size)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        style_axes(axes)
        if lines:
            axes.legend(frameon=False, fontsize=9)
    return {"training_curves.png": to_png(figure)}
