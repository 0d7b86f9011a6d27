"""Callbacks of Ray Train that pass on the metrics and failures of a training run."""

from collections.abc import Callable
from typing import Any

import ray
import ray.train
import ray.train.torch

from deconvnet.training.meter import PHASES
from infra.live_metrics import LiveMetrics, Metric, RayMetrics

STEP = Metric("deconvnet_train_step", "Optimiser steps so far", ("stage",))
SPEED = Metric(
    "deconvnet_train_samples_per_second", "Training examples a second: images of FCN-8s, crops of DeconvNet", ("stage",)
)
LOSS = Metric("deconvnet_train_loss", "Mean loss of the latest steps", ("stage",))
DEV_MEAN_IOU = Metric("deconvnet_train_dev_mean_iou", "Mean IoU on the dev examples, 0 to 1", ("stage",))
STEP_SECONDS = Metric(
    "deconvnet_train_step_seconds", "Mean seconds per optimiser step by phase (meter.PHASES)", ("stage", "part")
)
_REPORTED = {"step": STEP, "samples_per_s": SPEED, "loss": LOSS, "dev_mean_iou": DEV_MEAN_IOU, "final_dev_mean_iou": DEV_MEAN_IOU}


class ReportForwarder(ray.train.UserCallback):
    """A Ray Train callback that sends rank 0's metrics, and the reasons why workers failed, to the driver's message queue.

    The queue is a Ray actor of the class `ReportQueue`, from which the driver takes the messages to log them. The methods of
    this class never raise errors, because Ray would then retry without end.
    """

    def __init__(self, queue: Any) -> None:
        """Store the handle of the message queue.

        Args:
            queue: handle of the Ray actor of class `ReportQueue` that collects the messages for the driver.
        """
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Put the metrics of rank 0 into the message queue of the driver, the process that started the training.

        Ray Train's controller calls this after every `ray.train.report`. If rank 0 reported no metrics, nothing is put into the
        queue.

        Args:
            run_context: unused.
            metrics: a dictionary of metrics by name for each rank (worker).
            checkpoint: unused.
        """
        if metrics and metrics[0]:
            self._queue.put.remote(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Put the reasons why workers failed into the driver's message queue.

        Ray Train's controller calls this after a failure. The message is {"failed": reasons}, with the reasons by rank. A
        reason is the last line of an error's message, shortened to 200 characters.

        Args:
            run_context: unused.
            worker_exceptions: the errors by rank (number of the worker).
        """
        reasons = {
            rank: str(error).strip().splitlines()[-1][:200] for rank, error in worker_exceptions.items() if str(error).strip()
        }
        self._queue.put.remote({"failed": reasons})


class ReportCallback(ray.train.UserCallback):
    """A Ray Train callback that passes rank 0's metrics to a function of the caller."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Store the function that will receive the metrics.

        Args:
            report: function that takes the metrics by name. It is called in Ray Train's controller process, and must return at
                once and never raise errors.
        """
        self._report = report

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass rank 0's metrics to the function given to the constructor. Ray Train's controller calls this after every report.

        Args:
            run_context: unused.
            metrics: a dictionary of metrics by name for each rank (worker).
            checkpoint: unused.
        """
        if metrics and metrics[0]:
            self._report(metrics[0])


class LiveMetricsCallback(ray.train.UserCallback):
    """A Ray Train callback that exports rank 0's metrics for Prometheus, in Ray Train's controller process."""

    def __init__(self, stage: str, metrics: LiveMetrics | None = None) -> None:
        """Store where the metrics go.

        Args:
            stage: name of the training stage, such as "stage1".
            metrics: exporter to use. None: Ray's own metrics (`RayMetrics`).
        """
        self._stage, self._metrics = stage, metrics or RayMetrics()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Export rank 0's metrics. Ray Train calls this after every report. Arguments: see `ReportForwarder.after_report`."""
        reported = metrics[0] if metrics and metrics[0] else {}
        for name, metric in _REPORTED.items():
            if reported.get(name) is not None:
                self._metrics.update(metric, float(reported[name]), stage=self._stage)
        for part in PHASES:
            if (seconds := reported.get(f"time.{part}_s")) is not None:
                self._metrics.update(STEP_SECONDS, float(seconds), stage=self._stage, part=part)
