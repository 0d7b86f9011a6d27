"""Record a pipeline run in MLflow, in the file `pipeline.json` and on the report's page, and register its model in MLflow.

A workspace is the folder or bucket prefix that holds everything a pipeline run writes.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deconvnet.reporting.report import REPORT_FILE, render_report
from deconvnet.reporting.run_summary import METRICS, RunSummary, read_run_summary
from deconvnet.tracking.champion.workspace_model import WorkspaceModel, origin_tags
from deconvnet.tracking.registry import CHALLENGER
from deconvnet.tracking.texts.descriptions import (
    artifact_image,
    results_table,
    run_description,
    run_name,
    stage_description,
    unfinished_run_description,
)
from deconvnet.tracking.texts.model_card import model_card
from deconvnet.version import code_version
from infra import storage
from infra.errors import UserError
from infra.redaction import redacted
from infra.runtime.stages import Record, Stage, read_record
from infra.storage import tables
from proposals.image_notes import usable_notes
from workflows.pipelines.data import DataPipeline
from workflows.pipelines.workspace import TABLES_TAG, Workspace
from workflows.settings import Settings, as_dict

logger = logging.getLogger(__name__)

RUN_FILE = "pipeline.json"
"""Name of a file in the workspace. It holds the id of the workspace's MLflow run and the settings of the last run."""
_MUST_MATCH = ("examples.context ", "examples.window ", "proposals.kind ", "data.background ")
"""Settings that must be the same in evaluation as in training, as prefixes of the texts of `changed_since_training`."""
_VALUES_IF_UNRECORDED: Mapping[str, Any] = {"kind": "edgebox", "background": "first"}
"""Values to assume for settings that a run did not record, because its version of the program did not have them."""


class TrackedPipeline(DataPipeline):
    """A pipeline that logs to an MLflow run, whose id it keeps in the workspace's file pipeline.json.

    If the pipeline is started again in the same workspace, it resumes the same MLflow run.
    """

    generation_name = ""
    """Name of the generation if the pipeline is that of a retraining run."""

    @property
    def registry_workspace(self) -> str:
        """Return the URI of the workspace that owns the registered models: this one, or for a generation its parent."""
        return self.root

    def _run_name(self, config: str) -> str:
        """Make the name of the pipeline's MLflow run from the settings file, the workspace and the date.

        Args:
            config: name of the settings file, without its folder and extension.
        """
        return run_name(config, self.root, f"{datetime.now(UTC):%Y-%m-%d}")

    def _tags(self, config: str) -> Mapping[str, str]:
        """Make the tags of the MLflow runs: settings file, workspace and, once they are known, the data's digest and versions.

        Args:
            config: name of the settings file, without its folder and extension.

        Returns:
            The values of the tags by name. Those of versions are like "tables.images": "images@12".
        """
        prepared = read_record(self.root, "prepare")
        used = {f"tables.{name.replace('/', '.')}": text for name, text in self.versions().items()}
        return {**super()._tags(config), **({"data.digest": prepared.key} if prepared else {}), **used}

    def _run_to_resume(self) -> str | None:
        """Return the id of this workspace's earlier MLflow run from the file pipeline.json, or None if there is no such file."""
        file = self.uri(RUN_FILE)
        return storage.read_json(file).get("mlflow_run_id") if storage.exists(file) else None

    def use_prepared_tables(self) -> None:
        """Evaluate on the images and boxes that the last run prepared, whatever the current settings of the data are.

        The settings sections `data`, `proposals` and `examples` are ignored, except for the sizes and overlap of windows. A
        warning names every ignored setting that has changed since the last run. Reports show the data set name of that run.

        Raises:
            UserError: if the image regions that DeconvNet sees would be chosen or cut in another way than for training, or the
                meaning of class 0 is another one.
        """
        if not storage.exists(self.uri(RUN_FILE)):
            return
        if changed := changed_since_training(self.settings):
            logger.warning(
                f"not used, because the images and boxes in {self.root} are evaluated as they are: {', '.join(changed)}"
            )
        root = storage.read_json(self.uri(RUN_FILE))["settings"]["data"]["root"]
        self.dataset_name = Path(root).name if root else "generated"

    def _begin(self, config: str) -> None:
        """Record the run in the workspace's file pipeline.json, and describe it in MLflow as unfinished.

        The file has the id of the MLflow run, the version of the code, the names of the stages, the settings without secrets, and
        whether the run finished.

        Args:
            config: name of the settings file, without its folder and extension.
        """
        record = {
            "mlflow_run_id": self.run_of_pipeline.run_id,
            "config": config,
            "code": code_version(),
            "stages": [stage.name for stage in self.stages.stages],
            "settings": redacted(as_dict(self.settings)),
            "finished": False,
        }
        storage.write_json(self.uri(RUN_FILE), record)
        self.run_of_pipeline.describe(unfinished_run_description(config))

    def _run(self, config: str, keep_going: Callable[[Stage], bool]) -> dict[str, Record]:
        """Run and log the stages as in the base class, and record in the file pipeline.json that the run finished."""
        records = super()._run(config, keep_going)
        self.check_locks()
        file = self.uri(RUN_FILE)
        storage.write_json(file, {**storage.read_json(file), "finished": True})
        return records

    def _last_run_finished(self) -> bool:
        """Return whether the last run finished. If it was killed after its last stage, MLflow may lack the results.

        Runs of earlier versions of this program did not record it. They are treated as finished.
        """
        file = self.uri(RUN_FILE)
        return not storage.exists(file) or bool(storage.read_json(file).get("finished", True))

    def _describe_stage(self, name: str, summary: Mapping[str, Any] | None) -> None:
        """Write the description of a stage to its MLflow run: its purpose and, once it has run, its results.

        Args:
            name: name of the stage.
            summary: summary that the stage returned, a dict of JSON values. None before the stage.
        """
        details = ""
        if name == "evaluate" and summary is not None:
            image = artifact_image(
                self.run_of_stage.run_id, "report/comparison.png", "images, their ground truth and predictions"
            )
            details = "\n".join([*results_table(storage.read_json(self.report("results.json"))), "", image])
        self.run_of_stage.describe(stage_description(name, summary, details))

    def _end(self, config: str, records: Mapping[str, Record]) -> None:
        """Log the results to the pipeline's MLflow run, and write the report's HTML page again with the durations of all stages.

        If the stage `evaluate` has not run, there are no results yet, and only the tags are set.

        Args:
            config: name of the settings file, without its folder and extension.
            records: stored records of the complete stages (fingerprint, duration and summary of each), by the name of the stage.
        """
        parent = self.run_of_pipeline
        parent.set_tags(self._tags(config))  # again, as the data's digest may not have been known at the start
        if "evaluate" not in records:
            return
        parent.log_metrics({f"val.mean_iou.{row}": value for row, value in records["evaluate"].summary["mean_iou"].items()})
        summary = run_summary(self.root)
        html = render_report(summary).encode()
        storage.write_bytes(self.report(REPORT_FILE), html)
        parent.log_bytes(html, f"report/{REPORT_FILE}")
        if image := summary.figures.get("comparison"):
            parent.log_bytes(image, "report/comparison.png")
        parent.describe(run_description(summary, parent.run_id))

    def val_images(self) -> dict[str, str]:
        """Return digests of the val images and their masks by image_id."""
        notes = usable_notes(tables.require_commit(self.images))
        return {note.image_id: f"{note.pixels} {note.labels}" for note in notes if note.split == "val"}

    def workspace_model(self) -> WorkspaceModel:
        """Return the registered model that the settings name. It knows which of its versions belong to this workspace."""
        return WorkspaceModel(
            self.store, self.settings.tracking.model_name, self.registry_workspace, Workspace(self.registry_workspace).identity()
        )

    def _register(self, fingerprint: str) -> dict[str, Any]:
        """Register the ensemble in MLflow as a new model version, and point the alias `challenger` at it.

        If the alias belongs to a version of another workspace, it is not moved.

        Args:
            fingerprint: fingerprint of the stage. It becomes a tag of the version.

        Returns:
            The summary of the stage: the name of the `model` and the number of the `version`.
        """
        from deconvnet.evaluation.drift import read_statistics
        from deconvnet.inference.predictor import PredictorOptions
        from deconvnet.tracking.register import Ensemble, register

        s, model = self.settings, self.workspace_model()
        ensemble = Ensemble(
            deconvnet_uri=self.model("stage2"),
            fcn8s_uri=self.model("fcn8s"),
            classes=s.data.classes,
            proposals={**s.proposals.edge_box, "kind": s.proposals.kind},
            segment=asdict(PredictorOptions.from_settings(s.segment, s.examples, s.proposals, s.data)),
            max_pixels=s.data.max_pixels,
            val_images=self.val_images(),
            statistics=read_statistics(self.report()),
            card=run_card(model.name, self.settings.workspace),
        )
        results = storage.read_json(self.report("results.json"))
        origin = origin_tags(model.workspace, model.workspace_id, s.data.classes, self.generation_name)
        origin[TABLES_TAG] = " ".join(self.versions().values())
        holder = model.foreign_version(CHALLENGER)
        alias = None if holder else CHALLENGER
        version = register(self.run_of_stage, self.store, model.name, ensemble, results, fingerprint, origin, alias)
        logger.info(f"  {model.name} version {version}, {f'alias {alias}' if alias else 'without an alias'}")
        if foreign := holder or model.foreign_version():
            unmoved = "its alias challenger was not moved, and " if holder else ""
            logger.warning(
                f"  {model.refusal(foreign)}: {unmoved}retrain.py will not promote a model of this name: set another "
                "--tracking.model_name"
            )
        return {"model": s.tracking.model_name, "version": version}


def changed_since_training(settings: Settings) -> list[str]:
    """Compare the settings `examples`, `data` and `proposals` with those of the last run in the workspace.

    Args:
        settings: the current settings.

    Returns:
        Sorted texts about the settings that have changed, such as "data.limit 3 (was 5)". The sizes and the overlap of windows
        may change, and are left out. [] if no run was recorded.

    Raises:
        UserError: if the image regions that DeconvNet sees would be chosen or cut in another way than for training, or the
            meaning of class 0 is another one.
    """
    file = storage.join(settings.workspace, RUN_FILE)
    if not storage.exists(file):
        return []
    then, now = storage.read_json(file)["settings"], redacted(as_dict(settings))
    may_change = ("window_sizes", "window_overlap")
    changed = sorted(
        f"{section}.{name} {value} (was {then[section].get(name, _VALUES_IF_UNRECORDED.get(name))})"
        for section in ("examples", "data", "proposals")
        for name, value in now[section].items()
        if then[section].get(name, _VALUES_IF_UNRECORDED.get(name, value)) != value and name not in may_change
    )
    if fixed := [each for each in changed if each.startswith(_MUST_MATCH)]:
        raise UserError(
            f"the models in {settings.workspace} were trained with other settings: {', '.join(fixed)}: set the same values"
        )
    return changed


def result_metrics(split: str, results: Mapping[str, Any]) -> dict[str, float | None]:
    """Turn evaluation results into metrics for MLflow.

    Args:
        split: name of the split that was evaluated, such as "val". The names of the metrics begin with it.
        results: content of a results.json, which the evaluation writes.

    Returns:
        Values of metrics by name: mean IoU, pixel accuracy, boundary F-measure and Boundary IoU of each of the five results,
        and the IoU of each class and the expected calibration error of EDeconvNet+CRF (the ensemble with a CRF). All are from 0
        to 1. A value is None if it is undefined, for instance if no image shows the class.
    """
    rows = results["rows"]
    totals = {f"{split}.{metric}.{row}": rows[row].get(metric) for metric in METRICS for row in rows}
    totals[f"{split}.expected_calibration_error"] = results.get("expected_calibration_error")
    return {**totals, **{f"{split}.iou.{class_name}": iou for class_name, iou in rows["edeconvnet_crf"]["iou"].items()}}


def report_files(workspace: str) -> dict[str, bytes]:
    """Make the report's HTML page from the files that a workspace has so far. Nothing is written.

    Args:
        workspace: folder or bucket prefix of the pipeline run.

    Returns:
        The content of the page by file name: `{"index.html": content}`.

    Raises:
        UserError: if the workspace has no results yet.
    """
    return {REPORT_FILE: render_report(run_summary(workspace)).encode()}


def run_card(name: str, workspace: str) -> str:
    """Write the card of the model that a workspace has trained.

    Args:
        name: name of the registered model.
        workspace: folder or bucket prefix of the pipeline run.

    Returns:
        Markdown, see `model_card`.

    Raises:
        UserError: if the workspace has no results yet.
    """
    analysis = storage.join(workspace, "report", "analysis.json")
    sizes = storage.read_json(analysis)["sizes"] if storage.exists(analysis) else None
    return model_card(name, run_summary(workspace), sizes)


def run_summary(workspace: str) -> RunSummary:
    """Read the summary of a pipeline run (results, durations, figures, settings and more) from its workspace.

    Args:
        workspace: folder or bucket prefix of the pipeline run.

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
