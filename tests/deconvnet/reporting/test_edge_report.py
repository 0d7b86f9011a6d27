"""The comparison of a newly trained edge detector with two others, with made-up boxes and edges."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deconvnet.reporting import edge_report
from deconvnet.reporting.edge_report import EdgeReport, compare_edges
from infra.runtime.local_executor import LocalExecutor
from proposals.edgebox import EdgeBoxOptions
from proposals.recall import Recall
from proposals.settings import ProposalSettings
from tests.image_tables import Row, image_row, write_images
from tests.proposals.edges.bsds_folder import drawing, write

BOXES = np.array([[5, 10, 45, 40], [60, 20, 100, 60]], np.float32)
"""The two objects of each image of dev. The first is smaller than the second."""
SETTINGS = ProposalSettings(min_box_area=600, max_boxes=50, multiscale=True, edges="gradient")


def scene(image_id: str, split: str, boxes: np.ndarray = BOXES) -> Row:
    objects = np.zeros((80, 120), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int), 1):
        objects[y1:y2, x1:x2] = number
    return image_row(image_id, np.zeros((80, 120, 3), np.uint8), np.minimum(objects, 1), objects, split)


def compared(tmp_path: Path, executor: LocalExecutor, rows: list[Row] | None, bsds: Path | None = None) -> EdgeReport:
    if rows is not None:
        write_images(str(tmp_path / "images"), rows, parts=2)
    uri = None if rows is None else str(tmp_path / "images")
    return compare_edges(uri, str(bsds) if bsds else None, "new.yml.gz", SETTINGS, executor)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[EdgeBoxOptions]:
    """The options of each search for boxes. This forest finds both objects, the shipped one the first, the gradient none."""
    found = {("forest", "new.yml.gz"): BOXES, ("forest", None): BOXES[:1], ("gradient", None): BOXES[:0]}
    options: list[EdgeBoxOptions] = []

    def find(image: np.ndarray, searched: EdgeBoxOptions) -> tuple[np.ndarray, np.ndarray]:
        options.append(searched)
        boxes = found[searched.edges, searched.edge_model]
        return boxes, np.ones(len(boxes))

    monkeypatch.setattr(edge_report, "find_boxes", find)
    return options


def test_the_detectors_are_compared_by_their_own_boxes_on_dev_alone(
    tmp_path: Path, executor: LocalExecutor, searches: list[EdgeBoxOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All fail on the image of val, and on an object of dev that is too small to count. An image without masks is left out."""
    drawn: list[dict[str, Recall]] = []
    monkeypatch.setattr(edge_report, "recall_curves", lambda recalls: drawn.append(recalls) or b"chart")
    elsewhere = np.array([[50, 60, 58, 70]], np.float32)
    rows = [scene("0", "dev"), scene("1", "val", BOXES[::-1] + 15), scene("2", "dev", np.vstack([BOXES, elsewhere]))]
    rows.append({**scene("3", "dev"), "object_mask": None})
    report = compared(tmp_path, executor, rows)
    assert {name: recall.num_objects for name, recall in drawn[0].items()} == {
        "gradient, EdgeBox's defaults": 4,
        "shipped forest": 4,
        "this forest": 4,
    }
    names = ("recall_50_iou50", "recall_50_iou70", "average_recall_50", "average_best_overlap_50")
    assert report.metrics == {f"dev.{name}": 1.0 for name in names} == json.loads(report.files["edges.json"])
    assert report.files["edges.png"] == b"chart"
    lines = report.files["edges.md"].decode().splitlines()
    assert "Boxes, on the 4 objects of dev:" in lines
    assert [line for line in lines if "| 50 |" in line] == [
        "| gradient, EdgeBox's defaults | 50 | 0.000 | 0.000 | 0.000 | 0.000 |",
        "| shipped forest | 50 | 0.500 (+50.0) | 0.500 (+50.0) | 0.500 (+50.0) | 0.500 (+50.0) |",
        "| this forest | 50 | 1.000 (+100.0) | 1.000 (+100.0) | 1.000 (+100.0) | 1.000 (+100.0) |",
    ]
    assert {(each.edges, each.multiscale, each.max_boxes) for each in searches} == {("gradient", False, 50), ("forest", True, 50)}


def test_a_dev_split_without_objects_is_said(tmp_path: Path, executor: LocalExecutor, searches: list[EdgeBoxOptions]) -> None:
    report = compared(tmp_path, executor, [scene("0", "val"), scene("1", "dev", BOXES[:0])])
    assert report.metrics == {} and "dev has no objects to measure boxes on." in report.files["edges.md"].decode()
    assert "edges.png" not in report.files


def test_the_edges_of_each_detector_are_compared_with_all_annotators_of_bsds500(
    tmp_path: Path, executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This forest draws the lines of both annotators, the shipped one that of the first, and the gradient nothing."""
    first, second = (drawing(column, 100, 40) for column in (10, 25))
    write(tmp_path, "1", [first, second], 100, 40)
    found = {("forest", "new.yml.gz"): first[1] + second[1], ("forest", None): first[1], ("gradient", None): 0 * first[1]}
    options: list[dict[str, Any]] = []

    def edges(image: np.ndarray, source: str, model: str | None, multiscale: bool, **thinning: int) -> tuple[np.ndarray, None]:
        options.append({"multiscale": multiscale, **thinning})
        return found[source, model].astype(np.float32), None

    monkeypatch.setattr(edge_report, "edge_map", edges)
    report = compared(tmp_path, executor, None, tmp_path)
    assert [each.pop("multiscale") for each in options] == [False, True, True]
    assert options == [{"radius": 1, "border": 5}] * 3, "as Dollár's toolbox measures edges"
    assert report.metrics == {"bsds.ods": pytest.approx(1, abs=0.02), "bsds.ois": pytest.approx(1, abs=0.02)}
    lines = report.files["edges.md"].decode().splitlines()
    assert "Edges, on BSDS500 val:" in lines and "| gradient | 0.000 | 0.000 |" in lines
    (shipped,) = (line for line in lines if line.startswith("| shipped forest |"))
    assert float(shipped.split("|")[2]) == pytest.approx(2 / 3, abs=0.02), "half of the annotated pixels, and nothing wrong"
    assert "edges.png" not in report.files
