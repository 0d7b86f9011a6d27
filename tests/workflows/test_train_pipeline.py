"""train_pipeline.py and evaluate.py as commands: a whole run, again, as a Ray job, with changes, and with user errors.

The whole run is in this process, without Ray. A whole run as a Ray job, and jobs that are killed, are in test_ray_jobs.py.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from deconvnet.evaluation.measurements import BATCHES
from deconvnet.models.checkpoint import load_model
from deconvnet.reporting import gallery
from deconvnet.tracking.mlflow_runs import code_tags
from deconvnet.version import code_version
from infra.errors import Interrupted
from infra.runtime.stages import read_record
from infra.storage import tables
from tests.ray_head import Head
from tests.workflows.commands import LOCAL, TINY, Done, call
from tests.workflows.doubles import training_gives
from workflows import evaluate, train_pipeline


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], str]) -> tuple[Path, str]:
    """A workspace in which a tiny pipeline has run to its end, and what it printed."""
    folder = tmp_path_factory.mktemp("pipeline") / "w"
    make_store(folder)
    done = call(train_pipeline.main, "--workspace", str(folder), *TINY, *LOCAL)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_a_run_leaves_the_five_results_and_the_tables(workspace) -> None:
    folder, said = workspace
    results = json.loads((folder / "report" / "results.json").read_text())
    assert list(results["rows"]) == ["fcn8s", "deconvnet", "deconvnet_crf", "edeconvnet", "edeconvnet_crf"]
    assert results["images"] == 5 and set(results["rows"]["fcn8s"]["iou"]) == set(results["classes"])
    for name in ("results.md", "comparison.png", "iou_by_class.png", "proposals.png"):
        assert (folder / "report" / name).stat().st_size > 100
    images = list(tables.iter_rows(str(folder / "images"), ["image_id", "split"]))
    assert [r["image_id"] for r in images] == sorted(r["image_id"] for r in images)
    assert {s: sum(r["split"] == s for r in images) for s in ("train", "dev", "val")} == {"train": 19, "dev": 5, "val": 5}
    assert tables.require_commit(str(folder / "proposals")).rows == len(images)
    dev = {r["image_id"] for r in images if r["split"] == "dev"}
    for stage in ("stage1", "stage2"):
        train = {r["image_id"] for r in tables.iter_rows(str(folder / "examples" / stage), ["image_id"])}
        held = {r["image_id"] for r in tables.iter_rows(str(folder / "examples" / f"{stage}_dev"), ["image_id"])}
        assert train and held <= dev and not train & dev
    assert tables.require_commit(str(folder / "rejects")).rows == 0
    found = json.loads((folder / "report" / "proposals.json").read_text())
    assert found["objects"] >= 5 and 0 < found["recall_50_iou70"] <= found["recall_50_iou50"] <= found["recall_60_iou50"] <= 1
    assert (folder / "report" / "proposals.md").read_text().startswith("# Proposals: generated val")
    found_lines = [line for line in said.splitlines() if "50 boxes find" in line]
    assert [line.split()[-1] for line in found_lines] == ["(dev)", "(val)"]
    assert f"{found['recall_50_iou50']:.0%} of {found['objects']} objects" in found_lines[1]
    assert "EDeconvNet+CRF" in said and "edeconvnet version 1, alias challenger" in said
    places = dict(re.findall(r"^(report|models|MLflow)   (.*)", said, re.M))
    assert {name: places[name] for name in ("report", "models")} == {
        "report": f"{folder}/report/index.html",
        "models": f"{folder}/models",
    }
    assert Path(places["report"]).is_file() and Path(places["models"]).is_dir()
    assert f"sqlite:///{folder}/mlflow/mlflow.db " in places["MLflow"]
    with_rejects = SimpleNamespace(uri=lambda *names: str(folder.joinpath(*names)), num_rejects=lambda: 3, store="")
    text = train_pipeline._summary(with_rejects)
    assert f"3 inputs were rejected; reasons: {folder}/rejects\n" in text and "MLflow" not in text and "inputs were" not in said
    assert not (folder / "train").exists(), "checkpoints, which are not needed any more"


def test_a_second_run_does_nothing(workspace) -> None:
    folder, _ = workspace

    def times() -> list[tuple[Path, int]]:
        """All paths and their times, but the time of the folder in which asking MLflow for the version takes a lock."""
        return sorted((p, 0 if p == folder / "mlflow" else p.stat().st_mtime_ns) for p in folder.rglob("*"))

    before = times()
    again = call(train_pipeline.main, "--workspace", str(folder), *TINY)
    assert again.returncode == 0 and "Nothing to do" in again.stdout and "EDeconvNet+CRF" in again.stdout
    assert times() == before


def test_the_plan_shows_which_stages_a_changed_setting_runs_again(workspace) -> None:
    folder, _ = workspace

    def planned(*changed: str) -> Done:
        return call(train_pipeline.main, "--workspace", str(folder), *TINY, *changed, "--dry-run")

    plan = planned("--train.stage2.lr", "0.02")
    assert plan.returncode == 0
    lines = plan.stdout[plan.stdout.index("stages:") :].splitlines()[1:]
    complete = ("prepare", "proposals", "examples", "fcn8s", "stage1")
    would_run = ("stage2", "evaluate", "register")
    assert {line.split()[0]: "would run" in line for line in lines} == dict.fromkeys(complete, False) | dict.fromkeys(
        would_run, True
    )
    other_network = planned("--model.fcn_batch_norm", "false").stdout
    assert [line.split()[0] for line in other_network.splitlines() if "would run" in line] == ["fcn8s", "evaluate", "register"]
    more_logging = planned("--train.stage2.log_every", "3")
    assert "would run" not in more_logging.stdout


def test_the_runs_in_mlflow(workspace) -> None:
    from mlflow import MlflowClient

    folder, _ = workspace
    client = MlflowClient(
        tracking_uri=f"sqlite:///{folder}/mlflow/mlflow.db", registry_uri=f"sqlite:///{folder}/mlflow/mlflow.db"
    )
    experiment = client.get_experiment_by_name("deconvnet")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    parent = next(r for name, r in runs.items() if name.startswith("quickstart · w · 2"))
    children = {n for n, r in runs.items() if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    stages = ("prepare", "proposals", "examples", "fcn8s", "stage1", "stage2", "evaluate", "register")
    assert children == {f"{number} {stage}" for number, stage in enumerate(stages, 1)}
    runs = {r.data.tags.get("stage"): r for r in runs.values()}
    assert all(r.info.status == "FINISHED" for r in runs.values())
    assert float(parent.data.params["train.stage2.lr"]) == 0.1
    rates = {stage: runs[stage].data.params["train.lr"] for stage in ("fcn8s", "stage1", "stage2")}
    assert rates == {"fcn8s": "0.02", "stage1": "0.1", "stage2": "0.1"}
    losses = client.get_metric_history(runs["stage2"].info.run_id, "loss")
    assert [point.step for point in losses] == [2, 4, 6, 8]
    for stage, split in (("proposals", "dev"), ("evaluate", "val")):
        kept = runs[stage].data.metrics
        assert {f"proposals.{split}.{name}" for name in ("recall_50_iou50", "recall_50_iou70", "average_best_overlap_50")} <= {
            *kept
        }
        assert [a.path for a in client.list_artifacts(runs[stage].info.run_id, "proposals")] == [f"proposals/{split}.png"]
    assert not any(name.startswith("proposals.val") for name in runs["proposals"].data.metrics), "val is for the final table"
    prepared, digest = read_record(str(folder), "prepare"), runs["prepare"].inputs.dataset_inputs[0].dataset.digest
    assert prepared and prepared.key.startswith(digest) and len(digest) >= 8
    assert experiment.artifact_location.startswith(f"file://{folder}")
    assert int(client.get_model_version_by_alias("edeconvnet", "challenger").version) == 1


def test_mlflow_and_the_report_describe_the_run(workspace) -> None:
    from mlflow import MlflowClient

    folder, _ = workspace
    uri = f"sqlite:///{folder}/mlflow/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("deconvnet")
    assert "val.mean_iou.edeconvnet_crf" in experiment.tags["mlflow.note.content"]
    runs = {r.data.tags.get("stage"): r for r in client.search_runs([experiment.experiment_id])}
    parent, digest = runs[None], runs["prepare"].inputs.dataset_inputs[0].dataset.digest
    results = json.loads((folder / "report" / "results.json").read_text())
    best = f"{100 * results['rows']['edeconvnet_crf']['mean_iou']:.1f}"
    row = f"| EDeconvNet+CRF | {best} | "
    notes = {stage: run.data.tags["mlflow.note.content"] for stage, run in runs.items()}
    assert row in notes[None] and row in notes["evaluate"] and "19 train, 5 dev, 5 val" in notes[None]
    assert "19 train, 5 dev, 5 val" in notes["prepare"] and "version 1" in notes["register"] and "step" in notes["stage2"]
    assert f"path=report%2Fcomparison.png&run_uuid={parent.info.run_id}" in notes[None]
    for stage, tracked in runs.items():
        assert tracked.data.tags["workspace"] == str(folder)
        assert tracked.data.tags["config"] == "quickstart" and code_tags(code_version()).items() <= tracked.data.tags.items()
        assert stage == "prepare" or tracked.data.tags["data.digest"].startswith(digest)
    records = {stage: read_record(str(folder), stage) for stage in runs if stage}
    assert len(records) == 8 and {f"seconds.{stage}": each.seconds for stage, each in records.items() if each} == {
        name: value for name, value in parent.data.metrics.items() if name.startswith("seconds.")
    }
    metrics = runs["evaluate"].data.metrics
    rows = results["rows"]
    mean_iou = {f"val.mean_iou.{name}": row["mean_iou"] for name, row in rows.items()}
    assert mean_iou.items() <= metrics.items() and mean_iou.items() <= parent.data.metrics.items()
    assert metrics["val.boundary_f.fcn8s"] == rows["fcn8s"]["boundary_f"]
    assert metrics["val.expected_calibration_error"] == results["expected_calibration_error"]
    page = (folder / "report" / "index.html").read_text()
    assert f'<td class="number">{best}</td>' in page and page.count('src="data:image/png') >= 10
    assert all(f'<th scope="row">{stage}</th>' in page for stage in ("prepare", "evaluate", "register"))
    kept = Path(client.download_artifacts(parent.info.run_id, "report/index.html", str(folder.parent)))
    assert kept.read_text() == page
    pictures = {path.name for path in (folder / "report" / "images").iterdir()}
    assert not (folder / "report" / BATCHES).exists(), "what was kept for a resumed evaluation is deleted"
    assert len(pictures) == 5 and set(re.findall(r'href="images/([^"]+)"', page)) == pictures
    version = client.get_model_version("edeconvnet", "1")
    card = (Path(version.source.removeprefix("file://")) / "model_card.md").read_text()
    assert (
        "| train | 19 |" in card and best in card and "start from random weights" in card and "Model card" in version.description
    )
    described = client.get_registered_model("edeconvnet").description
    assert row.rpartition("|")[0].rpartition("|")[0] in described and "models:/edeconvnet@challenger" in described


def test_evaluate_writes_a_report_of_the_dev_images_beside_that_of_the_val_images(workspace, monkeypatch) -> None:
    """And if it was stopped while it drew figures, no results of earlier networks stay, and no image is measured again."""
    folder, _ = workspace
    before, command = (folder / "report/results.json").read_bytes(), ("--workspace", str(folder), *TINY, "--split", "dev", *LOCAL)
    stale = [folder / "evaluations/dev" / name for name in ("masks/gone.png", "images/gone.jpg")]
    for path in stale:
        path.parent.mkdir(parents=True)
        path.touch()
    (folder / "evaluations/dev/results.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(gallery, "load_and_draw_gallery", Mock(side_effect=Interrupted("stopped")))
        assert call(evaluate.main, *command).returncode == 75
    assert not (folder / "evaluations/dev/results.json").exists()
    done = call(evaluate.main, *command)
    assert done.returncode == 0, done.stderr
    assert re.search(r"(\d) of \1 batches of images were evaluated before the interruption", done.stdout)
    assert f"report   {folder}/evaluations/dev" in done.stdout.splitlines()
    assert not (folder / "evaluations" / "dev" / BATCHES).exists()
    assert not any(path.exists() for path in stale), "of images that are not evaluated any more"
    results = json.loads((folder / "evaluations" / "dev" / "results.json").read_text())
    assert results["images"] == 5 and results["dataset"] == "generated dev"
    assert "generated dev" in (folder / "evaluations" / "dev" / "proposals.md").read_text()
    assert (folder / "report/results.json").read_bytes() == before


@pytest.mark.ray
def test_a_submitted_job_makes_what_is_lost_on_the_ray_that_runs_it(workspace, ray_head: Head, tmp_path: Path) -> None:
    """It joins the head with the token and address of the job's environment. All other stages are complete, made without Ray."""
    copy = shutil.copytree(workspace[0], tmp_path / "w")
    shutil.rmtree(copy / "examples")
    (copy / "stages/examples.json").unlink()
    pipeline = ["workflows/train_pipeline.py", "--workspace", str(copy), *TINY, "--tracking.enabled", "false"]
    said = ray_head.submit(*pipeline)
    assert "succeeded" in said and "proposals: complete, not run again" in said and "evaluate: complete, not run again" in said
    for name in ("stage1", "stage2_dev"):
        lost, made = (list(tables.iter_rows(str(folder / "examples" / name))) for folder in (workspace[0], copy))
        assert lost == made
    (joined,) = (job["entrypoint"] for job in ray_head.cluster._request("/api/jobs/") if job["job_id"])
    assert "train_pipeline.py" in joined, "it has started a Ray of its own"


@pytest.mark.parametrize("source", ["workspace", "registry"])
def test_fine_tuning_with_other_classes(workspace, tmp_path: Path, source: str) -> None:
    """The networks of other classes begin with the weights of the run, but for their last layers."""
    folder, _ = workspace
    start = ["--init.from", str(folder)]
    if source == "registry":
        store = f"sqlite:///{folder}/mlflow/mlflow.db"
        start = ["--init.from", "models:/edeconvnet@challenger", "--tracking.uri", store, "--tracking.register_model", "false"]
    else:
        start += ["--tracking.enabled", "false"]
    names = ["background", "hoop", "square", "triangle", "star", "disc"]
    classes = ["--data.root", str(folder / "data"), "--data.classes", ",".join(names)]
    with training_gives(0.5):
        tuned = call(train_pipeline.main, "--workspace", str(tmp_path / "w"), *TINY, *LOCAL, *classes, *start)
    assert tuned.returncode == 0, tuned.stderr
    results = json.loads((tmp_path / "w" / "report" / "results.json").read_text())
    assert set(results["rows"]["deconvnet"]["iou"]) == set(names)
    for stage, start_of in (("fcn8s", "fcn8s"), ("stage1", "stage2")):
        network, meta = load_model(str(tmp_path / "w/models" / stage))
        assert meta["classes"] == names
        before = load_model(str(folder / "models" / start_of))[0].state_dict()
        for name, weights in network.state_dict().items():
            if name.startswith("score"):  # a row for each class: "hoop" is new, "disc" was the second, and the others stay
                assert torch.equal(weights[[0, 2, 3, 4, 5]], before[name][[0, 2, 3, 4, 1]]), name
                assert name.endswith("bias") or not torch.equal(weights[1], before[name][1]), name
            elif not name.startswith("up_"):
                assert torch.equal(weights, before[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "no.yaml"], "--config no.yaml: there is no such file"),
        (["--model.input_size", "100"], "96 or 128 would do"),
        (
            ["--model.vgg16", "/no/vgg.pth", "--model.width", "1", "--model.fcn_width", "1"],
            "model.vgg16: there is no file /no/vgg.pth; `python",
        ),
        (["--train.stag1.lr", "1"], "unknown: --train.stag1.lr 1; did you mean --train.stage1.lr?"),
        (["--init.from", "/no/run"], "init.from /no/run holds no model"),
        (
            ["--workspace", "ftp://host/x"],
            "ftp://host/x can't be used here: a local path or a URI that begins with s3://, gs:// or abfs://",
        ),
        (["--config", f"{__file__}/x.yaml"], "Not a directory"),
        (["--data.root", "/no/such/folder", "--data.classes", "background,cat"], "/no/such/folder"),
    ],
)
def test_a_user_error_is_a_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    place = [] if "--workspace" in arguments else ["--workspace", str(tmp_path / "w")]
    done = call(train_pipeline.main, *place, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_evaluate_refuses_other_classes_than_the_models(workspace) -> None:
    folder, _ = workspace
    other = ["--data.root", str(folder / "data"), "--data.classes", "background,a,b", *LOCAL]
    done = call(evaluate.main, "--workspace", str(folder), *TINY, *other)
    assert done.returncode == 2 and "not those that the models" in done.stderr and "Traceback" not in done.stderr


def test_evaluate_without_models_names_the_command_to_run(tmp_path: Path) -> None:
    done = call(evaluate.main, "--workspace", str(tmp_path / "w"))
    assert done.returncode == 2 and "run workflows/train_pipeline.py" in done.stderr


def test_an_unreachable_mlflow_is_a_user_error_before_ray_is_started(tmp_path: Path) -> None:
    done = call(train_pipeline.main, "--workspace", str(tmp_path / "w"), MLFLOW_TRACKING_URI="http://user:secret@127.0.0.1:9")
    assert done.returncode == 2 and "MLflow" in done.stderr and "secret" not in done.stderr + done.stdout


def test_dry_run_and_help_write_nothing(tmp_path: Path) -> None:
    plan = call(train_pipeline.main, "--workspace", str(tmp_path / "w"), "--dry-run")
    assert plan.returncode == 0 and plan.stdout.count("would run") == 8
    assert not (tmp_path / "w").exists()
    page = call(train_pipeline.main, "--help")
    assert page.returncode == 0 and "--train.stage1.lr" in page.stdout and "Exit codes" in page.stdout
