"""The files of an evaluation in `report/`: results as JSON and Markdown, charts, figures of images, and the data they show."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from deconvnet.evaluation.evaluator import Evaluation, EvaluationInputs, evaluate
from deconvnet.inference.predictor import RESULTS, PredictorOptions
from deconvnet.reporting import gallery, plots
from deconvnet.reporting.figure import RESULT_TITLES
from deconvnet.reporting.run_summary import percent
from infra.runtime.executor import Executor

CONFUSION_OF = "edeconvnet_crf"
"""The result whose confusion matrix is drawn."""


def evaluate_and_report(
    inputs: EvaluationInputs, dataset: str, executor: Executor, gpu: bool = False
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Evaluate models on a split and make the report's files.

    Args:
        inputs: the models and the images.
        dataset: name of the data set in the results.
        executor: runs the evaluation and draws the figures of images.
        gpu: predict on GPUs.

    Returns:
        The content of `results.json`, and the files of the report by name (`report_files`).

    Raises:
        UserError: as `deconvnet.evaluation.evaluator.evaluate` does.
    """
    evaluation = evaluate(inputs, dataset, executor, gpu)
    models = (inputs.deconvnet_uri, inputs.fcn8s_uri)
    shown = (inputs.images_uri, inputs.proposals_uri, inputs.classes, evaluation.mean_iou)
    draw = partial(gallery.load_and_draw_gallery, models, inputs.options, gpu, *shown)
    figures = dict(executor.stream(draw, gpus=1.0 if gpu else 0.0, training=gpu))
    return evaluation.results, report_files(evaluation, figures, inputs.options)


def report_files(evaluation: Evaluation, figures: Mapping[str, bytes], options: PredictorOptions) -> dict[str, bytes]:
    """Make the report's files of an evaluation.

    Args:
        evaluation: what was measured.
        figures: PNGs of images by name without suffix.
        options: how images were predicted; stored in `analysis.json`, so that figures can be drawn again in the same way.

    Returns:
        Files by name. `results.json` is last: a report that has it is complete.
    """
    charts = result_charts(evaluation.results, evaluation.breakdowns)
    return {
        **{f"{name}.png": data for name, data in {**figures, **charts}.items()},
        "mean_iou_by_image.json": _json(evaluation.mean_iou),
        "analysis.json": _json({"segmenter": asdict(options), **evaluation.breakdowns}),  # its key in reports that exist
        "results.md": results_markdown(evaluation.results).encode(),
        "results.json": _json(evaluation.results),
    }


def result_charts(results: Mapping[str, Any], breakdowns: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw the charts of an evaluation.

    Args:
        results: the content of `results.json`.
        breakdowns: the content of `analysis.json`.

    Returns:
        PNGs by name without suffix.
    """
    title = f"{RESULT_TITLES[CONFUSION_OF]}, {results['dataset']}, {results['images']:,} images"
    return {
        "iou_by_class": plots.iou_by_class(results),
        "iou_by_proposals": plots.iou_by_proposals(results, breakdowns),
        "iou_by_size": plots.iou_by_size(breakdowns),
        "confusion": plots.confusion_matrix(np.array(breakdowns["confusion"][CONFUSION_OF]), results["classes"], title),
    }


def results_markdown(results: Mapping[str, Any]) -> str:
    """Format results as Markdown: the five results in the paper's order, then the IoU of each class, in per cent.

    Args:
        results: the content of `results.json`.

    Returns:
        Content of `results.md`.
    """
    rows = results["rows"]
    lines = [
        f"# {results['dataset']}: {results['images']} images",
        "",
        "| | mean IoU | pixel accuracy |",
        "|---|---:|---:|",
        *(f"| {RESULT_TITLES[n]} | {percent(rows[n]['mean_iou'])} | {percent(rows[n]['pixel_accuracy'])} |" for n in RESULTS),
        "",
        f"| IoU | {' | '.join(RESULT_TITLES[n] for n in RESULTS)} |",
        f"|---|{'---:|' * len(RESULTS)}",
        *(f"| {c} | {' | '.join(percent(rows[n]['iou'][c]) for n in RESULTS)} |" for c in results["classes"]),
        "",
        "All numbers are percentages. A class that occurs neither in the ground truth nor in the predictions has no IoU (–) and is left "
        "out of the mean.",
    ]
    return "\n".join(lines) + "\n"


def _json(value: Any) -> bytes:
    """Encode a value as the content of a JSON file."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
