"""What the callbacks of Ray Train forward. None of them may raise an error, because Ray would then retry without end."""

from typing import Any

import pytest

from deconvnet.training.ray_callbacks import ReportCallback, ReportForwarder


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
