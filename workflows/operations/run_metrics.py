"""Report the results of a retraining to Prometheus, a program that collects metrics, draws them and alerts.

A retraining is a batch job, which has usually ended when Prometheus scrapes metrics, so they are written to a file that
Prometheus' node_exporter reads (its textfile collector), or sent to a Pushgateway. A run replaces only the metrics that it sets,
and only those with the label of its model.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from infra import storage
from infra.live_metrics import LiveMetrics, Metric
from infra.redaction import without_secrets
from infra.webhook import run_with_timeout

if TYPE_CHECKING:
    import prometheus_client

Outcome = Literal["promoted", "refused", "unchanged", "failed", "interrupted"]
"""How a retraining ended. "refused": the new model is not better. "unchanged": no image or mask is new or changed, so nothing was
trained."""

LAST_RUN = Metric("deconvnet_retrain_last_run_timestamp_seconds", "When retrain.py last ended, however it ended", ("model",))
LAST_SUCCESS = Metric(
    "deconvnet_retrain_last_success_timestamp_seconds",
    "When retrain.py last finished (promoted, refused or unchanged)",
    ("model",),
)
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
REJECTED_LIMIT = Metric("deconvnet_rejected_images_limit_ratio", "Share above which a run fails (data.max_rejects)", ("model",))
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
        if problem := run_with_timeout(_SECONDS, self._deliver):
            logger.warning(f"the metrics were not delivered to {without_secrets(self._to)}: {problem}")

    def _deliver(self) -> str:
        """Deliver the metrics. Return what went wrong, or "" if nothing did."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import pushadd_to_gateway

        assert self._to is not None
        registry = CollectorRegistry()
        try:
            if "://" in self._to:
                registry.register(_Families(self._families()))
                pushadd_to_gateway(self._to, _JOB, registry, {"model": self._model}, timeout=_SECONDS)
            else:
                with storage.one_process_at_a_time(Path(self._to)):  # retrainings of several models may share the file
                    registry.register(_Families(self._families_with_kept(self._to)))
                    storage.write_bytes(self._to, generate_latest(registry))
        except Exception as error:  # the run continues without them, whatever a server or another program's file does
            return without_secrets(f"{type(error).__name__}: {error}")[:300]
        return ""

    def _families(self) -> Sequence["prometheus_client.Metric"]:
        """Return the metrics as prometheus_client has them: families, each with its samples (values with their labels)."""
        from prometheus_client.metrics_core import GaugeMetricFamily

        families = []
        for metric, values in self._values.items():
            family = GaugeMetricFamily(metric.name, metric.description, labels=metric.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            families.append(family)
        return families

    def _families_with_kept(self, file: str) -> list["prometheus_client.Metric"]:
        """Return the metrics with those in a file that this run does not replace. Raise ValueError if it holds other text."""
        from prometheus_client.parser import text_string_to_metric_families

        text = storage.read_bytes(file).decode() if storage.exists(file) else ""
        families = {family.name: family for family in self._families()}
        for kept in text_string_to_metric_families(text):
            if kept.name in families:  # a family may be in the file once
                families[kept.name].samples += [each for each in kept.samples if each.labels.get("model") != self._model]
            else:
                families[kept.name] = kept
        return [*families.values()]


class _Families:
    """Metrics as prometheus_client collects them."""

    def __init__(self, families: Iterable["prometheus_client.Metric"]) -> None:
        """Store the metrics."""
        self._families = families

    def collect(self) -> Iterable["prometheus_client.Metric"]:
        """Return the metrics, as prometheus_client asks for them."""
        return self._families
