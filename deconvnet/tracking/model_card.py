"""The registered model's page in MLflow: what it is, how good, how to use it, and who was champion when. Written from the registry alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from deconvnet.reporting.figure import RESULT_TITLES
from deconvnet.reporting.run_summary import percent
from deconvnet.tracking.run_notes import MOST, escaped

if TYPE_CHECKING:
    from mlflow import MlflowClient

HEADING = "### What this model is"
"""Where our text begins. What a person wrote above it is kept; from here on it is written anew."""
_NEWEST = 100  # versions looked at


@dataclass(frozen=True)
class Version:
    """A version as the registry knows it. day: registered, UTC; mean_iou, pixel_accuracy: fractions by result, those that are known."""

    number: int
    day: str
    mean_iou: Mapping[str, float]
    pixel_accuracy: Mapping[str, float]
    verdict: str
    aliases: Sequence[str]


def refresh(client: "MlflowClient", name: str, store: str) -> None:
    """Write the page of the registered model `name` anew. store: MLflow's address without secrets. Raises MlflowException."""
    model = client.get_registered_model(name)
    aliases: dict[int, list[str]] = {}
    for alias, number in sorted(model.aliases.items()):
        aliases.setdefault(int(number), []).append(alias)
    quote = '"' if "'" in name else "'"
    found = client.search_model_versions(f"name={quote}{name}{quote}", _NEWEST, ["version_number DESC"])
    versions = [
        Version(
            int(each.version),
            datetime.fromtimestamp(each.creation_timestamp / 1000, UTC).strftime("%Y-%m-%d"),
            _measured(each.tags, "mean_iou."),
            _measured(each.tags, "pixel_accuracy."),
            _verdict(each.tags),
            aliases.get(int(each.version), ()),
        )
        for each in found
    ]
    if versions:
        own = (model.description or "").partition(HEADING)[0].strip()
        room = MOST - len(own) - 2
        text = page(name, store, versions, room)
        client.update_registered_model(name, f"{own}\n\n{text}" if own else text)


def page(name: str, store: str, versions: Sequence[Version], room: int = MOST) -> str:
    """The description, Markdown of at most `room` characters: versions, the newest first, as far as they fit. There must be one.

    The champion is told of; where there is none, the challenger, else the newest.
    """
    alias, shown = next(
        ((alias, v) for alias in ("champion", "challenger") for v in versions if alias in v.aliases),
        (None, versions[0]),
    )
    uri = f"models:/{name}@{alias}" if alias else f"models:/{name}/{shown.number}"
    about = f"""{HEADING}
EDeconvNet+CRF: DeconvNet and FCN-8s together, sharpened by a dense CRF. An encoded photograph goes in (`image`), a PNG of class ids comes out (`mask`), or why there is none (`error`). Proposals, weights and code are inside.

### How good it is
{(alias or "the newest").capitalize()}: version {shown.number}, on the val photographs of its run.

{_figures(shown)}

### Load it
```python
import mlflow, pandas

mlflow.set_tracking_uri("{store}")
model = mlflow.pyfunc.load_model("{uri}")
answer = model.predict(pandas.DataFrame({{"image": [open("photo.jpg", "rb").read()]}}))
open("mask.png", "wb").write(answer["mask"][0])
```

### Serve it
```sh
export MLFLOW_TRACKING_URI={store}
python workflows/serve.py --model {uri}
mlflow models serve -m {uri} --env-manager local --port 5001
```

### Champions and challengers
| version | registered | mean IoU | verdict | alias now |
|---|---|---|---|---|"""
    left = room - len(about) - 40
    rows: list[str] = []
    for v in versions:
        mean = percent(v.mean_iou.get("edeconvnet_crf"))
        rows.append(f"| {v.number} | {v.day} | {mean} | {escaped(v.verdict)} | {escaped(', '.join(v.aliases))} |")
        left -= len(rows[-1]) + 1
        if left < 0:
            rows.pop()
            break
    older = len(versions) - len(rows)
    return "\n".join([about, *rows, *(["", f"… and {older:,} older."] if older else [])])


def _figures(version: Version) -> str:
    rows = [
        f"| {title} | {percent(version.mean_iou.get(name))} | {percent(version.pixel_accuracy.get(name))} |"
        for name, title in RESULT_TITLES.items()
        if name in version.mean_iou
    ]
    return "\n".join(["| per cent | mean IoU | pixels right |", "|---|---|---|", *rows]) if rows else "It was not measured."


def _measured(tags: Mapping[str, str], prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): float(value) for key, value in tags.items() if key.startswith(prefix)}


def _verdict(tags: Mapping[str, str]) -> str:
    if "verdict" not in tags:
        return "not judged"
    on, against = tags.get("verdict.on", ""), tags.get("verdict.against", "")
    head = " ".join(text for text in (tags["verdict"], on, f"against {against}" if against else "") if text)
    return f"{head}: {tags['verdict.why']}" if tags.get("verdict.why") else head
