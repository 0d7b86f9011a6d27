"""Define the interface between pipelines and an experiment tracker, and a tracker that logs nothing.

`deconvnet.tracking.open_tracker` returns the tracker that the settings ask for: that of `mlflow_runs.py`, or the `NullTracker` of
this file if `tracking.enabled` is false. Importing this module does not import MLflow.

A pipeline consists of stages, which are named steps such as training FCN-8s. The tracker has one run for the pipeline, and below
it one run for each stage. A workspace is the folder or s3:// prefix that holds everything a pipeline run writes.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from deconvnet.tracking.metric_spool import Line, MetricSpool, local_folder, read_spool
from deconvnet.tracking.store import check_store, error_summary, stage_histories
from infra import storage
from infra.errors import UserError

CURVES_FOLDER = "curves"
"""Folder in the workspace that holds the training metrics if tracking is switched off."""

ReportSink = Callable[[Mapping[str, Any]], None]
"""A function that takes the metrics of one training step by name, with the number of the step as "step".

It can be pickled, returns at once and never raises.
"""


class Run(Protocol):
    """A run in the experiment tracker, to which a pipeline or one of its stages (steps) is logged.

    All methods that log raise UserError if the tracker does not accept the data.
    """

    @property
    def run_id(self) -> str:
        """Return the id of the run in the tracker, or "" if it has none."""

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Log settings as parameters of the run.

        Args:
            settings: settings by name, which may be nested. Parameters get dotted names (`train.stage1.lr`). Secrets are hidden.
        """

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run. A tag replaces an earlier one of the same name.

        Args:
            tags: values by name. They are stored as text, and secrets are removed.
        """

    def describe(self, text: str) -> None:
        """Set the description of the run to `text` (Markdown), in place of the earlier description."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log the values of metrics at one step.

        Args:
            metrics: values by name. None is skipped: it stands for a value that does not exist, such as the IoU of a class that
                no image shows.
            step: position on the horizontal axis of the metrics' curves.
        """

    def log_dict(self, value: Any, name: str) -> None:
        """Log a value as a JSON file among the run's artifacts.

        Args:
            value: a JSON-like value. Secrets in it are hidden.
            name: path of the file among the artifacts.
        """

    def log_bytes(self, data: bytes, name: str) -> None:
        """Log a file, such as a PNG, among the run's artifacts.

        Args:
            data: content of the file.
            name: path of the file among the artifacts.
        """

    def log_dataset(self, name: str, digest: str, source: str, splits: Mapping[str, int]) -> None:
        """Log which data set the run uses. The data themselves are not read.

        Args:
            name: name of the data set.
            digest: digest of the content of the data set.
            source: path or URI of the data set.
            splits: number of images in each split, by the name of the split.
        """

    def training_metrics(self) -> AbstractContextManager[ReportSink]:
        """Log the metrics that a training reports while a `with` block runs.

        Returns:
            A context manager. It provides a function that the training calls with the metrics of each step (see `ReportSink`).
        """

    def history(self, names: Collection[str]) -> dict[str, Line]:
        """Read the curves of metrics that were logged to this run step by step.

        Args:
            names: names of the metrics.

        Returns:
            Curves as `{metric: (steps, values)}`. Metrics that were not logged are left out.
        """

    def system_metrics(self) -> AbstractContextManager[None]:
        """Log the load of this machine (CPU, memory, disk, network, GPUs) every few seconds while a `with` block runs."""

    def stage(
        self,
        name: str,
        fingerprint: str = "",
        settings: Mapping[str, Any] | None = None,
        title: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> AbstractContextManager["Run"]:
        """Open a run for a stage (a step of the pipeline, such as training FCN-8s), below this run.

        If this pipeline already has a run for the stage with the same fingerprint, that run is resumed.

        Args:
            name: name of the stage.
            fingerprint: text that identifies the stage's code, settings and inputs.
            settings: settings of the stage, logged as parameters.
            title: name under which the tracker shows the run. None for the name of the stage.
            tags: further tags of the run.

        Returns:
            A context manager that provides the run of the stage. At its end, the run is marked as finished, failed or killed.
        """

    def stage_histories(self, stages: Iterable[str], names: Collection[str]) -> dict[str, dict[str, Line]]:
        """Read the curves of metrics that stages of this pipeline have logged step by step.

        Args:
            stages: names of the stages. For each, its newest finished run is read.
            names: names of the metrics.

        Returns:
            Curves as `{stage: {metric: (steps, values)}}`. Stages and metrics that were not logged are left out.
        """


class Tracker(Protocol):
    """An experiment tracker, in which pipelines open their runs."""

    def pipeline(
        self, name: str, settings: Mapping[str, Any], tags: Mapping[str, Any] | None = None, resume_run_id: str | None = None
    ) -> AbstractContextManager[Run]:
        """Open the run of a pipeline.

        Args:
            name: name under which the tracker shows the run.
            settings: all settings of the pipeline. They are logged as parameters and as the artifact settings.json.
            tags: further tags of the run.
            resume_run_id: id of the run to resume. None, or the id of a run that the tracker no longer has, starts a new run.

        Returns:
            A context manager that provides the run. At its end, the run is marked as finished, failed or killed.
        """


def read_histories(
    workspace: str, store: str, run_id: str | None, stages: Iterable[str], names: Collection[str]
) -> dict[str, dict[str, Line]]:
    """Read the training curves of a pipeline run, even if the run was interrupted.

    Curves in MLflow take precedence over those that runs without tracking left in the workspace.

    Args:
        workspace: folder or s3:// prefix of the pipeline run.
        store: URI of the MLflow store.
        run_id: id of the pipeline's run in MLflow. None or "" if it was not tracked: then MLflow is not imported.
        stages: names of the training stages.
        names: names of the metrics.

    Returns:
        Curves as `{stage: {metric: (steps, values)}}`. Stages and metrics without values are left out.

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
    """Read the training curves that runs without tracking left in the workspace.

    Args:
        workspace: folder or s3:// prefix of the pipeline run.
        stages: names of the training stages.
        names: names of the metrics.

    Returns:
        Curves as `{stage: {metric: (steps, values)}}`. Stages and metrics without values are left out.
    """
    histories = ((stage, NullRun(workspace, stage).history(names)) for stage in stages)
    return {stage: history for stage, history in histories if history}


class NullRun:
    """A run that logs nothing, with the methods of `Run`.

    Only training metrics are kept: they go to a file in the workspace, because the report draws their curves.
    """

    def __init__(self, workspace: str, stage: str = "", fingerprint: str = "", run_id: str = "") -> None:
        """Create the run. Nothing is written yet.

        Args:
            workspace: folder or s3:// prefix of the pipeline run.
            stage: name of the stage, which is a step of the pipeline. "" for the run of the whole pipeline.
            fingerprint: text that identifies the stage's code, settings and inputs.
            run_id: id of the tracked run that this run continues without tracking. "" if there is none.
        """
        self._workspace = workspace
        self._stage = stage
        self._fingerprint = fingerprint
        self._run_id = run_id

    @property
    def run_id(self) -> str:
        """Return the id of the tracked run that this run continues without tracking, or "" if there is none."""
        return self._run_id

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Do nothing with the settings, because this run logs nothing."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Do nothing with the tags, because this run logs nothing."""

    def describe(self, text: str) -> None:
        """Do nothing with the description, because this run logs nothing."""

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Do nothing with the metrics, because this run logs nothing. Training metrics go through `training_metrics`."""

    def log_dict(self, value: Any, name: str) -> None:
        """Do nothing with the value, because this run logs nothing."""

    def log_bytes(self, data: bytes, name: str) -> None:
        """Do nothing with the file, because this run logs nothing."""

    def log_dataset(self, name: str, digest: str, source: str, splits: Mapping[str, int]) -> None:
        """Do nothing with the facts about the data set, because this run logs nothing."""

    @contextmanager
    def training_metrics(self) -> Iterator[ReportSink]:
        """Keep the metrics that a training reports in the file `curves/STAGE.jsonl` of the workspace.

        Metrics of an earlier training with the same fingerprint are continued, those of any other are deleted. If the workspace
        is on S3, the file is written locally and copied there at the end.

        Yields:
            A function to call with the metrics of each training step.
        """
        with local_folder(storage.join(self._workspace, CURVES_FOLDER)) as folder:
            yield MetricSpool((folder / f"{self._stage}.jsonl").absolute(), self._fingerprint)

    def history(self, names: Collection[str]) -> dict[str, Line]:
        """Read the curves of the metrics `names` from the workspace.

        The result is `{metric: (steps, values)}`. Metrics without values are left out.
        """
        try:
            data = storage.read_bytes(storage.join(self._workspace, CURVES_FOLDER, f"{self._stage}.jsonl"))
        except FileNotFoundError:
            return {}
        return read_spool(data, names)

    def system_metrics(self) -> AbstractContextManager[None]:
        """Return a context manager that does nothing, because this run logs nothing."""
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
        """Open a run that logs nothing for the stage `name` (a step of the pipeline).

        The fingerprint marks the training metrics that are kept in the workspace. The other arguments are not used.
        """
        yield NullRun(self._workspace, name, fingerprint)

    def stage_histories(self, stages: Iterable[str], names: Collection[str]) -> dict[str, dict[str, Line]]:
        """Read the training curves of stages from the workspace.

        Args:
            stages: names of the training stages.
            names: names of the metrics.

        Returns:
            Curves as `{stage: {metric: (steps, values)}}`. Stages and metrics without values are left out.
        """
        return _workspace_histories(self._workspace, stages, names)


class NullTracker:
    """A tracker that logs nothing, with the method of `Tracker`. It is used if `tracking.enabled` is false."""

    def __init__(self, workspace: str) -> None:
        """Create the tracker.

        Args:
            workspace: folder or s3:// prefix of the pipeline run. Training metrics are kept there.
        """
        self._workspace = workspace

    @contextmanager
    def pipeline(
        self, name: str, settings: Mapping[str, Any], tags: Mapping[str, Any] | None = None, resume_run_id: str | None = None
    ) -> Iterator[NullRun]:
        """Open a run that logs nothing for a pipeline.

        The new run has the id `resume_run_id`, so that a later run with tracking can resume that run. The other arguments are not
        used.
        """
        yield NullRun(self._workspace, run_id=resume_run_id or "")
