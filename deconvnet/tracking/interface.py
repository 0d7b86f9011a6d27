"""What pipelines need of an experiment tracker, and a tracker that logs nothing. Importing this module imports no MLflow.

`open_tracker` chooses: MLflow (`mlflow_runs.py`), or with `tracking.enabled false` the `NullTracker` of this file.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from deconvnet.tracking.metric_spool import Line, MetricSpool, local_folder, read_spool
from deconvnet.tracking.store import check_store, error_summary, stage_histories
from infra import storage
from infra.errors import UserError

if TYPE_CHECKING:
    pass

CURVES_FOLDER = "curves"
"""Folder of a workspace in which the metrics of its trainings are kept when tracking is switched off."""

ReportSink = Callable[[Mapping[str, Any]], None]
"""Takes the metrics of one training step, with the step as "step". It can be pickled, returns at once and never raises."""


class Run(Protocol):
    """A run that is being logged: that of a pipeline, or that of a stage below it.

    The methods raise UserError if the tracker does not accept what they log.
    """

    @property
    def run_id(self) -> str:
        """Id of the run in the tracker; "" if it has none."""

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Log settings as parameters.

        Args:
            settings: nested settings; parameters get dotted names (`train.stage1.lr`), secrets are hidden.
        """

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run, replacing earlier ones of the same name.

        Args:
            tags: values by name; they are stored as text, secrets are removed.
        """

    def describe(self, text: str) -> None:
        """Set the run's description.

        Args:
            text: Markdown; replaces the earlier description.
        """

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log numbers at a step.

        Args:
            metrics: values by name; None, such as the IoU of a class that does not occur, is skipped.
            step: position on the metrics' horizontal axis.
        """

    def log_dict(self, value: Any, name: str) -> None:
        """Log a value as a JSON file.

        Args:
            value: a JSON-like value; secrets in it are hidden.
            name: path of the file among the run's artifacts.
        """

    def log_bytes(self, data: bytes, name: str) -> None:
        """Log a file, such as a PNG.

        Args:
            data: content of the file.
            name: path of the file among the run's artifacts.
        """

    def log_dataset(self, name: str, digest: str, source: str, splits: Mapping[str, int]) -> None:
        """Log which data set the run used; no data is read.

        Args:
            name: name of the data set.
            digest: digest of its content.
            source: path or URI it was read from.
            splits: number of images by split.
        """

    def training_metrics(self) -> AbstractContextManager[ReportSink]:
        """Log the metrics that a training reports, for the time of a block.

        Returns:
            A context manager that gives a function to call with the metrics of each reported step (see `ReportSink`).
        """

    def history(self, names: Collection[str]) -> dict[str, Line]:
        """Read metrics of this run that were logged by step.

        Args:
            names: names of the metrics.

        Returns:
            Steps and values by name; metrics that were not logged are left out.
        """

    def system_metrics(self) -> AbstractContextManager[None]:
        """Log the load of this machine (CPU, memory, disk, network, GPUs) every few seconds, for the time of a block."""

    def stage(
        self,
        name: str,
        fingerprint: str = "",
        settings: Mapping[str, Any] | None = None,
        title: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> AbstractContextManager["Run"]:
        """Open a run below this one for a stage. An earlier run of the same name and fingerprint is resumed.

        Args:
            name: name of the stage.
            fingerprint: identifies the stage's code, settings and inputs.
            settings: logged as parameters.
            title: name of the run as shown; None: the stage's name.
            tags: further tags.

        Returns:
            A context manager that gives the stage's run, and marks it as finished, failed or killed at the end of the block.
        """

    def stage_histories(self, stages: Iterable[str], names: Collection[str]) -> dict[str, dict[str, Line]]:
        """Read metrics of stages of this pipeline that were logged by step.

        Args:
            stages: names of the stages; of each the newest finished run is read.
            names: names of the metrics.

        Returns:
            Steps and values by stage and metric; what was not logged is left out.
        """


class Tracker(Protocol):
    """Opens the runs of pipelines."""

    def pipeline(
        self, name: str, settings: Mapping[str, Any], tags: Mapping[str, Any] | None = None, resume_run_id: str | None = None
    ) -> AbstractContextManager[Run]:
        """Open the run of a pipeline.

        Args:
            name: name of the run as shown.
            settings: all settings, logged as parameters and as the artifact settings.json.
            tags: further tags.
            resume_run_id: run to resume, if the tracker still has it; None starts a new one.
        """


def read_histories(
    workspace: str, store: str, run_id: str | None, stages: Iterable[str], names: Collection[str]
) -> dict[str, dict[str, Line]]:
    """Read the training metrics of a finished or interrupted pipeline.

    Args:
        workspace: folder or s3:// prefix of the pipeline run; read for stages that were not tracked.
        store: URI of the MLflow store.
        run_id: MLflow run of the pipeline; None or "" if it was not tracked, then MLflow is not imported.
        stages: names of training stages.
        names: metrics.

    Returns:
        Curves by stage and metric; those that are not there are left out.

    Raises:
        UserError: if the MLflow store can't be read.
    """
    histories = _workspace_histories(workspace, stages, names)
    if run_id:
        check_store(store)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            histories |= stage_histories(MlflowClient(tracking_uri=store), run_id, stages, names)
        except MlflowException as error:
            raise UserError(f"MLflow has no training curves of {workspace}: {error_summary(error)}") from None
    return {stage: histories[stage] for stage in stages if stage in histories}


def _workspace_histories(workspace: str, stages: Iterable[str], names: Collection[str]) -> dict[str, dict[str, Line]]:
    """Read the training metrics that runs without tracking left in the workspace."""
    histories = ((stage, NullRun(workspace, stage).history(names)) for stage in stages)
    return {stage: history for stage, history in histories if history}


class NullRun:
    """A run that logs nothing (see `Run`). Only training metrics are kept, in the workspace, for the report's curves."""

    def __init__(self, workspace: str, stage: str = "", fingerprint: str = "", run_id: str = "") -> None:
        """Describe the run.

        Args:
            workspace: folder or s3:// prefix of the pipeline run.
            stage: name of the stage, "" for the run of the whole pipeline.
            fingerprint: identifies the stage's code, settings and inputs.
            run_id: id of the tracked run that this one continues without tracking, "" if there is none.
        """
        self._workspace = workspace
        self._stage = stage
        self._fingerprint = fingerprint
        self._run_id = run_id

    @property
    def run_id(self) -> str:
        """Id of the tracked run that this one continues, or ""."""
        return self._run_id

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Ignore the settings."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Ignore the tags."""

    def describe(self, text: str) -> None:
        """Ignore the description."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Ignore the metrics."""

    def log_dict(self, value: Any, name: str) -> None:
        """Ignore the value."""

    def log_bytes(self, data: bytes, name: str) -> None:
        """Ignore the file."""

    def log_dataset(self, name: str, digest: str, source: str, splits: Mapping[str, int]) -> None:
        """Ignore the data set."""

    @contextmanager
    def training_metrics(self) -> Iterator[ReportSink]:
        """Open a sink that keeps the metrics of a training in the workspace, in `curves/STAGE.jsonl`."""
        with local_folder(storage.join(self._workspace, CURVES_FOLDER)) as folder:
            yield MetricSpool((folder / f"{self._stage}.jsonl").absolute(), self._fingerprint)

    def history(self, names: Collection[str]) -> dict[str, Line]:
        """Read the kept values of these metrics by step."""
        try:
            data = storage.read_bytes(storage.join(self._workspace, CURVES_FOLDER, f"{self._stage}.jsonl"))
        except FileNotFoundError:
            return {}
        return read_spool(data, names)

    def system_metrics(self) -> AbstractContextManager[None]:
        """Return a context manager that does nothing."""
        return nullcontext()

    @contextmanager
    def stage(
        self,
        name: str,
        fingerprint: str = "",
        settings: Mapping[str, Any] | None = None,
        title: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> Iterator["NullRun"]:
        """Open the run of a stage; only its name and fingerprint matter."""
        yield NullRun(self._workspace, name, fingerprint)

    def stage_histories(self, stages: Iterable[str], names: Collection[str]) -> dict[str, dict[str, Line]]:
        """Return the training metrics kept in the workspace."""
        return _workspace_histories(self._workspace, stages, names)


class NullTracker:
    """A tracker that logs nothing (see `Tracker`): used with `tracking.enabled false`."""

    def __init__(self, workspace: str) -> None:
        """Use `workspace` (folder or s3:// prefix) for the metrics of trainings."""
        self._workspace = workspace

    @contextmanager
    def pipeline(
        self, name: str, settings: Mapping[str, Any], tags: Mapping[str, Any] | None = None, resume_run_id: str | None = None
    ) -> Iterator[NullRun]:
        """Open the run of a pipeline. It keeps `resume_run_id`, so that a later run with tracking can resume that run."""
        yield NullRun(self._workspace, run_id=resume_run_id or "")
