"""Text that several commands print: settings, the plan of stages, results, how to open MLflow."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from infra.redaction import redacted, without_secrets
from infra.runtime.stages import StageStatus
from infra.settings import Section

TRAINING_PAGES = "/#/experiments?workflowType=machine_learning"
"""MLflow's start page for training runs; without this it opens its pages for agents, which lack the model registry."""


def settings_text(settings: Section) -> str:
    """The settings as YAML, with passwords removed."""
    return yaml.safe_dump(redacted(settings.model_dump(mode="json", by_alias=True)), sort_keys=False, allow_unicode=True)


def plan_text(plan: Sequence[StageStatus]) -> str:
    """The stages, a line each, and whether each is complete or would run."""
    lines = [f"  {p.stage.name:<12} {p.stage.title:<36} {_state(p)}" for p in plan]
    return "\n".join(["stages:", *lines])


def _state(status: StageStatus) -> str:
    """Whether the stage is complete or would run."""
    return f"complete ({status.record.seconds:,.0f} s when it ran)" if status.record else "would run"


def results_text(results: Mapping[str, Any]) -> str:
    """The five results as a table for a terminal.

    Args:
        results: the content of `results.json` (see `deconvnet.evaluation.evaluator`).

    Returns:
        A heading and one line for each result: mean IoU and pixel accuracy, in [0, 1].
    """
    from deconvnet.reporting.figure import RESULT_TITLES  # imports matplotlib

    lines = [f"{results['dataset']}, {results['images']} images", f"  {'':<16}{'mean IoU':>9}{'pixel accuracy':>16}"]
    for name, title in RESULT_TITLES.items():
        row = results["rows"][name]
        lines.append(f"  {title:<16}{_ratio(row['mean_iou']):>9}{_ratio(row['pixel_accuracy']):>16}")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    """A number in [0, 1] with three digits, or – where there is none."""
    return "–" if value is None else f"{value:.3f}"


def mlflow_hint(uri: str) -> str:
    """How to open the pages of an MLflow store: a command for SQLite, else the address without its password."""
    uri = without_secrets(uri)
    if uri.startswith("sqlite:"):
        return f"mlflow ui --backend-store-uri {uri}   (quickstart: make ui), then http://localhost:5000{TRAINING_PAGES}"
    return uri
