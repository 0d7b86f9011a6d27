"""Draw the figures of a workspace again, from its tables, models and report. Nothing in the workspace is changed.

A workspace is the folder or bucket prefix that holds everything a pipeline run writes.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from deconvnet.evaluation.image_measures import IMAGES_FILE, mean_iou_by_result, read_images
from deconvnet.inference.predictor import RESULTS
from deconvnet.reporting import gallery, plots
from deconvnet.reporting.evaluation_report import result_charts
from infra import storage
from infra.errors import UserError
from infra.runtime.stages import outdated
from infra.storage import tables
from workflows.pipelines.run_log import RUN_FILE
from workflows.pipelines.workspace import STAGE_OF_TABLE, Workspace

if TYPE_CHECKING:
    from deconvnet.inference.predictor import Predictor

_IMAGES = f"report/{IMAGES_FILE}"
_STAGE_OF_PATH = {
    **STAGE_OF_TABLE,
    "models/fcn8s": "fcn8s",
    "models/stage2": "stage2",
    "report/results.json": "evaluate",
    "report/analysis.json": "evaluate",
    _IMAGES: "evaluate",
}
"""Name of the pipeline stage that makes a file, table or model folder, by its path in the workspace."""


class WorkspaceFigures:
    """The figures of a workspace, which show its results on the val images.

    All methods raise UserError if a file that they need does not exist because the pipeline stage that makes it has not run.
    """

    def __init__(self, workspace: str, run_file: str, store: Callable[[], str]) -> None:
        """Prepare the drawing of a workspace's figures. Nothing is read yet.

        Args:
            workspace: URI of the workspace.
            run_file: URI of the JSON file that holds the id of the workspace's MLflow run.
            store: function that returns the URI of the workspace's MLflow store. It is called only if training curves are read
                from MLflow.
        """
        self.workspace = workspace
        self._run_file, self._store = run_file, store

    def make(self, name: str, image_ids: Sequence[str] = ()) -> dict[str, bytes]:
        """Draw a figure. Nothing is written.

        Args:
            name: name of the figure, one of `workflows.figures.FIGURES`, such as "comparison" or "training_curves".
            image_ids: ids of the images to show, for figures of single images. If it is empty, images are chosen by their IoU.

        Returns:
            The contents of one or more PNG files, by file name.

        Raises:
            UserError: if the workspace lacks the data for this figure.
        """
        if name in ("unpooling", "instances", "comparison"):
            return self._of_images(name, image_ids)
        if name == "wins":
            chosen = gallery.largest_leads(self._mean_iou)
            if not chosen:
                raise UserError(f"in {self.workspace} no network is ahead of another on any image: there are no wins to show")
            return self._side_by_side(name, chosen)
        if name == "examples":
            return {
                f"examples_{stage}.png": gallery.draw_examples(
                    self._need(f"examples/{stage}"), self._classes, background=self._background
                )
                for stage in ("stage1", "stage2")
                if stage == "stage2" or self._has(f"examples/{stage}")
            }
        if name == "recall":
            return {"recall.png": self._recall()}
        if name == "training_curves":
            return self._training_curves()
        results = self._json("report/results.json")
        if name == "iou_by_class":
            return {"iou_by_class.png": plots.iou_by_class(results)}
        charts = result_charts(results, self._json("report/analysis.json"))
        if name not in charts:
            raise UserError(
                f"{self.workspace} was evaluated by an earlier version of this program and lacks the data of the figure {name}: "
                "run train_pipeline.py on it again; this repeats the stage evaluate"
            )
        return {f"{name}.png": charts[name]()}

    def check_images(self, image_ids: Sequence[str]) -> None:
        """Check that the workspace has an image for each id. Raise UserError if it lacks one."""
        known = {row["image_id"] for row in tables.iter_rows(self._need("images"), ["image_id"])} if image_ids else set()
        for image_id in image_ids:
            if image_id not in known:
                near = difflib.get_close_matches(image_id, known, n=1) or sorted(known)[:1]
                raise UserError(f"--image {image_id}: {self.workspace} has no such image; its ids are like {near[0]}")

    def _of_images(self, name: str, image_ids: Sequence[str]) -> dict[str, bytes]:
        """Draw a figure of single images.

        Args:
            name: "comparison" for one file that shows all images beside their masks. "instances" and "unpooling" for one file for
                each image, which shows how its mask grows with the number of boxes, or the activations of DeconvNet's decoder.
            image_ids: ids of the images to show. If it is empty, images are chosen by their IoU.

        Returns:
            The contents of the PNG files, by file name.
        """
        if name == "comparison" and not image_ids:
            return self._side_by_side(name, gallery.best_median_worst(self._mean_iou))
        predictor = self._predictor
        if image_ids:
            known = gallery.read_samples(self._need("images"), self._need("proposals"), image_ids, self._background)
            shown = [known[image_id] for image_id in image_ids]
        else:
            shown = [self._default_sample()]
        if name == "comparison":
            scores = self._mean_iou if self._has(_IMAGES) else {}
            return {"comparison.png": gallery.draw_comparison(predictor, [("", each) for each in shown], self._classes, scores)}
        draw = gallery.draw_instances if name == "instances" else gallery.draw_unpooling
        files = {each.image_id: draw(predictor, each, self._classes) for each in shown}
        if not image_ids:
            return {f"{name}.png": data for data in files.values()}
        return {f"{name}_{image_id.replace('/', '_')}.png": data for image_id, data in files.items()}

    def _side_by_side(self, name: str, chosen: Sequence[tuple[str, str]]) -> dict[str, bytes]:
        """Draw images beside their ground truth and their predictions.

        Args:
            name: name of the figure, which becomes the name of the file.
            chosen: pairs (word, image id). The word is shown beside the image and says why it was chosen.

        Returns:
            The content of the PNG file, by file name.
        """
        ids = [image_id for _, image_id in chosen]
        known = gallery.read_samples(self._need("images"), self._need("proposals"), ids, self._background)
        rows = [(word, known[image_id]) for word, image_id in chosen]
        return {f"{name}.png": gallery.draw_comparison(self._predictor, rows, self._classes, self._mean_iou)}

    def _default_sample(self) -> gallery.Sample:
        """Choose an image with several annotated objects, and read it.

        The image is one of those with DeconvNet's highest IoU. If the workspace has not been evaluated, it is one of its first
        images.

        Returns:
            The image with its ground truth and its box proposals.
        """
        images = self._need("images")
        if self._has(_IMAGES):
            ids = gallery.best_of_deconvnet(self._mean_iou)
        else:
            ids = [row["image_id"] for row in islice(tables.iter_rows(images, ["image_id"]), gallery.CANDIDATES)]
        known = gallery.read_samples(images, self._need("proposals"), ids, self._background)
        return gallery.with_several_objects(known[image_id] for image_id in ids)

    def _recall(self) -> bytes:
        """Measure the recall of the val images' box proposals (the share of objects that they find), and draw its curves.

        The measuring runs on this machine, without Ray.

        Returns:
            The content of the PNG file.

        Raises:
            UserError: if the val images have no objects that are large enough.
        """
        from infra.runtime.local_executor import LocalExecutor
        from proposals.job import iter_proposals
        from proposals.recall import MIN_AREA, counts_up_to
        from proposals.recall_job import measure_recall

        images, proposals = self._need("images"), self._need("proposals")
        parts = tables.require_commit(proposals).parts
        max_boxes = max((len(boxes) for part in parts for _, boxes, _ in iter_proposals(proposals, part)), default=1)
        area = self._json("report/proposals.json")["min_area"] if self._has("report/proposals.json") else MIN_AREA
        with LocalExecutor(1) as executor:
            found = measure_recall(images, proposals, "val", executor, counts_up_to(max_boxes), area)
        if not found.num_objects:
            raise UserError(f"the val images of {self.workspace} have no objects of {area:,.0f} px² or more to find")
        return plots.recall_curves({"val": found})

    def _training_curves(self) -> dict[str, bytes]:
        """Draw the training curves, from the metrics that the training stages logged to MLflow or to files in the workspace.

        Returns:
            The contents of the PNG files, by file name.

        Raises:
            UserError: if no training has finished yet.
        """
        from deconvnet.tracking.interface import read_histories

        run_id = storage.read_json(self._run_file)["mlflow_run_id"] if storage.exists(self._run_file) else None
        store = self._store() if run_id else ""
        history = read_histories(self.workspace, store, run_id, plots.TRAINING_STAGES, plots.TRAINING_METRICS)
        if not (files := plots.draw_training_curves(history)):
            raise UserError(f"{self.workspace} has no finished training yet: run workflows/train_pipeline.py on it first")
        return files

    @cached_property
    def _mean_iou(self) -> gallery.MeanIou:
        """Read the mean IoU (0 to 1) of each image and result, as `{image_id: {result: mean IoU}}`. It is read only once."""
        return mean_iou_by_result(read_images(self._need(_IMAGES)), RESULTS)

    @cached_property
    def _classes(self) -> list[str]:
        """Read the class names, in the order of their ids, from a trained model of the workspace. The file is read only once."""
        for stage in ("stage2", "fcn8s"):
            if self._has(f"models/{stage}/model.json"):
                return list(self._json(f"models/{stage}/model.json")["classes"])
        self._need("models/fcn8s")
        raise AssertionError

    @cached_property
    def _run_settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Read the settings of the workspace's last run, by section. They are empty if no run was recorded."""
        return self._json(RUN_FILE).get("settings", {}) if self._has(RUN_FILE) else {}

    @property
    def _background(self) -> bool:
        """Return whether class 0 is the background."""
        return self._run_settings.get("data", {}).get("background") != "none"

    @cached_property
    def _predictor(self) -> "Predictor":
        """Load the predictor with the workspace's trained networks, onto a GPU if there is one. It is loaded only once.

        Its options are those of the report. Without a report, they are the defaults, with the windows of the last run.
        """
        import torch

        from deconvnet.inference.predictor import Predictor, PredictorOptions

        models = [self._need(f"models/{stage}") for stage in ("stage2", "fcn8s")]
        kept = self._json("report/analysis.json")["segmenter"] if self._has("report/analysis.json") else None
        if kept is None:
            proposals = self._run_settings.get("proposals", {})
            with_windows = proposals.get("kind", "edgebox") != "edgebox"
            windows = {name: proposals[name] for name in ("window_sizes", "window_overlap") if with_windows}
            kept = {**windows, "background": self._background}
        options = replace(PredictorOptions(**kept), int8=False)  # figures show activations, too
        return Predictor.load(models[0], models[1], "cuda" if torch.cuda.is_available() else "cpu", options)

    def _json(self, name: str) -> Any:
        """Return the content of the JSON file at the path `name` in the workspace."""
        return storage.read_json(self._need(name) if name in _STAGE_OF_PATH else storage.join(self.workspace, name))

    def _has(self, name: str) -> bool:
        """Return whether a file exists at the path `name` in the workspace, or the workspace has a table of this name."""
        if name in STAGE_OF_TABLE:
            return tables.fingerprint_of(Workspace(self.workspace).table(name)) is not None
        return storage.exists(storage.join(self.workspace, name))

    def _need(self, name: str) -> str:
        """Return the URI of a file, table or model folder of the workspace, and check that it is complete.

        Args:
            name: path in the workspace, such as "report/results.json". Only paths whose pipeline stage is known to this module
                (in `_STAGE_OF_PATH`) are allowed.

        Raises:
            UserError: if the file, table or folder does not exist or is not complete, or was made from other images or models
                than the current ones. The message names the stage that makes it.
        """
        proof = f"{name}/model.json" if name.startswith("models") else name
        if not self._has(proof):
            raise UserError(
                f"{self.workspace} has no {name}, which the stage {_STAGE_OF_PATH[name]} writes: "
                "run workflows/train_pipeline.py on this workspace first"
            )
        if outdated(self.workspace, [_STAGE_OF_PATH[name]]):
            raise UserError(
                f"{self.workspace}: the last run there did not finish, so {name} may not match the current images and models: "
                "run workflows/train_pipeline.py on this workspace first"
            )
        return Workspace(self.workspace).table(name) if name in STAGE_OF_TABLE else storage.join(self.workspace, name)
