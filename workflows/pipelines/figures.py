"""The figures of a finished workspace, made from its tables, models and report; nothing in it is changed."""

import difflib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from deconvnet.reporting import gallery, plots, training_curves
from deconvnet.reporting.evaluation_report import result_charts
from infra import storage
from infra.errors import UserError
from infra.storage import tables

if TYPE_CHECKING:
    from deconvnet.inference.predictor import Predictor

_STAGES = {
    "images": "prepare",
    "proposals": "proposals",
    "examples/stage1": "examples",
    "examples/stage2": "examples",
    "models/fcn8s": "fcn8s",
    "models/stage2": "stage2",
    "report/results.json": "evaluate",
    "report/analysis.json": "evaluate",
    "report/mean_iou_by_image.json": "evaluate",
}  # which stage leaves what
_FIRST_LOOKED_AT = 10  # photographs tried before one without an object is shown


class WorkspaceFigures:
    """Figures of the workspace `workspace`, of its split `val`. Its methods raise UserError where a stage that they need isn't finished."""

    def __init__(self, workspace: str, run_file: str, store: Callable[[], str]) -> None:
        """run_file: the workspace's record of its MLflow run; store: finds the address of its MLflow."""
        self.workspace = workspace
        self._run_file, self._store = run_file, store

    def make(self, name: str, image_ids: Sequence[str] = ()) -> dict[str, bytes]:
        """Draw a figure.

        Args:
            name: one of `workflows.figures.FIGURES`.
            image_ids: the images to show, for figures of single images; empty: chosen by their IoU.

        Returns:
            The PNG files by name.
        """
        if name in ("unpooling", "instances", "comparison"):
            return self._of_images(name, image_ids)
        if name == "wins":
            chosen = gallery.largest_leads(self._mean_iou)
            if not chosen:
                raise UserError(
                    f"in {self.workspace} no network is ahead of another on any photograph: there are no wins to show"
                )
            return self._side_by_side(name, chosen)
        if name == "examples":
            return {
                f"examples_{stage}.png": gallery.draw_examples(self._need(f"examples/{stage}"), self._classes)
                for stage in ("stage1", "stage2")
            }
        if name == "recall":
            return {"recall.png": self._recall()}
        if name == "training_curves":
            return self._training_curves()
        results = self._json("report/results.json")
        if name == "iou_by_class":
            return {"iou_by_class.png": plots.iou_by_class(results)}
        return {f"{name}.png": result_charts(results, self._json("report/analysis.json"))[name]}

    def check_images(self, image_ids: Sequence[str]) -> None:
        """Raises UserError where the workspace has no photograph of one of these ids."""
        known = {row["image_id"] for row in tables.iter_rows(self._need("images"), ["image_id"])} if image_ids else set()
        for image_id in image_ids:
            if image_id not in known:
                near = difflib.get_close_matches(image_id, known, n=1) or sorted(known)[:1]
                raise UserError(f"--image {image_id}: {self.workspace} has no such photograph; its ids are as {near[0]}")

    def _of_images(self, name: str, image_ids: Sequence[str]) -> dict[str, bytes]:
        if name == "comparison" and not image_ids:
            return self._side_by_side(name, gallery.best_median_worst(self._mean_iou))
        predictor = self._predictor
        if image_ids:
            known = gallery.read_samples(self._need("images"), self._need("proposals"), image_ids)
            shown = [known[image_id] for image_id in image_ids]
        else:
            shown = [self._one()]
        if name == "comparison":
            scores = self._mean_iou if self._has("report/mean_iou_by_image.json") else {}
            return {"comparison.png": gallery.draw_comparison(predictor, [("", each) for each in shown], self._classes, scores)}
        draw = gallery.draw_instances if name == "instances" else gallery.draw_unpooling
        files = {each.image_id: draw(predictor, each, self._classes) for each in shown}
        if not image_ids:
            return {f"{name}.png": data for data in files.values()}
        return {f"{name}_{image_id.replace('/', '_')}.png": data for image_id, data in files.items()}

    def _side_by_side(self, name: str, chosen: Sequence[tuple[str, str]]) -> dict[str, bytes]:
        known = gallery.read_samples(self._need("images"), self._need("proposals"), [image_id for _, image_id in chosen])
        rows = [(word, known[image_id]) for word, image_id in chosen]
        return {f"{name}.png": gallery.draw_comparison(self._predictor, rows, self._classes, self._mean_iou)}

    def _one(self) -> gallery.Sample:
        """A photograph with an object: of those that DeconvNet labels best, or, where nothing is measured yet, of the first."""
        images = self._need("images")
        if self._has("report/mean_iou_by_image.json"):
            ids = gallery.best_of_deconvnet(self._mean_iou)
        else:
            ids = [
                row["image_id"] for row, _ in zip(tables.iter_rows(images, ["image_id"]), range(_FIRST_LOOKED_AT), strict=False)
            ]
        known = gallery.read_samples(images, self._need("proposals"), ids)
        return gallery.with_several_objects(known[image_id] for image_id in ids)

    def _recall(self) -> bytes:
        from proposals.job import iter_proposals
        from proposals.recall import MIN_AREA, counts_up_to, sum_recalls
        from proposals.recall_job import part_recall

        images, proposals = self._need("images"), self._need("proposals")
        pairs = list(zip(tables.require_commit(images).parts, tables.require_commit(proposals).parts, strict=True))
        counts = counts_up_to(
            max((len(boxes) for _, part in pairs for _, boxes, _ in iter_proposals(proposals, part)), default=1)
        )
        area = self._json("report/proposals.json")["min_area"] if self._has("report/proposals.json") else MIN_AREA
        units = [pair for pair in pairs if any(group.splits.get("val") for group in pair[0].row_groups)]
        found = sum_recalls((part_recall(images, proposals, unit, "val", counts, area) for unit in units), counts)
        if not found.num_objects:
            raise UserError(f"the val photographs of {self.workspace} have no objects of {area:,.0f} px² or more to find")
        return plots.recall_curves({"val": found})

    def _training_curves(self) -> dict[str, bytes]:
        from deconvnet.tracking.interface import read_histories

        run_id = storage.read_json(self._run_file)["mlflow_run_id"] if storage.exists(self._run_file) else None
        store = self._store() if run_id else ""
        history = read_histories(self.workspace, store, run_id, training_curves.STAGES, training_curves.METRICS)
        if not (files := training_curves.draw_training_curves(history)):
            raise UserError(f"{self.workspace} has no finished training yet: run workflows/train_pipeline.py on it first")
        return files

    @cached_property
    def _mean_iou(self) -> gallery.MeanIou:
        return self._json("report/mean_iou_by_image.json")

    @cached_property
    def _classes(self) -> list[str]:
        for stage in ("stage2", "fcn8s"):
            if self._has(f"models/{stage}/model.json"):
                return list(self._json(f"models/{stage}/model.json")["classes"])
        self._need("models/fcn8s")
        raise AssertionError

    @cached_property
    def _predictor(self) -> "Predictor":
        """As it labelled for the report; by the settings' defaults where there is none."""
        import torch

        from deconvnet.inference.predictor import Predictor, PredictorOptions
        from deconvnet.settings import SegmentSettings
        from proposals.settings import ExampleSettings

        models = [self._need(f"models/{stage}") for stage in ("stage2", "fcn8s")]
        kept = self._json("report/analysis.json")["segmenter"] if self._has("report/analysis.json") else None
        options = PredictorOptions(**kept) if kept else PredictorOptions.from_settings(SegmentSettings(), ExampleSettings())
        return Predictor.load(models[0], models[1], "cuda" if torch.cuda.is_available() else "cpu", options)

    def _json(self, name: str) -> Any:
        return storage.read_json(self._need(name) if name in _STAGES else storage.join(self.workspace, name))

    def _has(self, name: str) -> bool:
        return storage.exists(storage.join(self.workspace, name))

    def _need(self, name: str) -> str:
        """Where `name` (of _STAGES) lies."""
        proof = name if name.endswith(".json") else f"{name}/{'model.json' if name.startswith('models') else tables.COMMIT}"
        if not self._has(proof):
            raise UserError(
                f"{self.workspace} has no {name}, which the stage {_STAGES[name]} leaves: "
                "run workflows/train_pipeline.py on this workspace first"
            )
        return storage.join(self.workspace, name)
