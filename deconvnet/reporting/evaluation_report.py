"""The files of an evaluation: the table, the figures of it, and what they are drawn from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from deconvnet.evaluation.evaluator import Evaluation, evaluate
from deconvnet.inference.predictor import RESULTS, PredictorOptions
from deconvnet.reporting import gallery, plots
from deconvnet.reporting.figure import RESULT_TITLES
from deconvnet.reporting.run_summary import percent
from infra.runtime.executor import Executor

if TYPE_CHECKING:
    from deconvnet.settings import SegmentSettings
    from proposals.settings import ExampleSettings

CONFUSED = "edeconvnet_crf"  # whose confusion is drawn


def measure(
    models: tuple[str, str],
    images_uri: str,
    proposals_uri: str,
    *,
    split: str,
    segment: "SegmentSettings",
    examples: "ExampleSettings",
    classes: Sequence[str],
    dataset: str,
    gpu: bool,
    executor: Executor,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The `results.json` of a DeconvNet and an FCN-8s (their folders) on `split`, and `report_files` (see `evaluate`)."""
    found = evaluate(
        *models,
        images_uri,
        proposals_uri,
        split=split,
        segment=segment,
        examples=examples,
        classes=classes,
        dataset=dataset,
        executor=executor,
        gpu=gpu,
    )
    options = PredictorOptions.from_settings(segment, examples)
    draw = partial(gallery.load_and_draw_gallery, models, options, gpu, images_uri, proposals_uri, classes, found.mean_iou)
    drawn = dict(executor.stream(draw, gpus=1.0 if gpu else 0.0, training=gpu))
    return found.results, report_files(found, drawn, options)


def report_files(found: Evaluation, drawn: Mapping[str, bytes], options: PredictorOptions) -> dict[str, bytes]:
    """Every file of the report by name, results.json last: when it is there, all is.

    drawn: PNGs by name, without suffix. options: those of the Predictor that labelled; analysis.json keeps them, so that its
    pictures can be made again.
    """
    png = {**drawn, **result_charts(found.results, found.analysis)}
    return {
        **{f"{name}.png": data for name, data in png.items()},
        "mean_iou_by_image.json": _json(found.mean_iou),
        "analysis.json": _json({"segmenter": asdict(options), **found.analysis}),
        "results.md": results_markdown(found.results).encode(),
        "results.json": _json(found.results),
    }


def result_charts(results: Mapping[str, Any], analysis: Mapping[str, Any]) -> dict[str, bytes]:
    """The charts of a `results.json` and its `analysis.json`, as PNGs by name."""
    about = f"{RESULT_TITLES[CONFUSED]}, {results['dataset']}, {results['images']:,} photographs"
    return {
        "iou_by_class": plots.iou_by_class(results),
        "iou_by_proposals": plots.iou_by_proposals(results, analysis),
        "iou_by_size": plots.iou_by_size(analysis),
        "confusion": plots.confusion_matrix(np.array(analysis["confusion"][CONFUSED]), results["classes"], about),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def results_markdown(results: dict[str, Any]) -> str:
    """`results.md`: the five rows in the paper's order, then IoU by class; percentages, – where a class does not occur."""
    rows = results["rows"]
    lines = [
        f"# {results['dataset']}: {results['images']} photographs",
        "",
        "| | mean IoU | pixel accuracy |",
        "|---|---:|---:|",
        *(f"| {RESULT_TITLES[n]} | {percent(rows[n]['mean_iou'])} | {percent(rows[n]['pixel_accuracy'])} |" for n in RESULTS),
        "",
        f"| IoU | {' | '.join(RESULT_TITLES[n] for n in RESULTS)} |",
        f"|---|{'---:|' * len(RESULTS)}",
        *(f"| {c} | {' | '.join(percent(rows[n]['iou'][c]) for n in RESULTS)} |" for c in results["classes"]),
        "",
        "Per cent. A class that is in neither the truth nor the labels has no IoU (–) and is left out of the mean.",
    ]
    return "\n".join(lines) + "\n"
