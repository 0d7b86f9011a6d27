"""Training metrics on their way to MLflow: appended to a local file, delivered by a thread.

Training reports its metrics from a process that must not wait: Ray Train calls callbacks in its controller, and retries one that
raises without end. So `MetricSpool` only appends a line to a local file, which takes microseconds. `SpoolDelivery`, a thread of
the driver, reads the file and sends the points to MLflow, however long that takes. Ray pins the controller to the driver's node, so
both see the file. Only the driver talks to MLflow, so a SQLite store has one writer. The file outlives a killed driver: a resumed
run sends the rest.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra import storage

logger = logging.getLogger(__name__)

Line = tuple[list[int], list[float]]
"""A curve: the steps in ascending order, and the value at each."""

POLL_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
_POINTS_PER_REQUEST = 500  # MLflow takes at most 1,000


@dataclass(frozen=True)
class Point:
    """One value of one metric.

    Attributes:
        key: name of the metric.
        value: its value.
        step: optimiser step.
        time_ms: when it was reported, milliseconds since the epoch.
    """

    key: str
    value: float
    step: int
    time_ms: int


class MetricSpool:
    """A file of reported metrics, one JSON object a line. Call it with each report of a training; it never raises."""

    def __init__(self, file: Path, training: str | None = None) -> None:
        """Open the spool.

        Args:
            file: local file, created with its folder if missing.
            training: identifies the training, for example its fingerprint. A file written for another training is emptied first;
                None appends to whatever is there.
        """
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        header = json.dumps({"training": training})
        if training is not None and (not file.exists() or not file.read_text().startswith(header)):
            file.write_text(header + "\n")

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Append the metrics of one step.

        Args:
            metrics: numbers by name, with the step as "step". Other values, and reports without a step, are ignored.
        """
        step = metrics.get("step")
        values = {k: float(v) for k, v in metrics.items() if k != "step" and isinstance(v, Real) and not isinstance(v, bool)}
        if not isinstance(step, int) or not values:
            return
        try:
            with self.file.open("a") as file:
                file.write(json.dumps({"step": step, "time_ms": time.time_ns() // 1_000_000, "values": values}) + "\n")
        except Exception as error:
            logger.warning("metrics of step %d were not kept: %s", step, error)


def read_spool(data: bytes, names: Collection[str]) -> dict[str, Line]:
    """Read curves from the content of a spool file.

    Args:
        data: the file's bytes. A last line that is still being written is ignored.
        names: metrics to read.

    Returns:
        A curve for each of these metrics that was reported. Steps that a resumed training repeated are in it once.
    """
    curves: dict[str, Line] = {}
    for line in data.splitlines():
        with suppress(ValueError):
            for point in _points(line):
                if point.key in names:
                    steps, values = curves.setdefault(point.key, ([], []))
                    if not steps or point.step > steps[-1]:
                        steps.append(point.step)
                        values.append(point.value)
    return curves


class SpoolDelivery:
    """A thread that sends the points of a spool file in order and retries while sending fails.

    A point at or before the last delivered step of its metric is dropped, so steps that a resumed training repeats are logged
    once, and reading the file from its start again does no harm.
    """

    def __init__(self, file: Path, send: Callable[[Sequence[Point]], None], last_steps: Callable[[], dict[str, int]]) -> None:
        """Start the thread.

        Args:
            file: the spool file; it need not exist yet.
            send: delivers up to 500 points; raises if they were not taken.
            last_steps: returns the last delivered step of each metric; called until it succeeds once.
        """
        self.file = file
        self._send = send
        self._last_steps = last_steps
        self._last: dict[str, int] | None = None
        self._offset = 0
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-metrics", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Send what is left and stop the thread.

        Args:
            timeout: longest time to wait, in seconds.

        Returns:
            False if some points could not be sent in time.
        """
        self._closing.set()
        self._thread.join(timeout)
        self._abandoned.set()
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Deliver until closed, with growing pauses while MLflow can't be reached."""
        pause = POLL_SECONDS
        while not self._abandoned.is_set():
            closing = self._closing.is_set()  # read before delivering, so that all that was written before close() is sent
            try:
                self._deliver()
                if closing:
                    return
                if pause > POLL_SECONDS:
                    logger.warning("MLflow answers again; the waiting metrics were sent")
                pause = POLL_SECONDS
            except Exception as error:
                if pause == POLL_SECONDS:
                    logger.warning("MLflow can't be reached, metrics wait in %s: %s", self.file, type(error).__name__)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
            (self._abandoned if closing else self._closing).wait(min(pause, 1.0) if closing else pause)

    def _deliver(self) -> None:
        """Send the points that were appended since the last call."""
        if self._last is None:
            self._last = self._last_steps()
        for points, end in self._read():
            new = [point for point in points if point.step > self._last.get(point.key, -1)]
            if new:
                self._send(new)
                self._last |= {point.key: point.step for point in new}
            self._offset = end

    def _read(self) -> list[tuple[list[Point], int]]:
        """Read new points in batches, each with the file offset after it. A line still being written is left for later."""
        if not self.file.exists():
            return []
        batches: list[tuple[list[Point], int]] = []
        with self.file.open("rb") as file:
            file.seek(self._offset)
            end = self._offset
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                points = list(_points(line))
                if not batches or len(batches[-1][0]) + len(points) > _POINTS_PER_REQUEST:
                    batches.append(([], end))
                batches[-1] = (batches[-1][0] + points, end)
        return batches


def _points(line: bytes) -> Iterable[Point]:
    """Parse one line of a spool file; the header line holds no points."""
    record = json.loads(line)
    return [Point(k, v, record["step"], record["time_ms"]) for k, v in record.get("values", {}).items()]


@contextmanager
def local_folder(uri: str | None) -> Iterator[Path]:
    """Provide a local folder for spool files.

    Args:
        uri: folder where the files are kept; on S3 a temporary copy of it is used, and copied back at the end. None: a temporary
            folder.

    Yields:
        The local folder.
    """
    if uri is not None and not storage.is_s3(uri):
        yield Path(uri)
        return
    with TemporaryDirectory(prefix="deconvnet-spool-") as folder:
        if uri is not None:
            storage.copy_tree(uri, folder)
        try:
            yield Path(folder)
        finally:
            if uri is not None:
                storage.copy_tree(folder, uri)
