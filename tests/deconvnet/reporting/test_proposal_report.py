"""The report on proposals, with a known recall in place of the job's."""

import json

import numpy as np
import pytest

from deconvnet.reporting import proposal_report
from proposals.recall import Recall
from proposals.settings import ProposalSettings


@pytest.fixture
def arguments(monkeypatch) -> dict:
    """The job's arguments. More boxes cover two objects better: the first from 0.3 to 0.9, the other to 0.5."""
    arguments: dict = {}

    def job(images, proposals, split, executor, counts, min_area, known):
        arguments.update(split=split, counts=counts, min_area=min_area, executor=executor, known=known)
        overlaps = np.linspace([0.3, 0.3], [0.9, 0.5], len(counts), axis=1).astype(np.float32)
        return Recall.from_overlaps(overlaps[: 0 if split == "none" else 2], counts)

    monkeypatch.setattr(proposal_report, "measure_recall", job)
    monkeypatch.setattr(proposal_report, "recall_curves", lambda recalls: f"chart of {list(recalls)}".encode())
    return arguments


def test_the_files_hold_the_recall(arguments, executor):
    """The best overlaps of the first 50 boxes, the sixth of nine numbers, are 0.675 and 0.425."""
    settings = ProposalSettings(max_boxes=500)
    made = proposal_report.report_proposals("i", "p", "dev", settings, "mine dev", executor, {"a part"})
    assert made is not None
    _, files = made
    counts = (1, 2, 5, 10, 20, 50, 100, 200, 500)
    assert arguments == {"split": "dev", "counts": counts, "min_area": 2000, "executor": executor, "known": {"a part"}}
    content = json.loads(files["proposals.json"])
    assert content["objects"] == 2 and content["min_area"] == 2000
    assert content["recall_50_iou50"] == 0.5 and content["recall_50_iou70"] == 0
    assert content["recall_500_iou50"] == 1 and content["recall_500_iou70"] == 0.5
    assert content["average_best_overlap_50"] == pytest.approx(0.55) and content["average_best_overlap_500"] == pytest.approx(0.7)
    markdown = files["proposals.md"].decode()
    assert markdown.startswith("# Proposals: mine dev\n")
    assert "| dev | 50 | 0.500 | 0.000 |" in markdown and "| dev | 500 | 1.000 | 0.500 |" in markdown
    assert "2 objects whose box has at least 2,000 px²" in markdown
    assert files["proposals.png"] == b"chart of ['dev']"


@pytest.mark.parametrize(("min_box_area", "area"), [(150, 300), (1000, 2000), (4000, 2000)])
def test_smaller_objects_count_if_smaller_boxes_are_proposed(arguments, executor, min_box_area, area):
    proposal_report.report_proposals("i", "p", "dev", ProposalSettings(min_box_area=min_box_area), "x", executor)
    assert arguments["min_area"] == area


def test_there_is_no_report_without_objects(arguments, executor):
    assert proposal_report.report_proposals("i", "p", "none", ProposalSettings(), "x", executor) is None
