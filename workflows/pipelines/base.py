"""What the pipelines share: stages that run by an executor, each logged as a run below the pipeline's."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from deconvnet.tracking import open_tracker
from deconvnet.tracking.interface import Run
from deconvnet.tracking.store import tracking_uri
from infra import storage
from infra.errors import Interrupted
from infra.runtime import open_executor
from infra.runtime.stages import Record, Stage, Stages
from workflows.pipelines.workspace import Workspace
from workflows.settings import as_dict

if TYPE_CHECKING:
    from workflows.settings import EdgeSettings, Settings

logger = logging.getLogger(__name__)


class BasePipeline(Workspace):
    """A workspace and its stages. Subclasses list the stages and may log more.

    Attributes:
        stages: the stages and their state.
        executor: runs the jobs of the stages.
        should_stop: checked before each stage and during long ones; once True, the run stops with Interrupted.
        store: URI of the MLflow store; "" with `tracking.enabled false`.
    """

    def __init__(self, settings: "Settings | EdgeSettings", should_stop: Callable[[], bool]) -> None:
        """Plan the stages. Raises UserError if a file or folder that the settings name does not exist."""
        super().__init__(settings.workspace)
        self._settings = settings
        self.should_stop = should_stop
        self.store = tracking_uri(settings.workspace, settings.tracking.uri) if settings.tracking.enabled else ""
        self.executor = open_executor(settings.executor, settings.cluster, should_stop)
        self._parent_run: Run | None = None
        self._stage_run: Run | None = None
        self.stages = Stages(settings.workspace, self._stages())

    @property
    def run_of_stage(self) -> Run:
        """The run that the present stage logs to."""
        assert self._stage_run is not None, "only a stage that runs has one"
        return self._stage_run

    @property
    def run_of_pipeline(self) -> Run:
        """The run that the stages' runs belong to."""
        assert self._parent_run is not None, "only a pipeline that runs has one"
        return self._parent_run

    def run(self, config: str, keep_going: Callable[[Stage], bool] = lambda stage: True) -> dict[str, Record]:
        """Run the stages that are not complete, logged as one run.

        Args:
            config: name of the settings, for the run's name.
            keep_going: called after each stage; False ends the run.

        Returns:
            the records of the stages by name.

        Raises:
            UserError: if the settings, the data or the cluster don't allow it.
            Interrupted: if it was stopped; the same command resumes it.
        """
        tracking = self._settings.tracking
        storage.check_writable(self.root)
        tracker = open_tracker(tracking, self.root)
        opened = tracker.pipeline(self._run_name(config), as_dict(self._settings), self._tags(config), self._run_to_resume())
        with self.executor, opened as parent, parent.system_metrics() if tracking.system_metrics else nullcontext():
            self._parent_run = parent
            self._begin(config)
            self._check_cluster()

            def run_stage(stage: Stage, fingerprint: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
                """Run a stage as a run of its own below the pipeline's."""
                if self.should_stop():
                    raise Interrupted(f"stopped before {stage.name}: the same command resumes it")
                self._log_stage(stage, stage.title)
                title = f"{self._number(stage)} {stage.name}"
                with parent.stage(stage.name, fingerprint, dict(stage.settings), title, self._tags(config)) as child:
                    self._stage_run = child
                    self._describe_stage(stage.name, None)
                    summary = run()
                    self._describe_stage(stage.name, summary)
                    return summary

            records = self.stages.run(
                run_stage, lambda stage, record: self._log_stage(stage, "complete, not run again"), keep_going
            )
            parent.log_metrics({f"seconds.{name}": record.seconds for name, record in records.items()})
            self._end(config, records)
        return records

    def _number(self, stage: Stage) -> int:
        """Position of a stage, from 1."""
        return self.stages.stages.index(stage) + 1

    def _log_stage(self, stage: Stage, text: str) -> None:
        """Log a line about a stage."""
        logger.info(f"[{self._number(stage)}/{len(self.stages.stages)}] {stage.name}: {text}")

    def _stages(self) -> Sequence[Stage]:
        """List the stages in the order in which they run."""
        raise NotImplementedError

    def _run_name(self, config: str) -> str:
        """Name of the run in the tracker."""
        return config

    def _tags(self, config: str) -> Mapping[str, str]:
        """Tags of the pipeline's run and of those of its stages."""
        return {"config": config, "workspace": self.root}

    def _run_to_resume(self) -> str | None:
        """Id of an earlier run of this workspace, or None."""
        return None

    def _check_cluster(self) -> None:
        """Raise UserError now, rather than after hours, if the cluster can't run all stages."""
        self.executor.check()

    def _begin(self, config: str) -> None:
        """Called before the first stage, with the pipeline's run open."""

    def _describe_stage(self, name: str, summary: Mapping[str, Any] | None) -> None:
        """Called before each stage (summary None) and after it, with its run open."""

    def _end(self, config: str, records: Mapping[str, Record]) -> None:
        """Called after the last stage, with the pipeline's run open."""
