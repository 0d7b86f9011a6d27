"""Retraining: a pipeline run over what there is now, from the champion, that takes the champion's place if it is better."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from deconvnet.datasets import images_table
from deconvnet.tracking import promotion, starting_model
from deconvnet.tracking.store import tracking_uri
from infra import storage
from infra.errors import UserError
from infra.runtime.stages import Stage, recorded, standing
from infra.storage import tables
from workflows.pipelines import generations
from workflows.pipelines.generations import Generation
from workflows.pipelines.training import Pipeline
from workflows.settings import Settings


class Retraining(Pipeline):
    """The pipeline of one generation, and two stages more: the champion on the same photographs, and the verdict.

    The generation is a workspace below the settings' own; the MLflow store is that of the latter, one for all generations.
    """

    def __init__(
        self,
        settings: Settings,
        generation: Generation,
        say: Callable[[str], None] = print,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """stopped: asked before each stage; Interrupted is raised where it says yes."""
        self.generation = generation
        self.base = settings.workspace
        store = tracking_uri(settings.workspace, settings.tracking.uri)
        name = settings.tracking.model_name
        start = settings.init if generation.version is None else settings.init.model_copy(
            update={"from_": f"models:/{name}/{generation.version}"}
        )  # fmt: skip
        settings = settings.model_copy(
            update={
                "workspace": generations.folder(self.base, generation.name),
                "tracking": settings.tracking.model_copy(update={"uri": store, "register_model": True}),
                "init": start,
            }
        )
        super().__init__(settings, say, generation.previous, stopped)

    def _stages(self) -> list[Stage]:
        s = self.settings
        limits = {"margin": s.retrain.margin, "max_class_drop": s.retrain.max_class_drop}
        return [
            *super()._stages(),
            Stage(
                "champion", "the champion on the same photographs", 1, {"version": self.generation.version},
                ("prepare", "proposals", "evaluate"), (self._champion_report,), self._measure_champion,
            ),
            Stage("verdict", "champion or challenger", 1, limits, ("evaluate", "register", "champion"), (), self._decide),
        ]  # fmt: skip

    @property
    def _champion_report(self) -> str:
        return self.place("report", "champion", "results.json")

    def _measure_champion(self, fingerprint: str) -> dict[str, Any]:
        results: dict[str, Any] = {}
        if self.generation.version is not None:
            source = f"models:/{self.settings.tracking.model_name}/{self.generation.version}"
            found = (
                starting_model.starting_model(source, kind, self.store, self.place("init")) for kind in ("deconvnet", "fcn8s")
            )
            models = tuple(uri for uri in found if uri is not None)
            if len(models) != 2:
                raise UserError(f"{source} is no ensemble of a DeconvNet and an FCN-8s: give the alias champion to one that is")
            classes = storage.read_json(storage.join(models[0], "model.json"))["classes"]
            if tuple(classes) == self.settings.data.classes:
                results = self.evaluate("val", self.place("report", "champion"), models)
            else:
                results = {"classes": classes}
        storage.write_json(self._champion_report, results)
        return {}

    def _decide(self, fingerprint: str) -> dict[str, Any]:
        limits = self.settings.retrain
        champion = storage.read_json(self._champion_report)
        challenger = storage.read_json(self.place("report", "results.json"))
        version = recorded(self.settings.workspace, "register")
        assert version is not None
        number = int(version.summary["version"])
        if not champion:
            decision = promotion.Decision(True, "there was no champion")
        elif champion["classes"] != challenger["classes"]:
            why = (
                "it knows other classes than the champion, so their figures can't be compared: give it the alias champion by hand"
            )
            decision = promotion.Decision(False, why)
        else:
            decision = promotion.compare(champion, challenger, limits.margin, limits.max_class_drop)
        holder = promotion.promote(
            self.mlflow_parent, self.settings.tracking.model_name, number, self.generation.version, decision
        )
        self.say(f"  version {number} is {'' if decision.promoted else 'not '}promoted: {decision.reason}")
        return {"version": number, "champion": holder, "promoted": decision.promoted, "why": decision.reason}


def begin(settings: Settings, forced: bool = False) -> Generation:
    """The generation that a run goes on with: one that was not finished, else a new one (not yet written).

    One that was not finished begins again from another champion, if there is one by now that isn't its own challenger.
    """
    every = generations.read_all(settings.workspace)
    version = promotion.version_to_beat(tracking_uri(settings.workspace, settings.tracking.uri), settings.tracking.model_name)
    unfinished = [generation for generation in every if not generation.finished]
    if not unfinished:
        return Generation(generations.new_name(), latest(settings, every), version, forced)
    found = unfinished[-1]
    registered = recorded(generations.folder(settings.workspace, found.name), "register")
    own = registered.summary.get("version") if registered else None
    return replace(found, version=found.version if version == own else version, forced=forced or found.forced)


def latest(settings: Settings, every: list[Generation]) -> str | None:
    """The newest finished workspace: a generation's, else that of a pipeline run in the workspace itself; None where there is none."""
    finished = [generation for generation in every if generation.finished]
    if finished:
        return generations.folder(settings.workspace, finished[-1].name)
    return settings.workspace if standing(settings.workspace, "evaluate") else None


def untouched(pipeline: Retraining) -> bool:
    """True if no file of the data has another name, size or time than when the previous workspace read it (or when they were last
    found to hold nothing new)."""
    before = recorded(pipeline.previous, "prepare") if pipeline.previous else None
    now = pipeline.stages.plan()[0].fingerprint
    return before is not None and now in (before.fingerprint, generations.seen(pipeline.base))


def changed(pipeline: Retraining) -> bool:
    """True if a photograph, a mask or a split is not what it was in the previous workspace; `prepare` must have run."""
    record = recorded(pipeline.settings.workspace, "prepare")
    changes = record.summary.get("changes") if record else None
    return changes is None or any(count for name, count in changes.items() if name != "same")


def newcomers(pipeline: Retraining) -> tuple[int, int]:
    """How many photographs are listed now and were not used before, and the other way round: by their ids, nothing is read."""
    s = pipeline.settings
    now = images_table.listed_image_ids(s.data, s.seed, pipeline.root)
    before: set[str] = set()
    rejected: set[str] = set()
    if pipeline.previous:
        images = storage.join(pipeline.previous, "images")
        commit = tables.require_commit(images)
        before = {row["image_id"] for row in tables.iter_rows(images, ["image_id"])}
        rejected = {reject.image_id for reject in commit.rejects}
    return len(now - before - rejected), len(before - now)
