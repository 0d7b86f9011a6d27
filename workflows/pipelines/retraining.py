"""Retrain the champion on the current images, and replace it if the new model is better.

The champion is the model version with the alias "champion" in MLflow's registry. The new model is called the challenger. Its
training starts from the champion's weights. A generation is one retraining run and its workspace.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from deconvnet.datasets import images_table
from deconvnet.evaluation.comparison import IMAGE_CONFUSIONS, mean_iou_rise, read_image_confusions
from deconvnet.evaluation.hold_out import HoldOut, find_hold_out, results_of
from deconvnet.inference.saved_ensemble import read_options
from deconvnet.tracking import promotion
from deconvnet.tracking.champion.workspace_model import WorkspaceModel
from deconvnet.tracking.initial_model import find_initial_model, initial_model_folder
from deconvnet.tracking.register import read_val_images
from deconvnet.tracking.store import tracking_uri
from infra import storage
from infra.errors import UserError
from infra.runtime.stages import Stage, read_record, up_to_date_record
from infra.storage import tables
from infra.storage.lock import Lock
from proposals.image_notes import read_notes
from workflows.pipelines import generations
from workflows.pipelines.generations import Generation
from workflows.pipelines.training import Pipeline
from workflows.pipelines.workspace import Workspace
from workflows.settings import Settings

CHAMPION_RESULTS = ("champion", "results.json")
"""Path in the report's folder of the file with the evaluation results of the champion."""

HOLD_OUT = ("champion", "hold_out.json")
"""Path in the report's folder of the file with the images on which the two models are compared."""

logger = logging.getLogger(__name__)


class Retraining(Pipeline):
    """The pipeline of one generation: the main pipeline with two additional stages.

    The stage `champion` evaluates the champion on the same images as the new model. The stage `verdict` compares both and makes
    the new model the champion if it is better. The generation has its own workspace below the one that the settings name, its
    parent. All generations use the same MLflow store.

    Attributes:
        generation: the generation, which names the model to start from and the previous workspace.
        parent: URI of the parent workspace, which holds all generations.
    """

    command = "retrain.py"

    def __init__(self, settings: Settings, generation: Generation, lock: Lock | None = None) -> None:
        """Plan the stages of a retraining run. None of them is run yet.

        Args:
            settings: settings of the pipeline. Their `workspace` is the parent workspace.
            generation: the generation to run.
            lock: lock of the parent workspace. None if the stages are only planned.

        Raises:
            UserError: if tracking is switched off, data.version is given, or a file or folder that the settings name does not
                exist.
        """
        if not settings.tracking.enabled:
            raise UserError("retraining compares registered models: it needs tracking.enabled true")
        if settings.data.version is not None:
            raise UserError(
                f"data.version {settings.data.version}: retraining uses the current images, so leave it out "
                "(train_pipeline.py trains on an earlier version)"
            )
        self.generation = generation
        self.generation_name = generation.name
        self.parent = settings.workspace
        name = settings.tracking.model_name
        start = f"models:/{name}/{generation.version}" if generation.version is not None else settings.init.from_
        tracking = {"uri": tracking_uri(settings.workspace, settings.tracking.uri), "register_model": True}
        changed = {
            "workspace": generations.folder(self.parent, generation.name),
            "tracking": settings.tracking.model_copy(update=tracking),
            "init": settings.init.model_copy(update={"from_": start}),
        }
        super().__init__(settings.model_copy(update=changed), generation.previous)
        self.locks += [lock] if lock else []

    @property
    def registry_workspace(self) -> str:
        """Return the URI of the parent workspace, which owns the registered models."""
        return self.parent

    def _stages(self) -> list[Stage]:
        """List the stages in the order in which they run: those of the main pipeline, then `champion` and `verdict`."""
        s = self.settings
        version = {"version": self.generation.version}
        limits = {"margin": s.retrain.margin, "max_class_drop": s.retrain.max_class_drop}
        inputs, outputs = ("prepare", "proposals", "evaluate"), (self.report(*CHAMPION_RESULTS),)
        return [
            *super()._stages(),
            Stage("champion", "the champion on the same images", 6, version, inputs, outputs, self._evaluate_champion),
            Stage("verdict", "champion or challenger", 3, limits, ("evaluate", "register", "champion"), (), self._decide),
        ]

    def _evaluate_champion(self, fingerprint: str) -> dict[str, Any]:
        """Evaluate the champion on the val images, and compare the new model with it.

        The champion predicts with its own options, such as the size of its windows, but on the current box proposals.

        The comparison becomes part of the report. `champion/results.json` has the champion's results: `{}` if there is no
        champion, or only the key `refused` with the reason if the models can't be compared. `champion/hold_out.json` has the
        images on which they are compared.

        Args:
            fingerprint: fingerprint of the stage. Not used.

        Returns:
            The summary of the stage, which is empty.

        Raises:
            UserError: if the champion can't be fetched from MLflow, or is not an ensemble of a DeconvNet and an FCN-8s.
        """
        from deconvnet.reporting.champion_report import COMPARISON, compare_with_champion

        results: dict[str, Any] = {}
        for suffix in ("png", "json", "parquet"):  # left by an earlier attempt, maybe with another champion
            storage.remove(self.report(f"{COMPARISON}.{suffix}"))
        if self.generation.version is not None:
            deconvnet, fcn8s = self._champion_models(f"models:/{self.settings.tracking.model_name}/{self.generation.version}")
            if difference := self._difference(deconvnet):
                results = {
                    "refused": f"{difference}, so they can't be compared: to use the new model, run promote.py --to challenger"
                }
            else:
                results = self.evaluate("val", self.report("champion"), (deconvnet, fcn8s))
                hold_out = find_hold_out(self.val_images(), read_val_images(deconvnet))
                storage.write_json(self.report(*HOLD_OUT), asdict(hold_out))
                logger.info(f"  compared on the {hold_out}")
                if hold_out.images:
                    new, old = (self.evaluation_inputs("val", models) for models in (None, (deconvnet, fcn8s)))
                    gpu = self.settings.compute.gpu
                    files = compare_with_champion(new, old, hold_out, self.report(), self.executor, gpu)
                    self._write_report(files, self.report())
        storage.write_json(self.report(*CHAMPION_RESULTS), results)
        return {}

    def _difference(self, deconvnet: str) -> str:
        """Return why the champion (its DeconvNet is in the folder `deconvnet`) can't be evaluated here; "" if it can."""
        if tuple(storage.read_json(storage.join(deconvnet, "model.json"))["classes"]) != self.settings.data.classes:
            return "its classes are not the champion's"
        kinds = read_options(deconvnet.rpartition("/")[0])["proposals"].get("kind", "edgebox"), self.settings.proposals.kind
        if kinds[0] != kinds[1] and "windows" in kinds:  # one model would get no boxes, or boxes that it was not trained on
            return f"its proposals.kind is {kinds[1]}, and the champion's {kinds[0]}"
        return ""

    def _champion_models(self, source: str) -> tuple[str, str]:
        """Fetch the networks of a registered ensemble from MLflow to the workspace.

        Args:
            source: URI of the registered model, models:/NAME/VERSION.

        Returns:
            The URI of the folder of its DeconvNet, and the URI of the folder of its FCN-8s.

        Raises:
            UserError: if the registered model lacks one of the networks.
        """
        start = find_initial_model(source, self.store)
        deconvnet, fcn8s = (
            initial_model_folder(start, architecture, self.store, self.uri("init")) for architecture in ("deconvnet", "fcn8s")
        )
        if deconvnet is None or fcn8s is None:
            raise UserError(f"{source} is not an ensemble of a DeconvNet and an FCN-8s: give the alias champion to one that is")
        return deconvnet, fcn8s

    def _decide(self, fingerprint: str) -> dict[str, Any]:
        """Compare the new model with the champion, and make it the champion in MLflow's registry if it is better.

        The decision is logged, and recorded in MLflow.

        Args:
            fingerprint: fingerprint of the stage. Not used.

        Returns:
            The summary of the stage: `version` (number of the new model's version), `champion` (number of the version in use
            now, or None), `promoted` (a bool) and `why` (a sentence). If the two models were compared, also what `_compare`
            returns.
        """
        rise: dict[str, float] = {}
        champion = storage.read_json(self.report(*CHAMPION_RESULTS))
        challenger = storage.read_json(self.report("results.json"))
        registered = read_record(self.settings.workspace, "register")
        assert registered is not None
        version = int(registered.summary["version"])
        if not champion:
            decision = promotion.Decision(True, "there was no champion")
        elif "refused" in champion:
            decision = promotion.Decision(False, champion["refused"])
        else:
            decision, rise = self._compare(HoldOut(**storage.read_json(self.report(*HOLD_OUT))), challenger["classes"])
        run, model = self.run_of_pipeline, self.workspace_model()
        holder, decision = promotion.promote(run, model, version, self.generation.version, decision, self.locks[0])
        logger.info(f"  version {version} is {'' if decision.promoted else 'not '}promoted: {decision.reason}")
        run.log_metrics({f"verdict.{name}": value for name, value in rise.items()})
        return {"version": version, "champion": holder, "promoted": decision.promoted, "why": decision.reason, **rise}

    def _compare(self, hold_out: HoldOut, classes: Sequence[str]) -> tuple[promotion.Decision, dict[str, float]]:
        """Compare the new model with the champion on the val images of both.

        Args:
            hold_out: the images on which they are compared.
            classes: class names, ordered by id.

        Returns:
            The decision, and a dict of numbers: `images` (compared val images), `new_images` (val images that the champion did
            not have), `gone_images` (the champion's val images that have changed or are gone). If there are enough images, also
            `rise` (of the mean IoU, -1 to 1) and its 90 % interval, `lower` and `upper`.
        """
        counts: dict[str, float] = {"images": len(hold_out.images), "new_images": hold_out.new, "gone_images": hold_out.gone}
        if hold_out.too_few:
            reason = (
                f"only {len(hold_out.images):,} of the champion's {len(hold_out.images) + hold_out.gone:,} val images are still "
                "in val and unchanged, which is too few to compare: to use the new model, run promote.py --to challenger"
            )
            return promotion.Decision(False, reason), counts
        folders, limits = (CHAMPION_RESULTS[:1], ()), self.settings.retrain
        old, new = (hold_out.select(read_image_confusions(self.report(*folder, IMAGE_CONFUSIONS))) for folder in folders)
        interval = mean_iou_rise(old, new)
        before, after = results_of(old, classes), results_of(new, classes)
        decision = promotion.compare(before, after, interval, limits.margin, limits.max_class_drop)
        return decision, {**counts, "rise": interval.rise, "lower": interval.lower, "upper": interval.upper}


def next_generation(settings: Settings, forced: bool = False, dry_run: bool = False) -> Generation:
    """Choose the generation to run: the unfinished one if there is one, else a new one.

    If another model has become the champion since the unfinished generation began, the returned generation has to beat that
    model. If the workspace was moved, the returned generation has the new URI of its previous workspace.

    Args:
        settings: settings of the pipeline. Their `workspace` is the parent workspace.
        forced: True to train even if no image or mask is new.
        dry_run: True if nothing is to be written. Otherwise the workspace gets an identity if it has none yet.

    Returns:
        The generation.

    Raises:
        UserError: if MLflow's registry does not answer, or has models of another workspace under the same name.
    """
    every = generations.read_all(settings.workspace)
    store, identity = tracking_uri(settings.workspace, settings.tracking.uri), Workspace(settings.workspace).identity(not dry_run)
    model = WorkspaceModel(store, settings.tracking.model_name, settings.workspace, identity)
    model.check_owned()
    version = model.baseline_version()
    unfinished = [generation for generation in every if not generation.finished]
    if not unfinished:
        return Generation(generations.new_name(every), latest_workspace(settings, every), version, forced)
    found = unfinished[-1]
    own = model.versions_of(found.name)
    registered = read_record(generations.folder(settings.workspace, found.name), "register")
    if registered and registered.summary.get("model") == model.name:
        own.add(registered.summary["version"])
    moved = found.previous is not None and read_record(found.previous, "prepare") is None
    previous = latest_workspace(settings, every) if moved else found.previous
    return replace(found, previous=previous, version=found.version if version in own else version, forced=forced or found.forced)


def latest_workspace(settings: Settings, every: list[Generation]) -> str | None:
    """Find the newest complete workspace. A new retraining run compares its images with those there.

    Args:
        settings: settings of the pipeline. Their `workspace` is the parent workspace.
        every: all generations, oldest first.

    Returns:
        URI of the workspace of the newest finished generation. If there is no such generation, URI of the workspace in the
        settings, provided that the main pipeline has been run in it at least to its evaluation. Otherwise None.
    """
    finished = [generation for generation in every if generation.finished]
    if finished:
        return generations.folder(settings.workspace, finished[-1].name)
    return settings.workspace if up_to_date_record(settings.workspace, "evaluate") else None


def files_unchanged(pipeline: Retraining) -> bool:
    """Check whether the data set's files are the same as for the previous workspace, by names, sizes and times. No file is read.

    The result is also True if the last retraining found nothing new in the files, although their times had changed.

    Args:
        pipeline: pipeline of the retraining run. It names the previous workspace.

    Returns:
        True if the files are unchanged. False if they have changed or there is no previous workspace.
    """
    before = read_record(pipeline.previous, "prepare") if pipeline.previous else None
    now = pipeline.stages.plan()[0].fingerprint
    if before is None or now is None:
        return False
    return now == before.fingerprint or generations.is_marked_unchanged(pipeline.parent, now, before.key)


def mark_unchanged(pipeline: Retraining, fingerprint: str) -> None:
    """Record that the data files have no new content since the previous workspace.

    Args:
        pipeline: pipeline of the retraining run. It names the previous workspace.
        fingerprint: fingerprint of the stage `prepare` with which the current files were read.
    """
    if pipeline.previous and (before := read_record(pipeline.previous, "prepare")):
        generations.mark_unchanged(pipeline.parent, fingerprint, before.key)


def content_changed(pipeline: Retraining) -> bool:
    """Check whether any image, mask or split differs from the previous workspace.

    The stage `prepare` must have run before, because it makes the comparison.

    Args:
        pipeline: pipeline of the retraining run.

    Returns:
        True if something differs, or if there is no previous workspace to compare with.
    """
    record = read_record(pipeline.settings.workspace, "prepare")
    changes = record.summary.get("changes") if record else None
    return changes is None or any(count for name, count in changes.items() if name != "same")


def count_new_and_gone(pipeline: Retraining) -> tuple[int, int]:
    """Count the images that were added and removed since the previous workspace.

    Only the ids of the images are compared, and no image is read.

    Args:
        pipeline: pipeline of the retraining run. It names the previous workspace.

    Returns:
        The number of added images, and the number of removed images. Without a previous workspace, or if an earlier version of
        this program wrote its tables, every image is counted as added.
    """
    s = pipeline.settings
    now = images_table.listed_image_ids(s.data, s.seed, pipeline.data_root)
    images = tables.read_commit(Workspace(pipeline.previous).images) if pipeline.previous else None
    notes = [note for part in images.parts for note in read_notes(part)] if images else []
    before = {note.image_id for note in notes if note.usable}
    rejected = {note.image_id for note in notes if not note.usable}
    return len(now - before - rejected), len(before - now)
