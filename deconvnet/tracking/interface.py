"""Define `Tracker` and `Run`, the interface by which a pipeline logs to an experiment tracker. These base classes log nothing.

They are used if the setting `tracking.enabled` is false. Otherwise, `deconvnet.tracking.open_tracker` returns an `MlflowTracker`.
Its classes in `mlflow_runs.py`, `MlflowTracker` and `MlflowRun`, log to MLflow. Importing this module does not import MLflow.

A pipeline consists of stages, which are named steps such as training FCN-8s. The tracker has one run for the pipeline, and below
it one run for each stage. A workspace is the folder or bucket prefix that holds everything a pipeline run writes.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from deconvnet.tracking.metric_spool import Curve, MetricSpool, ReportSink, read_spool, spool_file
from deconvnet.tracking.store import check_store, error_summary, stage_histories
from infra import storage
from infra.errors import UserError


class Run:
    """A run of the tracker, to which a pipeline or one of its stages (steps) logs. This base class logs nothing.

    Its subclass `MlflowRun` logs to MLflow. This class keeps only training metrics, in a file of the workspace, because the
    report draws their curves. In `MlflowRun`, all methods that log raise UserError if MLflow does not accept the data.
    """

    def __init__(self, workspace: str, stage: str = "", fingerprint: str = "", run_id: str = "") -> None:
        """Create the run. Nothing is written yet.

        Args:
            workspace: folder or bucket prefix of the pipeline run.
            stage: name of the stage, which is a step of the pipeline. "" for the run of the whole pipeline.
            fingerprint: text that identifies the stage's code, settings and inputs.
            run_id: id of the run in MLflow. If tracking is switched off, the id of an earlier MLflow run that this run continues,
                or "" if there is no such run.
        """
        self.run_id = run_id
        self._workspace = workspace
        self._stage = stage
        self._fingerprint = fingerprint

    @property
    def _curves(self) -> str:
        """Return the URI of the file in the workspace that holds the training metrics if tracking is switched off."""
        return storage.join(self._workspace, "curves", f"{self._stage}.jsonl")

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
            metrics: values by name. None, which is skipped, means a value that does not exist, such as the IoU of a class that
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

    @contextmanager
    def training_metrics(self) -> Iterator[ReportSink]:
        """Log the metrics that a training reports while a `with` block runs.

        This class keeps them in the file `curves/STAGE.jsonl` of the workspace. If the file holds metrics of an earlier training
        with the same fingerprint, new metrics are appended. Otherwise, the file is emptied first. If the workspace is on S3, the
        file is written locally and copied there every few seconds.

        Yields:
            A function that takes the metrics of one training step by name, with the number of the step as "step".
        """
        with spool_file(self._curves) as file:
            yield MetricSpool(file, self._fingerprint)

    def history(self, names: Collection[str]) -> dict[str, Curve]:
        """Read the curves of metrics that were logged to this run step by step.

        Args:
            names: names of the metrics.

        Returns:
            Curves as `{metric: (steps, values)}`. Metrics that were not logged are left out.
        """
        try:
            data = storage.read_bytes(self._curves)
        except FileNotFoundError:
            return {}
        return read_spool(data, names)

    def system_metrics(self) -> AbstractContextManager[None]:
        """Log the load of this machine (CPU, memory, disk, network, GPUs) every few seconds while a `with` block runs."""
        return nullcontext()

    @contextmanager
    def stage(
        self, name: str, fingerprint: str = "", settings: Mapping[str, Any] = {}, title: str = "", tags: Mapping[str, Any] = {}
    ) -> Iterator["Run"]:
        """Open a run for a stage (a step of the pipeline, such as training FCN-8s), below this run.

        If this pipeline already has a run for the stage with the same fingerprint, that run is resumed. At the end of the `with`
        block, the run is marked as finished, failed or killed.

        Args:
            name: name of the stage.
            fingerprint: text that identifies the stage's code, settings and inputs.
            settings: settings of the stage, logged as parameters.
            title: name under which MLflow shows the run. "" for the name of the stage.
            tags: further tags of the run.

        Yields:
            The run of the stage.
        """
        yield Run(self._workspace, name, fingerprint)


class Tracker:
    """An experiment tracker, in which pipelines open their runs. This class logs nothing; `MlflowTracker` logs to MLflow."""

    def __init__(self, workspace: str) -> None:
        """Create the tracker.

        Args:
            workspace: folder or bucket prefix of the pipeline run. Training metrics are kept there.
        """
        self._workspace = workspace

    @contextmanager
    def pipeline(
        self, name: str, settings: Mapping[str, Any], tags: Mapping[str, Any] = {}, resume_run_id: str | None = None
    ) -> Iterator[Run]:
        """Open the run of a pipeline. At the end of the `with` block, the run is marked as finished, failed or killed.

        Args:
            name: name under which MLflow shows the run.
            settings: all settings of the pipeline. They are logged as parameters and as the artifact settings.json.
            tags: further tags of the run.
            resume_run_id: id of the run to resume. A new run is started if it is None or if MLflow no longer has this run. If
                tracking is switched off, the new run keeps this id, so that a later tracked run can resume the run in MLflow.

        Yields:
            The run.
        """
        yield Run(self._workspace, run_id=resume_run_id or "")


def read_histories(
    workspace: str, store: str, run_id: str | None, stages: Iterable[str], names: Collection[str]
) -> dict[str, dict[str, Curve]]:
    """Read the training curves of a pipeline run, even if the run was interrupted.

    Curves in MLflow take precedence over those that runs without tracking left in the workspace. In MLflow, the newest finished
    run of each stage is read.

    Args:
        workspace: folder or bucket prefix of the pipeline run.
        store: URI of the MLflow store. "" if tracking is switched off.
        run_id: id of the pipeline's run in MLflow. None or "" if it was not tracked. MLflow is imported only if `store`
            and `run_id` are given.
        stages: names of the training stages.
        names: names of the metrics.

    Returns:
        Curves as `{stage: {metric: (steps, values)}}`. Stages and metrics without values are left out.

    Raises:
        UserError: if the MLflow store can't be read.
    """
    histories = {stage: Run(workspace, stage).history(names) for stage in stages}
    if store and run_id:
        check_store(store)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            histories |= stage_histories(MlflowClient(tracking_uri=store), run_id, stages, names)
        except MlflowException as error:
            raise UserError(f"MLflow has no training curves of {workspace}: {error_summary(error)}") from None
    return {stage: history for stage, history in histories.items() if history}
