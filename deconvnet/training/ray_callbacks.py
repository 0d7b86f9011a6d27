"""Callbacks of Ray Train that pass on what a training reports."""

from collections.abc import Callable
from typing import Any

import ray
import ray.train
import ray.train.torch


class ReportForwarder(ray.train.UserCallback):
    """A Ray Train callback that puts rank 0's metrics, and the reasons of failures, into the report queue.

    Its methods never raise errors, because Ray would then retry without end.
    """

    def __init__(self, queue: Any) -> None:
        """Store the queue.

        Args:
            queue: handle of a `ReportQueue` actor.
        """
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Put rank 0's metrics into the queue. Ray Train's controller calls this after every `ray.train.report`.

        Args:
            run_context: unused.
            metrics: metrics of each rank.
            checkpoint: unused.
        """
        self._queue.put.remote(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Put the reasons of failures into the queue. Ray Train's controller calls this when workers have failed.

        Args:
            run_context: unused.
            worker_exceptions: the errors by rank. The last line of each message is used, shortened to 200 characters.
        """
        reasons = {
            rank: str(error).strip().splitlines()[-1][:200] for rank, error in worker_exceptions.items() if str(error).strip()
        }
        self._queue.put.remote({"failed": reasons})


class ReportCallback(ray.train.UserCallback):
    """A Ray Train callback that passes rank 0's metrics to a function."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Store the function.

        Args:
            report: function that takes the metrics by name. It is called in the controller process, and must return at once and
                never raise errors.
        """
        self._report = report

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass rank 0's metrics to the function. Ray Train's controller calls this after every `ray.train.report`.

        Args:
            run_context: unused.
            metrics: metrics of each rank.
            checkpoint: unused.
        """
        if metrics:
            self._report(metrics[0])
