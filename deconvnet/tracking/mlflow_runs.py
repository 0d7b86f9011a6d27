"""MLflow: a parent run for a pipeline, a child for each stage. Only the driver's process logs.

Nothing here uses MLflow's global state (active run, current store), so threads and several stores get along. Names of users, passwords
and queries of URIs never reach the store or a message.
"""

import getpass
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deconvnet.tracking.code_version import code_tags, code_version
from deconvnet.tracking.run_notes import EXPERIMENT_TAGS, NOTE
from infra import storage
from infra.errors import Interrupted, UserError

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a run tells nobody but its own store
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault(
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"
)  # two lines a stage; the door says once where the pages are
for _chatty in ("alembic", "mlflow.pyfunc", "mlflow.store.model_registry.abstract_store"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs by traceback what it raises, too

if TYPE_CHECKING:
    from deconvnet.tracking.metric_spool import Point, SpoolCallback

log = logging.getLogger(__name__)
AnyRun = TypeVar("AnyRun", bound="Run")

MAX_PARAM = 500  # characters; what every MLflow server takes. settings.json has the whole
CHECK_SECONDS = 12.0
DELIVERY_SECONDS = 120.0  # how long a finished training waits for MLflow to take its last metrics
SECRET_KEY = re.compile(r"password|passwd|secret|token|credential|api_?key|access_?key", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """`text` with the user, password, query and fragment of every URI in it left out."""
    text = re.sub(r"(?<=://)[^/\s@]*@(?=[^\s])", "", text)
    return re.sub(r"(\w://[^\s?#'\"]*)[?#][^\s'\"]*", r"\1", text)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow params: dotted names, text values without secrets, at most MAX_PARAM long; unset ones left out."""
    params: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            params |= flat(value, f"{name}.")
        elif value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            text = "***" if SECRET_KEY.search(str(key)) else without_secrets(text)
            params[_key(name)] = text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 1] + "…"
    return params


def cleaned(value: Any) -> Any:
    """A JSON-able value without secrets."""
    if isinstance(value, Mapping):
        return {k: "***" if v is not None and SECRET_KEY.search(str(k)) else cleaned(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(v) for v in value]
    return without_secrets(value) if isinstance(value, str) else value


def _key(name: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", name)[:250]


def tracking_uri(workspace: str, configured: str | None = None) -> str:
    """The store: MLFLOW_TRACKING_URI, else `configured`, else SQLite in `workspace`. Paths in it are made absolute.

    Raises UserError for a workspace on S3 and no server.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or configured
    if not uri:
        if storage.is_s3(workspace):
            raise UserError(
                f"the workspace {workspace} can't hold MLflow's default SQLite file: name a tracking server "
                "(MLFLOW_TRACKING_URI or --tracking.uri), or `sqlite:////absolute/path/mlflow.db`"
            )
        uri = f"sqlite:///{storage.absolute(workspace)}/mlflow/mlflow.db"
    if database := _sqlite_file(uri):
        return f"sqlite:///{database}"
    return uri if "://" in uri or uri == "databricks" else Path(uri).resolve().as_uri()


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


@contextmanager
def _impatient() -> Iterator[None]:
    """MLflow's HTTP calls give up within seconds; by default they go on for minutes."""
    short = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    }
    before = {name: os.environ.get(name) for name in short}
    os.environ.update(short)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def first_line(error: BaseException) -> str:
    """What an exception of MLflow says, in a line without secrets."""
    if cause := re.search(r"Max retries exceeded.*Caused by (\w+)", str(error), re.DOTALL):
        return f"it can't be reached ({cause[1]})"
    if "disk is full" in str(error):
        return "its disk is full: make room"
    return without_secrets(next(iter(str(error).splitlines()), "") or type(error).__name__)[:300]


def check(uri: str) -> None:
    """Raises UserError within 15 s where the store at `uri` can't be used. Makes the folder of a SQLite file."""
    if database := _sqlite_file(uri):
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't make the folder of MLflow's SQLite file {database}: {error.strerror}") from None
    failed: list[Exception] = []

    def ask() -> None:
        from mlflow import MlflowClient

        try:
            MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
        except Exception as error:
            failed.append(error)

    asking = threading.Thread(target=ask, daemon=True)  # looking a host's name up can hang for longer than any HTTP timeout
    with _impatient():
        asking.start()
        asking.join(None if database else CHECK_SECONDS)
    if asking.is_alive() or failed:
        why = first_line(failed[0]) if failed else f"no answer within {CHECK_SECONDS:.0f} s"
        raise UserError(
            f"MLflow's store {without_secrets(uri)} can't be used: {why} — start it, or correct MLFLOW_TRACKING_URI (or tracking.uri); "
            "without either, runs are kept in the workspace"
        )


class Run:
    """One MLflow run that is being written. Its methods raise UserError where the store doesn't take what they bring."""

    def __init__(self, tracker: "Tracker", run_id: str) -> None:
        self.tracker = tracker
        self.run_id = run_id
        self._client = tracker.client

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Nested settings as params. One that was logged with another value (the run was continued) becomes a tag `changed.<name>`."""
        from mlflow.entities import Param

        params = flat(settings)
        with self.tracker.clear():
            known = self._client.get_run(self.run_id).data.params
            new = [Param(k, v) for k, v in params.items() if k not in known]
            for i in range(0, len(new), 100):
                self._client.log_batch(self.run_id, params=new[i : i + 100])
        self.set_tags({f"changed.{k}": v for k, v in params.items() if known.get(k, v) != v})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Tags, as text without secrets."""
        from mlflow.entities import RunTag

        with self.tracker.clear():
            made = [RunTag(_key(k), without_secrets(str(v))[:5000]) for k, v in tags.items()]
            for i in range(0, len(made), 100):
                self._client.log_batch(self.run_id, tags=made[i : i + 100])

    def describe(self, text: str) -> None:
        """The run's description on MLflow's pages, Markdown."""
        self.set_tags({NOTE: text})

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Numbers at `step`; None (a class without an IoU) is left out."""
        from deconvnet.tracking.metric_spool import Point

        now = time.time_ns() // 1_000_000
        points = [Point(k, float(v), step, now) for k, v in metrics.items() if v is not None]
        with self.tracker.clear():
            for i in range(0, len(points), 500):
                self._send(points[i : i + 500])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A local file, or a folder with all in it, below `folder` of the run's artifacts."""
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        with self.tracker.clear():
            send(self.run_id, str(path), folder)

    def log_dict(self, value: Any, name: str) -> None:
        """A JSON-able value as the artifact `name` (…json), without secrets."""
        with self.tracker.clear():
            self._client.log_text(self.run_id, json.dumps(cleaned(value), indent=1) + "\n", name)

    def log_text(self, text: str, name: str) -> None:
        """Text as the artifact `name`."""
        with self.tracker.clear():
            self._client.log_text(self.run_id, text, name)

    def log_figure(self, png: bytes, name: str) -> None:
        """A PNG (of deconvnet.reporting.panels, say) as the artifact `name`, shown by MLflow's pages."""
        import tempfile

        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as made, self.tracker.clear():
            path = Path(made, file)
            path.write_bytes(png)
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_dataset(self, name: str, digest: str, source: str, splits: Mapping[str, int], context: str = "training") -> None:
        """The data set that the run read: its content's digest, where it came from, and photographs by split. No data is read."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = "s3" if storage.is_s3(source) else "http" if source.startswith("http") else "local"
        entity = Dataset(
            name=name[:500],
            digest=digest[:36],
            source_type=kind,
            source=json.dumps({"url" if kind == "http" else "uri": without_secrets(source)}),
            profile=json.dumps({"splits": dict(splits), "photographs": sum(splits.values())}),
        )
        with self.tracker.clear():
            self._client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])
        self.set_tags({"data.digest": digest})

    @contextmanager
    def curves(self, folder: Path) -> Iterator["SpoolCallback"]:
        """For the time of a training: a Ray Train callback whose reports become this run's curves, by their "step".

        `folder` (local, in the workspace) keeps metrics that MLflow has not taken yet; after a killed run the same folder sends them.
        """
        from deconvnet.tracking.metric_spool import Delivery, SpoolCallback

        folder.mkdir(parents=True, exist_ok=True)
        spool = folder.resolve() / f"{self.run_id}.jsonl"
        delivery = Delivery(spool, self._send, self._last_steps)
        patience = 10.0  # of who is interrupted or has failed
        try:
            yield SpoolCallback(spool)
            patience = DELIVERY_SECONDS
        finally:
            if not delivery.close(patience):
                log.warning("MLflow did not take the last metrics of %s; they are kept in %s", self.run_id, spool)

    def _send(self, points: "Sequence[Point]") -> None:
        from mlflow.entities import Metric

        self._client.log_batch(self.run_id, metrics=[Metric(_key(p.key), p.value, p.time_ms, p.step) for p in points])

    def _last_steps(self) -> dict[str, int]:
        keys = self._client.get_run(self.run_id).data.metrics
        return {k: max(m.step for m in self._client.get_metric_history(self.run_id, k)) for k in keys}


class PipelineRun(Run):
    """The parent run."""

    @contextmanager
    def stage(
        self,
        name: str,
        fingerprint: str = "",
        settings: Mapping[str, Any] | None = None,
        title: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> Iterator[Run]:
        """A child run for a stage, called `title` (or its name). One of this name and fingerprint that was begun before is gone on with."""
        with self.tracker.clear():
            found = self._client.search_runs(
                [self.tracker.experiment_id],
                f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.stage = '{name}' and tags.fingerprint = '{fingerprint}'",
                max_results=1,
            )
        tags = {**(tags or {}), "mlflow.parentRunId": self.run_id, "stage": name, "fingerprint": fingerprint}
        with self.tracker.running(title or name, found[0].info.run_id if found else None, tags, Run) as run:
            run.log_params(settings or {})
            yield run


class Tracker:
    """The runs of one experiment in the store at `uri`. Raises UserError where it can't be used (see `check`)."""

    def __init__(self, uri: str, experiment: str) -> None:
        check(uri)
        from mlflow import MlflowClient

        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        with self.clear():
            self.experiment_id = self._experiment(experiment)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            database = _sqlite_file(self.uri)
            # A server says where artifacts go. Beside SQLite MLflow's own default is the current directory.
            where = (database.parent / "artifacts").as_uri() if database else None
            return str(self.client.create_experiment(name, artifact_location=where, tags=EXPERIMENT_TAGS))
        if found.lifecycle_stage != "active":
            raise UserError(
                f"MLflow's experiment {name} was deleted: choose another tracking.experiment, or bring it back by "
                f"`mlflow experiments restore -x {found.experiment_id}`"
            )
        for key in EXPERIMENT_TAGS.keys() - found.tags.keys():  # what a person wrote stays
            self.client.set_experiment_tag(found.experiment_id, key, EXPERIMENT_TAGS[key])
        return str(found.experiment_id)

    @contextmanager
    def clear(self) -> Iterator[None]:
        """MLflow's errors, as a sentence."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            raise UserError(f"MLflow's store {without_secrets(self.uri)} didn't take it: {first_line(error)}") from error

    @contextmanager
    def pipeline(
        self, name: str, settings: Mapping[str, Any], tags: Mapping[str, Any] | None = None, resume_run_id: str | None = None
    ) -> Iterator[PipelineRun]:
        """The parent run; with `resume_run_id` that run is gone on with, if the store still has it."""
        with self.running(name, self._if_there(resume_run_id), dict(tags or {}), PipelineRun) as run:
            run.log_params(settings)
            run.log_dict(settings, "settings.json")
            yield run

    def _if_there(self, run_id: str | None) -> str | None:
        from mlflow.exceptions import MlflowException

        if not run_id:
            return None
        try:
            info = self.client.get_run(run_id).info
        except MlflowException:
            return None
        return run_id if info.lifecycle_stage == "active" and info.experiment_id == self.experiment_id else None

    @contextmanager
    def running(
        self, name: str, run_id: str | None, tags: Mapping[str, Any], kind: Callable[["Tracker", str], AnyRun]
    ) -> Iterator[AnyRun]:
        """A run for the time of a block: FINISHED at its end, FAILED by an exception, KILLED by an interruption (`Interrupted`, Ctrl-C, SystemExit)."""
        about = {**code_tags(code_version()), "mlflow.source.type": "LOCAL", "mlflow.source.name": Path(sys.argv[0]).name}
        with suppress(OSError, KeyError):  # a container's user need not have a name
            about["mlflow.user"] = getpass.getuser()
        with self.clear():
            if run_id is None:
                run_id = self.client.create_run(self.experiment_id, run_name=name).info.run_id
            else:
                self.client.update_run(run_id, status="RUNNING")
        run = kind(self, run_id)
        status = "FINISHED"
        try:
            run.set_tags({**about, **tags})
            yield run
        except BaseException as error:
            failed = isinstance(error, Exception) and not isinstance(error, Interrupted)
            status = "FAILED" if failed else "KILLED"
            raise
        finally:
            try:
                with nullcontext() if status == "FINISHED" else _impatient():
                    self.client.set_terminated(run_id, status=status)
            except Exception as error:  # the run's own exception says more
                log.warning("MLflow still shows run %s as running: %s", run_id, first_line(error))
