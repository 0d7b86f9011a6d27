"""Every setting reaches the code that it names, and repeats exactly the stages whose outputs it may change."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deconvnet.datasets import images_table
from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.evaluation.inputs import EvaluationInputs
from deconvnet.inference.int8 import ranges_job
from deconvnet.inference.predictor import PredictorOptions
from deconvnet.reporting import evaluation_report, gallery, plots
from deconvnet.tracking import interface, register
from deconvnet.tracking.champion.workspace_model import WorkspaceModel
from deconvnet.tracking.register import Ensemble
from deconvnet.training import channel_pruning_job, local_trainer
from deconvnet.training.channel_pruning_job import PruningJob
from deconvnet.training.job import TrainingJob
from infra import storage
from infra.settings import Section
from proposals import job as proposals_job
from proposals.mining import job as mining_job
from tests.deconvnet.example_run import example_results
from tests.workflows.setting_changes import Called, changed, expected_stages, nearest, nested, value_of, write_files
from workflows.cli import setting_fields
from workflows.pipelines import base
from workflows.pipelines.training import Pipeline
from workflows.settings import Settings

DEFAULTS = {
    "model.width": 0.25,
    "model.fcn_width": 0.125,
    "model.vgg16": "FOLDER/vgg.npz",
    "proposals.kind": "both",
    "proposals.edge_model": "FOLDER/forest.yml.gz",
    "data.classes": GENERATED_CLASSES,
    "executor": "local",
    "init.from": None,
}
"""The settings that are changed one by one: VGG-16 is pruned, there is an edge model, and there are windows and boxes."""

TRAININGS = "fcn8s stage1 stage2"
PRUNINGS = "fcn8s_start stage1_start"
REPEATED = {
    "seed": f"prepare examples {TRAININGS} {PRUNINGS}",
    "data.classes": f"prepare {TRAININGS} evaluate",
    "data.background": "prepare examples evaluate",
    "data.max_pixels": "prepare register",
    "data": "prepare",
    "proposals.kind": "examples evaluate",
    "proposals.window_sizes": "examples evaluate",
    "proposals.window_overlap": "examples evaluate",
    "proposals": "proposals",
    "examples.context": "examples evaluate",
    "examples.window": "examples evaluate",
    "examples": "examples",
    "model.convention": f"{TRAININGS} {PRUNINGS}",
    "model.vgg16": f"{TRAININGS} {PRUNINGS}",
    "model.width": "stage1_start stage1 stage2",
    "model.encoder_width": "stage1_start stage1 stage2",
    "model.decoder_width": "stage1 stage2",
    "model.fc_channels": "stage1 stage2",
    "model.input_size": "examples stage1_start stage1 stage2",
    "model.decoder_init": "stage1 stage2",
    "model.fcn_width": "fcn8s_start fcn8s",
    "model.fcn_input_size": "fcn8s_start fcn8s",
    "model.fcn_batch_norm": "fcn8s",
    "init.from": f"{TRAININGS} {PRUNINGS}",
    "compute.bf16": f"{TRAININGS} {PRUNINGS}",
    "compute.allreduce_dtype": TRAININGS,
    "train.fcn8s": "fcn8s",
    "train.stage1": "stage1",
    "train.stage2": "stage2",
    "segment": "evaluate",
    "tracking.model_name": "register",
    "tracking.register_model": "register",
    "tracking.enabled": "register",
    "tracking.uri": "register",
}
"""Stages in whose recipe a setting, or any other setting of a section, is. The stages that read their outputs follow."""

WITHOUT_EFFECT_ON_RESULTS = {
    "workspace": "where the outputs are",
    "executor": "both executors make the same outputs",
    "compute.workers": "the global batches don't depend on it",
    "compute.min_workers": "as above",
    "compute.gpu": "another device, the same computation",
    "compute.cpus_per_worker": "speed",
    "compute.threads": "speed",
    "compute.max_failures": "a restarted training goes on as if nothing had happened",
    "*.checkpoint_every": "a resumed training equals an undisturbed one",
    "*.log_every": "what is written to the log",
    "cluster": "where the work runs",
    "retrain": "settings of retrain.py, which has stages of its own",
    "notify": "messages of retrain.py",
    "tracking": "what is logged, and where",
}
"""Settings that repeat no stage, and why. A section stands for its other settings, "*." for a field of every section."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("settings"))


def settings_with(folder: Path, changes: dict[str, Any]) -> Settings:
    return Settings.model_validate(nested(folder, {**DEFAULTS, "workspace": "FOLDER/w", **changes}))


FIELDS = [pytest.param(name, field.annotation, id=name) for name, field in setting_fields(Settings)]


def plain(value: Any) -> bool:
    """Whether an argument is made of values, so that its text tells it from others; no executor or run of a tracker."""
    return isinstance(value, str | int | float | tuple | Section | TrainingJob | PruningJob | EvaluationInputs | Ensemble | None)


def arguments(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What each stage gives to the functions that do its work, as texts; and what the run itself is given, as "run".

    Without the model card, which tells settings and the date.
    """
    calls: list[str] = []

    def recorder(name: str, ends: bool = True) -> Callable[..., Any]:
        def record(*given: Any, **named: Any) -> Any:
            given = tuple(replace(each, card="") if isinstance(each, Ensemble) else each for each in given)
            calls.append(repr([name, *filter(plain, given), *((key, value) for key, value in named.items() if plain(value))]))
            if ends:
                raise Called
            return nullcontext(value_of(settings, "workspace"))

        return record

    made = SimpleNamespace(rows=1, rejects=(), version=0, extra={"examples_by_class": {}})
    mine = recorder("mine_examples", ends=False)
    monkeypatch.setattr(mining_job, "mine_examples", lambda *given, **named: mine(*given, **named) and made)  # for four tables
    for module, name in (
        (images_table, "prepare_images"),
        (proposals_job, "make_proposals"),
        (gallery, "draw_examples"),
        (channel_pruning_job, "prune_on"),
        (local_trainer, "train_locally"),
        (evaluation_report, "evaluate_and_report"),
        (register, "register"),
        (base, "open_tracker"),
    ):
        monkeypatch.setattr(module, name, recorder(name))
    for name in ("data_folder", "hold_workspace"):
        monkeypatch.setattr(images_table if name == "data_folder" else base, name, recorder(name, ends=False))
    monkeypatch.setattr(Pipeline, "measure_proposals", lambda *_: None)
    monkeypatch.setattr(WorkspaceModel, "foreign_version", lambda *_: None)
    monkeypatch.setattr(ranges_job, "record_missing_ranges", lambda *_, **__: None)
    monkeypatch.setattr(interface, "read_histories", lambda *_: {})
    monkeypatch.setattr(plots, "draw_training_curves", lambda *_: {})
    opened = base.open_executor
    with monkeypatch.context() as patch:
        patch.setattr(base, "open_executor", lambda *given: recorder("open_executor", False)(*given) and opened(*given))
        pipeline = Pipeline(settings)
    for stage in ("stage2", "fcn8s"):
        storage.write_json(storage.join(pipeline.model(stage), "model.json"), {"classes": settings.data.classes})
    with pytest.raises(Called):
        pipeline.run("config")
    found = {"run": [*calls]}
    for stage in pipeline.stages.stages:
        calls.clear()
        storage.write_json(pipeline.report("results.json"), example_results())  # `evaluate` begins by removing it
        with pytest.raises(Called):
            stage.run("f" * 16)
        found[stage.name] = [*calls]
    return found


REACHES = {
    "workspace": f"run prepare proposals examples {TRAININGS} {PRUNINGS} evaluate register",
    "data.root": "evaluate",  # the name of the data set
    "data.classes": "examples register",
    "data.background": "register",
    "proposals": "register",
    **dict.fromkeys(("proposals.kind", "proposals.window_sizes", "proposals.window_overlap"), "proposals register"),
    **dict.fromkeys(("examples.context", "examples.window"), "register"),
    "segment": "register",
    "model": f"{TRAININGS} {PRUNINGS}",  # each network is given the whole section
    "model.vgg16": "",
    "compute": TRAININGS,
    "compute.gpu": f"{TRAININGS} evaluate",
    **dict.fromkeys(("compute.threads", "compute.cpus_per_worker"), f"{TRAININGS} {PRUNINGS}"),
    **{f"train.{stage}": stage for stage in TRAININGS.split()},
    "retrain.lock_minutes": "run",
    "cluster": "run",
    "tracking": "run",
}
"""Stages, and the run itself, that a setting, or any other setting of a section, reaches besides the stages that it repeats."""
REACHED_OTHERWISE = {
    "data.version": "test_table_versions.py",
    "retrain.margin": "the verdict of retrain.py: test_retraining.py",
    "retrain.max_class_drop": "as above",
    "retrain.keep": "the end of retrain.py: test_retrain.py",
    "notify.url": "as above",
    "notify.stale_days": "as above",
    "notify.metrics_to": "as above",
    "executor": "test_local_executor.py",
}
NOT_GIVEN = {
    ("fcn8s", "model.vgg16"): "it starts from the file that fcn8s_start makes",
    ("stage1", "model.vgg16"): "as above",
    ("stage2", "init.from"): "it starts from stage 1",
}
"""Stages that a setting repeats, though the function that does their work isn't given the setting."""


@pytest.mark.parametrize(("name", "annotation"), FIELDS)
def test_a_setting_reaches_the_code_of_the_stages_that_it_repeats_and_of_those_of_the_table_alone(
    folder: Path, name: str, annotation: Any, monkeypatch: pytest.MonkeyPatch, unchanged: Any
) -> None:
    if name in REACHED_OTHERWISE:
        return
    settings, other = changed(folder, name, annotation, settings_with)
    before, after = unchanged("arguments", settings, lambda each: arguments(each, monkeypatch)), arguments(other, monkeypatch)
    reached = {stage for stage in before.keys() | after.keys() if before.get(stage) != after.get(stage)}
    expected = {stage for stage in expected_stages(name, REPEATED, WITHOUT_EFFECT_ON_RESULTS) if (stage, name) not in NOT_GIVEN}
    assert reached == expected | set((nearest(name, REACHES) or "").split()) != set()
    if "examples" in expected:
        tables = [(old, new) for old, new in zip(before["examples"], after["examples"], strict=True) if "mine_examples" in old]
        assert len(tables) == 4 and all(old != new for old, new in tables)


def test_each_training_has_its_table_and_that_of_its_dev_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(settings_with(folder, {}), monkeypatch)
    stages = {
        "fcn8s": ("images", "images"),
        **{name: (f"examples/{name}", f"examples/{name}_dev") for name in ("stage1", "stage2")},
    }
    for stage, (table, dev) in stages.items():
        found = dict(re.findall(r"(examples_uri|dev_uri)=\W*(/[\w/-]*)", str(given[stage])))
        assert found == {"examples_uri": f"{folder}/w/{table}", "dev_uri": f"{folder}/w/{dev}"}


def test_the_model_that_is_registered_predicts_as_it_was_evaluated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"segment.proposals": 7, "segment.flip": True, "examples.context": 1.5, "proposals.window_sizes": (0.25,)}
    settings, given = settings_with(folder, changes), list[Ensemble]()
    pipeline = Pipeline(settings)
    storage.write_json(storage.join(pipeline.model("stage2"), "model.json"), {"classes": GENERATED_CLASSES})
    storage.write_json(pipeline.report("results.json"), example_results())
    monkeypatch.setattr(WorkspaceModel, "foreign_version", lambda *_: None)
    monkeypatch.setattr(register, "register", lambda run, store, name, ensemble, *_: given.append(ensemble))
    pipeline._register("f" * 64)
    (found,), evaluated = given, pipeline.evaluation_inputs("val")
    assert PredictorOptions(**found.segment) == evaluated.options
    for name in ("deconvnet_uri", "fcn8s_uri", "classes"):
        assert getattr(found, name) == getattr(evaluated, name)
    assert found.proposals == {**settings.proposals.edge_box, "kind": "both"}


def test_a_training_resumes_only_from_checkpoints_of_the_same_stage_and_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints: list[str] = []

    def train(job: TrainingJob, **_: object) -> None:
        checkpoints.append(storage.join(job.checkpoints_uri, job.run_name))
        raise Called

    monkeypatch.setattr(local_trainer, "train_locally", train)
    pipeline = Pipeline(settings_with(folder, {}))
    given = [(stage, fingerprint) for stage in TRAININGS.split() for fingerprint in ("0" * 64, "1" * 64)]
    for stage, fingerprint in given:
        with pytest.raises(Called):
            pipeline._train(stage, fingerprint)
    assert len(set(checkpoints)) == len(given)


@pytest.fixture(scope="module")
def unchanged() -> Callable[[str, Settings, Callable[[Settings], dict[str, Any]]], dict[str, Any]]:
    """Makes what is compared with only once for the same settings."""
    known: dict[tuple[str, str], dict[str, Any]] = {}

    def find(kind: str, settings: Settings, make: Callable[[Settings], dict[str, Any]]) -> dict[str, Any]:
        key = (kind, settings.model_dump_json())
        if key not in known:
            known[key] = make(settings)
        return known[key]

    return find


def recipes(settings: Settings) -> dict[str, str]:
    return {stage.name: stage.recipe for stage in Pipeline(settings).stages.stages}


def test_the_same_settings_give_the_same_arguments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every setting would seem to reach the code."""
    settings = settings_with(folder, {})
    assert arguments(settings, monkeypatch) == arguments(settings, monkeypatch)


@pytest.mark.parametrize(("name", "annotation"), FIELDS)
def test_a_setting_repeats_exactly_the_stages_of_the_table(folder: Path, name: str, annotation: Any, unchanged: Any) -> None:
    settings, other = changed(folder, name, annotation, settings_with)
    before, after = unchanged("recipes", settings, recipes), recipes(other)
    repeated = {stage for stage in before.keys() | after.keys() if before.get(stage) != after.get(stage)}
    assert repeated == expected_stages(name, REPEATED, WITHOUT_EFFECT_ON_RESULTS)


@pytest.mark.parametrize(
    ("name", "file", "repeated"),
    [
        ("model.vgg16", "vgg.npz", f"{TRAININGS} {PRUNINGS}"),
        ("proposals.edge_model", "forest.yml.gz", "proposals"),
    ],
)
def test_a_file_counts_by_its_content_and_not_by_its_path(folder: Path, name: str, file: str, repeated: str) -> None:
    (folder / "copy of").mkdir(exist_ok=True)
    copy = folder / "copy of" / file
    before, found = recipes(settings_with(folder, {})), {}
    for content in ((folder / file).read_bytes(), b"trained anew"):
        copy.write_bytes(content)
        after = recipes(settings_with(folder, {name: str(copy)}))
        found[content] = {stage for stage in before if before[stage] != after[stage]}
    assert list(found.values()) == [set(), set(repeated.split())]
