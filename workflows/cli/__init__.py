"""Provide the code that all commands share: reading settings, running with exit codes, logging and printing."""

from workflows.cli.exit_codes import INTERRUPTED, LOCKED, USER_ERROR, run
from workflows.cli.logs import configure_logging
from workflows.cli.output import mlflow_hint, plan_text, results_text, settings_text
from workflows.cli.pipeline_run import run_pipeline
from workflows.cli.settings_loader import CommandSettings, SettingsParser, check_job_folder, load, setting_fields

__all__ = [
    "INTERRUPTED",
    "LOCKED",
    "USER_ERROR",
    "CommandSettings",
    "SettingsParser",
    "check_job_folder",
    "configure_logging",
    "load",
    "mlflow_hint",
    "plan_text",
    "results_text",
    "run",
    "run_pipeline",
    "setting_fields",
    "settings_text",
]
