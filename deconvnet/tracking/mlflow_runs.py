"""Log to MLflow: one run for a pipeline, and below it one run for each of its stages. Only the driver process logs.

Nothing here uses MLflow's global state (active run, current store), so threads and several stores can be used side by side. User
names, passwords and queries of URIs are removed from everything that is logged.
"""

import getpass
import json
import logging
import re
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from deconvnet.tracking.interface import Run, Tracker
from deconvnet.tracking.metric_spool import (
    POINTS_PER_REQUEST,
    Curve,
    MetricSpool,
    Point,
    ReportSink,
    SpoolDelivery,
    chunks,
    spool_file,
)
from deconvnet.tracking.store import check_store, error_summary, run_history, short_timeouts, sqlite_file
from deconvnet.tracking.system_metrics import system_metrics_logged
from deconvnet.tracking.texts.descriptions import EXPERIMENT_TAGS, NOTE
from deconvnet.version import code_version
from infra import storage
from infra.errors import Interrupted, UserError
from infra.redaction import redacted, without_secrets

logger = logging.getLogger(__name__)

MAX_PARAM = 500
"""Number of characters of a parameter that every MLflow server accepts. The artifact settings.json has the whole value."""
_MAX_TAG = 5000
_ITEMS_PER_REQUEST = 100  # parameters or tags
_DELIVERY_SECONDS = 120.0  # how long a finished training waits for MLflow to accept its last metrics
_FAILED_DELIVERY_SECONDS = 10.0  # the same after a failed or interrupted training


def flat_params(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to MLflow parameters.

    Args:
        settings: settings by name, which may be nested.
        prefix: text to put before every name.

    Returns:
        Values as text by dotted name, without secrets and cut to 500 characters. Settings that are None are left out.
    """
    params: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            params |= flat_params(value, f"{prefix}{key}.")
        elif value is not None:
            clean = redacted(value, str(key))
            text = ", ".join(map(str, clean)) if isinstance(clean, list) else str(clean)
            params[_valid_name(f"{prefix}{key}")] = text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 1] + "…"
    return params


def code_tags(version: str) -> dict[str, str]:
    """Return the tags that say which code a run uses.

    Args:
        version: a git commit, with "+" at the end if files were changed after it, or the version of the package.

    Returns:
        Values of the tags by name. For a git commit, they include the two tags by which MLflow's web pages show a commit.
    """
    commit = version.removesuffix("+")
    if len(commit) < 40:  # a package version, not a commit
        return {"code": version}
    dirty = "true" if version.endswith("+") else "false"
    return {"code": version, "mlflow.source.git.commit": commit, "mlflow.source.git.dirty": dirty}


def _valid_name(name: str) -> str:
    """Replace the characters that MLflow does not allow in names by "_", and cut the name to 250 characters."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]


class MlflowRun(Run):
    """A run in an MLflow store, to which a pipeline or one of its stages logs. `interface.Run` describes the methods."""

    def __init__(self, tracker: "MlflowTracker", run_id: str) -> None:
        """Create the object for the run with the id `run_id`, which exists already in the store of `tracker`."""
        self.run_id = run_id
        self._tracker = tracker
        self._client = tracker.client

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Log `settings`, which may be nested, as parameters with dotted names.

        MLflow can't change a parameter. If a resumed run has another value for one, the new value becomes the tag `changed.NAME`.
        """
        from mlflow.entities import Param

        params = flat_params(settings)
        with self._tracker.user_errors():
            known = self._client.get_run(self.run_id).data.params
            new = [Param(name, value) for name, value in params.items() if name not in known]
            for chunk in chunks(new, _ITEMS_PER_REQUEST):
                self._client.log_batch(self.run_id, params=chunk)
        self.set_tags({f"changed.{name}": value for name, value in params.items() if known.get(name, value) != value})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run, given as values by name. Values are stored as text without secrets, cut to 5,000 characters."""
        from mlflow.entities import RunTag

        entities = [RunTag(_valid_name(name), without_secrets(str(value))[:_MAX_TAG]) for name, value in tags.items()]
        with self._tracker.user_errors():
            for chunk in chunks(entities, _ITEMS_PER_REQUEST):
                self._client.log_batch(self.run_id, tags=chunk)

    def describe(self, text: str) -> None:
        """Set the description of the run to `text` (Markdown), in place of the earlier description."""
        self.set_tags({NOTE: text})

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log the values of metrics, given by name, at the training step `step`. Values that are None are skipped."""
        now = time.time_ns() // 1_000_000
        points = [Point(name, float(value), step, now) for name, value in metrics.items() if value is not None]
        with self._tracker.user_errors():
            for chunk in chunks(points, POINTS_PER_REQUEST):
                self._send(chunk)

    def log_dict(self, value: Any, name: str) -> None:
        """Log a JSON-like value, without its secrets, as a JSON file at the path `name` among the run's artifacts."""
        self.log_bytes((json.dumps(redacted(value), indent=1) + "\n").encode(), name)

    def log_bytes(self, data: bytes, name: str) -> None:
        """Log a file, such as a PNG, with the content `data` at the path `name` among the run's artifacts."""
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary, self._tracker.user_errors():
            path = Path(temporary, file)
            path.write_bytes(data)
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_dataset(self, name: str, digest: str, source: str, splits: Mapping[str, int]) -> None:
        """Log which data set the run uses, and set the tag `data.digest`. The data themselves are not read.

        The data set has the path or URI `source` and the digest `digest`. Its number of images by split is `splits`.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        scheme = source.partition("://")[0]
        kind = scheme if storage.in_bucket(source) else "http" if source.startswith("http") else "local"
        entity = Dataset(
            name=name[:500],
            digest=digest[:36],
            source_type=kind,
            source=json.dumps({"url" if kind == "http" else "uri": without_secrets(source)}),
            profile=json.dumps({"splits": dict(splits), "images": sum(splits.values())}),
        )
        with self._tracker.user_errors():
            self._client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])
        self.set_tags({"data.digest": digest})

    @contextmanager
    def training_metrics(self) -> Iterator[ReportSink]:
        """Log the metrics that a training reports while a `with` block runs.

        The function that it yields takes the metrics of one training step. It writes them to a local file, and a thread sends
        them to MLflow. The end of the block waits up to 120 s (10 s after an error) for MLflow to accept the last metrics.
        Metrics that MLflow has not accepted by then are kept in the tracker's folder `spool_uri`, and a resumed run sends them.
        If that folder is temporary, they are lost, and a warning is logged.
        """
        folder = self._tracker.spool_uri
        with spool_file(storage.join(folder, f"{self.run_id}.jsonl") if folder else None) as file:
            spool = MetricSpool(file)
            delivery = SpoolDelivery(spool.file, self._send, self._last_steps)
            timeout = _FAILED_DELIVERY_SECONDS
            try:
                yield spool
                timeout = _DELIVERY_SECONDS
            finally:
                if not delivery.close(timeout):
                    fate = f"kept in {folder}" if folder else "lost"
                    logger.warning("MLflow did not accept the last metrics of %s; they are %s", self.run_id, fate)

    def history(self, names: Collection[str]) -> dict[str, Curve]:
        """Read the curves of the metrics `names` from this run. The result is `{metric: (steps, values)}`."""
        with self._tracker.user_errors():
            return run_history(self._client, self.run_id, names)

    def system_metrics(self) -> AbstractContextManager[None]:
        """Log the load of this machine (CPU, memory, disk, network, GPUs) every few seconds while a `with` block runs."""
        return system_metrics_logged(self, self._client)

    @contextmanager
    def stage(
        self, name: str, fingerprint: str = "", settings: Mapping[str, Any] = {}, title: str = "", tags: Mapping[str, Any] = {}
    ) -> Iterator["MlflowRun"]:
        """Open a run for the stage (step of the pipeline) `name`, below this run. At the end of the block, its status is set.

        An existing run with the same `name` and `fingerprint` (text that identifies the stage's code, settings and inputs) is
        resumed. MLflow shows a new run as `title`, or as `name` if `title` is "". The settings are logged as parameters, and the
        tags are set.
        """
        same = f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.stage = '{name}' and tags.fingerprint = '{fingerprint}'"
        tags = {**tags, "mlflow.parentRunId": self.run_id, "stage": name, "fingerprint": fingerprint}
        with self._tracker.running(title or name, self._tracker.find_run(same), tags) as run:
            run.log_params(settings)
            yield run

    def _send(self, points: Sequence[Point]) -> None:
        """Send points (values of metrics at one step) to MLflow for this run. Raise any exception that MLflow raises."""
        from mlflow.entities import Metric

        metrics = [Metric(_valid_name(point.key), point.value, point.time_ms, point.step) for point in points]
        self._client.log_batch(self.run_id, metrics=metrics)

    def _last_steps(self) -> dict[str, int]:
        """Return the last step at which each metric was logged to this run, by the name of the metric."""
        keys = self._client.get_run(self.run_id).data.metrics
        return {key: max(m.step for m in self._client.get_metric_history(self.run_id, key)) for key in keys}


class MlflowTracker(Tracker):
    """An experiment in an MLflow store, in which pipelines open their runs."""

    def __init__(self, uri: str, experiment: str, spool_uri: str | None = None) -> None:
        """Open the store, and create the experiment if it does not exist.

        Args:
            uri: URI of the MLflow store.
            experiment: name of the experiment.
            spool_uri: folder, local or in a bucket, for metrics that MLflow has not accepted yet. None for a temporary folder.

        Raises:
            UserError: if the store can't be used, or the experiment was deleted.
        """
        check_store(uri)
        from mlflow import MlflowClient

        self.uri = uri
        self.spool_uri = spool_uri
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        with self.user_errors():
            self.experiment_id = self._experiment(experiment)

    def _experiment(self, name: str) -> str:
        """Return the id of the experiment `name`, and create it if it does not exist. Raise UserError if it was deleted."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # A server chooses where artifacts are kept. With SQLite, MLflow's own default would be the current directory.
            database = sqlite_file(self.uri)
            artifacts = (database.parent / "artifacts").as_uri() if database else None
            return str(self.client.create_experiment(name, artifact_location=artifacts, tags=EXPERIMENT_TAGS))
        if found.lifecycle_stage != "active":
            raise UserError(
                f"MLflow's experiment {name} was deleted: choose another tracking.experiment, or bring it back by "
                f"`mlflow experiments restore -x {found.experiment_id}`"
            )
        for key in EXPERIMENT_TAGS.keys() - found.tags.keys():  # keep a description that a user wrote
            self.client.set_experiment_tag(found.experiment_id, key, EXPERIMENT_TAGS[key])
        return str(found.experiment_id)

    @contextmanager
    def user_errors(self) -> Iterator[None]:
        """Turn an exception of MLflow, or an OSError, in a `with` block into a UserError with a message of one sentence."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            raise UserError(f"MLflow's store {without_secrets(self.uri)} can't be used: {error_summary(error)}") from error

    @contextmanager
    def pipeline(
        self, name: str, settings: Mapping[str, Any], tags: Mapping[str, Any] = {}, resume_run_id: str | None = None
    ) -> Iterator[MlflowRun]:
        """Open the run of a pipeline. The run with the id `resume_run_id` is resumed if this experiment still has it.

        Otherwise, a run with the name `name` is created. The settings are logged as parameters and as the artifact settings.json,
        and the tags are set.
        """
        with self.running(name, self.find_run(f"attributes.run_id = '{resume_run_id or ''}'"), tags) as run:
            run.log_params(settings)
            run.log_dict(settings, "settings.json")
            yield run

    def find_run(self, condition: str) -> str | None:
        """Find a run of this experiment that was not deleted.

        Args:
            condition: filter in the syntax of `MlflowClient.search_runs`, such as "tags.name = 'value'".

        Returns:
            The id of the run, or None if there is none.

        Raises:
            UserError: if MLflow does not answer.
        """
        with self.user_errors():
            found = self.client.search_runs([self.experiment_id], condition, max_results=1)
        return str(found[0].info.run_id) if found else None

    @contextmanager
    def running(self, name: str, run_id: str | None, tags: Mapping[str, Any]) -> Iterator[MlflowRun]:
        """Keep a run open while a `with` block runs, and set its status at the end.

        The status is FINISHED (no exception), KILLED (Interrupted, Ctrl-C or SystemExit) or FAILED (any other exception).

        Args:
            name: name of the run if it is new.
            run_id: id of an existing run to resume. None to create a run.
            tags: tags to set. Tags that name the code, the command and the user are added.

        Yields:
            The run.

        Raises:
            UserError: if MLflow does not accept the run or its tags.
        """
        origin = {**code_tags(code_version()), "mlflow.source.type": "LOCAL", "mlflow.source.name": Path(sys.argv[0]).name}
        with suppress(OSError, KeyError):  # the user of a container may have no name
            origin["mlflow.user"] = getpass.getuser()
        with self.user_errors():
            if run_id is None:
                run_id = self.client.create_run(self.experiment_id, run_name=name).info.run_id
            else:
                self.client.update_run(run_id, status="RUNNING")
        run = MlflowRun(self, run_id)
        status = "FINISHED"
        try:
            run.set_tags({**origin, **tags})
            yield run
        except BaseException as error:
            failed = isinstance(error, Exception) and not isinstance(error, Interrupted)
            status = "FAILED" if failed else "KILLED"
            raise
        finally:
            try:
                with nullcontext() if status == "FINISHED" else short_timeouts():
                    self.client.set_terminated(run_id, status=status)
            except Exception as error:  # only logged, because the exception of the block matters more
                logger.warning("MLflow still shows run %s as running: %s", run_id, error_summary(error))
