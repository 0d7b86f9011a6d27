"""figures.py: every figure of a finished workspace, figures of named images, and user errors."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from deconvnet.evaluation.evaluator import evaluate
from deconvnet.evaluation.image_measures import IMAGES_FILE, mean_iou_by_result, read_images
from deconvnet.evaluation.inputs import EvaluationInputs
from deconvnet.inference.predictor import RESULTS, Predictor, PredictorOptions
from deconvnet.reporting import gallery
from deconvnet.reporting.evaluation_report import report_files
from deconvnet.tracking.mlflow_runs import MlflowTracker
from infra import storage
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from infra.storage.lock import hold_lock
from proposals import recall_job
from proposals.mining.job import mine_examples
from proposals.settings import ExampleSettings
from tests.deconvnet.ensembles import save_networks
from tests.deconvnet.workspaces import made_up_tables
from tests.image_tables import boxes_row, image_row, write_images_and_proposals
from workflows import cli
from workflows.figures import FIGURES, main
from workflows.pipelines.run_log import RUN_FILE

CLASSES = ("background", "red", "green")
OPTIONS = {"proposals": 6, "bf16": False, "crf": {"iterations": 1}}
FILES = {"examples_stage1", "examples_stage2", *FIGURES} - {"examples"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], str]) -> Path:
    """A workspace as the pipeline leaves it, its networks not trained."""
    folder = tmp_path_factory.mktemp("figures")
    images, proposals = made_up_tables(folder)
    for stage in (1, 2):
        mine_examples(
            stage,
            images,
            proposals if stage == 2 else None,
            str(folder / "examples" / f"stage{stage}"),
            ExampleSettings(max_per_image=2),
            32,
            split="train",
            seed=0,
            fingerprint="b" * 16,
            executor=LocalExecutor(1),
        )
    save_networks(folder / "models", CLASSES, names=("stage2", "fcn8s"))
    models = str(folder / "models/stage2"), str(folder / "models/fcn8s")
    inputs = EvaluationInputs(*models, images, proposals, "val", CLASSES, PredictorOptions(**OPTIONS))
    found = evaluate(inputs, "made up val", LocalExecutor(1))
    for name, data in report_files(found, {}, PredictorOptions(**OPTIONS)).items():
        storage.write_bytes(str(folder / "report" / name), data)
    storage.write_json(str(folder / "report" / "proposals.json"), {"min_area": 100})
    tracker = MlflowTracker(make_store(folder), "t")
    with tracker.pipeline("p", {}) as parent, parent.stage("stage1", "x") as run:
        run.log_metrics({"loss": 1.0}, 1)
        run.log_metrics({"loss": 0.5}, 2)
    storage.write_json(str(folder / RUN_FILE), {"mlflow_run_id": parent.run_id})
    return folder


FROM_RESULTS = {"calibration", "confusion", "iou_by_class", "iou_by_proposals", "iou_by_size"}
"""Names of the figures that need only the results in the report's folder."""


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def call(*arguments: str) -> int:
    return cli.run(lambda: main(list(arguments)))


def test_all_draws_every_figure(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the options of the report; the recall is that of the val images."""
    loaded, measured = [], []
    load, measure = Predictor.load, recall_job.measure_recall
    monkeypatch.setattr(Predictor, "load", lambda *given: loaded.append(given[3]) or load(*given))
    monkeypatch.setattr(recall_job, "measure_recall", lambda *given: measured.append(given[2]) or measure(*given))
    before = sorted(finished.rglob("*"))
    assert call("all", "--workspace", str(finished), "--out", str(tmp_path)) == 0
    said = capsys.readouterr()
    assert {path.stem for path in tmp_path.iterdir()} == FILES and not said.err.strip(), said.err
    assert sorted(said.out.split()) == sorted(str(path) for path in tmp_path.iterdir())
    for path in tmp_path.iterdir():
        assert Image.open(path).width == 1200, path
    assert sorted(finished.rglob("*")) == before
    assert loaded == [PredictorOptions(**OPTIONS)] and measured == ["val"]
    for name in ("iou_by_class", "iou_by_proposals", "iou_by_size", "confusion", "calibration"):
        assert (tmp_path / f"{name}.png").read_bytes() == (finished / "report" / f"{name}.png").read_bytes()


def test_named_images_are_shown(finished: Path, tmp_path: Path) -> None:
    for name in ("instances", "comparison"):
        assert call(name, "--workspace", str(finished), "--out", str(tmp_path), "--image", "005", "--image", "011") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"instances_005.png", "instances_011.png", "comparison.png"}
    with Image.open(tmp_path / "comparison.png") as two:
        assert call("comparison", "--workspace", str(finished), "--out", str(tmp_path / "one"), "--image", "005") == 0
        assert Image.open(tmp_path / "one" / "comparison.png").height < two.height - 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["confussion"], "there is no figure confussion: did you mean confusion? There are unpooling, "),
        (["instances", "--image", "5"], "--image 5: {workspace} has no such image; its ids are like 0"),
        (["wins", "--image", "005"], "wins does not show single images: --image goes with unpooling, instances, comparison"),
    ],
)
def test_user_errors_are_sentences(
    finished: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--workspace", str(finished)) == 2
    said = capsys.readouterr().err
    assert message.format(workspace=finished) in said and "Traceback" not in said


def test_what_an_earlier_version_did_not_measure_is_a_user_error(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = shutil.copytree(finished, tmp_path / "w")
    results, analysis = (json.loads((workspace / "report" / name).read_text()) for name in ("results.json", "analysis.json"))
    del results["expected_calibration_error"], analysis["calibration"]
    (workspace / "report" / "results.json").write_text(json.dumps(results))
    (workspace / "report" / "analysis.json").write_text(json.dumps(analysis))
    assert call("confusion", "--workspace", str(workspace)) == 0
    assert call("calibration", "--workspace", str(workspace)) == 2
    said = capsys.readouterr().err
    assert "lacks the data of the figure calibration: run train_pipeline.py on it again" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("gone", "needs", "stage"),
    [
        (
            "images",
            set(FIGURES) - {"examples", "training_curves", *FROM_RESULTS},
            "prepare",
        ),
        ("models/stage2", {"unpooling", "instances", "comparison", "wins"}, "stage2"),
        ("report", {"comparison", "wins", *FROM_RESULTS}, "evaluate"),
        ("examples/stage2", {"examples"}, "examples"),
    ],
)
def test_a_stage_that_is_not_finished(
    finished: Path,
    tmp_path: Path,
    gone: str,
    needs: set[str],
    stage: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A figure that needs it is refused; `all` makes the others and names those it leaves out. They are not really drawn here."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, sink, **_: sink.write(b"\x89PNG"))
    for name in ("draw_unpooling", "draw_instances", "draw_comparison", "draw_examples"):
        monkeypatch.setattr(gallery, name, lambda *_, **__: b"\x89PNG")
    workspace = shutil.copytree(finished, tmp_path / "w")
    shutil.rmtree(workspace / gone)
    for name in sorted(needs):
        assert call(name, "--workspace", str(workspace)) == 2
        assert f"{workspace} has no {gone}" in (said := capsys.readouterr().err) and f"which the stage {stage} writes" in said
    assert call("all", "--workspace", str(workspace)) == 0
    left_out = capsys.readouterr().err
    assert {line.split(":")[0].strip() for line in left_out.splitlines() if f"stage {stage} writes" in line} == needs
    needs = needs | ({"recall"} if gone == "report" else set())  # its objects are small, which the report knows
    made = {path.stem for path in (workspace / "figures").iterdir()}
    assert made == {file for file in FILES if file not in needs and not ("examples" in needs and file.startswith("examples_"))}


def test_report_writes_the_page_again(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = shutil.copytree(finished, tmp_path / "w")
    assert call("report", "--workspace", str(workspace)) == 0
    assert capsys.readouterr().out.split() == [str(workspace / "report" / "index.html")]
    page = (workspace / "report" / "index.html").read_text()
    assert "<h1>w</h1>" in page and page.count("data:image/png") == 5 and "EDeconvNet+CRF" in page
    (workspace / "report" / "results.json").unlink()
    assert call("report", "--workspace", str(workspace)) == 2
    assert f"{workspace} has no report/results.json, which the stage evaluate writes" in capsys.readouterr().err


def test_the_images_of_the_comparison_are_typical_and_those_of_the_wins_lead(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[tuple[str, str]]] = []

    def draw(predictor: object, rows: list[tuple[str, gallery.Sample]], *_: object) -> bytes:
        drawn.append([(word, sample.image_id) for word, sample in rows])
        return b""

    monkeypatch.setattr(gallery, "draw_comparison", draw)
    for name in ("wins", "comparison"):
        assert call(name, "--workspace", str(finished), "--out", str(tmp_path)) == 0
    scores = mean_iou_by_result(read_images(str(finished / "report" / IMAGES_FILE)), RESULTS)
    assert drawn == [gallery.largest_leads(scores), gallery.best_median_worst(scores)] and drawn[0] and drawn[0] != drawn[1]


def test_the_training_curves_are_read_from_the_store_that_is_named(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / RUN_FILE, tmp_path)
    assert call("training_curves", "--workspace", str(tmp_path)) == 2
    store = f"sqlite:///{finished}/mlflow/mlflow.db"
    assert call("training_curves", "--workspace", str(tmp_path), "--tracking.uri", store) == 0
    assert (tmp_path / "figures/training_curves.png").exists()


def test_figures_are_not_written_into_a_workspace_at_work(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere they may be."""
    workspace = shutil.copytree(finished, tmp_path / "w")
    (workspace / "stages").mkdir()
    with hold_lock(str(workspace / "workspace.lock"), "train_pipeline.py"):
        assert call("iou_by_class", "--workspace", str(workspace)) == 3
        assert "train_pipeline.py" in capsys.readouterr().err and not (workspace / "figures").exists()
        assert call("iou_by_class", "--workspace", str(workspace), "--out", str(tmp_path / "out")) == 0
    assert (tmp_path / "out/iou_by_class.png").exists()


@pytest.mark.parametrize("options", [["--out", "figures"], ["--out", ""]])
def test_a_relative_folder_is_refused_in_a_job_s_copy_of_the_project(
    options: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray deletes the copy at the end, and the figures with it."""
    copy = tmp_path / "runtime_resources" / "copy"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    relative = Path(os.path.relpath(finished, copy)) if options[1] == "" else finished
    with pytest.raises(UserError, match="it is relative, and this job runs in Ray's temporary copy"):
        main(["iou_by_class", "--workspace", str(relative), *options])
    assert not list(copy.iterdir())


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("all", "--workspace", str(tmp_path)) == 2
    assert call("training_curves", "--workspace", str(tmp_path)) == 2
    assert f"{tmp_path} has no finished training yet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_before_the_evaluation_the_first_images_with_objects_are_shown(finished: Path, tmp_path: Path) -> None:
    """The settings' defaults are used; an image of background only is skipped."""
    workspace = tmp_path / "w"
    shutil.copytree(finished / "models", workspace / "models")
    row = image_row("nested/one", np.zeros((30, 40, 3), np.uint8), np.zeros((30, 40), np.uint8), None, "val")
    write_images_and_proposals(workspace, [row], [boxes_row(row, [[0, 0, 20, 20]])])
    assert call("unpooling", "--workspace", str(workspace)) == 0
    assert call("instances", "--workspace", str(workspace), "--image", "nested/one") == 0
    assert {path.name for path in (workspace / "figures").iterdir()} == {"unpooling.png", "instances_nested_one.png"}
