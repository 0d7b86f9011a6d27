"""Predict the masks of a folder of images with a registered model. Images with up-to-date predictions are left out.

A prediction is up to date if its image has not changed since and the same version of the model made it.
"""

import logging
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

from deconvnet.datasets.image_folder import list_folder
from deconvnet.inference import predictions_table
from deconvnet.inference.predictions_table import (
    CLASSES_FILE,
    MAPS,
    MASKS,
    OVERLAYS,
    REJECTS,
    STATE_FILE,
    TABLE,
    OutputState,
    Plan,
)
from deconvnet.inference.saved_ensemble import read_options
from deconvnet.tracking import registry
from deconvnet.tracking.store import model_store
from infra import storage
from infra.errors import UserError
from infra.runtime import open_executor
from infra.runtime.parts import check_rejects
from infra.storage import tables
from infra.storage.guarded import LockGuard
from infra.storage.lock import Lock, hold_lock
from workflows import cli
from workflows.operations.ranking import Ranking, write_ranking
from workflows.settings import PredictSettings

logger = logging.getLogger(__name__)

LOCK = "_lock"
LOCK_SECONDS = 300.0
"""Seconds after which another run may take over the lock if its holder has not renewed it.

This is longer than a request to S3 may take. If the holder was on the same machine, its lock is free as soon as its process has
ended.
"""
MODEL = "_model"
"""Folder in the output to which the model is copied for the actors. It is removed at the end of the run."""


class PredictionRun:
    """A run of batch prediction: it predicts the masks of a folder of images with a registered model.

    Attributes:
        settings: settings of the command.
        plan: plan that says which images are to be predicted and which already have up-to-date predictions.
        ranking: the images chosen for labelling; None before `run`, or if --rank is not given.
    """

    def __init__(self, settings: PredictSettings) -> None:
        """Find the model, list the images, and make the plan. Nothing is written.

        Args:
            settings: settings of the command.

        Raises:
            UserError: if there are no images or no such model, or the output folder holds other files.
        """
        self.settings = settings
        _check_output(settings)
        self._store = model_store(settings.workspace, settings.tracking.uri)
        self._files = list_folder(settings.input, exclude=settings.output)
        self._version = registry.find(settings.model, self._store, "model")
        self.plan = self._make_plan()
        self.ranking: Ranking | None = None

    @property
    def _maps(self) -> bool:
        """Return whether confidence maps are wanted."""
        return self.settings.confidence == "maps"

    def plan_text(self) -> str:
        """Return a text with the number of images to predict, the model version, and the skipped files that are not images."""
        model = f"{self.plan.state.model} version {self.plan.state.model_version}"
        passed_over = f"\n{text}" if (text := self._files.other_files_text) else ""
        if self.plan.is_complete:
            rejected = f"; {n:,} images can't be used (table rejects)" if (n := self.plan.rejected) else ""
            return f"nothing to do: every prediction is by {model}{rejected}{passed_over}"
        new = sum(not task.part for task in self.plan.tasks)
        drawn = sum(task.draw_overlay and bool(task.part) for task in self.plan.tasks)
        text = f"{len(self.plan.tasks):,} images: {new:,} to predict by {model}, {len(self.plan.tasks) - new:,} up to date"
        return text + (f", {drawn:,} of these to draw" if drawn else "") + passed_over

    def run(self) -> None:
        """Predict the images whose predictions are not up to date, and write the tables `predictions` and `rejects`.

        If all predictions are up to date, none is made. With --rank, images to label are chosen at the end. Meanwhile, a lock
        keeps other runs from writing to the output folder.

        Raises:
            UserError: if too many images are unusable, or GPUs are requested and Ray has none.
            Locked: if another run is writing to the same output folder.
            Interrupted: if another run took over the lock.
        """
        s = self.settings
        if self.plan.is_complete and not s.rank:
            logger.info(self.plan_text())
            return
        output = s.output
        storage.check_writable(output, locks=True)
        with hold_lock(storage.join(output, LOCK), "predict.py", LOCK_SECONDS) as lock:
            self.plan = self._make_plan()  # another run may have written predictions in the meantime
            logger.info(self.plan_text())
            guard = LockGuard(lock.uri, lock.token)
            if not self.plan.is_complete:
                self._predict_and_commit(lock, guard)
            if s.rank:
                self.ranking = write_ranking(
                    output,
                    guard,
                    number=s.rank,
                    labelled=s.rank_labelled,
                    class_share=s.rank_class_share,
                    min_distance=s.rank_min_distance,
                )

    def _predict_and_commit(self, lock: Lock, guard: LockGuard) -> None:
        """Predict the planned images, and write the tables `predictions` and `rejects`.

        Args:
            lock: lock of the output folder, held by this run.
            guard: writes files, as long as no other run has taken this lock.

        Raises:
            UserError: if too many images are unusable, or GPUs are requested and Ray has none.
            Interrupted: if another run took over the lock.
        """
        output = self.settings.output
        parts = self._predict(lock, guard)
        if predictions_table.write_rejects(self.plan, output, parts, guard):
            logger.warning(cli.rejects_text([reject for part in parts for reject in part.rejects]))
        check_rejects(parts, len(self.plan.tasks), self.settings.max_rejects, "max_rejects")
        lock.check()
        predictions_table.commit_predictions(self.plan, output, parts, guard)

    def summary(self) -> str:
        """Return a text for a terminal: a table of the predicted classes, and a list of the folders that were written.

        Raises:
            UserError: if the table `predictions` is not complete.
        """
        output = self.settings.output
        commit = tables.require_commit(storage.join(output, TABLE))
        found = count_classes(output)
        wide = max([len(each.name) for each in found] + [5])
        lines = [f"\n  {'class':<{wide}}{'images':>13}{'of the pixels':>15}"]
        lines += [f"  {each.name:<{wide}}{each.images:>13,}{100 * each.share:>13.1f} %" for each in found]
        lines += [
            f"\npredicted    {commit.rows:,} images, by {commit.extra['model']}",
            f"masks        {storage.join(output, MASKS)}",
        ]
        if self.settings.overlays:
            lines.append(f"overlays     {storage.join(output, OVERLAYS)}")
        if self._maps:
            lines.append(f"confidence   {storage.join(output, MAPS)}")
        lines.append(f"predictions  {storage.join(output, TABLE)}")
        lines.append(f"rejects      {storage.join(output, REJECTS)} ({len(commit.rejects):,})")
        if self.ranking:
            lines.append(self.ranking.text(output, self.settings.rank))
        return "\n".join(lines)

    def _make_plan(self) -> Plan:
        """Compare the images with the predictions in the output folder, and plan what is left to do.

        Returns:
            The plan, with the images to predict and those whose predictions are up to date.

        Raises:
            UserError: if the output folder holds predictions for another input folder, or files of another program.
        """
        s = self.settings
        before = predictions_table.read_state(s.output)
        if before and before.input != s.input:
            raise UserError(f"output {s.output} holds the predictions of {before.input}: name another one for {s.input}")
        state = OutputState(
            s.input,
            self._version.name,
            self._version.number,
            self._version.id,
            before.generation if before else "",
            predictions_table.VERSION,
        )
        if state != before:
            state = replace(state, generation=predictions_table.new_generation())
        return predictions_table.make_plan(self._files.images, s.output, state, s.overlays, self._maps, s.max_pixels)

    def _predict(self, lock: Lock, guard: LockGuard) -> list[tables.Part]:
        """Predict the planned images in this process, or with actors, which are processes of Ray that each load the model.

        The model is copied to the output folder, from which it is loaded. The copy is removed afterwards.

        Args:
            lock: lock of the output folder, held by this run.
            guard: writes files, as long as no other run has taken this lock.

        Returns:
            Descriptions of the Parquet files of the table `predictions`, with the images that could not be used. The files
            include the rows of predictions that were already up to date.

        Raises:
            UserError: if GPUs are requested and Ray has none, or the model can't be downloaded.
            Interrupted: if another run took over the lock.
        """
        from deconvnet.inference.batch import predict_images
        from infra.runtime.executor import Actors

        s = self.settings
        model = storage.join(s.output, MODEL, lock.token)  # a name of its own, so that another run can't overwrite it
        with open_executor(s.executor, s.cluster, lambda: lock.lost) as executor:
            gpus = _gpus_per_actor(s)
            # This file is written before the first mask. If this run is killed, a later one knows which model made the masks.
            guard.write_json(storage.join(s.output, STATE_FILE), asdict(self.plan.state))
            try:
                storage.remove(storage.join(s.output, MODEL))  # left by a killed run
                registry.fetch(self._version, self._store, model)
                guard.write_json(storage.join(s.output, CLASSES_FILE), _class_names(model))
                actors = Actors(s.compute.actors, s.compute.cpus_per_actor, gpus)
                parts = predict_images(self.plan, s.output, model, guard, executor, actors, s.max_pixels)
            except Exception:
                guard.check()  # raises Interrupted if the lock was lost, which is then the cause of the worker's error
                raise
            finally:
                storage.remove(storage.join(s.output, MODEL) if lock.still_held() else model)
        lock.check()
        return parts


@dataclass(frozen=True)
class ClassCount:
    """A class and how often it was predicted.

    Attributes:
        name: name of the class.
        images: number of images in which at least one pixel has the class.
        share: share of an image's pixels that has the class, 0 to 1, averaged over all predicted images.
    """

    name: str
    images: int
    share: float


def count_classes(output: str) -> list[ClassCount]:
    """Count how often each class was predicted, according to the table `predictions`.

    Args:
        output: folder or bucket prefix of the output.

    Returns:
        The predicted classes. Those that occur in the most images come first.

    Raises:
        FileNotFoundError: if the output folder has no finished table `predictions`.
    """
    table = storage.join(output, TABLE)
    commit = tables.require_commit(table)
    images: Counter[str] = Counter()
    shares: dict[str, float] = defaultdict(float)
    for row in tables.iter_rows(table, ["classes", "shares"]):
        images.update(row["classes"])
        for name, share in zip(row["classes"], row["shares"], strict=True):
            shares[name] += share
    found = [ClassCount(name, n, shares[name] / commit.rows) for name, n in images.items()]
    return sorted(found, key=lambda c: (-c.images, -c.share, c.name))


def _class_names(model: str) -> dict[str, Any]:
    """Return the content of classes.json: the class names of a saved ensemble by id, and whether class 0 is the background."""
    options = read_options(model)
    return {"classes": options["classes"], "background": options["segment"].get("background", True)}


def _check_output(settings: PredictSettings) -> None:
    """Check that the input folder is neither the output folder nor one of the folders that are written there.

    Args:
        settings: settings of the command.

    Raises:
        UserError: if the input is the output folder, or lies in its folder of masks, overlays or confidence maps.
    """
    output = settings.output + "/"
    if settings.input == settings.output or any(
        f"{settings.input}/".startswith(f"{output}{f}/") for f in (MASKS, OVERLAYS, MAPS)
    ):
        raise UserError(f"output {settings.output} would be written among the images of the input: name another folder")


def _gpus_per_actor(settings: PredictSettings) -> float:
    """Return the share of a GPU that each actor (a process that predicts) gets.

    Args:
        settings: settings of the command.

    Returns:
        The share, greater than 0 and at most 1. 0 to predict on CPUs.

    Raises:
        UserError: if GPUs are requested, but there is none and the cluster can't add nodes.
    """
    if settings.executor == "local":
        import torch

        has_gpu, may_grow = torch.cuda.is_available(), False
    else:
        import ray

        from infra.runtime.cluster import can_autoscale

        has_gpu, may_grow = ray.cluster_resources().get("GPU", 0) > 0, can_autoscale(settings.cluster)
    if settings.compute.gpu and not has_gpu and not may_grow:
        where = "this machine" if settings.executor == "local" else "Ray"
        raise UserError(f"compute.gpu is true, and {where} has no GPU: set it to false, or leave it empty")
    wanted = has_gpu if settings.compute.gpu is None else settings.compute.gpu
    return settings.compute.gpus_per_actor if wanted else 0
