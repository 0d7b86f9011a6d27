"""Trainings and evaluations that take no time: networks of random weights, and results of a quality that the test chooses."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from deconvnet.evaluation.comparison import DECISIVE_RESULT, IMAGE_CONFUSIONS, image_confusions_file
from deconvnet.evaluation.drift import STATISTICS_FILE, PredictionStatistics
from deconvnet.evaluation.inputs import EvaluationInputs
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.inference.predictor import RESULTS
from deconvnet.models.checkpoint import save_model
from deconvnet.models.factory import build_network, initialise
from deconvnet.reporting import champion_report, evaluation_report, gallery, plots
from deconvnet.training import local_trainer
from deconvnet.training.job import TrainingJob
from infra import storage
from infra.storage import tables
from workflows.pipelines.training import Pipeline


@contextmanager
def untrained(quality: float = 0.0) -> Iterator[dict[str, float | None]]:
    """Let trainings by the local executor end at once, with the network from which they start.

    Args:
        quality: what the models that are written say of themselves, 0 to 1; see `training_gives`.

    Yields:
        For each stage that was trained, the quality of the network from which it started, None if that was no such network.
    """
    starts: dict[str, float | None] = {}

    def train(job: TrainingJob, **_: object) -> dict[str, Any]:
        network = build_network(job.architecture, job.model, len(job.classes))
        initialise(network, job.model, job.classes, job.init)
        save_model(network, job.out_uri, job.classes, {"quality": quality}, job.fingerprint)
        starts[job.stage] = _quality(job.init) if job.init else None
        return {"steps": 1, "epochs": 1, "dev_mean_iou": quality, "best_dev_mean_iou": quality}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_trainer, "train_locally", train)
        yield starts


@contextmanager
def training_gives(quality: float) -> Iterator[dict[str, float | None]]:
    """Let trainings end at once as `untrained` does, and evaluations find the share `quality` of the pixels to be right.

    An evaluation asks the DeconvNet's file for the quality, so it measures the network that it is given. Nothing is drawn.

    Args:
        quality: the share, 0 to 1.

    Yields:
        For each stage that was trained, the quality of the network from which it started, None if that was no such network.
    """
    with untrained(quality) as starts, pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_report, "evaluate_and_report", _evaluate)
        patch.setattr(champion_report, "compare_with_champion", lambda *_: {})
        patch.setattr(plots, "draw_training_curves", lambda *_: {})
        patch.setattr(gallery, "draw_examples", lambda *_, **__: b"")
        patch.setattr(Pipeline, "measure_proposals", lambda *_: None)
        yield starts


def _quality(model: str) -> float | None:
    """The quality that a model says of itself; None if it was really trained."""
    return storage.read_json(storage.join(model, "model.json"))["extra"].get("quality")


def _evaluate(inputs: EvaluationInputs, dataset: str, *_: object) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Make an evaluation's results and its file of confusion matrices. An image's errors are divided evenly among the classes.

    The mean IoU of the results that do not decide on promotions is half as high.
    """
    share = _quality(inputs.deconvnet_uri)
    assert share is not None
    count, images = len(inputs.classes), tables.iter_rows(inputs.images_uri, ["image_id", "split"])
    matrix = np.full((count, count), round(1000 * (1 - share) / (count - 1))) + np.diag([round(1000 * share)] * count)
    confusions = {row["image_id"]: matrix for row in images if row["split"] == inputs.split}
    found = ConfusionMatrix(count, matrix * len(confusions))
    row = {"mean_iou": found.mean_iou, "pixel_accuracy": share, "iou": dict(zip(inputs.classes, found.iou.tolist(), strict=True))}
    rows = {name: row if name == DECISIVE_RESULT else {**row, "mean_iou": found.mean_iou / 2} for name in RESULTS}
    results = {
        "dataset": dataset,
        "images": len(confusions),
        "classes": list(inputs.classes),
        "rows": rows,
    }
    shares = np.full((len(confusions), count), 1 / count)
    statistics = PredictionStatistics.of([share] * len(confusions), shares, inputs.classes).as_dict()
    return results, {
        IMAGE_CONFUSIONS: image_confusions_file(confusions),
        STATISTICS_FILE: json.dumps(statistics).encode(),
        "results.json": json.dumps(results).encode(),
    }
