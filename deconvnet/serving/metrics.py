"""Count requests, their durations, the confidence of their answers and how these drift, and write them as a page for Prometheus.

Prometheus is a program that reads such a page every few seconds, stores the numbers and draws them.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from deconvnet.evaluation.drift import Drift
from deconvnet.serving.http import Reply
from deconvnet.serving.routing import LoadedModel

if TYPE_CHECKING:
    from deconvnet.tracking.registry import Version

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The numbers of one server since its start."""

    def __init__(self) -> None:
        """Create the metrics, all zero."""
        self._registry = CollectorRegistry()
        self._requests = Counter("deconvnet_requests", "Requests by HTTP status code", ["code"], registry=self._registry)
        self._seconds = Histogram(
            "deconvnet_prediction_seconds",
            "Time from the arrival of a request to the end of its prediction",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._confidence = Summary(
            "deconvnet_confidence",
            "Mean probability of the predicted class, by version of the model",
            ["model", "version"],
            registry=self._registry,
        )
        self._boxes = Summary(
            "deconvnet_boxes",
            "Boxes of an image that DeconvNet segmented, by version of the model",
            ["model", "version"],
            registry=self._registry,
        )
        self._waiting = Gauge("deconvnet_requests_waiting", "Requests that wait or are answered now", registry=self._registry)
        self._psi = Gauge(
            "deconvnet_drift_psi",
            "Population stability index of the newest answers against the predictions on val, by version of the model",
            ["model", "version", "of"],
            registry=self._registry,
        )
        self._drifts: dict[Version, Drift] = {}
        self._bytes = Gauge("deconvnet_upload_bytes", "Request bodies in memory", registry=self._registry)

    def track_drift_of(self, models: Iterable[LoadedModel]) -> None:
        """Measure the drift of these versions from now on, and no longer that of others.

        Args:
            models: the versions that answer. Those without statistics of their predictions on val have no drift.
        """
        known = {model.version: model.statistics for model in models if model.statistics}
        self._drifts = {version: self._drifts.get(version) or Drift(statistics) for version, statistics in known.items()}

    def count_request(self, status: int) -> None:
        """Count a request.

        Args:
            status: HTTP status code of the reply. 499 if the client disconnected before.
        """
        self._requests.labels(str(status)).inc()

    def count_prediction(
        self, version: "Version", seconds: float, confidence: float, shares: Mapping[str, float], boxes: int
    ) -> None:
        """Count a predicted mask.

        Args:
            version: the version that has predicted it.
            seconds: time from the arrival of the request to the end of the prediction.
            confidence: mean probability of the predicted class, 0 to 1.
            shares: share of the pixels of each class in the mask, by name.
            boxes: number of boxes, windows included, that DeconvNet segmented.
        """
        self._seconds.observe(seconds)
        self._confidence.labels(version.name, version.number).observe(confidence)
        self._boxes.labels(version.name, version.number).observe(boxes)
        if drift := self._drifts.get(version):
            drift.add(confidence, shares)

    def page(self, waiting: int, upload_bytes: int) -> Reply:
        """Make the page.

        Args:
            waiting: number of requests that wait or are answered now.
            upload_bytes: bytes of the request bodies that are in memory.

        Returns:
            A reply with status 200 in Prometheus' text format.
        """
        self._waiting.set(waiting)
        self._bytes.set(upload_bytes)
        self._psi.clear()
        for version, drift in self._drifts.items():
            for what, index in drift.indices().items():
                self._psi.labels(version.name, version.number, what).set(index)
        return Reply(200, CONTENT_TYPE_LATEST, generate_latest(self._registry))
