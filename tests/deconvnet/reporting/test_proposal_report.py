"""The report on proposals, with the job replaced by known figures."""

import json

import numpy as np
import pytest

from deconvnet.reporting import proposal_report
from proposals.recall import Recall
from proposals.settings import ProposalSettings


@pytest.fixture
def asked(monkeypatch) -> dict:
    """What the job is asked for; it finds an object of two."""
    asked: dict = {}

    def job(images, proposals, split, executor, counts, min_area):
        asked.update(split=split, counts=counts, min_area=min_area, executor=executor)
        overlaps = np.repeat([[0.75], [0.25]], len(counts), axis=1).astype(np.float32)
        return Recall.from_overlaps(overlaps[: 0 if split == "none" else 2], counts)

    monkeypatch.setattr(proposal_report, "measure_recall", job)
    return asked


def test_the_files_tell_the_figures(asked, executor):
    made = proposal_report.report_proposals("i", "p", "dev", ProposalSettings(max_boxes=500), "mine dev", executor)
    assert made is not None and asked == {
        "split": "dev", "counts": (1, 2, 5, 10, 20, 50, 100, 200, 500), "min_area": 2000, "executor": executor,
    }  # fmt: skip
    figures = json.loads(made.files["proposals.json"])
    assert figures["objects"] == 2 and figures["min_area"] == 2000 and figures["recall_500_iou70"] == 0.5
    assert figures["average_best_overlap_50"] == 0.5
    markdown = made.files["proposals.md"].decode()
    assert markdown.startswith("# Proposals: mine dev\n") and "| dev | 500 | 0.500 | 0.500 |" in markdown
    assert "2 objects whose box has 2,000 px² or more" in markdown
    assert made.files["proposals.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(("min_box_area", "area"), [(150, 300), (1000, 2000), (4000, 2000)])
def test_smaller_objects_count_where_smaller_boxes_are_sought(asked, executor, min_box_area, area):
    proposal_report.report_proposals("i", "p", "dev", ProposalSettings(min_box_area=min_box_area), "x", executor)
    assert asked["min_area"] == area


def test_no_objects_no_report(asked, executor):
    assert proposal_report.report_proposals("i", "p", "none", ProposalSettings(), "x", executor) is None
