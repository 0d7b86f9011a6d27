"""evaluate.py: which results a setting changes; --submission: the archive appears whole or not at all; user errors are sentences.

What it does with a trained workspace is tested with the pipeline (test_train_pipeline.py, test_scenes.py).
"""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets import synthetic
from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.evaluation.comparison import IMAGE_CONFUSIONS, read_image_confusions
from deconvnet.evaluation.voc_submission import job as voc_job
from deconvnet.evaluation.voc_submission.archive import check_submission
from deconvnet.inference import predictor
from deconvnet.reporting import evaluation_report, gallery
from deconvnet.reporting.run_summary import METRICS
from deconvnet.settings import VOC_CLASSES
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from tests.deconvnet.ensembles import random_image, save_networks
from tests.workflows.commands import SMALL, call
from workflows import evaluate, train_pipeline
from workflows.operations import submission
from workflows.pipelines.run_log import RUN_FILE, result_metrics
from workflows.pipelines.training import Pipeline
from workflows.settings import CONFIGS, as_dict, load

TEST, VAL = ("2008_000006", "2008_000011"), ("2007_000033",)
FEW = ["--segment.proposals", "3", "--proposals.max_boxes", "20", "--segment.crf.iterations", "1"]


def networks(folder: Path, classes: tuple[str, ...]) -> None:
    save_networks(folder / "models", classes, names=("stage2", "fcn8s"), width=0.05)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "work"
    networks(folder, VOC_CLASSES)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "VOC2012"
    (made / "JPEGImages").mkdir(parents=True)
    (made / "ImageSets/Segmentation").mkdir(parents=True)
    for i, name in enumerate((*TEST, *VAL)):
        Image.fromarray(random_image(i, 40 + i, 60)).save(made / f"JPEGImages/{name}.jpg")
    for split, ids in (("test", TEST), ("val", VAL)):
        (made / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids))
    return made


def submit(workspace: Path, root: Path, out: Path | str, *more: str) -> None:
    evaluate.main(["--workspace", str(workspace), "--data.root", str(root), "--submission", str(out), *FEW, *more])


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_an_archive_has_a_mask_for_each_image_of_its_list(
    workspace: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submission, "open_executor", lambda *_: LocalExecutor(1))
    out = tmp_path / "made/voc.tar.gz"
    submit(workspace, root, out)
    said = capsys.readouterr().out
    assert "2 masks by edeconvnet_crf for test, checked" in said
    assert f"submission  {out} ({out.stat().st_size / 1e6:.1f} MB)" in said.splitlines()
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    sizes = {name: (60, 40 + i) for i, name in enumerate(TEST)}
    assert check_submission(out.read_bytes(), folder, sizes) == [] and names(out) == [f"{folder}/{name}.png" for name in TEST]
    with tarfile.open(out) as tar:
        content = tar.extractfile(f"{folder}/{TEST[0]}.png")
        assert content and len(np.unique(np.asarray(Image.open(io.BytesIO(content.read()))))) > 1, (
            "labels of one class prove little"
        )
    assert not list((workspace / "submissions").iterdir()), "masks are not kept beside the archive"

    first = out.read_bytes()
    submit(workspace, root, out, "--result", "deconvnet")
    assert out.read_bytes() != first
    submit(workspace, root, out)
    assert out.read_bytes() == first, "the same masks, the same bytes"
    submit(workspace, root, out, "--split", "val", "--competition", "comp5")
    assert names(out) == [f"results/VOC2012/Segmentation/comp5_val_cls/{VAL[0]}.png"]
    (root / "ImageSets/Segmentation/test.txt").unlink()
    submit(workspace, root, out)
    assert names(out) == [f"results/VOC2012/Segmentation/comp6_val_cls/{VAL[0]}.png"]


def test_masks_that_break_a_rule_are_not_written(
    workspace: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "open_executor", lambda *_: LocalExecutor(1))
    monkeypatch.setattr(voc_job, "predict_masks", lambda images, *a, **k: {TEST[0]: b"damaged on the disk"})
    with pytest.raises(
        UserError, match=r"(?s)break the server's rules.*not a readable PNG.*2008_000006.*without a mask: 2008_000011"
    ):
        submit(workspace, root, tmp_path / "out.tar.gz")
    assert not (tmp_path / "out.tar.gz").exists()


@pytest.mark.parametrize(("kind", "gpu"), [("edgebox", True), ("windows", False)])
def test_a_submission_is_predicted_with_the_options_the_boxes_and_the_device_of_the_settings(
    workspace: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, gpu: bool
) -> None:
    given: list[tuple[voc_job.Recipe, bool]] = []

    def predict(images: object, recipe: voc_job.Recipe, folder: str, executor: object, gpu: bool = False) -> NoReturn:
        given.append((recipe, gpu))
        raise UserError("asked")

    monkeypatch.setattr(submission, "open_executor", lambda *_: LocalExecutor(1))
    monkeypatch.setattr(voc_job, "predict_masks", predict)
    more = ["--proposals.kind", kind, "--compute.gpu", str(gpu).lower(), "--examples.context", "1.5", "--segment.flip", "true"]
    with pytest.raises(UserError, match="asked"):
        submit(workspace, root, tmp_path / "out.tar.gz", *more, "--result", "fcn8s")
    s = load(str(CONFIGS / "quickstart.yaml"), "--data.root", str(root), *FEW, *more)
    options = predictor.PredictorOptions.from_settings(s.segment, s.examples, s.proposals, s.data)
    assert (options.flip, options.context, bool(options.window_sizes)) == (True, 1.5, kind == "windows")
    models, boxes = (str(workspace / "models" / name) for name in ("stage2", "fcn8s")), s.proposals.edge_box
    assert given == [(voc_job.Recipe(*models, options, boxes if kind == "edgebox" else None, "fcn8s"), gpu)]


def test_a_submission_holds_the_lock_for_the_minutes_of_the_settings(
    workspace: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[object, ...]] = []

    def hold(*arguments: object) -> NoReturn:
        given.append(arguments)
        raise UserError("held")

    monkeypatch.setattr(submission, "hold_workspace", hold)
    with pytest.raises(UserError, match="held"):
        submit(workspace, root, tmp_path / "out.tar.gz", "--retrain.lock_minutes", "7")
    assert given == [(str(workspace), "evaluate.py", 7)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--submission", "out.zip"), r"--submission out\.zip is not allowed: the server takes \.tar\.gz or \.tgz"),
        (("--split", "dev"), "dev can't be submitted, as it is this project's own part of train"),
        (("--data.root", ""), "name their folder, in VOC's layout, by --data.root"),
        (("--workspace", "nowhere"), "nowhere has no fcn8s and no stage2 yet"),
        (("--data.max_pixels", "100"), "is larger than 100 pixels"),
    ],
)
def test_a_user_error_is_a_sentence_before_anything_is_done(
    workspace: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submission, "open_executor", lambda *_: pytest.fail("it went as far as Ray"))
    with pytest.raises(UserError, match=said):
        submit(workspace, root, tmp_path / "out.tar.gz", *more)
    assert not (tmp_path / "out.tar.gz").exists()


def test_a_submission_cuts_windows_as_for_training(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings may change: EdgeBox's boxes and the images are those of the submission."""
    monkeypatch.setattr(submission, "open_executor", lambda *_: pytest.fail("it went as far as Ray"))
    networks(tmp_path / "work", VOC_CLASSES)
    settings = as_dict(load(str(CONFIGS / "quickstart.yaml"), "--workspace", str(tmp_path / "work"), "--data.root", str(root)))
    (tmp_path / "work" / RUN_FILE).write_text(json.dumps({"settings": settings}))
    for more in (("--examples.context", "1.5"), ("--examples.window", "stretched"), ("--proposals.kind", "windows")):
        with pytest.raises(
            UserError, match=rf"were trained with other settings: {more[0][2:]} {more[1]} \(was .*: set the same values"
        ):
            submit(tmp_path / "work", root, tmp_path / "out.tar.gz", *more)
    with pytest.raises(UserError, match="is larger than 100 pixels"):
        submit(tmp_path / "work", root, tmp_path / "out.tar.gz", "--data.max_pixels", "100", "--proposals.max_boxes", "77")


def test_the_results_that_can_be_submitted_are_those_of_the_predictor() -> None:
    assert evaluate.RESULTS == predictor.RESULTS


def test_each_measure_is_logged_under_its_own_name_and_the_iou_of_classes_is_that_of_the_ensemble_with_a_crf() -> None:
    rows = {
        name: {"iou": {"cat": f"iou {name}"}, **{metric: f"{metric} {name}" for metric in METRICS}} for name in predictor.RESULTS
    }
    found = result_metrics("dev", {"rows": rows, "expected_calibration_error": "error"})
    expected = {f"dev.{metric}.{name}": f"{metric} {name}" for metric in METRICS for name in predictor.RESULTS}
    assert found == expected | {"dev.iou.cat": "iou edeconvnet_crf", "dev.expected_calibration_error": "error"}


def test_models_of_other_classes_are_refused(root: Path, tmp_path: Path) -> None:
    networks(tmp_path / "other", ("background", "cat"))
    with pytest.raises(
        UserError, match=r"scores VOC's 21 classes in their order, and the models in .* have the classes background, cat"
    ):
        submit(tmp_path / "other", root, tmp_path / "out.tar.gz")


def test_the_test_split_cant_be_evaluated(workspace: Path, root: Path) -> None:
    with pytest.raises(UserError, match="--split test has no masks to evaluate on"):
        evaluate.main(["--workspace", str(workspace), "--data.root", str(root), "--split", "test"])


def test_a_relative_archive_of_a_submitted_job_is_refused(
    workspace: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources/x"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(UserError, match=r"--submission out\.tar\.gz: it is relative"):
        submit(workspace, root, "out.tar.gz")


def prepared(folder: Path, *then: str, now: Sequence[str] = ()) -> Pipeline:
    """The pipeline with the settings `now`, in a workspace whose last run had the settings `then`."""
    config = ["quickstart.yaml", "--workspace", str(folder), "--data.root", str(folder / "images")]
    settings = [load(str(CONFIGS / config[0]), *config[1:], *more) for more in (then, now)]
    (folder / RUN_FILE).write_text(json.dumps({"settings": as_dict(settings[0])}))
    for name in (
        "JPEGImages/a.jpg",
        "SegmentationClass/a.png",
        "ImageSets/Segmentation/train.txt",
        "ImageSets/Segmentation/val.txt",
    ):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_text("a")  # no image, but none is read
    return Pipeline(settings[1])


def test_windows_are_cut_as_they_were_for_training(tmp_path: Path) -> None:
    """Not as the settings' defaults are either, if the training had others."""
    with pytest.raises(
        UserError, match=r"were trained with other settings: examples\.context .* \(was 1\.5\): set the same values"
    ):
        prepared(tmp_path, "--examples.context", "1.5").use_prepared_tables()


@pytest.mark.parametrize(("setting", "value"), [("data.limit", "3"), ("proposals.max_boxes", "900"), ("data.root", "/other/voc")])
def test_settings_without_effect_are_named(setting: str, value: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = prepared(tmp_path, f"--{setting}", value)
    pipeline.use_prepared_tables()
    assert f"not used, because the images and boxes in {tmp_path} are evaluated as they are" in caplog.text
    assert f"{setting} " in caplog.text and f"(was {value})" in caplog.text
    assert pipeline.dataset_name == ("voc" if setting == "data.root" else "images")


def test_the_settings_of_the_last_run_need_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared(tmp_path, now=("--segment.aggregation", "sum", "--compute.workers", "2")).use_prepared_tables()
    (tmp_path / RUN_FILE).unlink()
    prepared(tmp_path).use_prepared_tables()
    assert not caplog.text


@pytest.mark.parametrize(
    "more", [("--result", "fcn8s"), ("--competition", "comp5"), ("--result", "fcn8s", "--competition", "comp6")]
)
def test_options_of_a_submission_are_refused_without_one(more: tuple[str, ...], workspace: Path, root: Path) -> None:
    with pytest.raises(UserError, match="--result and --competition choose what is submitted: give --submission"):
        evaluate.main(["--workspace", str(workspace), "--data.root", str(root), *more])


def test_a_gpu_that_the_machine_lacks_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"compute\.gpu is true, and this machine has no GPU"):
        submit(tmp_path / "w", root, tmp_path / "x.tgz", "--executor", "local", "--compute.gpu", "true")


@pytest.mark.parametrize("minutes", ["-1", "nan", "-inf"])
def test_a_time_limit_that_is_never_reached_or_lies_in_the_past_is_refused(minutes: str) -> None:
    with pytest.raises(UserError, match=f"--max-minutes {minutes} is not allowed"):
        train_pipeline.main([f"--max-minutes={minutes}"])


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Evaluates random networks on the dev images with other settings, and draws nothing.

    The content of results.json, and a confusion matrix for each image.
    """
    folder = tmp_path_factory.mktemp("evaluations")
    synthetic.write_dataset(str(folder / "data"), 0, 16, 3, 64, 96)
    common = ["--workspace", str(folder / "w"), "--data.root", str(folder / "data"), *SMALL, "--segment.crf.iterations", "2"]
    Pipeline(load(str(CONFIGS / "quickstart.yaml"), *common)).run("test", lambda stage: stage.name != "proposals")
    shutil.rmtree(folder / "w/stages")  # whose records would say that no network was trained
    networks(folder / "w", GENERATED_CLASSES)
    report = folder / "w/evaluations/dev"

    def run(*more: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gallery, "load_and_draw_gallery", lambda *_: iter(()))
            patch.setattr(evaluation_report, "result_charts", lambda *_: {"iou_by_size": bytes})
            patch.setattr(Pipeline, "measure_proposals", lambda *_: None)
            done = call(evaluate.main, *common, "--split", "dev", *more)
        assert done.returncode == 0, done.stderr
        return json.loads((report / "results.json").read_text()), read_image_confusions(str(report / IMAGE_CONFUSIONS))

    return cache(run)


DECONVNET, ENSEMBLE, CRF = {"deconvnet", "deconvnet_crf"}, {"edeconvnet", "edeconvnet_crf"}, {"deconvnet_crf", "edeconvnet_crf"}


@pytest.mark.parametrize(
    ("setting", "value", "rows"),
    [
        ("aggregation", "sum", DECONVNET | ENSEMBLE),
        ("proposals", "1", DECONVNET | ENSEMBLE),
        ("min_side", "60", DECONVNET | ENSEMBLE),
        ("ensemble", "product", ENSEMBLE),
        ("fcn_weight", "0.9", ENSEMBLE),
        ("flip", "true", {"fcn8s"} | DECONVNET | ENSEMBLE),
        ("crf.bilateral_weight", "50", CRF),
        ("max_side", "48", {"fcn8s"} | DECONVNET | ENSEMBLE),
        ("batch", "1", set()),
    ],
)
def test_evaluate_with_another_setting_changes_the_results_that_it_concerns(
    evaluations: Callable[..., Any], setting: str, value: str, rows: set[str]
) -> None:
    (before, matrices), (after, others) = evaluations(), evaluations(f"--segment.{setting}", value)
    assert {name for name, row in after["rows"].items() if row != before["rows"][name]} == rows
    assert any((others[name] != each).any() for name, each in matrices.items()) is ("edeconvnet_crf" in rows)
    assert after["dataset"] == "data dev" and after["images"] == len(others) == 3


@pytest.mark.parametrize(("weight", "alone"), [("1", "fcn8s"), ("0", "deconvnet")])
def test_an_ensemble_with_all_weight_on_one_network_is_that_network(
    evaluations: Callable[..., Any], weight: str, alone: str
) -> None:
    rows = evaluations("--segment.fcn_weight", weight)[0]["rows"]
    assert rows["edeconvnet"] == rows[alone] and rows["fcn8s"] != rows["deconvnet"]
