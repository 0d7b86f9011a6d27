"""What a training reported, step by step: from MLflow, or from the files of a bare run."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from deconvnet.reporting import plots
from infra import storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from deconvnet.tracking.mlflow_runs import Run

Line = tuple[list[int], list[float]]  # steps and values
History = Mapping[str, Mapping[str, Line]]
"""By stage and metric."""

STAGES = {"fcn8s": "FCN-8s", "stage1": "DeconvNet, stage 1", "stage2": "DeconvNet, stage 2"}
_SHARES = {
    "pixel_accuracy": "training pixels right",
    "dev_mean_iou": "mean IoU on dev",
    "final_dev_mean_iou": "the same, final batch norms",
}


def of_run(run: "Run") -> dict[str, Line]:
    """The curves of one MLflow run, by metric; those that are drawn."""
    with run.tracker.clear():
        return _of_run(run.tracker.client, run.run_id)


def of_pipeline(parent: "Run") -> dict[str, dict[str, Line]]:
    """The curves of a pipeline's trainings, of each stage the newest finished run."""
    with parent.tracker.clear():
        return of_children(parent.tracker.client, parent.run_id)


def _of_run(client: "MlflowClient", run_id: str) -> dict[str, Line]:
    known = client.get_run(run_id).data.metrics
    found = {}
    for name in ("loss", *_SHARES):
        if name in known:
            points = sorted(client.get_metric_history(run_id, name), key=lambda point: point.step)
            found[name] = ([point.step for point in points], [point.value for point in points])
    return found


def of_children(client: "MlflowClient", parent_run_id: str) -> dict[str, dict[str, Line]]:
    """`of_pipeline`, by MLflow's own client, whose errors it raises."""
    experiment = client.get_run(parent_run_id).info.experiment_id
    found = {}
    for stage in STAGES:
        runs = client.search_runs(
            [experiment],
            f"tags.`mlflow.parentRunId` = '{parent_run_id}' and tags.stage = '{stage}' and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        if runs and (lines := _of_run(client, runs[0].info.run_id)):
            found[stage] = lines
    return found


def of_folder(folder: str) -> dict[str, dict[str, Line]]:
    """The curves in a bare run's `curves` (JSON lines, see `deconvnet.training.job.CurveFile`); a line that is not whole is passed over."""
    found = {}
    for stage in STAGES:
        lines: dict[str, Line] = {}
        with suppress(FileNotFoundError):
            for text in storage.read_bytes(storage.join(folder, f"{stage}.jsonl")).decode().splitlines():
                with suppress(ValueError):
                    report = json.loads(text)
                    for name in ("loss", *_SHARES):
                        if name in report:
                            steps, values = lines.setdefault(name, ([], []))
                            steps.append(int(report["step"]))
                            values.append(float(report[name]))
        if lines:
            found[stage] = lines
    return found


def drawn(history: History) -> dict[str, bytes]:
    """{"training_curves.png": bytes}: of each stage its loss and, beside it, what it got right; nothing where there is no curve."""
    panels: dict[str, dict[str, Line]] = {}
    for stage, lines in history.items():
        title = STAGES.get(stage, stage)
        panels[f"{title}: loss"] = {name: lines[name] for name in ("loss",) if name in lines}
        panels[f"{title}: share right, mean IoU"] = {text: lines[name] for name, text in _SHARES.items() if name in lines}
    return {"training_curves.png": plots.training_curves(panels)} if panels else {}
