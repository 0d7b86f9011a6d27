"""Report the results of a retraining to Prometheus, a program that collects metrics, draws them and alerts.

A retraining is a batch job, which has usually ended when Prometheus asks for metrics. So the metrics are written to a file that
Prometheus' node_exporter reads (its textfile collector), or sent to a Pushgateway. A run replaces only the metrics that it sets.
"""

import logging
import time
from collections.abc import Collection, Iterator
from typing import Any, Literal, get_args

from infra import storage
from infra.live_metrics import LiveMetrics, Metric
from infra.redaction import without_secrets
from infra.webhook import problem_within

Outcome = Literal["promoted", "refused", "unchanged", "failed", "interrupted"]
"""How a retraining ended. "refused": the new model is not better. "unchanged": no image or mask is new."""

LAST_RUN = Metric("deconvnet_retrain_last_run_timestamp_seconds", "When retrain.py last ended, however it ended", ("model",))
LAST_SUCCESS = Metric("deconvnet_retrain_last_success_timestamp_seconds", "When retrain.py last came to its end", ("model",))
OUTCOME = Metric("deconvnet_retrain_outcome", "1 for how the last run ended, 0 for the others", ("model", "outcome"))
CHAMPION_VERSION = Metric("deconvnet_champion_version", "Number of the version in use", ("model",))
CHAMPION_SINCE = Metric("deconvnet_champion_since_timestamp_seconds", "Since when this version is in use", ("model",))
MEAN_IOU = Metric(
    "deconvnet_retrain_mean_iou",
    "Mean IoU on val, 0 to 1, of the model that was champion before the last retraining, and of the new one",
    ("model", "role"),
)
DATA_SINCE = Metric("deconvnet_data_since_timestamp_seconds", "Since when no image or mask has changed", ("model",))
IMAGES = Metric("deconvnet_images", "Usable images by split", ("model", "split"))
REJECTED_RATIO = Metric("deconvnet_rejected_images_ratio", "Share of the images that could not be used", ("model",))
REJECTED_LIMIT = Metric("deconvnet_rejected_images_limit_ratio", "Share from which on a run fails (data.max_rejects)", ("model",))
REJECTS = Metric("deconvnet_rejects", "Inputs that could not be used in the last retraining", ("model", "stage", "reason"))

_JOB = "deconvnet_retrain"
_SECONDS = 10.0  # how long the delivery may take

logger = logging.getLogger(__name__)


class RunMetrics(LiveMetrics):
    """The metrics of one retraining, which are delivered at its end."""

    def __init__(self, model: str, to: str | None) -> None:
        """Start without metrics.

        Args:
            model: name of the registered model. It is a label of all metrics.
            to: local file, whose name ends with .prom, or http(s) URL of a Pushgateway. None to deliver nothing.
        """
        self._model, self._to = model, to
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}

    def update(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a metric. For the arguments, without the label `model`, see `LiveMetrics.update`."""
        named = {"model": self._model, **labels}
        self._values.setdefault(metric, {})[tuple(named[name] for name in metric.labels)] = value

    def deliver(self, outcome: Outcome) -> None:
        """Deliver the metrics. No error is raised: if the delivery fails or takes more than ten seconds, a warning is logged.

        Args:
            outcome: how the retraining ended.
        """
        if self._to is None:
            return
        self.update(LAST_RUN, time.time())
        if outcome in ("promoted", "refused", "unchanged"):
            self.update(LAST_SUCCESS, time.time())
        for each in get_args(Outcome):
            self.update(OUTCOME, float(each == outcome), outcome=each)
        if problem := problem_within(_SECONDS, self._deliver):
            logger.warning(f"the metrics were not delivered to {without_secrets(self._to)}: {problem}")

    def _deliver(self) -> str:
        """Deliver the metrics. Return what went wrong, or "" if nothing did."""
        from prometheus_client import CollectorRegistry, Gauge, generate_latest
        from prometheus_client.exposition import pushadd_to_gateway

        assert self._to is not None
        registry = CollectorRegistry()
        try:
            for metric, values in self._values.items():
                gauge = Gauge(metric.name, metric.description, metric.labels, registry=registry)
                for labels, value in values.items():
                    gauge.labels(*labels).set(value)
            if "://" in self._to:
                pushadd_to_gateway(self._to, _JOB, registry, {"model": self._model}, timeout=_SECONDS)
            else:
                registry.register(_Kept(self._to, {metric.name for metric in self._values}))
                storage.write_bytes(self._to, generate_latest(registry))
        except Exception as error:  # the run goes on without them, whatever a server or another program's file does
            return without_secrets(f"{type(error).__name__}: {error}")[:300]
        return ""


class _Kept:
    """The metrics of an earlier run in a file that the present run does not know. prometheus_client collects them."""

    def __init__(self, file: str, known: Collection[str]) -> None:
        """Read the file, if there is one. `known`: names of the metrics of the present run."""
        from prometheus_client.parser import text_string_to_metric_families

        text = storage.read_bytes(file).decode() if storage.exists(file) else ""
        self._families = [family for family in text_string_to_metric_families(text) if family.name not in known]

    def collect(self) -> Iterator[Any]:
        """Yield the metrics, as prometheus_client asks for them."""
        yield from self._families
