"""Provide the code that all commands share: reading settings, running with exit codes, logging and printing."""

from workflows.cli.exit_codes import run
from workflows.cli.logs import configure_logging
from workflows.cli.output import mlflow_hint, names_text, plan_text, rejects_text, results_text, settings_text
from workflows.cli.settings_loader import CommandSettings, SettingsParser, load, setting_fields

__all__ = [
    "CommandSettings",
    "SettingsParser",
    "configure_logging",
    "load",
    "mlflow_hint",
    "names_text",
    "plan_text",
    "rejects_text",
    "results_text",
    "run",
    "setting_fields",
    "settings_text",
]
