"""Run the stages (steps) of a pipeline for a command, or only print which of them would run."""

import argparse
from pathlib import Path
from typing import Any, Protocol

from infra.runtime.stages import Stages
from infra.settings import Section
from workflows.cli.output import plan_text, settings_text


class StagedPipeline(Protocol):
    """A pipeline that consists of stages, which are named steps such as training FCN-8s.

    Attributes:
        stages: the stages, with the stored records of those that are complete.
    """

    stages: Stages

    def run(self, config: str) -> Any:
        """Run the stages that are not complete.

        Args:
            config: name of the settings file, without its folder and extension. It becomes part of the run's name in MLflow.
        """
        ...


def run_pipeline(pipeline: StagedPipeline, settings: Section, options: argparse.Namespace) -> bool:
    """Run the stages of a pipeline that are not complete, or only print its plan if the command line has `--dry-run`.

    Args:
        pipeline: the pipeline.
        settings: settings of the pipeline, which `--dry-run` prints.
        options: the parsed command line, with the attributes `dry_run` and `config` (the path of the settings file).

    Returns:
        True if all stages are complete now, False after `--dry-run`.
    """
    plan = pipeline.stages.plan()
    if options.dry_run:
        print(settings_text(settings))
        print(plan_text(plan))
        return False
    if all(status.complete for status in plan):
        print(plan_text(plan))
        print("\nNothing to do: every stage is complete.\n")
    else:
        pipeline.run(Path(options.config).stem)
    return True
