"""The five results of the paper on a split: a Ray Data job over the photographs, and its tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from deconvnet.checkpoints import load_model
from deconvnet.figures import TITLES
from deconvnet.metrics import ConfusionMatrix
from deconvnet.segmenter import RESULTS, Segmenter, segmenter_options
from infra import tables
from infra.errors import UserError
from infra.images import decode_image, decode_mask
from infra.progress import progress
from proposals.propose import iter_proposals

if TYPE_CHECKING:
    from deconvnet.settings import SegmentSettings
    from proposals.settings import ExampleSettings

PHOTOGRAPHS_A_UNIT = 8


@dataclass(frozen=True)
class Unit:
    """Photographs that one actor labels at a time: some of one row group of the images' part number `part`."""

    part: int
    row_group: int
    image_ids: list[str]


@dataclass(frozen=True)
class Evaluation:
    """results: `results.json`. mean_iou: for each image_id, by result, of that photograph alone (None where it is all void)."""

    results: dict[str, Any]
    mean_iou: dict[str, dict[str, float | None]]


def evaluate(
    deconvnet_uri: str,
    fcn8s_uri: str,
    images_uri: str,
    proposals_uri: str,
    *,
    split: str,
    segment: "SegmentSettings",
    examples: "ExampleSettings",
    classes: Sequence[str],
    dataset: str,
    cpus_per_actor: int = 1,
    gpus_per_actor: float = 0,
    actors: int | None = None,
) -> Evaluation:
    """Label every photograph of `split` that has a class mask in all five ways, and measure.

    The models (folders of `checkpoints.save_model`) are loaded once an actor; each actor has `cpus_per_actor` torch threads.
    actors: as many as the cluster's CPUs (and GPUs) hold, where None. Raises UserError where the split has no labelled photograph.
    """
    import ray

    units = _units(images_uri, split)
    if not units:
        raise UserError(f"the split {split!r} of {images_uri} has no labelled photograph to evaluate on")
    if actors is None:
        there = ray.cluster_resources()
        actors = int(there.get("CPU", 1) // cpus_per_actor)
        if gpus_per_actor:
            actors = min(actors, int(there.get("GPU", 0) // gpus_per_actor))
    actors = max(1, min(actors, len(units)))
    todo = ray.data.from_items([{"index": i} for i in range(len(units))], override_num_blocks=len(units))
    done = todo.map(
        _Worker,
        fn_constructor_kwargs={
            "models": (deconvnet_uri, fcn8s_uri),
            "options": segmenter_options(segment, examples),
            "tables": (images_uri, proposals_uri),
            "units": units,
            "num_classes": len(classes),
            "threads": cpus_per_actor,
            "gpu": gpus_per_actor > 0,
        },
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus_per_actor,
        num_gpus=gpus_per_actor or None,
    )
    totals = {name: ConfusionMatrix(len(classes)) for name in RESULTS}
    mean_iou: dict[str, dict[str, float | None]] = {}
    for row in progress(done.iter_rows(), len(units), f"evaluating on {split}", "batches of photographs"):
        for name, matrix in zip(RESULTS, row["matrices"], strict=True):
            totals[name].merge(ConfusionMatrix(len(classes), matrix))
        for image_id, figures in zip(units[row["index"]].image_ids, row["mean_iou"], strict=True):
            mean_iou[image_id] = {name: _number(x) for name, x in zip(RESULTS, figures, strict=True)}
    results = {
        "dataset": dataset,
        "images": len(mean_iou),
        "classes": list(classes),
        "rows": {name: _row(total, classes) for name, total in totals.items()},
    }
    return Evaluation(results, dict(sorted(mean_iou.items())))


class _Worker:
    """An actor that holds both networks."""

    def __init__(
        self,
        models: tuple[str, str],
        options: dict[str, Any],
        tables: tuple[str, str],
        units: list[Unit],
        num_classes: int,
        threads: int,
        gpu: bool,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
        deconvnet, fcn8s = (load_model(uri, "cuda" if gpu else "cpu")[0] for uri in models)
        self.segmenter = Segmenter(deconvnet, fcn8s, **options)  # type: ignore[arg-type]
        self.images_uri, self.proposals_uri = tables
        self.units, self.num_classes = units, num_classes

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """For one unit: matrices int64 (5, C, C), summed, and each photograph's five mean IoUs, nan where all is void."""
        unit = self.units[row["index"]]
        boxes = self._boxes(unit)
        totals = {name: ConfusionMatrix(self.num_classes) for name in RESULTS}
        figures = []
        for image_id, image, truth in self._photographs(unit):
            labels = self.segmenter.segment(image, boxes.get(image_id, np.zeros((0, 4), np.float32)))
            single = {name: ConfusionMatrix(self.num_classes).update(truth, labels[name]) for name in RESULTS}
            for name in RESULTS:
                totals[name].merge(single[name])
            figures.append([single[name].mean_iou for name in RESULTS])
        return {"index": row["index"], "matrices": np.stack([totals[n].matrix for n in RESULTS]), "mean_iou": figures}

    def _photographs(self, unit: Unit) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """image_id, photograph and class mask, in the unit's order."""
        part = tables.require_commit(self.images_uri).parts[unit.part]
        columns = ["image_id", "image", "class_mask"]
        rows = tables.read_row_group(self.images_uri, part.name, unit.row_group, columns)
        wanted = set(unit.image_ids)
        chosen = [row for row in rows.to_pylist() if row["image_id"] in wanted]
        return [(row["image_id"], decode_image(row["image"]), decode_mask(row["class_mask"])) for row in chosen]

    def _boxes(self, unit: Unit) -> dict[str, np.ndarray]:
        """Proposals by image_id; a photograph that EdgeBox set aside has none. Their parts go with the images' one by one."""
        part = tables.require_commit(self.proposals_uri).parts[unit.part]
        wanted = set(unit.image_ids)
        return {name: boxes for name, boxes, _ in iter_proposals(self.proposals_uri, part) if name in wanted}


def _units(images_uri: str, split: str) -> list[Unit]:
    """The split's labelled photographs, in order. Of the table only ids and what they are looked up by are read."""
    units = []
    for number, part in enumerate(tables.require_commit(images_uri).parts):
        for group in range(len(part.row_groups)):
            rows = tables.read_row_group(images_uri, part.name, group, ["image_id", "split", "class_mask"])
            labelled = rows["class_mask"].is_valid().to_pylist()
            splits, image_ids = rows["split"].to_pylist(), rows["image_id"].to_pylist()
            ids = [i for i, s, there in zip(image_ids, splits, labelled, strict=True) if s == split and there]
            if ids:
                pieces = tables.chunks(len(ids), PHOTOGRAPHS_A_UNIT)
                units += [Unit(number, group, [ids[i] for i in piece]) for piece in pieces]
    return units


def _number(value: float) -> float | None:
    """A figure as JSON has it: null for nan."""
    return None if math.isnan(value) else float(value)


def _row(matrix: ConfusionMatrix, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "mean_iou": _number(matrix.mean_iou),
        "pixel_accuracy": _number(matrix.pixel_accuracy),
        "iou": {name: _number(iou) for name, iou in zip(classes, matrix.iou.tolist(), strict=True)},
    }


def results_markdown(results: dict[str, Any]) -> str:
    """`results.md`: the five rows in the paper's order, then IoU by class; percentages, – where a class does not occur."""
    rows = results["rows"]
    lines = [
        f"# {results['dataset']}: {results['images']} photographs",
        "",
        "| | mean IoU | pixel accuracy |",
        "|---|---:|---:|",
        *(f"| {TITLES[n]} | {_percent(rows[n]['mean_iou'])} | {_percent(rows[n]['pixel_accuracy'])} |" for n in RESULTS),
        "",
        f"| IoU | {' | '.join(TITLES[n] for n in RESULTS)} |",
        f"|---|{'---:|' * len(RESULTS)}",
        *(f"| {c} | {' | '.join(_percent(rows[n]['iou'][c]) for n in RESULTS)} |" for c in results["classes"]),
        "",
        "Per cent. A class that is in neither the truth nor the labels has no IoU (–) and is left out of the mean.",
    ]
    return "\n".join(lines) + "\n"


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"
