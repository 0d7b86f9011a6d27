"""Define the base class of the pipelines, which runs stages with an executor and logs each of them to the experiment tracker.

A stage is a named step of a pipeline, such as training FCN-8s. Its record is stored in the workspace once it is complete. The
record has the stage's fingerprint, a digest of its code version, settings and inputs.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deconvnet.tracking import open_tracker
from deconvnet.tracking.interface import Run
from deconvnet.tracking.store import tracking_uri
from infra.errors import Interrupted
from infra.runtime import open_executor
from infra.runtime.stages import Record, Stage, Stages
from infra.storage.lock import Lock, check_held
from workflows.cli import plan_text, settings_text
from workflows.pipelines.workspace import Workspace, hold_workspace
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
        locks: the locks that the running command holds, so that no other command writes to the same workspace. If the workspace
            is inside another one, the lock of the outer one comes first. Empty if the command only reads.
        settings: all settings of the pipeline.
        data_root: folder of the data set.
        dataset_name: name of the data set for reports: the name of its folder, or "generated" if the settings name no folder.
        store: URI of the MLflow store. "" if tracking is switched off.
        run_of_pipeline: the tracker's parent run, for the whole pipeline. Until the pipeline runs, a `Run` that logs nothing.
        run_of_stage: the tracker's child run of the current stage. Until the first stage, a `Run` that logs nothing.
    """

    command = "train_pipeline.py"
    """Name of the command that runs the pipeline, for the message that other commands get if they find the workspace locked."""
    lock_minutes: float = 15
    """Minutes without a sign of life after which another command may take over the lock of the workspace."""
    replace_lost_run = False
    """Whether to take over the lock of a command that died, after waiting for it to expire (see `hold_workspace`)."""

    def __init__(self, settings: "Settings | EdgeSettings", should_stop: Callable[[], bool] = lambda: False) -> None:
        """Open the executor and plan the stages. None of them is run yet.

        Args:
            settings: all settings of the pipeline.
            should_stop: function that is called before each stage and now and then during long ones. Once it returns True, the
                run stops with the exception Interrupted.

        Raises:
            UserError: if a file or folder that the settings name does not exist.
        """
        super().__init__(settings.workspace)
        self.settings: Settings | EdgeSettings = settings
        self.data_root = settings.data.root or self.uri("data")
        self.dataset_name = Path(settings.data.root).name if settings.data.root else "generated"
        self._stop_requested = should_stop
        self.locks: list[Lock] = []
        self.store = tracking_uri(settings.workspace, settings.tracking.uri) if settings.tracking.enabled else ""
        self.executor = open_executor(settings.executor, settings.cluster, self.should_stop)
        self.run_of_pipeline = Run(self.root)
        self.run_of_stage = Run(self.root)
        self.stages = Stages(settings.workspace, self._stages())

    def should_stop(self) -> bool:
        """Return whether the run is to stop with the exception Interrupted, because it was requested or a lock was lost."""
        return self._stop_requested() or any(lock.lost for lock in self.locks)

    @contextmanager
    def hold(self, command: str) -> Iterator[None]:
        """Hold the lock of the workspace for the duration of a `with` statement, so that the command may write to it.

        Meanwhile the lock is in `locks`. For a generation, the lock of the parent workspace comes before it.

        Args:
            command: name of the command, for the message that other commands get.

        Raises:
            UserError: if the workspace can't be written to.
            Locked: if another command holds the lock.
            Interrupted: if the lock was lost before the end of the `with` block.
        """
        with hold_workspace(self.root, command, self.lock_minutes, self.locks, self.should_stop, self.replace_lost_run):
            yield

    def run_or_plan(self, options: argparse.Namespace) -> bool:
        """Run the stages that are not complete, or only print the settings and the plan if the command line has `--dry-run`.

        Args:
            options: the parsed command line, with the attributes `dry_run` and `config` (the path of the settings file).

        Returns:
            True if all stages are complete now, False after `--dry-run`.

        Raises:
            UserError, Locked, Interrupted: in the same cases as the method `run`.
        """
        plan = self.stages.plan()
        if options.dry_run:
            print(settings_text(self.settings))
            print(plan_text(plan))
        elif all(status.complete for status in plan) and self._last_run_finished():
            print(plan_text(plan))
            print("\nNothing to do: every stage is complete.\n")
        else:
            self.run(Path(options.config).stem)
        return not options.dry_run

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
            Locked: if another command holds the lock of the workspace.
            Interrupted: if the run was stopped or lost its lock. The same command resumes it.
        """
        with self.hold(self.command):
            return self._run(config, keep_going)

    def _run(self, config: str, keep_going: Callable[[Stage], bool]) -> dict[str, Record]:
        """Run and log the stages that are not complete, while the caller holds the lock of the workspace.

        The arguments, the result and the errors are the same as in the method `run`.
        """
        tracking = self.settings.tracking
        tracker = open_tracker(tracking, self.root)
        opened = tracker.pipeline(self._run_name(config), as_dict(self.settings), self._tags(config), self._run_to_resume())
        with self.executor, opened as parent, parent.system_metrics() if tracking.system_metrics else nullcontext():
            self.run_of_pipeline = parent
            self._begin(config)
            self._check_start()

            def run_stage(stage: Stage, fingerprint: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
                """Run one stage, and log it as a run of its own below the pipeline's run.

                Args:
                    stage: the stage.
                    fingerprint: fingerprint of the stage.
                    run: function that makes the outputs of the stage and returns its summary.

                Returns:
                    The summary of the stage, a dict of JSON values.

                Raises:
                    Interrupted: if the pipeline is to stop. The stage is then not complete.
                """
                if self.should_stop():
                    raise Interrupted(f"stopped before {stage.name}: the same command resumes it")
                self._log_stage(stage, stage.title)
                title = f"{self._number(stage)} {stage.name}"
                with parent.stage(stage.name, fingerprint, dict(stage.settings), title, self._tags(config)) as child:
                    self.run_of_stage = child
                    self._describe_stage(stage.name, None)
                    summary = run()
                    self.check_locks()
                    self._describe_stage(stage.name, summary)
                    return summary

            records = self.stages.run(
                run_stage, lambda stage, record: self._log_stage(stage, "complete, not run again"), keep_going
            )
            parent.log_metrics({f"seconds.{name}": record.seconds for name, record in records.items()})
            self._end(config, records)
        return records

    def check_locks(self) -> None:
        """Read the lock files. Raise Interrupted if another run has taken one of the locks."""
        for lock in self.locks:
            check_held(lock)

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

    def _last_run_finished(self) -> bool:
        """Return whether the last run also finished its logging. If not, a new run is needed even if every stage is complete.

        This base class always returns True. Subclasses may override the method.
        """
        return True

    def _check_start(self) -> None:
        """Check that the settings and the cluster allow all stages to run. This base class checks nothing.

        It is called once the executor is open, so that an impossible run fails at once and not after hours. The executor itself
        checks that there are nodes for the data stages.

        Raises:
            UserError: if the run can't succeed, for example because no node of the cluster could ever run the work of a stage.
        """

    def _begin(self, config: str) -> None:
        """Hook before the first stage, for subclasses that log something. This base class does nothing.

        The pipeline calls it once the tracker's run is open.

        Args:
            config: name of the settings file.
        """

    def _describe_stage(self, name: str, summary: Mapping[str, Any] | None) -> None:
        """Hook that writes a stage's description to its run in the tracker. This base class does nothing.

        The pipeline calls it twice, before and after it runs the stage.

        Args:
            name: name of the stage.
            summary: summary that the stage returned, a dict of JSON values. None before the stage.
        """

    def _end(self, config: str, records: Mapping[str, Record]) -> None:
        """Hook after the last stage, for subclasses that log something. This base class does nothing.

        The pipeline calls it while the tracker's run is still open.

        Args:
            config: name of the settings file.
            records: stored records of the complete stages (fingerprint, duration and summary of each), by the name of the stage.
        """
