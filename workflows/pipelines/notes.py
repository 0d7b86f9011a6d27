"""What the pipeline tells people of a run: its names, tags and descriptions in MLflow, and the report's one page."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deconvnet.reporting.report import REPORT_FILE, render_report
from deconvnet.reporting.run_summary import RunSummary, read_run_summary
from deconvnet.tracking.descriptions import (
    artifact_image,
    results_table,
    run_description,
    run_name,
    stage_description,
    unfinished_run_description,
)
from deconvnet.version import code_version
from infra import storage
from infra.errors import UserError
from infra.redaction import redacted
from infra.runtime.stages import Record, recorded
from workflows.settings import Settings, as_dict

if TYPE_CHECKING:
    from deconvnet.tracking.interface import Run

__all__ = [
    "RUN_FILE", "facts", "name", "report", "result_metrics", "run_file", "stage_description", "tags", "tell_run", "tell_stage", "unfinished_run_description",
]  # fmt: skip

RUN_FILE = "pipeline.json"  # which MLflow run the workspace belongs to, and by what settings it was last at work


def name(config: str, settings: Settings) -> str:
    """What MLflow calls the run."""
    return run_name(config, settings.workspace, f"{datetime.now(UTC):%Y-%m-%d}")


def tags(config: str, settings: Settings) -> dict[str, str]:
    """What runs are found by: config, workspace and, once `prepare` is done, the digest of its data."""
    prepared = recorded(settings.workspace, "prepare")
    known = {"data.digest": prepared.key} if prepared else {}
    return {"config": config, "workspace": settings.workspace, **known}


def run_file(run_id: str, config: str, settings: Settings, stages: Sequence[str]) -> dict[str, Any]:
    """The content of RUN_FILE."""
    about = {"config": config, "code": code_version(), "stages": list(stages), "settings": redacted(as_dict(settings))}
    return {"mlflow_run_id": run_id, **about}


def result_metrics(split: str, results: Mapping[str, Any]) -> dict[str, float | None]:
    """A `results.json` as metrics: mean IoU and pixel accuracy of the five results, IoU by class of EDeconvNet+CRF."""
    rows = results["rows"]
    whole = {f"{split}.{figure}.{row}": rows[row][figure] for figure in ("mean_iou", "pixel_accuracy") for row in rows}
    return {**whole, **{f"{split}.iou.{each}": value for each, value in rows["edeconvnet_crf"]["iou"].items()}}


def tell_stage(run: "Run", stage: str, summary: Mapping[str, Any], workspace: str) -> None:
    """Describe a finished stage on its own run."""
    detail = ""
    if stage == "evaluate":
        results = storage.read_json(storage.join(workspace, "report", "results.json"))
        picture = artifact_image(run.run_id, "report/comparison.png", "images, their ground truth and predictions")
        detail = "\n".join([*results_table(results), "", picture])
    run.describe(stage_description(stage, summary, detail))


def tell_run(parent: "Run", config: str, settings: Settings, records: Mapping[str, Record]) -> None:
    """Log and describe a run whose stages are done; its artifacts get the report's page, with all timings now, and the main picture."""
    parent.log_metrics({f"seconds.{stage}": record.seconds for stage, record in records.items()})
    parent.set_tags(tags(config, settings))  # what the data are is known now
    if "evaluate" not in records:
        return
    parent.log_metrics({f"val.mean_iou.{row}": value for row, value in records["evaluate"].summary["mean_iou"].items()})
    known = facts(settings.workspace)
    html = render_report(known).encode()
    storage.write_bytes(storage.join(settings.workspace, "report", REPORT_FILE), html)
    parent.log_bytes(html, f"report/{REPORT_FILE}")
    if picture := known.figures.get("comparison"):
        parent.log_bytes(picture, "report/comparison.png")
    parent.describe(run_description(known, parent.run_id))


def report(workspace: str) -> dict[str, bytes]:
    """{"index.html": the page}, of what is finished in the workspace. Raises UserError where it has no results."""
    return {REPORT_FILE: render_report(facts(workspace)).encode()}


def facts(workspace: str) -> RunSummary:
    """The summary of a workspace's run. Raises UserError if it has no results yet."""
    file = storage.join(workspace, RUN_FILE)
    run = storage.read_json(file) if storage.exists(file) else {}
    place = workspace.rstrip("/").rpartition("/")[2]
    try:
        return read_run_summary(
            workspace,
            title=" · ".join(dict.fromkeys(text for text in (run.get("config"), place) if text)),
            settings=run.get("settings", {}),
            code=run.get("code", "unknown"),
            stages=run.get("stages", ()),
        )
    except FileNotFoundError:
        raise UserError(
            f"{workspace} has no report/results.json, which the stage evaluate leaves: run workflows/train_pipeline.py on it first"
        ) from None
