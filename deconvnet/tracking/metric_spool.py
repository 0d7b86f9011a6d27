"""Carry training metrics to MLflow through a local file, so that training never waits for MLflow.

Training reports its metrics from a process that must not wait: Ray Train calls callbacks in its controller process. If a callback
raises an exception, Ray Train calls it again without end. Therefore `MetricSpool` only appends a line to a local file (the
spool), which takes microseconds. `SpoolDelivery` is a thread of the driver process. It reads the file and sends the metrics to
MLflow, however long that takes. Ray places the controller on the driver's node, so both processes see the file. Only the driver
talks to MLflow, so a SQLite store has only one writer. If the driver is killed, the file is kept, and a resumed run sends the
rest.
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
from typing import Any, TypeVar

from infra import storage
from infra.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")

Curve = tuple[list[int], list[float]]
"""A curve: a list of the steps in ascending order, and a list of the values at these steps."""

ReportSink = Callable[[Mapping[str, Any]], None]
"""A function that takes the metrics of one training step by name, with the number of the step as "step".

It can be pickled, returns at once and never raises.
"""

POLL_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
COPY_SECONDS = 5.0
POINTS_PER_REQUEST = 500  # MLflow takes at most 1,000


@dataclass(frozen=True)
class Point:
    """A value of a metric at one step.

    Attributes:
        key: name of the metric.
        value: value of the metric.
        step: optimiser step at which the value was measured.
        time_ms: time at which it was reported, in milliseconds since the epoch.
    """

    key: str
    value: float
    step: int
    time_ms: int


class MetricSpool:
    """A local file (the spool) to which a training appends its metrics.

    Training calls the object with the metrics of each step. Such a call never raises. The file has one JSON object a line.
    """

    def __init__(self, file: Path, training: str | None = None) -> None:
        """Create the file and its folder if they don't exist.

        Args:
            file: path of the local file.
            training: text that identifies the training, for example its fingerprint. It is written to the first line of the file.
                A file with the metrics of another training is emptied. None appends to any existing file.
        """
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        header = json.dumps({"training": training})
        if training is not None and (not file.exists() or not file.read_text().startswith(header)):
            file.write_text(header + "\n")
        elif file.exists() and not file.read_bytes().endswith(b"\n"):
            with file.open("a") as half:  # a killed training left half a line: end it, so that the next line stands alone
                half.write("\n")

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Append the metrics of one step to the file. If the file can't be written, a warning is logged.

        Args:
            metrics: numbers by name, and the number of the training step as "step". Values that are not numbers are ignored. If
                there is no step, nothing is written.
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


def read_spool(data: bytes, names: Collection[str]) -> dict[str, Curve]:
    """Read curves from the content of a spool file, which holds the metrics that a training reported.

    Args:
        data: content of the file. A last line that is only half written is ignored.
        names: names of the metrics to read.

    Returns:
        Curves as `{metric: (steps, values)}`. Metrics that were not reported are left out. If a resumed training has repeated a
        step, the curve has only the first value for it.
    """
    curves: dict[str, Curve] = {}
    for point in (point for line in data.splitlines() for point in _points(line)):
        if point.key in names:
            steps, values = curves.setdefault(point.key, ([], []))
            if not steps or point.step > steps[-1]:
                steps.append(point.step)
                values.append(point.value)
    return curves


class SpoolDelivery:
    """A thread that sends the points in a spool file to MLflow, in order. If sending fails, it tries again.

    A point is a value of a metric at one step. The spool file is the local file to which a training appends them.

    A point is dropped if its metric has already been delivered for its step or a later one. Thus a step that a resumed training
    repeats is logged only once, and reading the file again from its start does no harm.
    """

    def __init__(self, file: Path, send: Callable[[Sequence[Point]], None], last_steps: Callable[[], dict[str, int]]) -> None:
        """Start the thread.

        Args:
            file: path of the spool file. It need not exist yet.
            send: function that sends up to 500 points. It raises an exception if they were not accepted.
            last_steps: function that returns, by metric, the last step that an earlier thread has delivered. It is called until
                it succeeds once.
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
        """Wait until the thread has sent the points (metric values) that are left in the file, and stop the thread.

        Args:
            timeout: maximum time to wait, in seconds. Points that are not sent by then stay in the file.

        Returns:
            True if all points were sent, False if some could not be sent in time.
        """
        self._closing.set()
        self._thread.join(timeout)
        self._abandoned.set()
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Send new points from the file to MLflow again and again, until `close` is called. The thread runs this method.

        A warning is logged if MLflow can't be reached. The pauses between the attempts then grow.
        """
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
        """Send the points (metric values) that were appended to the file since the last call.

        An incomplete last line is left for the next call. Exceptions of the sending function are not caught.
        """
        if self._last is None:
            self._last = self._last_steps()
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        new, last = [], dict(self._last)
        for point in (point for line in data.splitlines() for point in _points(line)):
            if point.step > last.get(point.key, -1):
                new.append(point)
                last[point.key] = point.step
        for points in chunks(new, POINTS_PER_REQUEST):
            self._send(points)
            self._last |= {point.key: point.step for point in points}
        self._offset += len(data)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Split a sequence into pieces of at most `size` items, and yield these pieces in order."""
    for i in range(0, len(items), size):
        yield items[i : i + size]


def _points(line: bytes) -> Iterable[Point]:
    """Parse one line of a spool file, which holds the metrics of one training step.

    Args:
        line: the line, a JSON object.

    Returns:
        One point (metric name, value, step and time) for each metric. The result is empty if the line is the file's
        header, or if it is incomplete because the training was killed while writing it.
    """
    try:
        record = json.loads(line)
    except ValueError:
        return []
    return [Point(k, v, record["step"], record["time_ms"]) for k, v in record.get("values", {}).items()]


@contextmanager
def spool_file(uri: str | None) -> Iterator[Path]:
    """Provide a local file to which a training appends its metrics while a `with` block runs.

    S3 has no operation that appends to a file. If the file is to be kept on S3, a thread therefore copies the local file there
    whenever it has grown. If this machine fails, only the metrics of the last seconds are lost. A training that is resumed on
    another machine continues the copy.

    Args:
        uri: where the file is to be kept, a local path or URI. None if it need not outlive the block.

    Yields:
        Absolute path of the local file. It may not exist yet.
    """
    if uri is not None and not storage.in_bucket(uri):
        yield storage.local_path(uri).absolute()
        return
    with TemporaryDirectory(prefix="deconvnet-spool-") as folder:
        file = Path(folder, "metrics.jsonl")
        if uri is None:
            yield file
            return
        with suppress(FileNotFoundError):
            file.write_bytes(storage.read_bytes(uri))
        closing = threading.Event()
        thread = threading.Thread(target=_copy_while_growing, args=(file, uri, closing), name="spool-copy", daemon=True)
        thread.start()
        try:
            yield file
        finally:
            closing.set()
            thread.join()


def _copy_while_growing(file: Path, uri: str, closing: threading.Event) -> None:
    """Copy a file to a bucket whenever it has grown, until `closing` is set, and then once more. A background thread runs this.

    Args:
        file: the local file.
        uri: URI of the copy, in a bucket.
        closing: event that another thread sets to end the copying.
    """
    copied, last = 0, False
    while not last:
        last = closing.wait(COPY_SECONDS)
        try:
            if file.exists() and file.stat().st_size != copied:
                data = file.read_bytes()
                storage.write_bytes(uri, data)
                copied = len(data)
        except (OSError, UserError) as error:
            logger.warning("the metrics in %s could not be copied to %s: %s", file, uri, error)
