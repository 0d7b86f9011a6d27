"""Choose the MLflow store, check before a run starts that it answers, and read training curves from it.

Importing this module does not import MLflow, but it sets environment variables and log levels that keep MLflow quiet.
"""

import logging
import os
import re
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from deconvnet.tracking.metric_spool import Curve
from infra import storage
from infra.errors import UserError
from infra.redaction import without_secrets
from infra.settings import absolute_location

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow would print two lines for each stage. The commands print only once how to open its pages.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
for _name in ("alembic", "mlflow.pyfunc", "mlflow.store.model_registry.abstract_store", "mlflow.system_metrics"):
    logging.getLogger(_name).setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs the exceptions that it raises

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 12.0
_OLDEST_VERSION = 3  # oldest major version of a server that can be used
_SQLITE = "sqlite:///"
_ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database that hold URIs of artifacts."""
_SHORT_TIMEOUTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}


def tracking_uri(workspace: str, configured: str | None = None) -> str:
    """Choose the URI of the MLflow store.

    The environment variable MLFLOW_TRACKING_URI comes first, then the setting `tracking.uri`. If neither is given, the store is a
    SQLite file in the workspace. If the variable overrides the store of the setting, or a store that exists in the workspace, a
    warning is logged once.

    Args:
        workspace: folder or bucket prefix of the pipeline run.
        configured: value of the setting `tracking.uri`, or None.

    Returns:
        The URI. A relative path in it is made absolute.

    Raises:
        UserError: if neither is given and the workspace is in a bucket, where a SQLite file can't be; or if the path is relative
            and this process is a Ray job, because the store would be deleted with the job's temporary copy of the project.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    own = "" if not workspace or storage.in_bucket(workspace) else f"{_SQLITE}{storage.absolute(workspace)}/mlflow/mlflow.db"
    if named:
        other = configured or (own if own and Path(own.removeprefix(_SQLITE)).exists() else "")
        if other and _absolute(other) != _absolute(named):
            _warn(f"MLFLOW_TRACKING_URI names the MLflow store {without_secrets(named)}: {without_secrets(other)} is not used")
    uri = named or configured or own
    if not uri:
        raise UserError(
            f"the workspace {workspace} can't hold MLflow's default SQLite file: name a tracking server "
            "(MLFLOW_TRACKING_URI or --tracking.uri), or `sqlite:////absolute/path/mlflow.db`"
        )
    if (path := uri.removeprefix(_SQLITE)) != uri or _is_path(uri):
        try:
            absolute_location(path)
        except ValueError:
            raise UserError(
                f"MLflow's store {uri} (MLFLOW_TRACKING_URI or tracking.uri) is relative, and this job runs in Ray's temporary "
                "copy of the project: name a tracking server, or give an absolute path that every node sees"
            ) from None
    return _absolute(uri)


@cache
def _warn(text: str) -> None:
    """Log a warning, but each text only once in a process."""
    logger.warning(text)


def _absolute(uri: str) -> str:
    """Make a relative path in the URI of an MLflow store absolute, and return the new URI."""
    if database := sqlite_file(uri):
        return f"{_SQLITE}{database}"
    return Path(uri).resolve().as_uri() if _is_path(uri) else uri


def _is_path(uri: str) -> bool:
    """Return whether the URI of an MLflow store is the path of a folder."""
    return "://" not in uri and uri != "databricks"


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of the database file that a `sqlite:///` URI names, or None for any other URI."""
    return Path(uri.removeprefix(_SQLITE)).absolute() if uri.startswith(_SQLITE) else None


def check_store(uri: str) -> None:
    """Check that the MLflow store answers. A server must answer within 12 seconds, and have version 3 or newer.

    If the store is a SQLite file, its folder and the database are created if they are missing. If the folder was moved or
    copied, the absolute paths in the database are corrected.

    Args:
        uri: URI of the store, from `tracking_uri`.

    Raises:
        UserError: if the store can't be used.
    """
    database = sqlite_file(uri)
    if database:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't make the folder of MLflow's SQLite file {database}: {error.strerror}") from None
        _correct_moved_paths(database)
    # MLflow creates the tables of a new SQLite file. If two processes do so at once, one of them fails.
    one_by_one = storage.one_process_at_a_time(database) if database and os.access(database.parent, os.W_OK) else nullcontext()
    failed: list[Exception] = []

    def query() -> None:
        """Ask the store for one experiment. If this raises an exception, append the exception to the list `failed`."""
        from mlflow import MlflowClient

        try:
            MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
            _check_version(uri)
        except Exception as error:
            failed.append(error)

    # The query runs in a thread, because resolving a host name can hang for longer than any HTTP timeout.
    thread = threading.Thread(target=query, daemon=True)
    with short_timeouts(), one_by_one:
        thread.start()
        thread.join(None if database else _CHECK_SECONDS)
    if failed and isinstance(failed[0], UserError):
        raise failed[0]
    if thread.is_alive() or failed:
        reason = error_summary(failed[0]) if failed else f"no answer within {_CHECK_SECONDS:.0f} s"
        raise UserError(
            f"MLflow's store {without_secrets(uri)} can't be used: {reason}. Start it, or correct MLFLOW_TRACKING_URI "
            "(or tracking.uri); without either, runs are kept in the workspace"
        )


def _check_version(uri: str) -> None:
    """Check that an MLflow server is new enough, if it tells its version.

    Servers before version 3 have no logged models, so the last stage of a pipeline would fail.

    Args:
        uri: URI of the store. Other stores than servers are not checked.

    Raises:
        UserError: if the server is too old.
    """
    if not uri.startswith(("http://", "https://")):
        return
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    version = None
    with suppress(MlflowException):  # a proxy may hide this page
        answer = http_request(get_default_host_creds(uri), "/version", "GET", timeout=3)
        version = re.match(r"(\d+)\.\d[\w.]*$", answer.text.strip()) if answer.ok else None
    if version and int(version[1]) < _OLDEST_VERSION:
        raise UserError(
            f"MLflow's server at {without_secrets(uri)} has version {version[0]}, and {_OLDEST_VERSION} or newer is needed: "
            "upgrade it, or correct MLFLOW_TRACKING_URI (or tracking.uri)"
        )


def _correct_moved_paths(database: Path) -> None:
    """Correct the paths in a SQLite store whose folder was moved or copied.

    MLflow stores the absolute paths of all artifacts. This program keeps the artifacts in a folder beside the database, so that
    both are moved together. If the user keeps the artifacts of an experiment elsewhere, the experiment's paths are not changed.
    If the database can't be changed, a warning is logged.

    Args:
        database: absolute path of the SQLite file. It need not exist.
    """
    here = database.parent / "artifacts"
    if not database.exists() or not here.is_dir():
        return
    experiments = "select distinct artifact_location from experiments where artifact_location like 'file://%/artifacts'"
    try:
        with closing(sqlite3.connect(database)) as connection, connection:
            for (uri,) in connection.execute(experiments).fetchall():
                there = Path(unquote(urlsplit(uri).path))
                moved = not there.exists() or ((there.parent / database.name).is_file() and not there.samefile(here))
                inside = connection.execute("select artifact_uri from runs where substr(artifact_uri, 1, ?) = ?", (len(uri), uri))
                if moved and any((here / unquote(run[len(uri) + 1 :])).exists() for (run,) in inside):
                    logger.info("MLflow's files were moved from %s to %s: the paths in %s are corrected", there, here, database)
                    for table, column in _ARTIFACT_COLUMNS:
                        connection.execute(
                            f"update {table} set {column} = ? || substr({column}, ?) where substr({column} || '/', 1, ?) = ?",
                            (here.as_uri(), len(uri) + 1, len(uri) + 1, f"{uri}/"),
                        )
    except sqlite3.Error as error:  # no database, which is reported later, or one that can't be written to
        logger.warning("the paths in MLflow's store %s can't be corrected, if it was moved: %s", database, error)


def model_store(workspace: str | None, uri: str | None) -> str:
    """Choose the MLflow store in which a model is registered, and check that it answers.

    Args:
        workspace: folder or bucket prefix of the pipeline run that registered the model. None if it is not given.
        uri: value of the setting `tracking.uri`, or None.

    Returns:
        URI of the store. It comes from the environment variable MLFLOW_TRACKING_URI if this is set, else from `uri`. If both are
        missing, the store is the SQLite file in the workspace.

    Raises:
        UserError: if neither the arguments nor MLFLOW_TRACKING_URI name a store, or if the store does not exist or does not
            answer.
    """
    if not (workspace or uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise UserError(
            "where is the model registered? Name the pipeline's workspace (--workspace runs/quickstart), or MLflow's server "
            "(MLFLOW_TRACKING_URI or --tracking.uri)"
        )
    store = tracking_uri(workspace or "", uri)
    if (database := sqlite_file(store)) and not database.exists():
        raise UserError(f"there is no MLflow store {store}: name the workspace of a pipeline that has run, or MLflow's server")
    check_store(store)
    return store


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Make MLflow's HTTP requests in a `with` block fail within seconds. By default, MLflow repeats them for minutes.

    The timeouts are environment variables of the process. Their earlier values are restored at the end.
    """
    before = {name: os.environ.get(name) for name in _SHORT_TIMEOUTS}
    os.environ.update(_SHORT_TIMEOUTS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def error_summary(error: BaseException) -> str:
    """Summarise an exception of MLflow in one line of at most 300 characters, without secrets."""
    if cause := re.search(r"Max retries exceeded.*Caused by (\w+)", str(error), re.DOTALL):
        return f"it can't be reached ({cause[1]})"
    if "disk is full" in str(error):
        return "its disk is full: make room"
    return without_secrets(next(iter(str(error).splitlines()), "") or type(error).__name__)[:300]


def stage_histories(
    client: "MlflowClient", parent_run_id: str, stages: Iterable[str], names: Collection[str]
) -> dict[str, dict[str, Curve]]:
    """Read the curves of metrics that the stages of a pipeline have logged step by step.

    Args:
        client: client of the MLflow store.
        parent_run_id: id of the pipeline's run.
        stages: names of the stages. For each, its newest finished run is read.
        names: names of the metrics.

    Returns:
        Curves as `{stage: {metric: (steps, values)}}`. Stages and metrics without values are left out.

    Raises:
        MlflowException: if the store can't be read.
    """
    experiment = client.get_run(parent_run_id).info.experiment_id
    histories = {}
    for stage in stages:
        runs = client.search_runs(
            [experiment],
            f"tags.`mlflow.parentRunId` = '{parent_run_id}' and tags.stage = '{stage}' and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        if runs and (history := run_history(client, runs[0].info.run_id, names)):
            histories[stage] = history
    return histories


def run_history(client: "MlflowClient", run_id: str, names: Collection[str]) -> dict[str, Curve]:
    """Read the curves of metrics that one run has logged step by step.

    Args:
        client: client of the MLflow store.
        run_id: id of the run.
        names: names of the metrics.

    Returns:
        Curves as `{metric: (steps, values)}`. Metrics that were not logged are left out.

    Raises:
        MlflowException: if the store can't be read.
    """
    known = client.get_run(run_id).data.metrics
    history = {}
    for name in names:
        if name in known:
            points = sorted(client.get_metric_history(run_id, name), key=lambda point: point.step)
            history[name] = ([point.step for point in points], [point.value for point in points])
    return history
