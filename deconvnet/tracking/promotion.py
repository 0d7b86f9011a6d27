"""Decide whether a newly trained model replaces the current one, and record the decision in the model registry.

The registry has two aliases: the champion is the version in use, and the challenger is the newest version that a pipeline
registered. Every move of the alias `champion` is recorded (`champion/moves.py`), so that it can be undone.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deconvnet.evaluation.comparison import DECISIVE_RESULT, RiseInterval
from deconvnet.reporting.run_summary import percent, signed_points
from deconvnet.tracking.champion.moves import record_move, recorded_moves
from deconvnet.tracking.champion.workspace_model import WorkspaceModel
from deconvnet.tracking.interface import Run
from deconvnet.tracking.registry import (
    CHAMPION,
    REJECTED,
    aliases,
    all_versions,
    registry_client,
    update_model_description,
)
from deconvnet.tracking.texts.descriptions import truncated
from infra.storage.lock import Lock, check_held

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

PROMOTED = "promoted"
"""Value of the tag `verdict` of a version that became champion. The other value is `registry.REJECTED` ("not promoted")."""
# Prefix of a version's tag `fence.NUMBER`. The tag's value is the champion that a run chose while it held the
# workspace's lock file. NUMBER is the lock's fencing number, which is higher for each later holder of the lock.
_FENCE = "fence."
_ROUNDING = 1e-9  # 0.5 - 0.4 must not count as a fall of more than 0.1


@dataclass(frozen=True)
class Decision:
    """A decision whether the challenger (the new model) becomes the champion (the model in use).

    Attributes:
        promoted: True if the challenger becomes the champion.
        reason: sentence for the user that says why it does, or why not.
    """

    promoted: bool
    reason: str


def compare(
    champion: Mapping[str, Any], challenger: Mapping[str, Any], interval: RiseInterval, margin: float, max_class_drop: float
) -> Decision:
    """Compare the results of two models, and decide whether the challenger (new model) replaces the champion (model in use).

    Args:
        champion: content of the champion's results.json, which has its measures for each class.
        challenger: content of the challenger's results.json, measured on the same images.
        interval: rise of the mean IoU from the champion to the challenger, with its 90 % confidence interval.
        margin: number from 0 to 1. For a promotion, the lower end of the interval must be above it. An equal mean IoU is never
            enough.
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
    certainty = (
        f"90 % interval {signed_points(interval.lower)} to {signed_points(interval.upper)} points, {interval.images:,} images"
    )
    against = f"mean IoU {percent(new['mean_iou'])} % against the champion's {percent(old['mean_iou'])} %"
    summary = f"{against}, a rise of {signed_points(interval.rise)} points ({certainty})"
    if interval.lower <= max(margin, 0.0):
        return Decision(False, f"{summary}: the lower end must be above {_points(margin)} (retrain.margin)")
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


def _points(fraction: float) -> str:
    """Format a fraction as percentage points with one decimal, such as "1.5 points"."""
    return f"{100 * fraction:.1f} points"


def champion_tags(store: str, name: str) -> dict[str, str]:
    """Read the tags of the version of a registered model that is the champion (in use). {} if there is none.

    Args:
        store: URI of the MLflow store.
        name: name of the registered model.

    Raises:
        UserError: if the registry does not answer.
    """
    version = aliases(store, name).get(CHAMPION)
    if version is None:
        return {}
    with registry_client(store, name) as client:
        return dict(client.get_model_version(name, str(version)).tags)


def set_champion(model: WorkspaceModel, version: int, lock: Lock) -> int | None:
    """Make a version of a registered model the champion (the version in use) without comparison, unless there is a champion.

    Args:
        model: the registered model.
        version: number of the version.
        lock: lock file of the workspace, held by this run so that no other run changes the workspace.

    Returns:
        The number of the version that is the champion afterwards.

    Raises:
        UserError: if the registry does not answer or does not have this version.
        Interrupted: if another run has taken the lock.
    """
    with registry_client(model.store, model.name) as client:
        champion = _move_champion(client, model, None, version, lock, "there was no champion")
        update_model_description(client, model.name)
    return champion


def promote(
    run: Run, model: WorkspaceModel, challenger: int, champion: int | None, decision: Decision, lock: Lock
) -> tuple[int | None, Decision]:
    """Record whether a new model replaces the champion (the version in use), and set the alias `champion` accordingly.

    Calling this again is safe: the second call only completes an interrupted one. Even if `decision` is to promote, the new model
    is not promoted in three cases:

    * Another version has become the champion since the comparison.
    * Another workspace has registered models under the same name.
    * The new model has been the champion already, and somebody has replaced it.

    Args:
        run: MLflow run that gets tags with the decision. The new version in the registry gets the same tags, and a sentence in
            its description.
        model: the registered model.
        challenger: version number of the new model.
        champion: number of the version with which the new model was compared. None if there was no such version; the new model
            then becomes the champion.
        decision: result of the comparison.
        lock: lock file of the workspace, held by this run so that no other run changes the workspace.

    Returns:
        The number of the version that is the champion afterwards, and the final decision.

    Raises:
        UserError: if the registry does not accept the changes.
        Interrupted: if another run has taken the lock.
    """
    check_held(lock)
    new = challenger if decision.promoted or champion is None else champion
    foreign = model.foreign_version()
    with registry_client(model.store, model.name) as client:
        current = aliases(model.store, model.name).get(CHAMPION)
        last = next(iter(recorded_moves(client, model.name)[-1:]), None)
        if foreign:
            decision = Decision(False, f"{decision.reason}; but {model.refusal(foreign)}: choose another tracking.model_name")
        elif last and (last.replaced, last.version) == (challenger, current):
            decision = Decision(False, f"{decision.reason}; but it was champion already, and {last.who} has replaced it")
        else:
            if current in (None, champion, challenger):
                current = _move_champion(client, model, current, new, lock, decision.reason, champion)
            if current != new:
                meanwhile = f"version {current} became champion meanwhile, and stays champion"
                decision = Decision(False, f"{decision.reason}; but {meanwhile}")
        tags = _record(client, model.name, challenger, champion, decision)
        update_model_description(client, model.name)
    check_held(lock)
    run.set_tags({**tags, "champion": f"version {current}"})
    return current, decision


def _record(client: "MlflowClient", name: str, challenger: int, champion: int | None, decision: Decision) -> dict[str, str]:
    """Write a decision to the tags and the description of the new version. Return the values of these tags by name.

    Args:
        client: client of the MLflow store.
        name: name of the registered model.
        challenger: version number of the new model.
        champion: number of the version with which the new model was compared. None if there was no such version.
        decision: whether the new model is promoted, and why.
    """
    outcome = PROMOTED if decision.promoted else REJECTED
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
    return tags


def _move_champion(
    client: "MlflowClient",
    model: WorkspaceModel,
    expected: int | None,
    version: int,
    lock: Lock,
    why: str,
    compared_with: int | None = None,
) -> int | None:
    """Point the alias `champion` at a version, if the lock is held and nobody else has moved the alias.

    MLflow can't check a condition and change an alias in one step, so this function checks the lock and the alias immediately
    before and after the change. If another run took the lock and chose a champion while this process was suspended between the
    two checks, the alias is set back to that champion. A move that an interrupted run made but did not record is recorded now.

    Args:
        client: client of the MLflow store.
        model: the registered model.
        expected: number of the version that had the alias when the caller read it, or None if no version had it. Nothing is
            changed if this is no longer true.
        version: number of the version that is to get the alias.
        lock: lock file of the workspace, held by this run so that no other run changes the workspace.
        why: reason of the move, for the record of the moves.
        compared_with: number of the champion with which the new model was compared. None if there was none.

    Returns:
        The number of the version that has the alias afterwards. None if no version has it.

    Raises:
        Interrupted: if another run has taken the lock.
    """
    check_held(lock)
    current = aliases(model.store, model.name).get(CHAMPION)
    if current != expected:
        return current
    # The choice of the lock's latest holder is found by this tag, even if an earlier holder still writes.
    client.set_model_version_tag(model.name, str(version), f"{_FENCE}{lock.fence}", str(version))
    if current == version:
        if version not in (compared_with, *(move.version for move in recorded_moves(client, model.name)[-1:])):
            record_move(client, model.name, compared_with, version, why)
        return current
    client.set_registered_model_alias(model.name, CHAMPION, str(version))
    if not lock.still_held():
        tags = [tag for each in all_versions(client, model.name) for tag in each.tags.items()]
        decisions = {int(key.removeprefix(_FENCE)): number for key, number in tags if key.startswith(_FENCE)}
        if (last := max(decisions, default=0)) > lock.fence:
            client.set_registered_model_alias(model.name, CHAMPION, decisions[last])
            logger.warning(
                "the champion of %s is version %s again: the run that took the lock chose it", model.name, decisions[last]
            )
        lock.check()
    record_move(client, model.name, current, version, why)
    return aliases(model.store, model.name).get(CHAMPION)
