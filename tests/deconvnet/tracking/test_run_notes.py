"""Descriptions for MLflow's pages: what they say, and that names can't break them."""

import pytest

from deconvnet.reporting.run_summary import Rejects
from deconvnet.tracking.run_notes import MOST, escaped, fitted, pipeline_note, run_name, stage_note
from tests.deconvnet.example_run import SCRIPT_TAG, example_results, example_summary


def test_a_runs_description() -> None:
    note = pipeline_note(example_summary(), "abc123")
    assert "| EDeconvNet+CRF | 61.2 | 87.5 | 72.5 |" in note and "| FCN-8s | 50.1 | 87.5 | 62.2 |" in note
    assert note.startswith("**EDeconvNet+CRF: 61.2 % mean IoU** on cats &amp; dogs val, 1,234 photographs.")
    assert "**Data**: 9,000 train, 40 dev, 1,234 val photographs, 4 classes. 5 inputs were set aside." in note
    assert "prepare 8 s · stage2 2 h 05 min; 2 h 05 min in all" in note
    assert "(get-artifact?path=report%2Fcomparison.png&run_uuid=abc123)" in note
    assert "get-artifact" not in pipeline_note(example_summary(figures={}), "abc123")
    assert "aside" not in pipeline_note(example_summary(rejects=Rejects()), "abc123")


def test_names_can_not_break_a_description() -> None:
    assert escaped(SCRIPT_TAG) == '&lt;script&gt;document.title="harmed"&lt;/script&gt;'
    assert escaped("a|b *c* [d](e)\n`f`") == r"a\|b \*c\* \[d\](e) \`f\`"
    note = pipeline_note(example_summary(results=example_results() | {"dataset": f"{SCRIPT_TAG}|"}), "r")
    assert "<script" not in note and r"\|" in note


def test_nothing_is_longer_than_a_store_keeps() -> None:
    assert len(fitted("x" * 9000)) == MOST and fitted("short") == "short"
    assert len(pipeline_note(example_summary(seconds={"s" * 50 + str(i): 1.0 for i in range(200)}), "r")) == MOST
    assert len(stage_note("verdict", {"promoted": True, "why": "w" * 9000, "version": 2, "champion": 2})) == MOST


@pytest.mark.parametrize(
    ("stage", "summary", "says"),
    [
        ("prepare", {"counts": {"train": 1000, "val": 5}, "rejects": 2, "changes": {"new": 3}}, "**1,000 train, 5 val** photographs; 2 set"),
        ("proposals", {"photographs": 1005, "rejects": 0}, "**1,005 photographs**"),
        ("examples", {"stage1": 70, "stage1_dev": 2}, "**70 stage1, 2 stage1 dev** crops"),
        ("stage2", {"steps": 3}, "training_curves.png"),
        ("register", {"model": "my_net", "version": 3}, r"**my\_net version 3**"),
        ("verdict", {"promoted": False, "why": "a fall", "version": 4, "champion": 3}, "is **not promoted**: a fall. Champion is version 3."),
        ("champion", {}, "Measures the model"),
        ("fcn8s_start", {"fit": {}}, "VGG-16"),
    ],
)  # fmt: skip
def test_a_stages_description(stage, summary, says) -> None:
    assert says in stage_note(stage, summary)
    first = stage_note(stage)
    assert first and stage_note(stage, summary, "more").startswith(first) and stage_note(stage, summary, "more").endswith("more")


def test_what_a_run_is_called() -> None:
    assert run_name("voc", "s3://b/runs/mine/", "2026-11-23") == "voc · mine · 2026-11-23"
    assert run_name("voc", "/x/voc", "2026-11-23") == "voc · 2026-11-23"
