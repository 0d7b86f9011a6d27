"""Metrics of a command while it runs, for Prometheus, a program that collects metrics and draws them.

On Ray they are application metrics (`ray.util.metrics`): each node exports them together with Ray's own metrics, and their
names get the prefix `ray_`. Without Ray nothing is exported.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

OTHER_REASONS = "other"
"""Label of all reasons that have no label of their own."""
_MAX_REASONS = 10
_MAX_LABEL = 60  # characters
_VARIES = re.compile(r"\S*[/\\]\S*|'[^']*'|\"[^\"]*\"|\[[^\]]*\]|[\d.,]*\d")  # paths, quoted text, lists and numbers


@dataclass(frozen=True)
class Metric:
    """A metric of Prometheus.

    Attributes:
        name: its name. Names of counters end with `_total`.
        description: what it counts or measures, and in which unit.
        labels: names of its labels. Each has few values.
        counter: True if its values are added up, False if each replaces the one before.
    """

    name: str
    description: str
    labels: tuple[str, ...] = ()
    counter: bool = False


class LiveMetrics:
    """The metrics of a command. This class exports none."""

    def update(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a metric to a value, or add the value if the metric is a counter.

        Args:
            metric: the metric.
            value: the value.
            **labels: the values of the metric's labels.
        """


class RayMetrics(LiveMetrics):
    """The metrics of a process that is connected to Ray."""

    def __init__(self) -> None:
        """Export no metric yet. Ray is not imported before the first value."""
        self._made: dict[Metric, Any] = {}

    def update(self, metric: Metric, value: float, **labels: str) -> None:
        """Set or add a value, as `LiveMetrics.update` describes it."""
        from ray.util import metrics

        labels = {name: label.encode("ascii", "replace").decode() for name, label in labels.items()}  # Ray takes no others
        if metric not in self._made:
            kind = metrics.Counter if metric.counter else metrics.Gauge
            self._made[metric] = kind(metric.name, metric.description, metric.labels)
        made = self._made[metric]
        if not metric.counter:
            made.set(value, labels)
        elif value > 0:  # Ray refuses 0
            made.inc(value, labels)


class ReasonLabels:
    """Maps reasons (sentences) to at most 11 metric labels: the first 10 get a label of their own, the others get "other"."""

    def __init__(self) -> None:
        """Start without labels."""
        self._known: set[str] = set()

    def label(self, reason: str) -> str:
        """Return the label of a reason: its beginning, without what differs from input to input, such as numbers and paths."""
        text = _VARIES.sub("...", reason.partition(": ")[0]).replace("×", "x")[:_MAX_LABEL].strip()
        if len(self._known) < _MAX_REASONS:
            self._known.add(text)
        return text if text in self._known else OTHER_REASONS

    def count(self, reasons: Iterable[str]) -> dict[str, int]:
        """Count reasons by their labels."""
        found: dict[str, int] = {}
        for label in map(self.label, reasons):
            found[label] = found.get(label, 0) + 1
        return found
