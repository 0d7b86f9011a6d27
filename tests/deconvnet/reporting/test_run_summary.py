"""`read_run_summary` on a complete and on a nearly empty workspace, and the formatting of figures."""

import json
from pathlib import Path

import pytest

from deconvnet.reporting.run_summary import duration, percent, read_run_summary, result_rows
from infra import storage
from infra.storage import tables
from tests.deconvnet.example_run import example_results, grey_png


def workspace(folder: Path) -> Path:
    (folder / "report").mkdir()
    (folder / "report" / "results.json").write_text(json.dumps(example_results()))
    return folder


def test_a_complete_workspace_is_read(tmp_path) -> None:
    folder = workspace(tmp_path)
    (folder / "report" / "wins.png").write_bytes(grey_png())
    (folder / "report" / "other.png").write_bytes(grey_png())
    storage.write_json(str(folder / "report" / "proposals.json"), {"objects": 3})
    rejects = [
        {"image_id": f"{i}", "path": f"{i}.jpg", "stage": "prepare", "reason": "empty" if i < 5 else "text"} for i in range(6)
    ]
    tables.commit(str(folder / "rejects"), "f", [tables.write_part(str(folder / "rejects"), "f", 0, rejects, tables.REJECTS)])
    record = {"fingerprint": "f", "recipe": "r", "inputs": [], "key": "k", "seconds": 2.5, "summary": {}}
    counts = {"train": 2, "dev": 1, "val": 1}
    times = {"steps": 3, "step_seconds": {"optimiser": 0.5}}
    for name, more in (("stage2", {"summary": times}), ("prepare", {"key": "abc", "summary": {"counts": counts}})):
        storage.write_json(str(folder / "stages" / f"{name}.json"), record | more)
    storage.write_json(str(folder / "stages" / "examples.json"), record | {"summary": {"stage1": 7, "stage1_dev": 2}})
    storage.write_json(str(folder / "report" / "against_champion.json"), {"rise": 0.1})
    verdict = {"version": 4, "champion": 3, "promoted": False, "why": "it is worse"}
    storage.write_json(str(folder / "stages" / "verdict.json"), record | {"summary": verdict})
    found = read_run_summary(str(folder), title="t", settings={"a": 1}, code="c")
    assert found.splits == counts and list(found.splits) == ["train", "dev", "val"]
    assert found.digest == "abc" and found.crops == {"stage1": 7, "stage1 dev": 2} and found.proposals == {"objects": 3}
    assert list(found.figures) == ["wins"] and found.figures["wins"] == grey_png()
    assert found.seconds == dict.fromkeys(("prepare", "examples", "stage2", "verdict"), 2.5)
    assert found.step_seconds == {"stage2": {"optimiser": 0.5}}
    assert found.against_champion == {"rise": 0.1} and found.decision == "Version 4 is not promoted: it is worse."
    assert found.rejects.counts == {"empty": 5, "text": 1} and found.rejects.examples["empty"] == ["0.jpg", "1.jpg", "2.jpg"]
    assert found.rejects.total == 6
    assert list(read_run_summary(str(folder), title="t", settings={}, code="c", stages=["stage2", "absent"]).seconds) == [
        "stage2"
    ]


def test_only_results_are_needed(tmp_path) -> None:
    found = read_run_summary(str(workspace(tmp_path)), title="t", settings={}, code="c")
    assert (found.splits, found.seconds, found.step_seconds, found.rejects.total, found.figures) == ({}, {}, {}, 0, {})
    assert found.images == found.champion_images == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        read_run_summary(str(tmp_path / "empty"), title="t", settings={}, code="c")


def test_durations_percentages_and_result_rows_are_formatted() -> None:
    assert [duration(s) for s in (0.2, 59.4, 59.6, 200)] == ["0 s", "59 s", "1 min 00 s", "3 min 20 s"]
    assert [duration(s) for s in (3599.6, 7500, 400000)] == ["1 h 00 min", "2 h 05 min", "111 h 06 min"]
    assert percent(None) == "–" and percent(0.7254) == "72.5"
    rows = result_rows(example_results(fcn8s=None))
    assert rows[0] == ("FCN-8s", "–", "87.5", "–", "–", "62.2"), "an earlier version measured no boundaries"
    assert [row[-1] for row in rows] == ["62.2", "69.6", "70.5", "71.7", "72.5"]
