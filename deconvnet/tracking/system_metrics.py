"""How busy the driver's machine is while a pipeline runs: what MLflow's pages show under *System metrics*."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deconvnet.tracking.mlflow_runs import Run

SECONDS = 15.0
_PATIENCE = 2.0  # with a sample that is on its way when the run ends


@contextmanager
def watched(run: "Run", seconds: float = SECONDS) -> Iterator[None]:
    """For the time of a block `run` gets `system/…` metrics: CPU, memory, disk, network, GPUs, by the seconds since it was begun.

    seconds: between samples, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise. A sample that MLflow does not take is
    lost, and nothing is measured where psutil is absent: neither disturbs the run.
    """
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run.run_id, seconds, tracking_uri=run.tracker.uri)
        monitor.collect_metrics()  # the first look at a CPU tells nothing: its load is measured from look to look
        begun = run.tracker.client.get_run(run.run_id).info.start_time / 1000
    except Exception as error:  # of MLflow, of psutil, of a GPU's driver: whatever it is, the run goes on
        logging.getLogger(__name__).info("no system metrics: %s", error)
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(run, monitor, begun, done), name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_PATIENCE)


def _watch(run: "Run", monitor: Any, begun: float, done: threading.Event) -> None:
    _forget(monitor)
    while not done.wait(monitor.sampling_interval):
        with suppress(Exception):  # MLflow's thread would end here for good
            monitor.collect_metrics()
            sample = {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            run.log_metrics(sample, round(time.time() - begun))
        _forget(monitor)


def _forget(monitor: Any) -> None:
    for each in monitor.monitors:
        each.clear_metrics()
