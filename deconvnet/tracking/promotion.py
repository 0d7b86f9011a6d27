"""Decide whether a newly trained model replaces the current one, and record the decision in the model registry.

The registry has two aliases: the champion is the version in use, and the challenger is the newest version that a pipeline
registered.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deconvnet.tracking.descriptions import truncated
from deconvnet.tracking.interface import Run
from deconvnet.tracking.registry import CHALLENGER, CHAMPION, aliases, registry_client, update_model_description

PROMOTED, REJECTED = "promoted", "not promoted"
"""Values of the tag `verdict`, which a version gets once it has been compared with the champion."""
DECISIVE_RESULT = "edeconvnet_crf"
"""Name of the one of the five results by which two models are compared. It measures what the registered model predicts."""
_ROUNDING = 1e-9  # 0.55 - 0.5 must count as a rise of 0.05


@dataclass(frozen=True)
class Decision:
    """A decision whether the challenger (the new model) becomes the champion (the model in use).

    Attributes:
        promoted: True if the challenger becomes the champion.
        reason: sentence for the user that says why it does, or why not.
    """

    promoted: bool
    reason: str


def compare(champion: Mapping[str, Any], challenger: Mapping[str, Any], margin: float, max_class_drop: float) -> Decision:
    """Decide whether the challenger (the new model) replaces the champion (the model in use), by their results.

    Args:
        champion: content of the champion's results.json, which has its measures for each class.
        challenger: content of the challenger's results.json, measured on the same images.
        margin: rise of mean IoU that is needed for a promotion, 0 to 1. An equal mean IoU is never enough, even with 0.
        max_class_drop: largest fall of a class's IoU that is accepted, 0 to 1. A class without an IoU in one of the results is
            ignored.

    Returns:
        The decision, with its reason.

    Raises:
        ValueError: if the two results are for different classes or different numbers of images.
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
    """Format a fraction in per cent with one decimal. None becomes "–"."""
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def _points(fraction: float) -> str:
    """Format a fraction as percentage points with one decimal, such as "1.5 points"."""
    return f"{100 * fraction:.1f} points"


def version_to_beat(tracking_uri: str, name: str) -> int | None:
    """Find the version of a registered model with which the next new model is to be compared.

    Args:
        tracking_uri: URI of the MLflow store.
        name: name of the registered model.

    Returns:
        The version number of the champion (the version in use). If there is no champion, the number of the challenger that an
        earlier pipeline run registered, unless it was rejected. None if there is neither.

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
    """Make a version of a registered model the champion (the version in use), without comparing it.

    Args:
        tracking_uri: URI of the MLflow store.
        name: name of the registered model.
        version: number of the version.

    Raises:
        UserError: if the registry does not answer or does not have this version.
    """
    with registry_client(tracking_uri, name) as client:
        client.set_registered_model_alias(name, CHAMPION, str(version))
        update_model_description(client, name)


def promote(run: Run, store: str, name: str, challenger: int, champion: int | None, decision: Decision) -> int:
    """Record whether a new model replaces the champion (the version in use), and set the alias `champion` accordingly.

    A second call changes nothing. The new model is not promoted if a third version has become the champion in the meantime,
    because it was not compared with that one.

    Args:
        run: MLflow run that gets tags with the decision. The new version in the registry gets the same tags, and a sentence in
            its description.
        store: URI of the MLflow store.
        name: name of the registered model.
        challenger: version number of the new model.
        champion: number of the version with which it was compared. None if there was none: then the challenger becomes the
            champion.
        decision: result of the comparison.

    Returns:
        The number of the version that is the champion afterwards.

    Raises:
        UserError: if the registry does not accept the changes.
    """
    current = aliases(store, name).get(CHAMPION)
    if current is not None and current not in (champion, challenger):
        decision = Decision(False, f"{decision.reason}; but version {current} became champion meanwhile, and stays champion")
        new_champion = current
    else:
        new_champion = challenger if decision.promoted or champion is None else champion
    outcome = PROMOTED if decision.promoted else REJECTED
    with registry_client(store, name) as client:
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
        update_model_description(client, name)
    run.set_tags({**tags, "champion": f"version {new_champion}"})
    return new_champion
