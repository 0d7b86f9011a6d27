"""Retraining: a pipeline run on the present images that starts from the champion, and replaces it if the new model is better."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from deconvnet.datasets import images_table
from deconvnet.tracking import promotion, starting_model
from deconvnet.tracking.store import tracking_uri
from infra import storage
from infra.errors import UserError
from infra.runtime.stages import Stage, read_record, up_to_date_record
from infra.storage import tables
from workflows.pipelines import generations
from workflows.pipelines.generations import Generation
from workflows.pipelines.training import Pipeline
from workflows.settings import Settings

if TYPE_CHECKING:
    from deconvnet.tracking.mlflow_runs import MlflowRun

logger = logging.getLogger(__name__)


class Retraining(Pipeline):
    """The pipeline of one generation, with two more stages: `champion` evaluates the champion on the same images, `verdict` decides.

    The generation is a workspace below that of the settings. All generations share one MLflow store, in the latter.

    Attributes:
        generation: the generation.
        base: the workspace that holds all generations.
    """

    def __init__(self, settings: Settings, generation: Generation, should_stop: Callable[[], bool] = lambda: False) -> None:
        """
        Args:
            settings: of the pipeline; `workspace` holds all generations.
            generation: the one to run.
            should_stop: checked before each stage and during long ones; once True, the run stops with Interrupted.

        Raises:
            UserError: if tracking is switched off, or a file or folder that the settings name does not exist.
        """
        if not settings.tracking.enabled:
            raise UserError("retraining compares registered models: it needs tracking.enabled true")
        self.generation = generation
        self.base = settings.workspace
        name = settings.tracking.model_name
        start = f"models:/{name}/{generation.version}" if generation.version is not None else settings.init.from_
        tracking = {"uri": tracking_uri(settings.workspace, settings.tracking.uri), "register_model": True}
        changed = {
            "workspace": generations.folder(self.base, generation.name),
            "tracking": settings.tracking.model_copy(update=tracking),
            "init": settings.init.model_copy(update={"from_": start}),
        }
        super().__init__(settings.model_copy(update=changed), generation.previous, should_stop)

    def _stages(self) -> list[Stage]:
        """List the pipeline's stages and two more."""
        s = self.settings
        version = {"version": self.generation.version}
        limits = {"margin": s.retrain.margin, "max_class_drop": s.retrain.max_class_drop}
        inputs, outputs = ("prepare", "proposals", "evaluate"), (self._champion_results,)
        return [
            *super()._stages(),
            Stage("champion", "the champion on the same images", 1, version, inputs, outputs, self._evaluate_champion),
            Stage("verdict", "champion or challenger", 1, limits, ("evaluate", "register", "champion"), (), self._decide),
        ]

    @property
    def _champion_results(self) -> str:
        """File of the champion's results."""
        return storage.join(self.settings.workspace, "report", "champion", "results.json")

    def _evaluate_champion(self, fingerprint: str) -> dict[str, Any]:
        """Evaluate the champion; its results are {} if there is none, and only its classes if they are not the data's."""
        results: dict[str, Any] = {}
        if self.generation.version is not None:
            deconvnet, fcn8s = self._champion_models(f"models:/{self.settings.tracking.model_name}/{self.generation.version}")
            classes = storage.read_json(storage.join(deconvnet, "model.json"))["classes"]
            if tuple(classes) == self.settings.data.classes:
                results = self.evaluate("val", self.report("champion"), (deconvnet, fcn8s))
            else:
                results = {"classes": classes}
        storage.write_json(self._champion_results, results)
        return {}

    def _champion_models(self, source: str) -> tuple[str, str]:
        """Fetch the folders of a registered ensemble's DeconvNet and FCN-8s."""
        deconvnet, fcn8s = (
            starting_model.starting_model(source, architecture, self.store, self.uri("init"))
            for architecture in ("deconvnet", "fcn8s")
        )
        if deconvnet is None or fcn8s is None:
            raise UserError(f"{source} is not an ensemble of a DeconvNet and an FCN-8s: give the alias champion to one that is")
        return deconvnet, fcn8s

    def _decide(self, fingerprint: str) -> dict[str, Any]:
        """Compare the new model with the champion, and promote it if it is better."""
        limits, name = self.settings.retrain, self.settings.tracking.model_name
        champion = storage.read_json(self._champion_results)
        challenger = storage.read_json(self.report("results.json"))
        registered = read_record(self.settings.workspace, "register")
        assert registered is not None
        version = int(registered.summary["version"])
        if not champion:
            decision = promotion.Decision(True, "there was no champion")
        elif champion["classes"] != challenger["classes"]:
            reason = "its classes are not the champion's, so they can't be compared: give it the alias champion by hand"
            decision = promotion.Decision(False, reason)
        else:
            decision = promotion.compare(champion, challenger, limits.margin, limits.max_class_drop)
        holder = promotion.promote(cast("MlflowRun", self.run_of_pipeline), name, version, self.generation.version, decision)
        logger.info(f"  version {version} is {'' if decision.promoted else 'not '}promoted: {decision.reason}")
        return {"version": version, "champion": holder, "promoted": decision.promoted, "why": decision.reason}


def next_generation(settings: Settings, forced: bool = False) -> Generation:
    """Choose the generation to run: an unfinished one is resumed, else a new one is begun (and not yet written).

    An unfinished one starts anew if another model than its own challenger has become the champion since.

    Args:
        settings: of the pipeline; `workspace` holds all generations.
        forced: whether it trains even if nothing is new.
    """
    every = generations.read_all(settings.workspace)
    store, name = tracking_uri(settings.workspace, settings.tracking.uri), settings.tracking.model_name
    version = promotion.version_to_beat(store, name)
    unfinished = [generation for generation in every if not generation.finished]
    if not unfinished:
        return Generation(generations.new_name(), latest_workspace(settings, every), version, forced)
    found = unfinished[-1]
    registered = read_record(generations.folder(settings.workspace, found.name), "register")
    own = registered.summary.get("version") if registered else None
    return replace(found, version=found.version if version == own else version, forced=forced or found.forced)


def latest_workspace(settings: Settings, every: list[Generation]) -> str | None:
    """Return the newest complete workspace: a generation's, else that of a pipeline run before the first; None if there is none."""
    finished = [generation for generation in every if generation.finished]
    if finished:
        return generations.folder(settings.workspace, finished[-1].name)
    return settings.workspace if up_to_date_record(settings.workspace, "evaluate") else None


def files_unchanged(pipeline: Retraining) -> bool:
    """Check by names, sizes and times, without reading, that the data's files are those of the previous workspace.

    Files that were last found to hold nothing new, although their times had changed, count as unchanged too.
    """
    before = read_record(pipeline.previous, "prepare") if pipeline.previous else None
    now = pipeline.stages.plan()[0].fingerprint
    return before is not None and now in (before.fingerprint, generations.unchanged_fingerprint(pipeline.base))


def content_changed(pipeline: Retraining) -> bool:
    """Check whether an image, a mask or a split differs from the previous workspace. The stage `prepare` must have run."""
    record = read_record(pipeline.settings.workspace, "prepare")
    changes = record.summary.get("changes") if record else None
    return changes is None or any(count for name, count in changes.items() if name != "same")


def count_new_and_gone(pipeline: Retraining) -> tuple[int, int]:
    """Count the images that are listed now but were not before, and those that no longer are. Compares ids; nothing is read."""
    s = pipeline.settings
    now = images_table.listed_image_ids(s.data, s.seed, pipeline.data_root)
    before: set[str] = set()
    rejected: set[str] = set()
    if pipeline.previous:
        images = storage.join(pipeline.previous, "images")
        commit = tables.require_commit(images)
        before = {row["image_id"] for row in tables.iter_rows(images, ["image_id"])}
        rejected = {reject.image_id for reject in commit.rejects}
    return len(now - before - rejected), len(before - now)
