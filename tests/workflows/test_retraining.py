"""Which generation a retraining runs, which champion it starts from, and what it is compared with."""

import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from deconvnet.evaluation.comparison import IMAGE_CONFUSIONS, image_confusions_file, mean_iou_rise
from deconvnet.evaluation.hold_out import HoldOut
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.inference.predictor import PredictorOptions
from deconvnet.reporting import champion_report
from deconvnet.reporting.champion_report import COMPARISON
from deconvnet.tracking.champion.moves import Move
from deconvnet.tracking.initial_model import InitialModel
from infra import storage
from infra.errors import Interrupted, UserError
from infra.runtime.stages import Record, digest, record_uri
from infra.storage import tables
from infra.webhook import Webhook
from proposals import schemas
from proposals.image_notes import note_of_reject, note_of_row
from tests.image_tables import image_row
from workflows.operations import retraining as operation
from workflows.operations.run_metrics import CHAMPION_SINCE, CHAMPION_VERSION, DATA_SINCE, IMAGES, RunMetrics
from workflows.pipelines import generations, retraining, training
from workflows.pipelines.generations import Generation
from workflows.pipelines.retraining import CHAMPION_RESULTS, HOLD_OUT, Retraining
from workflows.pipelines.workspace import Workspace
from workflows.settings import Settings


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(workspace=str(tmp_path / "w"), data={"classes": retraining.Settings().data.classes})


@pytest.fixture
def champion(monkeypatch) -> dict:
    """The version to beat, and the versions of each generation, as if the registry had them."""
    found: dict = {"version": None, "of": {}}
    monkeypatch.setattr(retraining.WorkspaceModel, "baseline_version", lambda model: found["version"])
    monkeypatch.setattr(retraining.WorkspaceModel, "foreign_version", lambda model: None)
    monkeypatch.setattr(retraining.WorkspaceModel, "versions_of", lambda model, generation: found["of"].get(generation, set()))
    return found


def record(workspace: str, stage: str, inputs: list[str], keys: list[str], **summary: object) -> None:
    made = Record(digest([stage, keys]), stage, inputs, f"key of {stage}", 1.0, summary)
    storage.write_json(record_uri(workspace, stage), asdict(made))


def test_the_first_generation_has_neither_a_previous_workspace_nor_a_champion(settings, champion) -> None:
    found = retraining.next_generation(settings)
    assert (found.previous, found.version, found.finished, found.forced) == (None, None, False, False)


def test_a_complete_pipeline_run_is_the_previous_workspace_of_the_first_generation(settings, champion) -> None:
    record(settings.workspace, "prepare", [], [])
    record(settings.workspace, "evaluate", ["prepare"], ["key of prepare"])
    assert retraining.next_generation(settings).previous == settings.workspace
    made = Record("anew", "prepare", [], "other images", 1.0, {})
    storage.write_json(record_uri(settings.workspace, "prepare"), asdict(made))
    assert retraining.next_generation(settings).previous is None, "killed after prepare: its other tables are of other images"


def test_the_newest_finished_generation_is_the_previous_workspace(settings, champion) -> None:
    for name in ("20261101-000000", "20261102-000000"):
        generations.finish(settings.workspace, Generation(name, None, None), {"version": 1})
    champion["version"] = 1
    found = retraining.next_generation(settings, forced=True)
    assert found.previous == generations.folder(settings.workspace, "20261102-000000")
    assert found.version == 1 and found.forced and found.name > "20261102-000000"


def test_an_unfinished_generation_is_resumed(settings, champion, tmp_path) -> None:
    record(str(tmp_path / "before"), "prepare", [], [])
    begun = Generation("20261102-000000", str(tmp_path / "before"), 1, forced=True)
    generations.write(settings.workspace, begun)
    generations.finish(settings.workspace, Generation("20261103-000000", None, None), {"version": 1})  # by a clock that ran ahead
    champion["version"] = 1
    assert retraining.next_generation(settings) == begun
    champion["version"] = 4
    assert retraining.next_generation(settings).version == 4, "there is another champion by now"
    champion["of"] = {begun.name: {4}}
    assert retraining.next_generation(settings) == begun, "killed before the record of its stage register was written"
    champion["of"] = {}
    workspace = generations.folder(settings.workspace, begun.name)
    record(workspace, "register", [], [], version=4, model="another name, under which 4 was its own")
    assert retraining.next_generation(settings).version == 4
    record(workspace, "register", [], [], version=4, model="edeconvnet")
    assert retraining.next_generation(settings) == begun, "it is its own challenger that was promoted"


def test_an_unfinished_generation_is_forced_if_its_first_or_its_present_run_is(settings, champion) -> None:
    for begun in (True, False):
        generations.write(settings.workspace, Generation("20261102-000000", None, None, forced=begun))
        assert retraining.next_generation(settings, forced=True).forced
        assert retraining.next_generation(settings).forced is begun


def test_an_unfinished_generation_of_a_moved_workspace_finds_the_previous_one(settings, champion, tmp_path) -> None:
    finished, begun = "20261101-000000", "20261102-000000"
    generations.finish(settings.workspace, Generation(finished, None, None), {"version": 1})
    record(generations.folder(settings.workspace, finished), "prepare", [], [])
    before = generations.folder(settings.workspace, finished)
    generations.write(settings.workspace, Generation(begun, before, 1))
    assert retraining.next_generation(settings).previous == before
    shutil.move(settings.workspace, tmp_path / "moved")
    moved = settings.model_copy(update={"workspace": str(tmp_path / "moved")})
    assert retraining.next_generation(moved).previous == generations.folder(moved.workspace, finished)


def test_a_workspace_has_one_identity_that_moves_with_it_and_a_dry_run_gives_it_none(settings, champion, tmp_path) -> None:
    workspace = Workspace(settings.workspace)
    retraining.next_generation(settings, dry_run=True)
    assert workspace.identity(create=False) == "" and not (tmp_path / "w").exists()
    retraining.next_generation(settings)
    identity = workspace.identity()
    assert len(identity) == 32 and workspace.identity() == identity
    shutil.move(settings.workspace, tmp_path / "moved")
    assert Workspace(str(tmp_path / "moved")).identity() == identity and workspace.identity() != identity


def test_a_retraining_is_refused_before_it_begins_if_the_name_holds_models_of_others(
    settings, champion, monkeypatch, tmp_path
) -> None:
    theirs = ModelVersion("edeconvnet", "7", 0, tags=[ModelVersionTag("workspace", "s3://theirs/runs")])
    monkeypatch.setattr(retraining.WorkspaceModel, "foreign_version", lambda model: theirs)
    for dry_run in (True, False):
        with pytest.raises(UserError, match=r"the workspace s3://theirs/runs \(version 7\).*--tracking\.model_name"):
            retraining.next_generation(settings, dry_run=dry_run)
    assert generations.read_all(settings.workspace) == []


@pytest.mark.parametrize(("margin", "max_class_drop", "promoted"), [(0.2, 0.3, True), (0.3, 0.2, False), (0.1, 0.1, False)])
def test_the_verdict_is_made_by_the_margin_and_the_class_drop_of_the_settings(
    settings, champion, monkeypatch, margin: float, max_class_drop: float, promoted: bool
) -> None:
    """The mean IoU rises by 0.26 in every image, and the IoU of one class falls by 0.14."""
    limits = settings.retrain.model_copy(update={"margin": margin, "max_class_drop": max_class_drop})
    pipeline = Retraining(settings.model_copy(update={"retrain": limits}), Generation("20261101-000000", None, None), object())
    old, new = np.array([[60, 10, 30], [0, 100, 0], [50, 0, 50]]), np.array([[90, 10, 0], [15, 85, 0], [5, 0, 95]])
    for matrix, folders in ((old, CHAMPION_RESULTS[:1]), (new, ())):
        found = {
            "mean_iou": ConfusionMatrix(3, matrix).mean_iou,
            "iou": dict(zip("abc", ConfusionMatrix(3, matrix).iou, strict=True)),
        }
        results = {"classes": list("abc"), "images": 9, "rows": {"edeconvnet_crf": found}}
        storage.write_json(pipeline.report(*folders, "results.json"), results)
        storage.write_bytes(
            pipeline.report(*folders, IMAGE_CONFUSIONS), image_confusions_file(dict.fromkeys("123456789", matrix))
        )
    storage.write_json(pipeline.report(*HOLD_OUT), asdict(HoldOut(list("1234567"), 2, 1)))
    record(pipeline.root, "register", [], [], version=2)
    monkeypatch.setattr(retraining.promotion, "promote", lambda run, model, version, beaten, decision, lock: (version, decision))
    found = pipeline._decide("f")
    assert found["promoted"] is promoted, found["why"]
    assert found["lower"] == pytest.approx(found["rise"]) and "7 images)" in found["why"]
    assert (found["version"], found["rise"]) == (2, pytest.approx(0.26, abs=0.01))
    assert (found["images"], found["new_images"], found["gone_images"]) == (7, 2, 1)


def test_the_rise_and_its_interval_are_those_of_the_images_of_both_models(settings, champion) -> None:
    pipeline = Retraining(settings, Generation("20261101-000000", None, None), object())
    old = {str(i): np.array([[60 + 5 * i, 20], [30 - 3 * i, 40]]) for i in range(7)}
    new = {str(i): np.array([[70 + 2 * i, 10], [20 - 2 * i, 50 + i]]) for i in range(7)}
    left_out = {"7": np.array([[0, 9], [9, 0]])}
    for found, folders in ((old, CHAMPION_RESULTS[:1]), (new, ())):
        storage.write_bytes(pipeline.report(*folders, IMAGE_CONFUSIONS), image_confusions_file(found | left_out))
    _, compared = pipeline._compare(HoldOut(list(old), 1, 0), ["a", "b"])
    expected = mean_iou_rise(old, new)
    assert 0 < expected.lower < expected.rise < expected.upper
    assert [compared[name] for name in ("rise", "lower", "upper")] == [expected.rise, expected.lower, expected.upper]


def test_a_retraining_that_has_lost_its_lock_does_not_finish_its_generation(settings, champion, monkeypatch) -> None:
    def taken() -> NoReturn:
        raise Interrupted("another run took the lock")

    verdict = SimpleNamespace(summary={"version": 2, "champion": 2, "promoted": True, "why": "it is better"})
    monkeypatch.setattr(Retraining, "run", lambda *_: {"verdict": verdict})
    pipeline = Retraining(settings, Generation("20261101-000000", None, None, forced=True), SimpleNamespace(check=taken))
    with pytest.raises(Interrupted):
        operation._run(pipeline, "config", Webhook(None), RunMetrics("net", None))
    (left,) = generations.read_all(settings.workspace)
    assert not left.finished and left.outcome is None


def test_a_retraining_starts_from_the_champion_and_the_first_one_from_the_model_of_the_settings(
    settings, champion, monkeypatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(
        training,
        "find_initial_model",
        lambda source, store: started.append(source) or InitialModel(source, None, {"fcn8s": "sum"}),
    )
    named = settings.model_copy(update={"init": settings.init.model_copy(update={"from_": "models:/theirs/2"})})
    for version in (None, 3):
        pipeline = Retraining(named, Generation("20261101-000000", None, version))
        assert pipeline.settings.init.from_ == started[-1]
    assert started == ["models:/theirs/2", "models:/edeconvnet/3"]


def test_the_champion_predicts_with_the_options_with_which_it_was_registered(settings, champion, tmp_path, monkeypatch) -> None:
    """And the new model with those of the settings: a champion on windows that it never saw would seem worse than it is."""
    changes = {"segment": settings.segment.model_copy(update={"proposals": 7, "aggregation": "sum"})}
    pipeline = Retraining(settings.model_copy(update=changes), Generation("20261101-000000", None, None), object())
    registered = PredictorOptions(proposals=9, context=1.5, window_sizes=(0.5, 0.25), crf={"iterations": 2})
    model, folder = {"classes": settings.data.classes}, str(tmp_path / "init" / "edeconvnet-1-0")
    for name in ("deconvnet", "fcn8s"):
        storage.write_json(f"{folder}/{name}/model.json", model)
    storage.write_json(pipeline.model("stage2") + "/model.json", model)
    options = {"classes": settings.data.classes, "proposals": {}, "segment": asdict(registered), "max_pixels": 9}
    storage.write_json(f"{folder}/options.json", options)
    old = pipeline.evaluation_inputs("val", (f"{folder}/deconvnet", f"{folder}/fcn8s"))
    new = pipeline.evaluation_inputs("val")
    assert old.options == registered and (old.deconvnet_uri, old.fcn8s_uri) == (f"{folder}/deconvnet", f"{folder}/fcn8s")
    assert new.options == PredictorOptions.from_settings(
        pipeline.settings.segment, settings.examples, settings.proposals, settings.data
    )
    assert (new.options.proposals, new.options.aggregation, new.deconvnet_uri) == (7, "sum", pipeline.model("stage2"))

    compared: list[tuple[object, ...]] = []
    pipeline.generation = replace(pipeline.generation, version=1)
    monkeypatch.setattr(pipeline, "_champion_models", lambda source: (old.deconvnet_uri, old.fcn8s_uri))
    monkeypatch.setattr(pipeline, "evaluate", lambda *given: compared.append(given) or {})
    monkeypatch.setattr(retraining, "find_hold_out", lambda *_: HoldOut(["a"], 0, 0))
    monkeypatch.setattr(retraining, "read_val_images", lambda _: {})
    monkeypatch.setattr(pipeline, "val_images", dict)
    monkeypatch.setattr(champion_report, "compare_with_champion", lambda *given: compared.append(given[:2]) or {})
    pipeline._evaluate_champion("f")
    assert compared == [("val", pipeline.report("champion"), (old.deconvnet_uri, old.fcn8s_uri)), (new, old)]


@pytest.mark.parametrize(
    ("theirs", "ours", "fewer", "refused"),
    [
        ("edgebox", "windows", 0, "its proposals.kind is windows, and the champion's edgebox, so"),
        ("windows", "both", 0, "its proposals.kind is both, and the champion's windows, so"),
        ("edgebox", "both", 0, ""),
        ("windows", "windows", 0, ""),
        (None, "edgebox", 0, ""),  # registered by an earlier version
        ("edgebox", "edgebox", 1, "its classes are not the champion's, so"),
    ],
)
def test_a_champion_of_other_classes_or_boxes_is_not_measured_and_no_earlier_comparison_stays(
    settings, champion, monkeypatch, tmp_path, theirs: str | None, ours: str, fewer: int, refused: str
) -> None:
    """It would get no boxes, or boxes that it was not trained on. The earlier comparison may be with another champion."""
    proposals = settings.proposals.model_copy(update={"kind": ours})
    generation = Generation("20261101-000000", None, None)
    pipeline = Retraining(settings.model_copy(update={"proposals": proposals}), generation, object())
    pipeline.generation = replace(generation, version=1)
    folder = str(tmp_path / "init" / "edeconvnet-1-0")
    for name in ("deconvnet", "fcn8s"):
        storage.write_json(f"{folder}/{name}/model.json", {"classes": settings.data.classes[fewer:]})
    kind = {} if theirs is None else {"kind": theirs}
    storage.write_json(f"{folder}/options.json", {"classes": [], "proposals": kind, "segment": {}, "max_pixels": 9})
    monkeypatch.setattr(pipeline, "_champion_models", lambda source: (f"{folder}/deconvnet", f"{folder}/fcn8s"))
    measured: list[str] = []
    monkeypatch.setattr(pipeline, "evaluate", lambda split, report, models: measured.append(split) or {"classes": ["a"]})
    monkeypatch.setattr(retraining, "find_hold_out", lambda *_: HoldOut([], 0, 0))
    monkeypatch.setattr(retraining, "read_val_images", lambda _: {})
    monkeypatch.setattr(pipeline, "val_images", dict)
    earlier = [pipeline.report(f"{COMPARISON}.{suffix}") for suffix in ("png", "json", "parquet")]
    for file in earlier:
        storage.write_bytes(file, b"of an earlier attempt")
    pipeline._evaluate_champion("f")
    assert not any(map(storage.exists, earlier))
    assert measured == ([] if refused else ["val"])
    storage.write_json(pipeline.report("results.json"), {"classes": ["a"]})
    record(pipeline.root, "register", [], [], version=2)
    monkeypatch.setattr(retraining.promotion, "promote", lambda run, model, version, beaten, decision, lock: (1, decision))
    found = pipeline._decide("f")
    assert not found["promoted"] and (found["why"].startswith(refused) if refused else "too few to compare" in found["why"])


def test_generations_are_pruned_by_the_version_in_use_now_and_not_if_it_is_unknown(settings, monkeypatch, caplog) -> None:
    """The retraining made version 3 the champion; since then a user has made version 1 the champion again."""
    for number in (1, 2, 3):
        generation = Generation(f"2026110{number}-000000", None, None)
        generations.finish(settings.workspace, generation, {"version": number, "champion": 3})
    kept = settings.retrain.model_copy(update={"keep": 1})
    pipeline = SimpleNamespace(store="", parent=settings.workspace, settings=settings.model_copy(update={"retrain": kept}))

    def away(store: str, name: str) -> dict[str, int]:
        raise UserError("MLflow is away")

    monkeypatch.setattr(operation.registry, "aliases", away)
    operation._prune_generations(pipeline)
    assert (
        len(generations.read_all(settings.workspace)) == 3 and "old generations were not deleted: MLflow is away" in caplog.text
    )
    monkeypatch.setattr(operation.registry, "aliases", lambda store, name: {"champion": 1, "challenger": 3})
    operation._prune_generations(pipeline)
    assert [(each.outcome or {})["version"] for each in generations.read_all(settings.workspace)] == [1, 3]


@pytest.mark.parametrize(
    ("aliases", "said"),
    [
        ({}, "edeconvnet has no version yet: train_pipeline.py registers the model of"),
        ({"challenger": 4}, "edeconvnet has no champion, and version 4 was refused: promote.py --to 4 makes it the champion"),
    ],
)
def test_without_new_data_and_a_champion_the_log_says_what_would_give_one(settings, monkeypatch, capsys, aliases, said) -> None:
    monkeypatch.setattr(operation.registry, "aliases", lambda store, name: aliases)
    generation = Generation("20261101-000000", None, None)
    pipeline = SimpleNamespace(store="", parent=settings.workspace, settings=settings, previous=None, generation=generation)
    assert operation._nothing_new(pipeline, None, None) == "unchanged"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("champion_now", "known"),
    [
        (2, {CHAMPION_VERSION: 2, CHAMPION_SINCE: datetime(2026, 11, 26, tzinfo=UTC).timestamp()}),
        (1, {CHAMPION_VERSION: 1}),  # moved in MLflow's pages, which record no time
        (None, {}),
        (UserError("MLflow is away"), {}),
    ],
)
def test_the_age_of_the_champion_is_measured_if_it_is_known_and_the_data_in_any_case(
    settings, monkeypatch, tmp_path, caplog, champion_now: int | UserError | None, known: dict
) -> None:
    def aliases(store: str, name: str) -> dict[str, int]:
        if isinstance(champion_now, UserError):
            raise champion_now
        return {"champion": champion_now} if champion_now else {}

    monkeypatch.setattr(operation.registry, "aliases", aliases)
    monkeypatch.setattr(operation.registry, "registry_client", lambda *_: nullcontext())
    moves = [Move("2026-11-26T00:00:00+00:00", "anne", 1, 2, "", False)]
    monkeypatch.setattr(operation, "recorded_moves", lambda *_: moves)
    pipeline = SimpleNamespace(store="", parent=settings.workspace, settings=settings)
    prepared = Record("f", "r", [], "k", 1.0, {"counts": {"val": 5}, "rejects": 0})
    metrics = RunMetrics("net", None)
    operation._measure_state(pipeline, prepared, Webhook(None), metrics)
    found = {metric: value for metric, values in metrics._values.items() for value in values.values()}
    assert known.items() <= found.items() and found[IMAGES] == 5 and DATA_SINCE in found
    assert {metric for metric in (CHAMPION_VERSION, CHAMPION_SINCE) if metric in found} == set(known)
    assert ("the champion's age is not measured: MLflow is away" in caplog.text) is isinstance(champion_now, UserError)


@pytest.mark.parametrize(
    ("images", "gone", "said"),
    [("", 3, "only 0 of the champion's 3 val images"), ("12", 3, "only 2 of the champion's 5"), ("", 0, "0")],
)
def test_no_model_is_promoted_if_few_of_the_champion_s_val_images_are_left(
    settings, champion, monkeypatch, images: str, gone: int, said: str
) -> None:
    pipeline = Retraining(settings, Generation("20261101-000000", None, None), object())
    for folders in (CHAMPION_RESULTS[:1], ()):
        storage.write_json(pipeline.report(*folders, "results.json"), {"classes": ["a"]})
    storage.write_json(pipeline.report(*HOLD_OUT), asdict(HoldOut(list(images), 9, gone)))
    record(pipeline.root, "register", [], [], version=2)
    monkeypatch.setattr(retraining.promotion, "promote", lambda run, model, version, beaten, decision, lock: (1, decision))
    found = pipeline._decide("f")
    assert not found["promoted"] and said in found["why"] and "run promote.py --to challenger" in found["why"]
    assert (found["images"], found["new_images"], found["gone_images"]) == (len(images), 9, gone) and "rise" not in found


def test_retraining_refuses_a_version_of_the_data(settings) -> None:
    old = settings.model_copy(update={"data": settings.data.model_copy(update={"version": 3})})
    with pytest.raises(UserError, match=r"data\.version 3: retraining uses the current images, so leave it out"):
        Retraining(old, Generation("20261101-000000", None, None))


def test_a_retraining_registers_its_model_whatever_the_settings_say_and_needs_a_registry(settings) -> None:
    def pipeline(**tracking: bool) -> Retraining:
        changed = settings.model_copy(update={"tracking": settings.tracking.model_copy(update=tracking)})
        return Retraining(changed, Generation("20261101-000000", None, None))

    assert "register" in [stage.name for stage in pipeline(register_model=False).stages.stages]
    with pytest.raises(UserError, match=r"it needs tracking\.enabled true"):
        pipeline(enabled=False)


def test_images_are_compared_with_the_previous_table_unless_an_earlier_version_wrote_it(settings, tmp_path, monkeypatch) -> None:
    previous = str(tmp_path / "before")
    monkeypatch.setattr(retraining.images_table, "listed_image_ids", lambda *_: {"a", "b", "broken"})
    pipeline = SimpleNamespace(settings=settings, data_root="", previous=previous)
    storage.write_json(f"{previous}/images/_commit.json", {"schema_version": 3})
    assert retraining.count_new_and_gone(pipeline) == (3, 0)
    rows = [image_row(image_id, np.zeros((1, 1, 3), np.uint8), None, None) for image_id in ("b", "gone")]
    notes = [*map(note_of_row, rows), note_of_reject("broken", "train", "s")]
    part = tables.write_part(f"{previous}/images", "f" * 64, 0, [*rows, *notes], schemas.IMAGES)
    tables.commit(f"{previous}/images", "f" * 64, [part])
    assert retraining.count_new_and_gone(pipeline) == (1, 1)


def test_files_that_held_nothing_new_once_are_read_again_after_another_generation(settings, tmp_path) -> None:
    """Files were touched, images were added, trained on and removed again: now the files are as they were after the touch."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    for workspace, key in ((first, "old images"), (second, "old and new images")):
        storage.write_json(record_uri(workspace, "prepare"), asdict(Record(f"files of {key}", "prepare", [], key, 1.0, {})))
    stages = SimpleNamespace(plan=lambda: [SimpleNamespace(fingerprint="touched files")])
    pipeline = SimpleNamespace(parent=settings.workspace, previous=first, stages=stages)
    assert not retraining.files_unchanged(pipeline)
    retraining.mark_unchanged(pipeline, "touched files")
    assert retraining.files_unchanged(pipeline)
    pipeline.previous = second
    assert not retraining.files_unchanged(pipeline)
