"""The descriptions that MLflow shows of the experiment, of runs and of registered models, in Markdown.

MLflow stores descriptions as plain text; its pages render them as Markdown with tables and images, but without HTML.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from deconvnet.reporting.figure import RESULT_TITLES
from deconvnet.reporting.run_summary import STAGE_DESCRIPTIONS, RunSummary, duration, percent, result_rows

NOTE = "mlflow.note.content"
"""The tag in which MLflow keeps the description of a run or an experiment."""
MAX_LENGTH = 5000
"""Longest description in characters that every MLflow store keeps."""
MODEL_HEADING = "### What this model is"
"""Heading of the generated part of a registered model's description. What a user wrote above it is kept."""
EXPERIMENT_TAGS = {
    NOTE: """DeconvNet: semantic segmentation, trained and retrained as a pipeline.

* A top-level run is one workspace; the runs below it are its stages.
* Its description has the results, its artifact `report/index.html` the full report.
* To compare runs, show the columns `val.mean_iou.edeconvnet_crf`, `tags.config` and `tags.data.digest` (equal for the same data).
""",
    "mlflow.experimentKind": "custom_model_development",  # lets MLflow's pages show training runs rather than agents and traces
}
"""Tags of a new experiment."""

_MAX_VERSION_LENGTH = 4000  # the decision on a version is appended to its description later


@dataclass(frozen=True)
class VersionSummary:
    """A version of a registered model, as the registry knows it.

    Attributes:
        number: version number.
        day: day it was registered, UTC, as YYYY-MM-DD.
        mean_iou: mean IoU (0 to 1) by result, such as "edeconvnet_crf"; results that were not measured are absent.
        pixel_accuracy: pixel accuracy (0 to 1) by result.
        decision: whether it was promoted, and why.
        aliases: aliases that point at it now.
    """

    number: int
    day: str
    mean_iou: Mapping[str, float]
    pixel_accuracy: Mapping[str, float]
    decision: str
    aliases: Sequence[str]


def escaped(text: str) -> str:
    """Escape text so that Markdown and HTML show it as it is; line breaks become spaces."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", text)


def truncated(text: str, length: int = MAX_LENGTH) -> str:
    """Cut a text to at most `length` characters; a cut text ends in …."""
    return text if len(text) <= length else text[: length - 1] + "…"


def artifact_image(run_id: str, path: str, alt: str) -> str:
    """Return Markdown that shows an image among a run's artifacts, on MLflow's own pages at whatever address they are served.

    Args:
        run_id: id of the run in MLflow.
        path: path of the image among the run's artifacts.
        alt: text for readers who can't see the image.
    """
    return f"![{escaped(alt)}](get-artifact?path={quote(path, safe='')}&run_uuid={run_id})"


def results_table(results: Mapping[str, Any]) -> list[str]:
    """Return the five results beside the paper's as lines of a Markdown table.

    Args:
        results: the content of a results.json.
    """
    rows = (f"| {title} | {mean_iou} | {accuracy} | {paper} |" for title, mean_iou, accuracy, paper in result_rows(results))
    return ["| per cent | mean IoU | pixel accuracy | mean IoU in the paper |", "|---|---|---|---|", *rows]


def run_name(config: str, workspace: str, day: str) -> str:
    """Name a pipeline's run.

    Args:
        config: name of the config.
        workspace: folder or s3:// prefix of the run.
        day: the day, YYYY-MM-DD.

    Returns:
        Config, last part of the workspace (unless it is the config's name) and day, separated by " · ".
    """
    folder = workspace.rstrip("/").rpartition("/")[2]
    return " · ".join([config, *([folder] if folder not in ("", config) else []), day])


def unfinished_run_description(config: str) -> str:
    """Describe a pipeline's run that has no results yet."""
    return f"Pipeline with the config `{config}`, running or interrupted. The results appear here after the stage `evaluate`."


def run_description(summary: RunSummary, run_id: str) -> str:
    """Describe a pipeline's run that has its results.

    Args:
        summary: what is known of the run.
        run_id: its id in MLflow, for the image among its artisummary.

    Returns:
        Markdown, at most `MAX_LENGTH` characters. The main result comes first, as MLflow folds a long description.
    """
    results = summary.results
    images = ", ".join(f"{count:,} {name}" for name, count in summary.splits.items())
    rejected = f" {summary.rejects.total:,} inputs were rejected." if summary.rejects.total else ""
    lines = [
        f"**EDeconvNet+CRF: {percent(results['rows']['edeconvnet_crf']['mean_iou'])} % mean IoU** on "
        f"{escaped(str(results['dataset']))}, {results['images']:,} images.",
        "",
        *results_table(results),
        "",
        f"**Data**: {images + ' images, ' if images else ''}{len(results['classes'])} classes.{rejected} "
        "The paper's column is for the test set of VOC 2012.",
        "",
        f"**Time**: {duration(sum(summary.seconds.values()))}. **Report**: `report/index.html` among the artisummary.",
    ]
    if "comparison" in summary.figures:
        lines += ["", artifact_image(run_id, "report/comparison.png", "images, their ground truth and predictions")]
    return truncated("\n".join(lines))


def stage_description(name: str, summary: Mapping[str, Any] | None = None, details: str = "") -> str:
    """Describe the run of a stage.

    Args:
        name: name of the stage.
        summary: what the stage returned; None while it is running.
        details: Markdown to append.

    Returns:
        Markdown, at most `MAX_LENGTH` characters: what the stage does, its outcome, and the details.
    """
    outcome = "" if summary is None else _outcome(name, summary)
    return truncated("\n\n".join(text for text in (STAGE_DESCRIPTIONS.get(name, ""), outcome, details) if text))


def _outcome(name: str, summary: Mapping[str, Any]) -> str:
    """Say in a sentence what a stage produced; "" if there is nothing to add."""
    match name:
        case "prepare":
            counts = ", ".join(f"{count:,} {split}" for split, count in summary["counts"].items())
            changes = ", ".join(f"{count:,} {change}" for change, count in summary.get("changes", {}).items())
            compared = f" Since the previous run: {changes}." if changes else ""
            return f"**{counts}** images; {summary['rejects']:,} rejected.{compared}"
        case "proposals":
            return f"**{summary['images']:,} images**; `proposals/dev.png` shows how many objects the boxes find."
        case "examples":
            crops = ", ".join(f"{count:,} {table.replace('_', ' ')}" for table, count in summary.items())
            return f"**{crops}** crops; `examples/*.png` shows some with their masks."
        case "fcn8s" | "stage1" | "stage2":
            return "Curves by optimiser step: `report/training_curves.png`, and *Model metrics* above."
        case "register":
            return f"**{escaped(summary['model'])} version {summary['version']}**, alias `challenger`."
        case "verdict":
            promoted = "promoted" if summary["promoted"] else "not promoted"
            outcome = f"Version {summary['version']} is **{promoted}**: {escaped(summary['why'])}."
            return f"{outcome} Champion is version {summary['champion']}."
    return ""


def version_description(results: Mapping[str, Any]) -> str:
    """Describe a version of the registered model by its results.

    Args:
        results: the content of a results.json.

    Returns:
        Markdown, short enough for the decision on the version to be appended.
    """
    rows = {name: row for name, row in results["rows"].items() if name in RESULT_TITLES}
    lines = [
        f"EDeconvNet+CRF, measured on {results.get('images', '?')} images of {escaped(str(results.get('dataset', '?')))}:",
        "",
        *_version_table({n: r["mean_iou"] for n, r in rows.items()}, {n: r["pixel_accuracy"] for n, r in rows.items()}),
        "",
        f"Classes, by id from 0: {escaped(', '.join(results['classes']))}.",
    ]
    return truncated("\n".join(lines), _MAX_VERSION_LENGTH)


def model_description(name: str, store: str, versions: Sequence[VersionSummary], length: int = MAX_LENGTH) -> str:
    """Describe a registered model: what it is, how good, how to use it, and its versions.

    Args:
        name: name of the registered model.
        store: URI of the MLflow store, without secrets.
        versions: its versions, newest first; at least one. The results shown are those of the champion; without a champion, those
            of the challenger, else of the newest.
        length: longest description, in characters; the oldest versions are left out to keep it.

    Returns:
        Markdown that begins with `MODEL_HEADING`.
    """
    alias, shown = next(
        ((alias, version) for alias in ("champion", "challenger") for version in versions if alias in version.aliases),
        (None, versions[0]),
    )
    uri = f"models:/{name}@{alias}" if alias else f"models:/{name}/{shown.number}"
    results = "\n".join(_version_table(shown.mean_iou, shown.pixel_accuracy)) if shown.mean_iou else "It was not measured."
    text = f"""{MODEL_HEADING}
EDeconvNet+CRF: an ensemble of DeconvNet and FCN-8s, refined by a dense CRF. Input: an encoded image (`image`). Output: a PNG of class ids (`mask`), or why there is none (`error`).

### Results
{(alias or "newest").capitalize()}: version {shown.number}, on the val images of its run.

{results}

### How to use it
```python
import mlflow, pandas

mlflow.set_tracking_uri("{store}")
model = mlflow.pyfunc.load_model("{uri}")
result = model.predict(pandas.DataFrame({{"image": [open("photo.jpg", "rb").read()]}}))
open("mask.png", "wb").write(result["mask"][0])
```
```sh
export MLFLOW_TRACKING_URI={store}
python workflows/serve.py --model {uri}
mlflow models serve -m {uri} --env-manager local --port 5001
```

### Versions
| version | registered | mean IoU | decision | alias now |
|---|---|---|---|---|"""
    room = length - len(text) - 40  # for the last line
    rows: list[str] = []
    for version in versions:
        mean_iou = percent(version.mean_iou.get("edeconvnet_crf"))
        aliases = escaped(", ".join(version.aliases))
        row = f"| {version.number} | {version.day} | {mean_iou} | {escaped(version.decision)} | {aliases} |"
        room -= len(row) + 1
        if room < 0:
            break
        rows.append(row)
    older = len(versions) - len(rows)
    return "\n".join([text, *rows, *(["", f"… and {older:,} older."] if older else [])])


def _version_table(mean_iou: Mapping[str, float | None], pixel_accuracy: Mapping[str, float | None]) -> list[str]:
    """Return results as lines of a Markdown table, in the paper's order."""
    rows = [
        f"| {title} | {percent(mean_iou[name])} | {percent(pixel_accuracy.get(name))} |"
        for name, title in RESULT_TITLES.items()
        if name in mean_iou
    ]
    return ["| per cent | mean IoU | pixel accuracy |", "|---|---|---|", *rows]
