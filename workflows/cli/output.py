"""Make the text that several commands print: settings, stages, results, and how to open MLflow."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from infra.redaction import redacted, without_secrets
from infra.runtime.stages import StageStatus
from infra.settings import Section
from infra.storage.tables import Reject

TRAINING_PAGES = "/#/experiments?workflowType=machine_learning"
"""Path of MLflow's start page for training runs. Its default start page is for agents, and does not show the model registry."""
_REASONS_SHOWN = 5


def settings_text(settings: Section) -> str:
    """Return the settings of a command as YAML text, without passwords and other secrets."""
    return yaml.safe_dump(redacted(settings.model_dump(mode="json", by_alias=True)), sort_keys=False, allow_unicode=True)


def names_text(names: Sequence[str]) -> str:
    """Format names for a command-line option: comma-separated, or as JSON if a name has a comma or a blank at either end."""
    plain = all("," not in name and name == name.strip() for name in names) and not names[0].startswith("[")
    return ",".join(names) if plain else json.dumps(names, ensure_ascii=False)


def plan_text(plan: Sequence[StageStatus]) -> str:
    """Return the plan of a pipeline as text. It lists the stages (steps) and says whether each is complete or would run.

    Args:
        plan: the stages in the order in which they run, with their states.

    Returns:
        A heading, and one line for each stage.
    """
    lines = [f"  {p.stage.name:<12} {p.stage.title:<36} {_state(p)}" for p in plan]
    return "\n".join(["stages:", *lines])


def _state(status: StageStatus) -> str:
    """Return a phrase about a stage of a pipeline: either that it is complete and how long it took, or that it would run."""
    return f"complete ({status.record.seconds:,.0f} s when it ran)" if status.record else "would run"


def results_text(results: Mapping[str, Any]) -> str:
    """Format the five results of an evaluation as a table for a terminal.

    The results are those of FCN-8s, of DeconvNet and of the ensemble of both, the latter two with and without a CRF.

    Args:
        results: content of a `results.json` (see `deconvnet.evaluation.evaluator`).

    Returns:
        Two heading lines, and one line for each result with its metrics, 0 to 1. If the last result has classes of which it finds
        nothing, a line names them.
    """
    from deconvnet.reporting.figure import RESULT_TITLES  # imports matplotlib
    from deconvnet.reporting.run_summary import METRICS

    heads = "".join(f"{title:>{len(title) + 2}}" for title in METRICS.values())
    lines = [f"{results['dataset']}, {results['images']} images", f"  {'':<15}{heads}"]
    for name, title in RESULT_TITLES.items():
        values = (f"{_ratio(results['rows'][name].get(metric)):>{len(head) + 2}}" for metric, head in METRICS.items())
        lines.append(f"  {title:<15}{''.join(values)}")
    missed = [class_name for class_name, iou in results["rows"][name].get("iou", {}).items() if iou == 0]
    if missed:
        lines.append(f"  {title} finds no pixel of {', '.join(missed)} (IoU 0): see docs/tutorial.md, common problems")
    return "\n".join(lines)


def rejects_text(rejects: Sequence[Reject]) -> str:
    """Describe rejects (inputs that could not be used): their number, and the most frequent reasons with an example each.

    Args:
        rejects: the inputs that could not be used, such as images, each with its reason.

    Returns:
        A line with the number, and at most five lines with reasons.
    """
    reasons = Counter(reject.reason for reject in rejects).most_common(_REASONS_SHOWN)
    examples = {reject.reason: reject.image_id for reject in reversed(rejects)}
    lines = [f"  {count:>6,} × {reason} ({examples[reason]}{', …' if count > 1 else ''})" for reason, count in reasons]
    return "\n".join([f"{len(rejects):,} rejected", *lines])


def _ratio(value: float | None) -> str:
    """Format a number from 0 to 1 with three decimals. None becomes "–"."""
    return "–" if value is None else f"{value:.3f}"


def mlflow_hint(uri: str) -> str:
    """Return a text that tells the user how to open the web pages of an MLflow store.

    Args:
        uri: URI of the store.

    Returns:
        For a SQLite file, the command that starts MLflow's pages and their address. For a server, its address without the
        password.
    """
    uri = without_secrets(uri)
    if uri.startswith("sqlite:"):
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}   (quickstart: make ui), then http://localhost:5000{TRAINING_PAGES}"
    return uri
