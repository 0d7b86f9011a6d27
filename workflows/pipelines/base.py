"""Define the base class of the pipelines, which runs stages with an executor and logs each of them to the experiment tracker.

A stage is a named step of a pipeline, such as training FCN-8s. Its record is stored in the workspace once it is complete.
"""

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
    """A pipeline: a workspace (folder) and the stages (named steps) that fill it.

    Subclasses list the stages in the method `_stages`, and may override the methods that log. The experiment tracker is MLflow,
    or a stand-in that logs nothing if tracking is switched off.

    Attributes:
        stages: the stages, with the stored records of those that are complete.
        executor: executor that runs the work of the stages, on Ray or in processes of this machine.
        should_stop: function that is called before each stage and now and then during long ones. Once it returns True, the run
            stops with the exception Interrupted.
        store: URI of the MLflow store. "" if tracking is switched off.
    """

    def __init__(self, settings: "Settings | EdgeSettings", should_stop: Callable[[], bool]) -> None:
        """Open the executor and plan the stages. None of them is run yet.

        Args:
            settings: all settings of the pipeline.
            should_stop: function that is called before each stage and now and then during long ones. Once it returns True, the
                run stops with the exception Interrupted.

        Raises:
            UserError: if a file or folder that the settings name does not exist.
        """
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
        """Return the tracker's run of the stage that is running. Raises AssertionError if no stage has been run."""
        assert self._stage_run is not None, "only a stage that runs has one"
        return self._stage_run

    @property
    def run_of_pipeline(self) -> Run:
        """Return the tracker's run of the pipeline. Raises AssertionError if the pipeline has not been run."""
        assert self._parent_run is not None, "only a pipeline that runs has one"
        return self._parent_run

    def run(self, config: str, keep_going: Callable[[Stage], bool] = lambda stage: True) -> dict[str, Record]:
        """Run the stages that are not complete, and log them to the experiment tracker.

        Args:
            config: name of the settings file, without its folder and extension. It becomes part of the name of the tracker's run.
            keep_going: function that is called with each stage when it is complete. If it returns False, the remaining stages are
                not run.

        Returns:
            The records of the complete stages (fingerprint, duration and summary of each), by the name of the stage.

        Raises:
            UserError: if the settings, the data or the cluster do not allow the run.
            Interrupted: if the run was stopped. The same command resumes it.
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
                """Run one stage, and log it as a run of its own below the pipeline's run.

                Args:
                    stage: the stage.
                    fingerprint: digest of the stage's code version, settings and inputs.
                    run: function that makes the outputs of the stage and returns its summary.

                Returns:
                    The summary of the stage, a dict of JSON values.

                Raises:
                    Interrupted: if the pipeline is to stop. The stage is then not started.
                """
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
        """Return the position of a stage in the pipeline, counted from 1."""
        return self.stages.stages.index(stage) + 1

    def _log_stage(self, stage: Stage, text: str) -> None:
        """Log a line about a stage, such as "[2/8] proposals: complete, not run again".

        Args:
            stage: the stage. Its number and its name begin the line.
            text: end of the line.
        """
        logger.info(f"[{self._number(stage)}/{len(self.stages.stages)}] {stage.name}: {text}")

    def _stages(self) -> Sequence[Stage]:
        """List the stages of the pipeline in the order in which they run. Every subclass must override this method."""
        raise NotImplementedError

    def _run_name(self, config: str) -> str:
        """Return the name of the tracker's run. Subclasses may override this method.

        Args:
            config: name of the settings file.

        Returns:
            The name. In this base class, it is the name of the settings file.
        """
        return config

    def _tags(self, config: str) -> Mapping[str, str]:
        """Return the tags of the tracker's runs, for the pipeline and its stages alike. Subclasses may override this method.

        Args:
            config: name of the settings file.

        Returns:
            The values of the tags by name. In this base class, the tags are `config` (the settings file) and `workspace`.
        """
        return {"config": config, "workspace": self.root}

    def _run_to_resume(self) -> str | None:
        """Return the id of an earlier run in the tracker that this run continues. None starts a new run.

        This base class always returns None. Subclasses may override the method.
        """
        return None

    def _check_cluster(self) -> None:
        """Check that the cluster can run all stages, so that an impossible run fails at once and not after hours.

        Subclasses may override this method to check more.

        Raises:
            UserError: if no node of the cluster could ever run the work of the stages.
        """
        self.executor.check()

    def _begin(self, config: str) -> None:
        """Do nothing. Subclasses may override this method to log something before the first stage.

        The pipeline calls it once the tracker's run is open.

        Args:
            config: name of the settings file.
        """

    def _describe_stage(self, name: str, summary: Mapping[str, Any] | None) -> None:
        """Do nothing. Subclasses may override this method to write the description of a stage to its run in the tracker.

        The pipeline calls it twice, before and after it runs the stage.

        Args:
            name: name of the stage.
            summary: summary that the stage returned, a dict of JSON values. None before the stage.
        """

    def _end(self, config: str, records: Mapping[str, Record]) -> None:
        """Do nothing. Subclasses may override this method to log something after the last stage.

        The pipeline calls it while the tracker's run is still open.

        Args:
            config: name of the settings file.
            records: stored records of the complete stages (fingerprint, duration and summary of each), by the name of the stage.
        """
