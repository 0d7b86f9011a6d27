"""The files of an evaluation: their names, their order and their content."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from deconvnet.evaluation.breakdowns import Breakdowns
from deconvnet.evaluation.calibration import calibration_as_dict, calibration_counts
from deconvnet.evaluation.drift import PredictionStatistics
from deconvnet.evaluation.evaluator import Evaluation
from deconvnet.inference.predictor import RESULTS, PredictorOptions
from deconvnet.reporting import plots
from deconvnet.reporting.evaluation_report import report_files, result_charts, results_markdown


def test_results_json_is_the_last_file_of_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "to_png", lambda figure: b"a chart")
    classes = ["background", "cat", "dog"]
    counted = Breakdowns(RESULTS, (1, 5), 3)
    truth = np.zeros((20, 30), np.uint8)
    truth[5:15, 5:15] = 1
    single = counted.add(truth, truth, dict.fromkeys(RESULTS, truth), {1: truth * 0, 5: truth})
    iou = {"background": 1.0, "cat": 1.0, "dog": None}
    rows = {name: {"mean_iou": 1.0, "pixel_accuracy": 1.0, "iou": iou} for name in RESULTS}
    results = {"dataset": "made up", "images": 1, "classes": classes, "expected_calibration_error": 0.5, "rows": rows}
    statistics = PredictionStatistics.of([0.5], np.array([[0.75, 0.25, 0]]), classes)
    counts = calibration_counts(truth, truth, np.full(truth.shape, 0.5))
    measured = {**counted.as_dict(), "calibration": calibration_as_dict(counts)}
    images = [
        {"image_id": name, "mean_iou.fcn8s": 1.0, "iou.cat": 0.25, "confidence": 0.5, "picture": "", "mask": ""}
        for name in ("b", "a")
    ]
    found = Evaluation(results, images, measured, {"a": single[-1].matrix}, statistics)
    options = PredictorOptions(proposals=5, crf={"iterations": 3})
    files = report_files(found, {"comparison": b"png"}, options)
    charts = ("iou_by_class.png", "iou_by_proposals.png", "iou_by_size.png", "confusion.png", "calibration.png")
    texts = ("analysis.json", "prediction_statistics.json", "results.md", "results.json")
    assert (
        set(files) == {"comparison.png", "image_confusions.npz", "images.parquet", *charts, *texts}
        and list(files)[-1] == "results.json"
    )
    assert {files[name] for name in charts} == {b"a chart"} and files["comparison.png"] == b"png"
    assert json.loads(files["results.json"]) == results
    assert PredictionStatistics(**json.loads(files["prediction_statistics.json"])) == statistics
    kept = json.loads(files["analysis.json"])
    assert PredictorOptions(**kept.pop("segmenter")) == options
    assert kept == found.breakdowns and kept["proposals"]["mean_iou"][0] < kept["proposals"]["mean_iou"][1] == 1.0
    windows = replace(found, breakdowns={**measured, "proposals": Breakdowns(RESULTS, (), 3).as_dict()["proposals"]})
    assert files.keys() - report_files(windows, {"comparison": b"png"}, options).keys() == {"iou_by_proposals.png"}
    table = pq.read_table(io.BytesIO(files["images.parquet"]))
    assert table["mean_iou.fcn8s"].to_pylist() == [1.0, 1.0] and table["mean_iou.deconvnet"].to_pylist() == [None, None]
    assert table["image_id"].to_pylist() == ["a", "b"] and table["iou.cat"].to_pylist() == [0.25, 0.25]
    assert table["iou.dog"].to_pylist() == [None, None] and table.column_names[-5:-2] == [f"iou.{name}" for name in classes]


def test_each_chart_is_drawn_from_its_own_figures_and_the_confusion_matrix_is_that_of_the_decisive_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("iou_by_class", "iou_by_proposals", "iou_by_size", "confusion_matrix", "reliability_diagram"):
        monkeypatch.setattr(plots, name, lambda *given, name=name: (name, *(np.asarray(each).tolist() for each in given)))
    results = {"dataset": "made up", "images": 1200, "classes": ["background", "cat"], "expected_calibration_error": 0.5}
    breakdowns = {"confusion": {name: [[i, 20], [30, 40]] for i, name in enumerate(RESULTS)}, "calibration": {"pixels": [7]}}
    title = "EDeconvNet+CRF, made up, 1,200 images"
    assert {name: draw() for name, draw in result_charts(results, breakdowns).items()} == {
        "iou_by_class": ("iou_by_class", results),
        "iou_by_proposals": ("iou_by_proposals", results, breakdowns),
        "iou_by_size": ("iou_by_size", breakdowns),
        "confusion": ("confusion_matrix", [[4, 20], [30, 40]], results["classes"], title),
        "calibration": ("reliability_diagram", breakdowns["calibration"], 0.5, title),
    }


def test_results_markdown_has_the_five_rows_in_order_and_dashes_for_missing_figures():
    figures = {
        "mean_iou": 0.5,
        "pixel_accuracy": 0.875,
        "boundary_f": 0.25,
    }
    iou = {"background": 0.9, "unicorn": None}
    rows = {name: {**figures, "mean_iou": 0.1 * i, "iou": {**iou, "cat": 0.1 * i}} for i, name in enumerate(RESULTS)}
    rows["fcn8s"]["mean_iou"] = None
    results = {"dataset": "made up", "images": 3, "classes": ["background", "cat", "unicorn"], "rows": rows}
    lines = results_markdown(results).splitlines()
    assert lines[0] == "# made up: 3 images"
    assert lines[2] == "| | mean IoU | pixel accuracy | boundary F | Boundary IoU |"
    assert lines[4:9] == [
        "| FCN-8s | – | 87.5 | 25.0 | – |",
        "| DeconvNet | 10.0 | 87.5 | 25.0 | – |",
        "| DeconvNet+CRF | 20.0 | 87.5 | 25.0 | – |",
        "| EDeconvNet | 30.0 | 87.5 | 25.0 | – |",
        "| EDeconvNet+CRF | 40.0 | 87.5 | 25.0 | – |",
    ]
    assert lines[10:15] == [
        "| IoU | FCN-8s | DeconvNet | DeconvNet+CRF | EDeconvNet | EDeconvNet+CRF |",
        "|---|---:|---:|---:|---:|---:|",
        "| background | 90.0 | 90.0 | 90.0 | 90.0 | 90.0 |",
        "| cat | 0.0 | 10.0 | 20.0 | 30.0 | 40.0 |",
        "| unicorn | – | – | – | – | – |",
    ]
