"""Evaluate DeconvNet and FCN-8s on a split and make the contents of the report's files.

The files are the metrics (JSON and Markdown), charts, figures of images, and the data of the charts. A result is one of the five
ways of predicting: FCN-8s, DeconvNet, DeconvNet+CRF, EDeconvNet (the ensemble of both networks) and EDeconvNet+CRF.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from deconvnet.evaluation.comparison import DECISIVE_RESULT, IMAGE_CONFUSIONS, image_confusions_file
from deconvnet.evaluation.drift import STATISTICS_FILE
from deconvnet.evaluation.evaluator import Evaluation, evaluate
from deconvnet.evaluation.image_measures import IMAGES_FILE, images_file, mean_iou_by_result
from deconvnet.evaluation.inputs import EvaluationInputs
from deconvnet.inference.predictor import RESULTS, PredictorOptions
from deconvnet.reporting import gallery, plots
from deconvnet.reporting.figure import RESULT_TITLES
from deconvnet.reporting.run_summary import METRICS, percent
from infra.runtime.executor import Executor


def evaluate_and_report(
    inputs: EvaluationInputs, dataset: str, executor: Executor, gpu: bool = False
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Evaluate DeconvNet and FCN-8s on a split and return the contents of the report's files.

    Workers write the pictures and masks of the images to the report's folder. The other files are returned.

    Args:
        inputs: the networks, the images and the options.
        dataset: name of the data set, which is stored in the results.
        executor: runs the evaluation and draws the figures of images.
        gpu: whether to predict on GPUs.

    Returns:
        A tuple of two values. The first holds the metrics of the five results, which are the content of `results.json`. The
        second is a dict from file name to content for all files of the report (see `report_files`).

    Raises:
        UserError: if the split has no image with a class mask, or no node has room for a worker.
    """
    evaluation = evaluate(inputs, dataset, executor, gpu)
    models = (inputs.deconvnet_uri, inputs.fcn8s_uri)
    shown = (inputs.images_uri, inputs.proposals_uri, inputs.classes, mean_iou_by_result(evaluation.images, RESULTS))
    draw = partial(gallery.load_and_draw_gallery, models, inputs.options, gpu, *shown)
    figures = dict(executor.stream(draw, gpus=1.0 if gpu else 0.0, training=gpu))
    return evaluation.results, report_files(evaluation, figures, inputs.options)


def report_files(evaluation: Evaluation, figures: Mapping[str, bytes], options: PredictorOptions) -> dict[str, bytes]:
    """Make the contents of the report's files from an evaluation. No file is written.

    Args:
        evaluation: the outcome of the evaluation.
        figures: contents of PNG figures of images, by file name without suffix.
        options: the options that the images were predicted with. They are stored in `analysis.json`, so that the figures can be
            drawn again in the same way.

    Returns:
        The files' contents by file name: the figures, the charts, `images.parquet`, `analysis.json`,
        `image_confusions.npz`, `prediction_statistics.json`, `results.md` and `results.json`. The files should be written in this
        order. Then a report is complete if it has `results.json`.
    """
    charts = result_charts(evaluation.results, evaluation.breakdowns)
    if not any(evaluation.breakdowns["sizes"]["objects"]):  # as in scenes without objects
        del charts["iou_by_size"]
    if not evaluation.breakdowns["proposals"]["counts"]:  # as with windows
        del charts["iou_by_proposals"]
    return {
        **{f"{name}.png": data for name, data in figures.items()},
        **{f"{name}.png": draw() for name, draw in charts.items()},
        IMAGES_FILE: images_file(evaluation.images, RESULTS, evaluation.results["classes"]),
        "analysis.json": _json({"segmenter": asdict(options), **evaluation.breakdowns}),  # existing reports use this key
        IMAGE_CONFUSIONS: image_confusions_file(evaluation.confusions),
        STATISTICS_FILE: _json(evaluation.statistics.as_dict()),
        "results.md": results_markdown(evaluation.results).encode(),
        "results.json": _json(evaluation.results),
    }


def result_charts(results: Mapping[str, Any], breakdowns: Mapping[str, Any]) -> dict[str, Callable[[], bytes]]:
    """Return functions that draw the five charts of an evaluation.

    Args:
        results: the content of `results.json`: a dict with `dataset` (name), `images` (number), `classes` (names) and `rows`.
            The rows are metrics by result name. Each has `mean_iou`, `pixel_accuracy` and `iou`, a dict by class.
        breakdowns: the content of `analysis.json`: confusion matrices, IoU by number of proposals and by object size, and the
            reliability diagram, as `Evaluation.breakdowns` has them.

    Returns:
        Functions that return the content of a PNG, by file name without suffix: "iou_by_class", "iou_by_proposals",
        "iou_by_size", "confusion" and "calibration" (missing if an earlier version of this program evaluated the networks).
        Without annotated objects, "iou_by_size" has no bars. With windows, "iou_by_proposals" has no curve of DeconvNet.
    """
    title = f"{RESULT_TITLES[DECISIVE_RESULT]}, {results['dataset']}, {results['images']:,} images"
    confusion = np.array(breakdowns["confusion"][DECISIVE_RESULT])
    charts: dict[str, Callable[[], bytes]] = {
        "iou_by_class": partial(plots.iou_by_class, results),
        "iou_by_proposals": partial(plots.iou_by_proposals, results, breakdowns),
        "iou_by_size": partial(plots.iou_by_size, breakdowns),
        "confusion": partial(plots.confusion_matrix, confusion, results["classes"], title),
    }
    if "calibration" in breakdowns:
        error = results["expected_calibration_error"]
        charts["calibration"] = partial(plots.reliability_diagram, breakdowns["calibration"], error, title)
    return charts


def results_markdown(results: Mapping[str, Any]) -> str:
    """Format the metrics of the five results as two Markdown tables, in per cent.

    The first table has a row for each result with its mean IoU, its pixel accuracy and its boundary measures. The second one has
    a row for each class with its IoU in each result.

    Args:
        results: the content of `results.json`: a dict with `dataset` (name), `images` (number), `classes` (names) and `rows`.
            The rows are metrics by result name. Each has `mean_iou`, `pixel_accuracy` and `iou`, a dict by class.

    Returns:
        The content of `results.md`.
    """
    rows = results["rows"]
    lines = [
        f"# {results['dataset']}: {results['images']} images",
        "",
        f"| | {' | '.join(METRICS.values())} |",
        f"|---|{'---:|' * len(METRICS)}",
        *(f"| {RESULT_TITLES[n]} | {' | '.join(percent(rows[n].get(metric)) for metric in METRICS)} |" for n in RESULTS),
        "",
        f"| IoU | {' | '.join(RESULT_TITLES[n] for n in RESULTS)} |",
        f"|---|{'---:|' * len(RESULTS)}",
        *(f"| {c} | {' | '.join(percent(rows[n]['iou'][c]) for n in RESULTS)} |" for c in results["classes"]),
        "",
        "All numbers are percentages. A class that occurs neither in the ground truth nor in the predictions has no IoU (–) and "
        "is left out of the mean. The boundary F-measure (within 0.0075 of the diagonal) and the Boundary IoU (bands of 0.02 of "
        "the diagonal) are means over the classes, too.",
        "",
        f"Expected calibration error of {RESULT_TITLES[DECISIVE_RESULT]}: {percent(results.get('expected_calibration_error'))}.",
    ]
    return "\n".join(lines) + "\n"


def _json(value: Any) -> bytes:
    """Encode a value as the content of a JSON file, and raise ValueError if it contains nan or infinity."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
