"""What the callbacks of Ray Train forward. None of them may raise an error, because Ray would then retry without end."""

from typing import Any

import pytest

from deconvnet.training.ray_callbacks import LiveMetricsCallback, ReportCallback, ReportForwarder
from infra.live_metrics import LiveMetrics, Metric


class Queue:
    """Stands for the handle of a `ReportQueue`, and of its method `put`."""

    def __init__(self) -> None:
        self.put, self.messages = self, []

    def remote(self, message: Any) -> None:
        self.messages.append(message)


@pytest.mark.parametrize(("metrics", "sent"), [([], []), ([{}], []), ([None, {"step": 1}], []), ([{"step": 1}], [{"step": 1}])])
def test_reports_without_metrics_are_not_forwarded(metrics: Any, sent: Any):
    queue, called = Queue(), []
    ReportForwarder(queue).after_report(None, metrics, None)
    ReportCallback(called.append).after_report(None, metrics, None)
    assert queue.messages == called == sent


@pytest.mark.parametrize(
    ("errors", "reasons"),
    [
        ({}, {}),
        ({0: RuntimeError(""), 1: ValueError(" \n")}, {}),  # errors of Ray without a message
        (
            {0: RuntimeError("Traceback\n  the last line \n"), 3: ValueError("a\nlast " + 300 * "x")},
            {0: "  the last line", 3: "last " + 195 * "x"},
        ),
    ],
)
def test_the_reason_of_a_failure_is_the_last_line_of_its_message(errors: Any, reasons: Any):
    queue = Queue()
    ReportForwarder(queue).after_exception(None, errors)
    assert queue.messages == [{"failed": reasons}]


def test_every_reported_figure_goes_to_the_metric_of_its_name():
    found: dict[str, tuple[float, dict[str, str]]] = {}

    class Kept(LiveMetrics):
        def update(self, metric: Metric, value: float, **labels: str) -> None:
            assert sorted(labels) == sorted(metric.labels)
            found[metric.name.removeprefix("deconvnet_train_")] = value, labels

    callback, labels = LiveMetricsCallback("stage1", Kept()), {"stage": "stage1"}
    figures = {"step": 7, "samples_per_s": 30.5, "loss": 0.25, "dev_mean_iou": 0.5, "time.optimiser_s": 0.125, "epoch": 2.0}
    callback.after_report(None, [figures, {"step": 99}], None)
    assert found == {
        "step": (7, labels),
        "samples_per_second": (30.5, labels),
        "loss": (0.25, labels),
        "dev_mean_iou": (0.5, labels),
        "step_seconds": (0.125, {**labels, "part": "optimiser"}),
    }
    callback.after_report(None, [{"final_dev_mean_iou": 0.75, "loss": None}], None)
    assert found["dev_mean_iou"] == (0.75, labels) and found["loss"] == (0.25, labels)
    callback.after_report(None, [], None)
