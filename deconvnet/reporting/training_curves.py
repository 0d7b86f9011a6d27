"""The figure of the training curves: loss, pixel accuracy and mean IoU of each training, by optimiser step."""

from collections.abc import Mapping

from deconvnet.reporting import plots

Line = tuple[list[int], list[float]]
"""Steps and the values at them."""
History = Mapping[str, Mapping[str, Line]]
"""Lines by stage and metric."""

STAGES = {"fcn8s": "FCN-8s", "stage1": "DeconvNet, stage 1", "stage2": "DeconvNet, stage 2"}
"""Titles of the stages that train a network."""
_ACCURACIES = {
    "pixel_accuracy": "pixel accuracy on training crops",
    "dev_mean_iou": "mean IoU on dev",
    "final_dev_mean_iou": "mean IoU on dev, final batch norms",
}
METRICS = ("loss", *_ACCURACIES)
"""The metrics that are drawn."""


def draw_training_curves(history: History) -> dict[str, bytes]:
    """Draw two panels per stage: the loss, and beside it pixel accuracy and mean IoU.

    Args:
        history: lines by stage and metric (`METRICS`).

    Returns:
        {"training_curves.png": PNG}; empty if there is no stage.
    """
    panels: dict[str, dict[str, Line]] = {}
    for stage, lines in history.items():
        title = STAGES.get(stage, stage)
        panels[f"{title}: loss"] = {name: lines[name] for name in ("loss",) if name in lines}
        panels[f"{title}: accuracy"] = {text: lines[name] for name, text in _ACCURACIES.items() if name in lines}
    return {"training_curves.png": plots.training_curves(panels)} if panels else {}
