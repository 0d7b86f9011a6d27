"""The figure of the training curves: loss and accuracy of each training by optimiser step."""

from collections.abc import Mapping

from deconvnet.reporting import plots

Line = tuple[list[int], list[float]]  # steps and values
History = Mapping[str, Mapping[str, Line]]
"""By stage and metric."""

STAGES = {"fcn8s": "FCN-8s", "stage1": "DeconvNet, stage 1", "stage2": "DeconvNet, stage 2"}
_SHARES = {
    "pixel_accuracy": "training pixels right",
    "dev_mean_iou": "mean IoU on dev",
    "final_dev_mean_iou": "the same, final batch norms",
}


METRICS = ("loss", *_SHARES)
"""The metrics that are drawn."""


def drawn(history: History) -> dict[str, bytes]:
    """{"training_curves.png": bytes}: of each stage its loss and, beside it, what it got right; nothing where there is no curve."""
    panels: dict[str, dict[str, Line]] = {}
    for stage, lines in history.items():
        title = STAGES.get(stage, stage)
        panels[f"{title}: loss"] = {name: lines[name] for name in ("loss",) if name in lines}
        panels[f"{title}: share right, mean IoU"] = {text: lines[name] for name, text in _SHARES.items() if name in lines}
    return {"training_curves.png": plots.training_curves(panels)} if panels else {}
