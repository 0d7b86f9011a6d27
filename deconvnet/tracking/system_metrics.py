"""Log the load of the driver's machine: CPU, memory, disk, network and GPUs. MLflow shows it under *System metrics*.

A class of MLflow (`SystemMetricsMonitor`) measures the load, but in a thread that this module starts. MLflow's own thread (as of
version 3.17) has three disadvantages:

* It ends at the first request that fails, so one short outage would end the metrics.
* It counts samples from 0 instead of seconds, so the points of a resumed run would mix with the earlier ones.
* The end of a run waits for it without a timeout, so a run does not end while MLflow does not answer.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from deconvnet.tracking.interface import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_STOP_SECONDS = 2.0  # longest time for which the end of a run waits until a sample has been sent


@contextmanager
def system_metrics_logged(run: Run, client: "MlflowClient", interval: float = 15.0) -> Iterator[None]:
    """Log the load of this machine while a `with` block runs, as metrics `system/NAME`.

    The step of each value is the number of seconds since the run began. Errors of the measurement or of MLflow are not raised. A
    sample that MLflow does not accept is lost. If the load can't be measured at all, for example without the package psutil, the
    reason is logged once.

    Args:
        run: run to which the metrics are logged.
        client: client of the MLflow store that has the run.
        interval: seconds between two samples. The environment variable MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL overrides it.
    """
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run.run_id, interval, tracking_uri=client.tracking_uri)
        monitor.collect_metrics()  # CPU load is measured since the previous sample, so the first one is meaningless
        run_start = client.get_run(run.run_id).info.start_time / 1000
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


def _sample(run: Run, monitor: Any, run_start: float, stop: threading.Event) -> None:
    """Measure the load and log it again and again until `stop` is set. The background thread runs this function.

    Args:
        run: run to which the metrics are logged.
        monitor: MLflow's `SystemMetricsMonitor`, which measures the load.
        run_start: start of the run, in seconds since the epoch.
        stop: event that ends the loop.
    """
    _clear(monitor)
    while not stop.wait(monitor.sampling_interval):
        with suppress(Exception):
            monitor.collect_metrics()
            sample = {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            run.log_metrics(sample, round(time.time() - run_start))
        _clear(monitor)


def _clear(monitor: Any) -> None:
    """Delete the collected samples of `monitor`, MLflow's `SystemMetricsMonitor`, after their averages were logged."""
    for each in monitor.monitors:
        each.clear_metrics()
