"""Runs a pipeline as a command asks: the plan alone, what is incomplete, or nothing."""

import argparse
from pathlib import Path
from typing import Any, Protocol

from infra.runtime.stages import Stages
from infra.settings import Section
from workflows.cli.output import plan_text, settings_text


class StagedPipeline(Protocol):
    """A pipeline of stages.

    Attributes:
        stages: its stages and which of them are complete.
    """

    stages: Stages

    def run(self, config: str) -> Any:
        """Run the stages that are incomplete; `config` names the settings."""
        ...


def run_pipeline(pipeline: StagedPipeline, settings: Section, options: argparse.Namespace) -> bool:
    """Run what is incomplete of a pipeline, or print its plan if the command line has `--dry-run`.

    Args:
        pipeline: the pipeline.
        settings: its settings, printed with the plan.
        options: the parsed command line, with `dry_run` and `config`.

    Returns:
        True if the pipeline is complete now; False after `--dry-run`.
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
