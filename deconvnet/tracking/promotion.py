"""Decides whether a newly trained model (the challenger) replaces the current one (the champion), and records that."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deconvnet.tracking.descriptions import truncated
from deconvnet.tracking.registry import CHALLENGER, CHAMPION, aliases, registry_client, update_model_description
from infra.redaction import without_secrets

if TYPE_CHECKING:
    from deconvnet.tracking.mlflow_runs import MlflowRun

PROMOTED, REJECTED = "promoted", "not promoted"
"""Values of the tag `verdict` of a version."""
DECISIVE_RESULT = "edeconvnet_crf"
"""The result that is compared: what the registered model predicts."""
_ROUNDING = 1e-9  # 0.55 - 0.5 must count as a rise of 0.05


@dataclass(frozen=True)
class Decision:
    """Whether a challenger is promoted.

    Attributes:
        promoted: True if it becomes the champion.
        reason: why, or why not, as a sentence for the user.
    """

    promoted: bool
    reason: str


def compare(champion: Mapping[str, Any], challenger: Mapping[str, Any], margin: float, max_class_drop: float) -> Decision:
    """Compare two models by their results on the same images.

    Args:
        champion: the content of the champion's results.json.
        challenger: the same of the challenger.
        margin: least rise of mean IoU that promotes, 0 to 1; an equal mean IoU never does.
        max_class_drop: largest fall of the IoU of a class that is accepted, 0 to 1. Classes without an IoU in either are ignored.

    Returns:
        The decision.

    Raises:
        ValueError: if the results are not of the same number of images and the same classes.
    """
    if any(champion[name] != challenger[name] for name in ("classes", "images")):
        raise ValueError("results on different images or classes can't be compared")
    old, new = champion["rows"][DECISIVE_RESULT], challenger["rows"][DECISIVE_RESULT]
    rise = (new["mean_iou"] or 0.0) - (old["mean_iou"] or 0.0)
    summary = f"mean IoU {_percent(new['mean_iou'])} against the champion's {_percent(old['mean_iou'])}"
    if rise < margin - _ROUNDING or rise <= 0:
        return Decision(False, f"{summary}: a rise of at least {_points(margin)} is required (retrain.margin)")
    drops = {
        name: old["iou"][name] - new["iou"][name]
        for name in challenger["classes"]
        if old["iou"][name] is not None and new["iou"][name] is not None
    }
    if not drops:
        return Decision(True, summary)
    worst = max(drops, key=lambda name: drops[name])
    if drops[worst] > max_class_drop + _ROUNDING:
        limit = f"more than {_points(max_class_drop)} (retrain.max_class_drop)"
        return Decision(False, f"{summary}, but {worst} falls by {_points(drops[worst])}, {limit}")
    return Decision(True, f"{summary}, no class falls by more than {_points(max(0.0, drops[worst]))}")


def _percent(fraction: float | None) -> str:
    """Format a fraction in per cent, None as –."""
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def _points(fraction: float) -> str:
    """Format a difference of fractions in percentage points."""
    return f"{100 * fraction:.1f} points"


def version_to_beat(tracking_uri: str, name: str) -> int | None:
    """Find the version that a challenger is compared with.

    Args:
        tracking_uri: URI of the MLflow store.
        name: name of the registered model.

    Returns:
        The champion; without one, the challenger of an earlier pipeline run unless it was rejected; None if there is neither.

    Raises:
        UserError: if the registry does not answer.
    """
    versions = aliases(tracking_uri, name)
    if CHAMPION in versions or CHALLENGER not in versions:
        return versions.get(CHAMPION)
    with registry_client(tracking_uri, name) as client:
        rejected = client.get_model_version(name, str(versions[CHALLENGER])).tags.get("verdict") == REJECTED
    return None if rejected else versions[CHALLENGER]


def set_champion(tracking_uri: str, name: str, version: int) -> None:
    """Make a version the champion, without a comparison.

    Args:
        tracking_uri: URI of the MLflow store.
        name: name of the registered model.
        version: its version number.

    Raises:
        UserError: if the registry refuses.
    """
    with registry_client(tracking_uri, name) as client:
        client.set_registered_model_alias(name, CHAMPION, str(version))
        update_model_description(client, name, without_secrets(tracking_uri))


def promote(run: "MlflowRun", name: str, challenger: int, champion: int | None, decision: Decision) -> int:
    """Record a decision and set the alias `champion` accordingly. Repeating the call changes nothing.

    If another version became champion since the comparison was begun, it stays: the challenger was not compared with it.

    Args:
        run: run that gets the decision as tags `verdict…`; the challenger's version gets them too.
        name: name of the registered model.
        challenger: version that was compared.
        champion: version it was compared with; None if there was none, then the challenger becomes champion.
        decision: the outcome of the comparison.

    Returns:
        The version that is champion afterwards.

    Raises:
        UserError: if the registry refuses.
    """
    client = run.tracker.client
    current = aliases(run.tracker.uri, name).get(CHAMPION)
    if current is not None and current not in (champion, challenger):
        decision = Decision(False, f"{decision.reason}; but version {current} became champion meanwhile, and stays champion")
        new_champion = current
    else:
        new_champion = challenger if decision.promoted or champion is None else champion
    outcome = PROMOTED if decision.promoted else REJECTED
    with run.tracker.errors_as_messages():
        version = client.get_model_version(name, str(challenger))
        line = f"\n\n**{outcome.capitalize()}**: {decision.reason}."
        if line not in (version.description or ""):
            client.update_model_version(name, str(challenger), description=truncated((version.description or "") + line))
        day = version.tags.get("verdict.on") if version.tags.get("verdict") == outcome else None
        tags = {"verdict": outcome, "verdict.why": decision.reason, "verdict.on": day or f"{datetime.now(UTC):%Y-%m-%d}"}
        if champion is not None:
            tags["verdict.against"] = f"version {champion}"
        for key, value in tags.items():
            client.set_model_version_tag(name, str(challenger), key, value)
        if new_champion != current:
            client.set_registered_model_alias(name, CHAMPION, str(new_champion))
        update_model_description(client, name, without_secrets(run.tracker.uri))
    run.set_tags({**tags, "champion": f"version {new_champion}"})
    return new_champion
