"""Record a pipeline run in MLflow (name, tags, metrics, descriptions), in the file `pipeline.json`, and on the report's page.

A workspace is the folder or s3:// prefix that holds everything a pipeline run writes.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deconvnet.reporting.report import REPORT_FILE, render_report
from deconvnet.reporting.run_summary import RunSummary, read_run_summary
from deconvnet.tracking.descriptions import artifact_image, results_table, run_description, run_name, stage_description
from deconvnet.tracking.interface import Run
from deconvnet.version import code_version
from infra import storage
from infra.errors import UserError
from infra.redaction import redacted
from infra.runtime.stages import Record, read_record
from workflows.settings import Settings, as_dict

RUN_FILE = "pipeline.json"
"""Name of a file in the workspace. It holds the id of the workspace's MLflow run and the settings of the last run."""


def name(config: str, settings: Settings) -> str:
    """Make the name of a pipeline's run in MLflow from the settings file, the workspace and today's date.

    Args:
        config: name of the settings file, without its folder and extension.
        settings: all settings. Only `workspace` is used.

    Returns:
        The name, for example "voc2012 · mine · 2026-03-01".
    """
    return run_name(config, settings.workspace, f"{datetime.now(UTC):%Y-%m-%d}")


def tags(config: str, settings: Settings) -> dict[str, str]:
    """Make the tags by which users can find a pipeline's runs in MLflow.

    Args:
        config: name of the settings file, without its folder and extension.
        settings: all settings. Only `workspace` is used.

    Returns:
        The values of the tags by name. `config` is the name of the settings file, and `workspace` is the workspace. Once the
        stage `prepare` has run, `data.digest` is the digest of all images and masks.
    """
    prepared = read_record(settings.workspace, "prepare")
    digest = {"data.digest": prepared.key} if prepared else {}
    return {"config": config, "workspace": settings.workspace, **digest}


def run_file(run_id: str, config: str, settings: Settings, stages: Sequence[str]) -> dict[str, Any]:
    """Make the content of the workspace's file pipeline.json, which records the run. Nothing is written.

    Args:
        run_id: id of the MLflow run. "" if the run is not tracked.
        config: name of the settings file, without its folder and extension.
        settings: all settings. Secrets in them are replaced.
        stages: names of the stages in the order in which they run.

    Returns:
        A dict of JSON values with the keys `mlflow_run_id`, `config`, `code` (version of the code), `stages` and `settings`.
    """
    return {
        "mlflow_run_id": run_id,
        "config": config,
        "code": code_version(),
        "stages": list(stages),
        "settings": redacted(as_dict(settings)),
    }


def result_metrics(split: str, results: Mapping[str, Any]) -> dict[str, float | None]:
    """Turn evaluation results into metrics for MLflow.

    Args:
        split: name of the split that was evaluated, such as "val". The names of the metrics begin with it.
        results: content of a results.json, which the evaluation writes.

    Returns:
        Values of metrics by name: mean IoU and pixel accuracy of each of the five results, and the IoU of each class by
        EDeconvNet+CRF (the ensemble with a CRF). All are from 0 to 1. A value is None if it is undefined, for instance if no
        image shows the class.
    """
    rows = results["rows"]
    totals = {f"{split}.{metric}.{row}": rows[row][metric] for metric in ("mean_iou", "pixel_accuracy") for row in rows}
    return {**totals, **{f"{split}.iou.{class_name}": iou for class_name, iou in rows["edeconvnet_crf"]["iou"].items()}}


def describe_finished_stage(run: Run, stage: str, summary: Mapping[str, Any], workspace: str) -> None:
    """Write the description of a finished stage to its MLflow run.

    Args:
        run: MLflow run of the stage.
        stage: name of the stage, which is a step of the pipeline, such as "evaluate".
        summary: summary that the stage returned, a dict of JSON values.
        workspace: folder or s3:// prefix of the pipeline run.
    """
    details = ""
    if stage == "evaluate":
        results = storage.read_json(storage.join(workspace, "report", "results.json"))
        image = artifact_image(run.run_id, "report/comparison.png", "images, their ground truth and predictions")
        details = "\n".join([*results_table(results), "", image])
    run.describe(stage_description(stage, summary, details))


def log_finished_run(parent: Run, config: str, settings: Settings, records: Mapping[str, Record]) -> None:
    """Log the results of a finished pipeline to MLflow, and write the report's HTML page again with the durations of all stages.

    If the stage `evaluate` has not run, there are no results yet, and only the tags are set.

    Args:
        parent: MLflow run of the pipeline.
        config: name of the settings file, without its folder and extension.
        settings: all settings.
        records: stored records of the complete stages (fingerprint, duration and summary of each), by the name of the stage.
    """
    parent.set_tags(tags(config, settings))  # again, as the data's digest may not have been known at the start
    if "evaluate" not in records:
        return
    parent.log_metrics({f"val.mean_iou.{row}": value for row, value in records["evaluate"].summary["mean_iou"].items()})
    summary = run_summary(settings.workspace)
    html = render_report(summary).encode()
    storage.write_bytes(storage.join(settings.workspace, "report", REPORT_FILE), html)
    parent.log_bytes(html, f"report/{REPORT_FILE}")
    if image := summary.figures.get("comparison"):
        parent.log_bytes(image, "report/comparison.png")
    parent.describe(run_description(summary, parent.run_id))


def report_files(workspace: str) -> dict[str, bytes]:
    """Make the report's HTML page from the files that a workspace has so far. Nothing is written.

    Args:
        workspace: folder or s3:// prefix of the pipeline run.

    Returns:
        The content of the page by file name: `{"index.html": content}`.

    Raises:
        UserError: if the workspace has no results yet.
    """
    return {REPORT_FILE: render_report(run_summary(workspace)).encode()}


def run_summary(workspace: str) -> RunSummary:
    """Read the summary of a pipeline run (results, durations, figures, settings and more) from its workspace.

    Args:
        workspace: folder or s3:// prefix of the pipeline run.

    Returns:
        The summary, from which the report and MLflow's description are made.

    Raises:
        UserError: if the workspace has no results yet.
    """
    file = storage.join(workspace, RUN_FILE)
    run = storage.read_json(file) if storage.exists(file) else {}
    folder = workspace.rstrip("/").rpartition("/")[2]
    try:
        return read_run_summary(
            workspace,
            title=" · ".join(dict.fromkeys(text for text in (run.get("config"), folder) if text)),
            settings=run.get("settings", {}),
            code=run.get("code", "unknown"),
            stages=run.get("stages", ()),
        )
    except FileNotFoundError:
        raise UserError(
            f"{workspace} has no report/results.json, which the stage evaluate writes: run "
            "workflows/train_pipeline.py on it first"
        ) from None
