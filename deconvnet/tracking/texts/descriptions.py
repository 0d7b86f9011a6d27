"""Write the Markdown descriptions that MLflow shows for the experiment, for runs and for registered models.

MLflow stores a description as plain text. Its web pages render the text as Markdown with tables and images, but without HTML.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deconvnet.reporting.figure import RESULT_TITLES
from deconvnet.reporting.run_summary import METRICS, STAGE_DESCRIPTIONS, RunSummary, duration, percent, result_rows

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

NOTE = "mlflow.note.content"
"""Name of the tag in which MLflow keeps the description of a run or an experiment."""
MAX_LENGTH = 5000
"""Number of characters of a description that every MLflow store can hold."""
MODEL_HEADING = "### What this model is"
"""Heading of the generated part of a registered model's description. Text above it was written by a user, and is kept."""
EXPERIMENT_TAGS = {
    NOTE: """DeconvNet: semantic segmentation, trained and retrained as a pipeline.

* A top-level run is one workspace; the runs below it are its stages.
* Its description has the results, its artifact `report/index.html` the full report.
* To compare runs, show the columns `val.mean_iou.edeconvnet_crf`, `tags.config` and `tags.data.digest` (equal for the same data).
""",
    "mlflow.experimentKind": "custom_model_development",  # lets MLflow's pages show training runs rather than agents and traces
}
"""Tags that a new experiment gets."""

_MAX_VERSION_LENGTH = 4000  # the decision on a version is appended to its description later


def escaped(text: str) -> str:
    """Escape the special characters of Markdown and HTML in a text, so that it is shown unchanged. Line breaks become spaces."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", text)


def truncated(text: str, length: int = MAX_LENGTH) -> str:
    """Cut a text to a maximum length. A text that was cut ends in "…".

    Args:
        text: any text.
        length: maximum number of characters, which includes the "…".
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def artifact_image(run_id: str, path: str, alt: str) -> str:
    """Return Markdown that shows an image from a run's artifacts.

    The link is relative, so it works at every address at which MLflow's web pages may be served.

    Args:
        run_id: id of the run in MLflow.
        path: path of the image among the run's artifacts.
        alt: text for readers who can't see the image.
    """
    return f"![{escaped(alt)}](get-artifact?path={quote(path, safe='')}&run_uuid={run_id})"


def artifact_of_model(model_id: str, path: str) -> str:
    """Return the address of a file of a logged model. It is relative, as in `artifact_image`.

    Args:
        model_id: id of the logged model in MLflow.
        path: path of the file among the model's files.
    """
    return f"ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path={quote(path, safe='')}"


def results_table(results: Mapping[str, Any]) -> list[str]:
    """Format the five results of a run as a Markdown table, beside the mean IoU that Noh et al. (ICCV 2015) report.

    A result is a way of predicting: FCN-8s, DeconvNet, DeconvNet+CRF, EDeconvNet (the ensemble of both) or EDeconvNet+CRF.

    Args:
        results: content of the results.json that the pipeline's stage `evaluate` writes.

    Returns:
        The lines of the table, with numbers in per cent.
    """
    heads = ("per cent", *METRICS.values(), "mean IoU in the paper")
    lines = [heads, ("---",) * len(heads), *result_rows(results)]
    return [f"| {' | '.join(line)} |" for line in lines]


def run_name(config: str, workspace: str, day: str) -> str:
    """Make the name of a pipeline's run: config, workspace and day, separated by " · ".

    Args:
        config: name of the settings file, without its folder and extension.
        workspace: folder or bucket prefix of the pipeline run. Only its last part is used, and only if it differs from `config`.
        day: day of the run, as YYYY-MM-DD.

    Returns:
        The name, for example "voc2012 · mine · 2026-03-01".
    """
    folder = workspace.rstrip("/").rpartition("/")[2]
    return " · ".join([config, *([folder] if folder not in ("", config) else []), day])


def unfinished_run_description(config: str) -> str:
    """Return the description, in Markdown, of a pipeline's run that has no results yet.

    Args:
        config: name of the settings file, without its folder and extension.
    """
    return f"Pipeline with the config `{config}`, running or interrupted. The results appear here after the stage `evaluate`."


def run_description(summary: RunSummary, run_id: str) -> str:
    """Return the description of a pipeline's run that has results.

    Args:
        summary: summary of the run's workspace, with the results, splits, rejected inputs, durations and figures.
        run_id: id of the run in MLflow. It is needed to show an image from the run's artifacts.

    Returns:
        Markdown of at most 5,000 characters. The main result comes first, because MLflow shows only the beginning of a long
        description.
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
        f"**Time**: {duration(sum(summary.seconds.values()))}. **Report**: `report/index.html` among the artifacts.",
    ]
    if "comparison" in summary.figures:
        lines += ["", artifact_image(run_id, "report/comparison.png", "images, their ground truth and predictions")]
    return truncated("\n".join(lines))


def stage_description(name: str, summary: Mapping[str, Any] | None = None, details: str = "") -> str:
    """Return the description of the run of a stage (a step of a pipeline, such as training FCN-8s).

    Args:
        name: name of the stage, such as "stage1".
        summary: JSON-like result that the stage returned. None while it is running.
        details: Markdown to append.

    Returns:
        Markdown of at most 5,000 characters: the purpose of the stage, its outcome, and the details.
    """
    outcome = "" if summary is None else _outcome(name, summary)
    return truncated("\n\n".join(text for text in (STAGE_DESCRIPTIONS.get(name, ""), outcome, details) if text))


def _outcome(name: str, summary: Mapping[str, Any]) -> str:
    """Return a sentence in Markdown about the outcome of a stage (a step of a pipeline, such as training FCN-8s).

    Args:
        name: name of the stage.
        summary: JSON-like result that the stage returned.

    Returns:
        The sentence, or "" if there is nothing to say about this stage.
    """
    match name:
        case "prepare":
            counts = ", ".join(f"{count:,} {split}" for split, count in summary["counts"].items())
            changes = ", ".join(f"{count:,} {change}" for change, count in summary.get("changes", {}).items())
            compared = f" Since the previous run: {changes}." if changes else ""
            return f"**{counts}** images; {summary['rejects']:,} rejected.{compared}"
        case "proposals":
            return f"**{summary['images']:,} images**; `proposals/dev.png` shows how many objects the boxes find."
        case "examples":
            made = {table: count for table, count in summary.items() if isinstance(count, int)}
            crops = ", ".join(f"{count:,} {table.replace('_', ' ')}" for table, count in made.items())
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


def result_tags(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the measured quality of a model version, as tags for MLflow's model registry.

    Args:
        results: content of the results.json that the pipeline's stage `evaluate` writes.

    Returns:
        Numbers from 0 to 1 as text, by the name of the tag. A name consists of a metric and a result, such as "mean_iou.fcn8s".
        Numbers that could not be measured are left out.
    """
    return {
        f"{metric}.{name}": f"{row[metric]:.4f}"
        for name, row in results["rows"].items()
        for metric in METRICS
        if row.get(metric) is not None
    }


def version_description(results: Mapping[str, Any], card: str = "") -> str:
    """Return the description of a version of the registered model: its results, its classes, and a link to its model card.

    Args:
        results: content of the results.json that the pipeline's stage `evaluate` writes.
        card: address of the model card, see `artifact_of_model`; "" if there is none.

    Returns:
        Markdown of at most 4,000 characters. There is room left for a sentence about the promotion, which is appended later.
    """
    lines = [
        f"EDeconvNet+CRF, measured on {results.get('images', '?')} images of {escaped(str(results.get('dataset', '?')))}:",
        "",
        *_version_table(result_tags(results)),
        "",
        *([f"[Model card]({card}): data, results by class, limits, licences.", ""] if card else []),
        f"Classes, by id from 0: {escaped(', '.join(results['classes']))}.",
    ]
    return truncated("\n".join(lines), _MAX_VERSION_LENGTH)


_PURPOSE = (
    "EDeconvNet+CRF: an ensemble of DeconvNet and FCN-8s, refined by a dense CRF. Input: an encoded image (`image`). "
    "Output: a PNG of class ids (`mask`), or why there is none (`error`)."
)


def model_description(model: "RegisteredModel", store: str, versions: Sequence["ModelVersion"], length: int = MAX_LENGTH) -> str:
    """Return the description of a registered model: its purpose, its results, its usage and a list of its versions.

    The results shown are those of the champion (the version in use). If there is none, they are those of the challenger (the
    newest version that a pipeline registered), else those of the newest version.

    Args:
        model: the model, with its name and aliases.
        store: URI of the MLflow store, without secrets.
        versions: versions of the model with their tags, newest first. At least one.
        length: maximum number of characters. The oldest versions are left out if the list would exceed it.

    Returns:
        Markdown that begins with the heading `MODEL_HEADING` ("What this model is"). The caller may keep a user's text above it.
    """
    aliases = {
        str(v.version): sorted(a for a, number in model.aliases.items() if str(number) == str(v.version)) for v in versions
    }
    alias, shown = next(
        ((alias, v) for alias in ("champion", "challenger") for v in versions if alias in aliases[str(v.version)]),
        ("", versions[0]),
    )
    uri = f"models:/{model.name}@{alias}" if alias else f"models:/{model.name}/{shown.version}"
    results = "\n".join(_version_table(shown.tags))
    text = f"""{MODEL_HEADING}
{_PURPOSE}

### Results
{(alias or "newest").capitalize()}: version {shown.version}, on the val images of its run.

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
    rows = [
        f"| {v.version} | {datetime.fromtimestamp(v.creation_timestamp / 1000, UTC):%Y-%m-%d} "
        f"| {_tagged_percent(v.tags, 'mean_iou.edeconvnet_crf')} | {escaped(_decision(v.tags))} "
        f"| {escaped(', '.join(aliases[str(v.version)]))} |"
        for v in versions
    ]
    ends = accumulate(len(row) + 1 for row in rows)
    fitting = sum(end <= length - len(text) - 40 for end in ends)  # 40 for the last line, about older versions
    older = len(rows) - fitting
    return "\n".join([text, *rows[:fitting], *(["", f"… and {older:,} older."] if older else [])])


def _version_table(tags: Mapping[str, str]) -> list[str]:
    """Format the results of one version as a Markdown table, with rows in the order of Noh et al. (ICCV 2015, DeconvNet).

    Args:
        tags: tags of the version by name. The measured quality is in tags such as "mean_iou.fcn8s", as numbers from 0 to 1.

    Returns:
        The lines of the table, with numbers in per cent. Results without a mean IoU are left out. If there is no result, the
        only line is the sentence "It was not measured."
    """
    rows = [
        f"| {title} | {' | '.join(_tagged_percent(tags, f'{metric}.{name}') for metric in METRICS)} |"
        for name, title in RESULT_TITLES.items()
        if f"mean_iou.{name}" in tags
    ]
    heads = [f"| per cent | {' | '.join(METRICS.values())} |", f"|---|{'---|' * len(METRICS)}"]
    return [*heads, *rows] if rows else ["It was not measured."]


def _tagged_percent(tags: Mapping[str, str], name: str) -> str:
    """Format the number (0 to 1) in the tag `name` in per cent. Return "–" if there is no such tag."""
    return percent(float(tags[name]) if name in tags else None)


def _decision(tags: Mapping[str, str]) -> str:
    """Return a sentence that says whether a version was promoted to champion (the version in use), and why.

    Args:
        tags: values of the version's tags by name. The decision is in the tags "verdict", "verdict.why", "verdict.against" and
            "verdict.on".

    Returns:
        The sentence, or "not compared" if there is no tag "verdict".
    """
    if "verdict" not in tags:
        return "not compared"
    against = f"against {tags['verdict.against']}" if "verdict.against" in tags else ""
    head = " ".join(text for text in (tags["verdict"], tags.get("verdict.on"), against) if text)
    return f"{head}: {tags['verdict.why']}" if tags.get("verdict.why") else head
