"""The five results of the paper on a split: a Ray Data job over the photographs, and its tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
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
from infra.ray_cluster import may_grow, room
from proposals.propose import iter_proposals

if TYPE_CHECKING:
    from deconvnet.settings import SegmentSettings
    from proposals.settings import ExampleSettings

PHOTOGRAPHS_A_UNIT = 8


@dataclass(frozen=True)
class Unit:
    """Photographs that an actor labels at a time: of the split's rows in one row group of `images`, those numbered `rows`."""

    images: tables.Part
    proposals: tables.Part
    row_group: int
    rows: range


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
    nodes: Mapping[str, str] | None = None,
) -> Evaluation:
    """Label every photograph of `split` that has a class mask in all five ways, and measure.

    The models (folders of `checkpoints.save_model`) are loaded once an actor; each actor has `cpus_per_actor` torch threads.
    actors: as many as the cluster's CPUs (and GPUs) hold, where None. nodes: Ray label selector. Raises UserError where the split has
    no labelled photograph.
    """
    import ray
    import ray.cloudpickle as pickle

    nothing = UserError(f"the split {split!r} of {images_uri} has no labelled photograph to evaluate on")
    if not (units := _units(images_uri, proposals_uri, split)):
        raise nothing
    most = len(units) if may_grow() else room(nodes or {}, cpus_per_actor, gpus_per_actor)
    most = max(1, min(actors or most, len(units)))
    todo = ray.data.from_items([{"unit": pickle.dumps(unit)} for unit in units], override_num_blocks=len(units))
    done = todo.map(
        _Worker,
        fn_constructor_kwargs={
            "models": (deconvnet_uri, fcn8s_uri),
            "options": segmenter_options(segment, examples),
            "tables": (images_uri, proposals_uri),
            "split": split,
            "num_classes": len(classes),
            "threads": cpus_per_actor,
            "gpu": gpus_per_actor > 0,
        },
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=cpus_per_actor,
        num_gpus=gpus_per_actor or None,
        **({"label_selector": dict(nodes)} if nodes else {}),
    )
    totals = {name: ConfusionMatrix(len(classes)) for name in RESULTS}
    mean_iou: dict[str, dict[str, float | None]] = {}
    for row in progress(done.iter_rows(), len(units), f"evaluating on {split}", "batches of photographs"):
        for name, matrix in zip(RESULTS, row["matrices"], strict=True):
            totals[name].merge(ConfusionMatrix(len(classes), matrix))
        for image_id, figures in zip(row["image_ids"], row["mean_iou"], strict=True):
            mean_iou[image_id] = {name: _number(x) for name, x in zip(RESULTS, figures, strict=True)}
    if not mean_iou:
        raise nothing
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
        split: str,
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
        self.split, self.num_classes = split, num_classes

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """For one unit: matrices int64 (5, C, C), summed, and each photograph's id and five mean IoUs, nan where all is void."""
        import ray.cloudpickle as pickle

        unit: Unit = pickle.loads(row["unit"])
        boxes = self._boxes(unit)
        image_ids = []
        totals = {name: ConfusionMatrix(self.num_classes) for name in RESULTS}
        figures = []
        for image_id, image, truth in self._photographs(unit):
            labels = self.segmenter.segment(image, boxes.get(image_id, np.zeros((0, 4), np.float32)))
            single = {name: ConfusionMatrix(self.num_classes).update(truth, labels[name]) for name in RESULTS}
            for name in RESULTS:
                totals[name].merge(single[name])
            image_ids.append(image_id)
            figures.append([single[name].mean_iou for name in RESULTS])
        return {"image_ids": image_ids, "matrices": np.stack([totals[n].matrix for n in RESULTS]), "mean_iou": figures}

    def _photographs(self, unit: Unit) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """image_id, photograph and class mask of the labelled ones, in order."""
        columns = ["image_id", "split", "image", "class_mask"]
        rows = tables.read_row_group(self.images_uri, unit.images.name, unit.row_group, columns).to_pylist()
        chosen = [row for row in rows if row["split"] == self.split]
        for row in (chosen[i] for i in unit.rows):
            if row["class_mask"] is not None:
                yield row["image_id"], decode_image(row["image"]), decode_mask(row["class_mask"])

    def _boxes(self, unit: Unit) -> dict[str, np.ndarray]:
        """Proposals by image_id; a photograph that EdgeBox set aside has none."""
        return {name: boxes for name, boxes, _ in iter_proposals(self.proposals_uri, unit.proposals)}


def _units(images_uri: str, proposals_uri: str, split: str) -> list[Unit]:
    """The split's photographs, in order."""
    images, proposals = (tables.require_commit(uri).parts for uri in (images_uri, proposals_uri))
    return [
        Unit(part, found, group, rows)
        for part, found in zip(images, proposals, strict=True)
        for group, about in enumerate(part.row_groups)
        if about.splits.get(split)
        for rows in tables.chunks(about.splits[split], PHOTOGRAPHS_A_UNIT)
    ]


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
