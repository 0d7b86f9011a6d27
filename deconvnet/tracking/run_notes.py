"""What MLflow's pages say in words: descriptions in Markdown of the experiment, a pipeline's run, its stages.

Descriptions are plain text to MLflow; its pages show them as Markdown, with tables and pictures but no HTML.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from deconvnet.reporting.run_summary import STAGE_DESCRIPTIONS, RunSummary, duration, percent, result_rows

NOTE = "mlflow.note.content"
"""The tag in which MLflow keeps the description of a run or an experiment."""
MOST = 5000
"""Characters of a description that every MLflow store keeps."""

_EXPERIMENT = """DeconvNet: semantic segmentation, trained and retrained as a pipeline of stages.

* A run at the top is one workspace; the stages below it (open it by its +) are its parts, in the order of their numbers.
* Its description holds the table of the five results, its artifacts the report: `report/index.html`.
* To compare runs choose the columns `val.mean_iou.edeconvnet_crf` and `tags.config`; `tags.data.digest` tells which saw the same data.
* Filters: `tags.stage = "stage2"`, `tags.config = "quickstart"`, `tags.code LIKE "1a2b3c%"`.
"""
EXPERIMENT_TAGS = {NOTE: _EXPERIMENT, "mlflow.experimentKind": "custom_model_development"}
"""Of the experiment: its description, and the kind by which MLflow's pages show training runs rather than agents and traces."""


def escaped(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", text)


def fitted(text: str, most: int = MOST) -> str:
    """`text`, ended by … where it is longer than a store keeps."""
    return text if len(text) <= most else text[: most - 1] + "…"


def artifact_picture(run_id: str, path: str, alt: str) -> str:
    """Markdown that shows a PNG of the run's artifacts on MLflow's own pages, wherever they are served."""
    return f"![{escaped(alt)}](get-artifact?path={quote(path, safe='')}&run_uuid={run_id})"


def results_table(results: Mapping[str, Any]) -> list[str]:
    """The five results beside the paper's, as lines of Markdown."""
    rows = (f"| {title} | {mean} | {right} | {paper} |" for title, mean, right, paper in result_rows(results))
    return ["| | mean IoU | pixels right | the paper |", "|---|---|---|---|", *rows]


def pipeline_note(facts: RunSummary, run_id: str) -> str:
    """The description of a pipeline's run, when it has its results."""
    photographs = ", ".join(f"{count:,} {name}" for name, count in facts.splits.items())
    classes = len(facts.results["classes"])
    aside = f" {facts.rejects.total:,} inputs were set aside." if facts.rejects.total else ""
    times = " · ".join(f"{name} {duration(took)}" for name, took in facts.seconds.items())
    best = facts.results["rows"]["edeconvnet_crf"]["mean_iou"]
    lines = [  # MLflow folds a long description after a few lines
        f"**EDeconvNet+CRF: {percent(best)} % mean IoU** on {escaped(str(facts.results['dataset']))}, {facts.results['images']:,} photographs.",
        "",
        *results_table(facts.results),
        "",
        "Per cent. The paper's column is its mean IoU on VOC 2012's test set: another set, for orientation.",
        "",
        f"**Data**: {photographs} photographs, {classes} classes.{aside}"
        if photographs
        else f"**Data**: {classes} classes.{aside}",
        "",
        f"**Time**: {times}; {duration(sum(facts.seconds.values()))} in all.",
        "",
        "**More**: `report/index.html` among the artifacts, one page with all pictures and charts. Each stage is a run below this one.",
    ]
    if "comparison" in facts.figures:
        lines += ["", artifact_picture(run_id, "report/comparison.png", "photographs beside their truth and labels")]
    return fitted("\n".join(lines))


def under_way(config: str) -> str:
    """The description of a pipeline's run that has no results yet."""
    return f"The pipeline by `{config}`, at work or stopped: the table of the five results stands here once `evaluate` is done."


def stage_note(name: str, summary: Mapping[str, Any] | None = None, detail: str = "") -> str:
    """The description of a stage's run: what it does; with its summary, what came of it; `detail`, Markdown, below."""
    told = "" if summary is None else _outcome(name, summary)
    return fitted("\n\n".join(text for text in (STAGE_DESCRIPTIONS.get(name, ""), told, detail) if text))


def _outcome(name: str, summary: Mapping[str, Any]) -> str:
    match name:
        case "prepare":
            counts = ", ".join(f"{count:,} {split}" for split, count in summary["counts"].items())
            changes = ", ".join(f"{count:,} {change}" for change, count in summary.get("changes", {}).items())
            since = f" Since the last run: {changes}." if changes else ""
            return f"**{counts}** photographs; {summary['rejects']:,} set aside.{since}"
        case "proposals":
            return f"Boxes for **{summary['photographs']:,} photographs**: `proposals/dev.png` shows how many objects they find."
        case "examples":
            crops = ", ".join(f"{count:,} {table.replace('_', ' ')}" for table, count in summary.items())
            return f"**{crops}** crops: `examples/*.png` shows some with their labels. A labelling fault is seen there first."
        case "fcn8s" | "stage1" | "stage2":
            return "`report/training_curves.png`, and *Model metrics* above, show how it learned, by optimiser step."
        case "evaluate":
            return "The pictures and charts are in `report/`."
        case "register":
            return f"**{escaped(summary['model'])} version {summary['version']}**, alias `challenger`."
        case "verdict":
            done = "promoted" if summary["promoted"] else "not promoted"
            return f"Version {summary['version']} is **{done}**: {escaped(summary['why'])}. Champion is version {summary['champion']}."
    return ""


def run_name(config: str, workspace: str, day: str) -> str:
    """What a pipeline's run is called: config, workspace where that is called otherwise, day."""
    place = workspace.rstrip("/").rpartition("/")[2]
    return " · ".join([config, *([place] if place not in ("", config) else []), day])
