"""Curves of a training, on their way to MLflow.

Ray Train calls its callback in the controller's process and retries whatever it raises without end, so `SpoolCallback` does one thing that
takes microseconds and can't wait: it appends a line to a local file. `Delivery`, a thread of the driver, reads the file and hands the
points to MLflow for as long as that takes. Ray pins the controller to the driver's node, so both see the file; only the driver talks to
MLflow, so a SQLite store has one writer; and the file outlives a killed driver, so a continued run sends what was left.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray.train import UserCallback

from infra import storage

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
BATCH = 500  # points a request; MLflow takes at most 1,000


@dataclass(frozen=True)
class Point:
    """One value of one curve; `time_ms` is since the epoch."""

    key: str
    value: float
    step: int
    time_ms: int


def append(spool: Path, metrics: Mapping[str, Any]) -> None:
    """Add the numbers of `metrics` to the file, under its "step"; other values, and metrics without a step, are passed over."""
    step = metrics.get("step")
    if not isinstance(step, int):
        return
    values = {k: float(v) for k, v in metrics.items() if k != "step" and isinstance(v, Real) and not isinstance(v, bool)}
    if not values:
        return
    with spool.open("a") as file:
        file.write(json.dumps({"step": step, "time_ms": time.time_ns() // 1_000_000, "values": values}) + "\n")


class SpoolCallback(UserCallback):
    """Ray Train callback: what rank 0 reports goes to the file `spool`. It never raises."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the controller after every `ray.train.report`; `metrics[i]` is rank i's."""
        try:
            append(self.spool, metrics[0])
        except Exception as error:
            log.warning("metrics of a step were not kept: %s", error)


class Delivery:
    """A thread that sends a spool's points by `send`, in order, trying again while that fails.

    A point at or before a curve's last delivered step is dropped: steps that a resumed run does again are logged once, and reading
    the file from its start again does no harm.
    """

    def __init__(self, spool: Path, send: Callable[[Sequence[Point]], None], last_steps: Callable[[], dict[str, int]]) -> None:
        self.spool = spool
        self._send = send
        self._last_steps = last_steps
        self._last: dict[str, int] | None = None
        self._offset = 0
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-metrics", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Send what is left, for at most `timeout` seconds. False if some of it could not be sent."""
        self._closing.set()
        self._thread.join(timeout)
        self._abandoned.set()
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = POLL_SECONDS
        while not self._abandoned.is_set():
            closing = self._closing.is_set()  # looked at before reading: all that was written before close() is read
            try:
                self._deliver()
                if closing:
                    return
                if pause > POLL_SECONDS:
                    log.warning("MLflow answers again; the waiting metrics were sent")
                pause = POLL_SECONDS
            except Exception as error:
                if pause == POLL_SECONDS:
                    log.warning("MLflow can't be reached, metrics wait in %s: %s", self.spool, type(error).__name__)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            (self._abandoned if closing else self._closing).wait(min(pause, 1.0) if closing else pause)

    def _deliver(self) -> None:
        if self._last is None:
            self._last = self._last_steps()
        for points, end in self._read():
            fresh = [p for p in points if p.step > self._last.get(p.key, -1)]
            if fresh:
                self._send(fresh)
                self._last |= {p.key: p.step for p in fresh}
            self._offset = end

    def _read(self) -> list[tuple[list[Point], int]]:
        """New points in batches, each with the file offset after it; a line still being written waits."""
        if not self.spool.exists():
            return []
        batches: list[tuple[list[Point], int]] = []
        with self.spool.open("rb") as file:
            file.seek(self._offset)
            end = self._offset
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                record = json.loads(line)
                points = [Point(k, v, record["step"], record["time_ms"]) for k, v in record["values"].items()]
                if not batches or len(batches[-1][0]) + len(points) > BATCH:
                    batches.append(([], end))
                batches[-1] = (batches[-1][0] + points, end)
        return batches


@contextmanager
def spool_folder(place: str) -> Iterator[Path]:
    """A local folder for metrics that MLflow has not taken yet; on S3, a copy of `place` that goes back there."""
    if not storage.is_s3(place):
        yield Path(place)
        return
    with TemporaryDirectory(prefix="deconvnet-spool-") as folder:
        storage.copy_tree(place, folder)
        try:
            yield Path(folder)
        finally:
            storage.copy_tree(folder, place)
