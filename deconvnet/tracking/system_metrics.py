"""CPU, memory, disk, network and GPU load of the driver's machine, shown by MLflow under *System metrics*.

The measuring is MLflow's own (`SystemMetricsMonitor`), the thread is ours, because MLflow's thread (3.17)
* ends at the first request that fails, so one short outage would end the metrics;
* counts samples from 0 instead of seconds, so the points of a resumed run would mix with its earlier ones;
* is joined without a timeout, which delays the end of a run while MLflow does not answer.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

logger = logging.getLogger(__name__)

_STOP_SECONDS = 2.0  # how long the end of a run waits for a sample that is being sent


class LoggedRun(Protocol):
    """The parts of an MLflow run that are needed here.

    Attributes:
        tracker: the tracker of the run, with its `client` and the `uri` of its store.
    """

    tracker: Any

    @property
    def run_id(self) -> str:
        """Return the id of the run in MLflow."""
        ...

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log numbers at a step."""
        ...


@contextmanager
def system_metrics_logged(run: LoggedRun, interval: float = 15.0) -> Iterator[None]:
    """Log the load of this machine while the block runs, as metrics `system/…` by seconds since the run began.

    A sample that MLflow does not accept is lost, and nothing is measured if psutil is missing: neither disturbs the run.

    Args:
        run: the run that gets the metrics.
        interval: seconds between samples, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise.
    """
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run.run_id, interval, tracking_uri=run.tracker.uri)
        monitor.collect_metrics()  # CPU load is measured since the previous sample, so the first one is meaningless
        run_start = run.tracker.client.get_run(run.run_id).info.start_time / 1000
    except Exception as error:  # whatever MLflow, psutil or a GPU's driver raises, the run continues without these metrics
        logger.info("no system metrics: %s", error)
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_sample, args=(run, monitor, run_start, stop), name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_STOP_SECONDS)


def _sample(run: LoggedRun, monitor: Any, run_start: float, stop: threading.Event) -> None:
    """Measure and log until `stop` is set."""
    _clear(monitor)
    while not stop.wait(monitor.sampling_interval):
        with suppress(Exception):
            monitor.collect_metrics()
            sample = {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            run.log_metrics(sample, round(time.time() - run_start))
        _clear(monitor)


def _clear(monitor: Any) -> None:
    """Forget the samples that were already averaged."""
    for each in monitor.monitors:
        each.clear_metrics()
