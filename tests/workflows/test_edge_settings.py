"""Every setting of train_edges.py reaches the code that it names, and repeats exactly the stages whose outputs it may change."""

from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deconvnet.datasets import images_table
from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.reporting import edge_report
from proposals.edges.training import job as forest_job
from tests.workflows.setting_changes import NEEDS as DATA_NEEDS
from tests.workflows.setting_changes import Called, changed, expected_stages, nested, recording, write_files
from workflows.cli import setting_fields
from workflows.pipelines import base, edges
from workflows.pipelines.edges import EdgeTraining
from workflows.settings import EdgeSettings

EDGE_DEFAULTS = {"workspace": "FOLDER/w", "executor": "local", "data.classes": GENERATED_CLASSES}
EDGE_NEEDS = DATA_NEEDS | {"bsds": {"data.root": "FOLDER/voc"}}
EDGE_REPEATED = {
    "seed": "prepare segments forest",
    "data": "prepare",
    "bsds": "segments measure",
    "forest.photographs": "segments",
    "forest": "forest",
    "proposals": "measure",
}
"""Stages of train_edges.py in whose recipe a setting, or any other setting of a section, is."""
EDGE_WITHOUT_EFFECT = {
    "workspace": "where the outputs are",
    "executor": "both executors make the same outputs",
    "tracking": "what is logged, and where",
    "cluster": "where the work runs",
    "proposals.kind": "EdgeBox is measured whatever it is",
    "proposals.window_sizes": "windows don't depend on edges, so they are not measured",
    "proposals.window_overlap": "as above",
}
"""Settings of train_edges.py that repeat no stage, and why."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("edges"))


def edge_settings(folder: Path, changes: dict[str, Any]) -> EdgeSettings:
    return EdgeSettings.model_validate(nested(folder, {**EDGE_DEFAULTS, **changes}))


EDGE_FIELDS = [pytest.param(name, field.annotation, id=name) for name, field in setting_fields(EdgeSettings)]


@pytest.fixture
def _bsds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any folder is BSDS500."""
    monkeypatch.setattr(edges, "_bsds_version", lambda bsds, split: [bsds, split])


@pytest.mark.usefixtures("_bsds")
@pytest.mark.parametrize(("name", "annotation"), EDGE_FIELDS)
def test_a_setting_of_train_edges_repeats_exactly_the_stages_of_the_table(folder: Path, name: str, annotation: Any) -> None:
    before, after = (
        {stage.name: stage.recipe for stage in EdgeTraining(settings).stages.stages}
        for settings in changed(folder, name, annotation, edge_settings, EDGE_NEEDS)
    )
    repeated = {stage for stage in before.keys() | after.keys() if before.get(stage) != after.get(stage)}
    assert repeated == expected_stages(name, EDGE_REPEATED, EDGE_WITHOUT_EFFECT)


@pytest.mark.parametrize(("split", "stage"), [("train", "segments"), ("val", "measure")])
def test_new_files_of_bsds500_repeat_the_learning_or_the_measuring(
    split: str, stage: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"train": "some", "val": "some"}
    monkeypatch.setattr(edges, "_bsds_version", lambda bsds, split: [files[split]])
    settings = edge_settings(folder, EDGE_NEEDS["bsds"] | {"bsds": "FOLDER/bsds"})
    before = {each.name: each.recipe for each in EdgeTraining(settings).stages.stages}
    files[split] = "others"
    assert {each.name for each in EdgeTraining(settings).stages.stages if each.recipe != before[each.name]} == {stage}


def edge_calls(settings: EdgeSettings) -> str:
    """What each stage of train_edges.py gives to the function that does its work, and the run itself to others, as text."""
    calls, record = recording()
    made = SimpleNamespace(rows=1, rejects=(), files={}, metrics={}, version=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images_table, "data_folder", record("data", settings.workspace))
        patch.setattr(images_table, "data_fingerprint", lambda *_: "data")
        patch.setattr(images_table, "prepare_images", record("prepare", ends=True))
        patch.setattr(forest_job, "collect_samples", record("collect", made))
        patch.setattr(forest_job, "train_forest", record("forest", ends=True))
        patch.setattr(edge_report, "compare_edges", record("compare", ends=True))
        patch.setattr(base, "open_tracker", record("tracker", ends=True))
        patch.setattr(base, "open_executor", record("executor", nullcontext()))
        patch.setattr(base, "hold_workspace", record("hold", nullcontext()))
        training = EdgeTraining(settings)
        for run in (lambda: training.run("config"), *(partial(stage.run, "f" * 16) for stage in training.stages.stages)):
            with suppress(Called):
                run()
    return "\n".join(calls)


@pytest.mark.usefixtures("_bsds")
@pytest.mark.parametrize(("name", "annotation"), EDGE_FIELDS)
def test_a_setting_of_train_edges_reaches_the_code_that_does_the_work(folder: Path, name: str, annotation: Any) -> None:
    before, after = changed(folder, name, annotation, edge_settings, EDGE_NEEDS)
    assert edge_calls(before) != edge_calls(after)
    assert edge_calls(before) == edge_calls(before), "otherwise every setting would seem to reach the code"
