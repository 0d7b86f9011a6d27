"""Whether a challenger becomes the champion, and the registry's aliases that say which is which."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deconvnet.tracking import model_card
from deconvnet.tracking.mlflow_runs import first_line, without_secrets
from deconvnet.tracking.run_notes import fitted
from infra.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from deconvnet.tracking.mlflow_runs import Run

CHAMPION, CHALLENGER = "champion", "challenger"
PROMOTED, REJECTED = "promoted", "not promoted"
JUDGED_BY = "edeconvnet_crf"
"""The row of the results that decides: what the registered model answers with."""


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger takes the champion's place, and why or why not, for a person."""

    promoted: bool
    why: str


def judge(champion: Mapping[str, Any], challenger: Mapping[str, Any], margin: float, max_class_drop: float) -> Verdict:
    """Compare two `results.json` of the same photographs and classes.

    The challenger is promoted if its mean IoU is higher, by at least `margin`, and no class's IoU is lower by more than
    `max_class_drop` (all fractions of 1). A class without an IoU in either is passed over. Raises ValueError where the results are
    not of the same photographs and classes.
    """
    if any(champion[name] != challenger[name] for name in ("classes", "images")):
        raise ValueError("results of other photographs or classes can't be compared")
    old, new = champion["rows"][JUDGED_BY], challenger["rows"][JUDGED_BY]
    rise = (new["mean_iou"] or 0.0) - (old["mean_iou"] or 0.0)
    figures = f"mean IoU {_percent(new['mean_iou'])} against the champion's {_percent(old['mean_iou'])}"
    falls = {
        name: old["iou"][name] - new["iou"][name]
        for name in challenger["classes"]
        if old["iou"][name] is not None and new["iou"][name] is not None
    }
    worst = max(falls, key=lambda name: falls[name], default=None)
    # Differences of fractions that were written out: 0.55 - 0.5 must count as 0.05.
    if rise < margin - 1e-9 or rise <= 0:
        return Verdict(False, f"{figures}: a rise of at least {_points(margin)} is asked for (retrain.margin)")
    if worst is not None and falls[worst] > max_class_drop + 1e-9:
        return Verdict(
            False,
            f"{figures}, but {worst} falls by {_points(falls[worst])}, more than {_points(max_class_drop)} (retrain.max_class_drop)",
        )
    kept = f", no class falls by more than {_points(max(0.0, falls[worst]))}" if worst is not None else ""
    return Verdict(True, f"{figures}{kept}")


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f} points"


def incumbent(tracking_uri: str, name: str) -> int | None:
    """The version to beat: the champion, else the challenger of a pipeline run that was not judged; None where there is neither.

    Raises UserError where the store doesn't answer.
    """
    versions = aliases(tracking_uri, name)
    if CHAMPION in versions or CHALLENGER not in versions:
        return versions.get(CHAMPION)
    with _asked(tracking_uri, name) as client:
        rejected = client.get_model_version(name, str(versions[CHALLENGER])).tags.get("verdict") == REJECTED
    return None if rejected else versions[CHALLENGER]


def aliases(tracking_uri: str, name: str) -> dict[str, int]:
    """The registered model's aliases and their versions; {} where there is no such model. Raises UserError."""
    from mlflow.exceptions import MlflowException

    with _asked(tracking_uri, name) as client:
        try:
            return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise


def set_champion(tracking_uri: str, name: str, version: int) -> None:
    """Give the alias to a version. Raises UserError."""
    with _asked(tracking_uri, name) as client:
        client.set_registered_model_alias(name, CHAMPION, str(version))
        model_card.refresh(client, name, without_secrets(tracking_uri))


@contextmanager
def _asked(tracking_uri: str, name: str) -> Iterator["MlflowClient"]:
    """The registry; what it refuses is told as a sentence."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    except MlflowException as error:
        store = without_secrets(tracking_uri)
        raise UserError(f"MLflow's registry at {store} can't be asked for {name}: {first_line(error)}") from None


def crown(run: "Run", name: str, challenger: int, champion: int | None, verdict: Verdict) -> int:
    """Write the verdict on the run and on the challenger's version, and set the alias champion; returns who holds it then.

    champion: who was to be beaten. Where the challenger is not promoted, that version keeps the alias, or takes it if nobody has it.
    A third version that got the alias meanwhile keeps it: nobody was measured against it. Doing it twice changes nothing.
    """
    client = run.tracker.client
    current = aliases(run.tracker.uri, name).get(CHAMPION)
    if current is not None and current not in (champion, challenger):
        verdict = Verdict(False, f"{verdict.why}; but version {current} became champion meanwhile, and keeps the place")
        holder = current
    else:
        holder = challenger if verdict.promoted or champion is None else champion
    outcome = PROMOTED if verdict.promoted else REJECTED
    with run.tracker.clear():
        version = client.get_model_version(name, str(challenger))
        line = f"\n\n**{outcome.capitalize()}**: {verdict.why}."
        if line not in (version.description or ""):
            client.update_model_version(name, str(challenger), description=fitted((version.description or "") + line))
        judged = version.tags.get("verdict.on") if version.tags.get("verdict") == outcome else None
        tags = {"verdict": outcome, "verdict.why": verdict.why, "verdict.on": judged or f"{datetime.now(UTC):%Y-%m-%d}"}
        if champion is not None:
            tags["verdict.against"] = f"version {champion}"
        for key, value in tags.items():
            client.set_model_version_tag(name, str(challenger), key, value)
        if holder != current:
            client.set_registered_model_alias(name, CHAMPION, str(holder))
        model_card.refresh(client, name, without_secrets(run.tracker.uri))
    run.set_tags({**tags, "champion": f"version {holder}"})
    return holder
