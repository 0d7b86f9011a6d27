"""retrain.py: the first champion, a run without new data, new images, and two runs at a time.

Only the last test trains networks and evaluates them.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families

from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.datasets.synthetic import write_dataset
from deconvnet.evaluation.drift import read_statistics
from deconvnet.evaluation.image_measures import read_images
from deconvnet.tracking.registry import aliases
from infra.errors import Interrupted, UserError
from infra.live_metrics import Metric
from infra.storage import tables
from infra.storage.lock import Locked
from tests.hook_server import SECRET, hook_server
from tests.workflows.commands import LOCAL, TINY, Done, call, command
from tests.workflows.doubles import training_gives
from workflows import retrain
from workflows.operations import data_age, run_metrics
from workflows.pipelines import generations
from workflows.pipelines.workspace import MADE_BY, Workspace

SCRIPT = "retrain.py"
FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationObject")


def samples_of(file: Path) -> dict[tuple[str, ...], float]:
    """The values in a file of metrics of the model "edeconvnet", by name and further labels."""
    families = text_string_to_metric_families(file.read_text())
    every = [sample for family in families for sample in family.samples]
    assert {sample.labels["model"] for sample in every} == {"edeconvnet"}
    return {
        (
            sample.name,
            *(sample.labels[key] for key in ("outcome", "role", "split", "reason", "stage") if key in sample.labels),
        ): sample.value
        for sample in every
    }


class Retrainings:
    """A data folder, and the workspace of its retrainings."""

    def __init__(self, place: Path) -> None:
        self.data, self.workspace = place / "data", place / "w"
        self.more = place / "more"
        self.store = f"sqlite:///{self.workspace}/mlflow/mlflow.db"

    def arguments(self, *more: str) -> list[str]:
        return [
            *TINY,
            "--data.root",
            str(self.data),
            "--data.classes",
            ",".join(GENERATED_CLASSES),
            "--workspace",
            str(self.workspace),
            *more,
        ]

    def __call__(self, *more: str) -> Done:
        return call(retrain.main, *self.arguments(*LOCAL, *more))

    def generations(self) -> list[generations.Generation]:
        return generations.read_all(str(self.workspace))

    def workspace_of(self, number: int) -> Workspace:
        """The workspace of a generation, counted from 0."""
        return Workspace(generations.folder(str(self.workspace), self.generations()[number].name))

    def add_images(self) -> None:
        """Add five images to train on, and change the mask of an old one."""
        for folder in FOLDERS:
            for file in (self.more / folder).iterdir():
                if not (self.data / folder / file.name).exists():
                    shutil.copy(file, self.data / folder / file.name)
        shutil.copy(self.more / "ImageSets/Segmentation/train.txt", self.data / "ImageSets/Segmentation/train.txt")
        masks = [self.data / "SegmentationClass" / f"{self.trained()[i]}.png" for i in (0, 1)]
        shutil.copy(masks[0], masks[1])

    def trained(self) -> list[str]:
        """Ids of the training images of the first generation."""
        images = self.workspace_of(0).images
        return [r["image_id"] for r in tables.iter_rows(images, ["image_id", "split"]) if r["split"] == "train"]


@pytest.fixture(scope="module")
def retrainings(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], str]) -> Retrainings:
    """The state after the first retraining."""
    made = Retrainings(tmp_path_factory.mktemp("retrain"))
    write_dataset(str(made.data), 0, 24, 5, 64, 80)
    write_dataset(str(made.more), 0, 29, 5, 64, 80)
    assert make_store(made.workspace) == made.store
    with training_gives(quality=0.6):
        done = made()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "version 1 is promoted: there was no champion" in done.stdout
    return made


@pytest.fixture
def copied(retrainings: Retrainings, tmp_path: Path) -> Retrainings:
    """The same, in a folder of the test's own."""
    return Retrainings(shutil.copytree(retrainings.data.parent, tmp_path / "copy"))


def test_the_first_run_makes_the_champion(retrainings: Retrainings) -> None:
    (first,) = retrainings.generations()
    assert first.finished and first.previous is None and first.outcome and first.outcome["champion"] == 1
    assert aliases(retrainings.store, "edeconvnet") == {"champion": 1, "challenger": 1}
    assert not (retrainings.workspace / "generations" / first.name / "train").exists(), (
        "checkpoints of a finished generation are deleted"
    )
    assert json.loads((retrainings.workspace / "workspace.lock").read_text())["expires"] == 0, "the lock was not released"


def test_without_new_data_nothing_is_trained(retrainings: Retrainings) -> None:
    done = retrainings()
    assert done.returncode == 0 and "Nothing new" in done.stdout and "prepare" not in done.stdout
    for file in (retrainings.data / "JPEGImages").iterdir():
        os.utime(file)
    plan = retrainings("--dry-run")
    assert plan.returncode == 0 and "0 new, 0 gone" in plan.stdout
    done = retrainings()
    assert (
        done.returncode == 0 and "0 new, 0 changed, 0 relabelled, 29 same, 0 gone" in done.stdout and "Nothing new" in done.stdout
    )
    assert "prepare" not in retrainings().stdout, "what was read once and found to be the same is not read again"
    for file in (retrainings.data / "JPEGImages").iterdir():
        os.utime(file)
    assert "29 same" in retrainings().stdout
    assert tables.kept_versions(str(retrainings.workspace / "images")) == [0, 2], "each such run would leave a copy of all images"
    assert len(retrainings.generations()) == 1 and aliases(retrainings.store, "edeconvnet") == {"champion": 1, "challenger": 1}


@pytest.mark.parametrize(
    ("quality", "champion", "why"),
    [
        (0.8, 2, "a rise of +21.8 points"),
        (0.6, 1, "the lower end must be above 0.0 points (retrain.margin)"),
        (0.4, 1, "the lower end must be above 0.0 points (retrain.margin)"),
    ],
)
def test_a_better_challenger_is_promoted_and_any_other_is_refused(
    copied: Retrainings, quality: float, champion: int, why: str, tmp_path: Path
) -> None:
    """The champion is right in 60 % of the pixels. The next retraining starts from whichever is champion then."""
    copied.add_images()
    (copied.data / "JPEGImages/broken.jpg").write_bytes(b"no image")
    (copied.data / "SegmentationClass/broken.png").write_bytes(b"no mask")
    with (copied.data / "ImageSets/Segmentation/train.txt").open("a") as file:
        file.write("broken\n")
    metrics = tmp_path / "metrics" / "deconvnet.prom"
    with training_gives(quality) as starts, hook_server() as server:
        done = copied("--retrain.keep", "1", "--notify.url", server.url, "--notify.metrics_to", str(metrics))
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = server.texts
    assert told.startswith(f"edeconvnet version 2 of {copied.workspace} is ") and why.split("(")[0] in told
    assert ("is the champion: " if champion == 2 else "is not promoted, version 1 stays: ") in told
    for file in copied.workspace.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    assert f"version 2 is {'' if champion == 2 else 'not '}promoted" in done.stdout and why in done.stdout
    assert f"champion edeconvnet version {champion}" in done.stdout
    assert aliases(copied.store, "edeconvnet") == {"champion": champion, "challenger": 2}
    check_metrics(samples_of(metrics), promoted=champion == 2, quality=quality)
    version = MlflowClient(copied.store, copied.store).get_model_version("edeconvnet", "2")
    assert version.tags["verdict"] == ("promoted" if champion == 2 else "not promoted") and why in version.tags["verdict.why"]
    statistics = read_statistics(f"{version.source}/artifacts/ensemble")
    assert statistics and statistics.images == 5 and statistics == read_statistics(copied.workspace_of(-1).report())
    assert starts == {"fcn8s": 0.6, "stage1": 0.6, "stage2": quality}
    assert "compared on the val images of both models: 5" in done.stdout
    check_versions(copied)
    used = copied.workspace_of(-1).versions()
    assert set(used) == set(MADE_BY) and version.tags["tables"] == " ".join(used.values())
    tags = MlflowClient(copied.store).get_run(version.run_id).data.tags
    assert tags["tables.images"] == used["images"] and tags["tables.examples.stage2"] == used["examples/stage2"]
    # Kept are the newest and the one that made the champion.
    kept = copied.generations()
    assert [each.outcome and each.outcome["version"] for each in kept] == ([2] if champion == 2 else [1, 2])
    assert ("deleted: retrain.keep is 1" in done.stdout) is (champion == 2)
    outcome = kept[-1].outcome
    assert outcome and outcome["promoted"] is (champion == 2) and outcome["champion"] == champion
    assert outcome["rise"] == pytest.approx(0, abs=1e-9) if quality == 0.6 else (outcome["rise"] > 0) is (quality > 0.6)
    plan = copied("--force", "--dry-run")
    assert f"from edeconvnet version {champion};" in plan.stdout


def test_failures_are_reported_and_what_is_no_failure_is_not(copied: Retrainings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the user, a bug, and a run that an interruption or another run ends; also one that a signal turned into an error."""

    metrics = copied.workspace / "deconvnet.prom"

    def ended_by(error: Callable[[], NoReturn]) -> list[str]:
        metrics.unlink(missing_ok=True)
        monkeypatch.setattr("workflows.operations.retraining.retraining.next_generation", lambda *_: error())
        with hook_server() as server, suppress(RuntimeError, ImportError):
            copied("--notify.url", server.url, "--notify.metrics_to", str(metrics))
        return server.texts

    def fails(error: BaseException, context: BaseException | None = None) -> Callable[[], NoReturn]:
        def fail() -> NoReturn:
            try:
                if context:
                    raise context
            finally:
                raise error

        return fail

    assert ended_by(fails(UserError("the data are gone"))) == [f"retraining of {copied.workspace} failed: the data are gone"]
    (bug,) = ended_by(fails(RuntimeError("hush")))
    assert "a bug (RuntimeError)" in bug and "hush" not in bug
    assert ended_by(fails(Locked("busy"))) == [] and not metrics.exists()
    for error in (Interrupted("stopped"), KeyboardInterrupt()):
        assert ended_by(fails(error)) == []
        assert samples_of(metrics)["deconvnet_retrain_outcome", "interrupted"] == 1
    assert ended_by(fails(ImportError("torch"), KeyboardInterrupt())) == []


def test_a_failure_changes_what_a_run_knows_of_itself_and_leaves_the_other_metrics(copied: Retrainings, tmp_path: Path) -> None:
    file = tmp_path / "deconvnet.prom"
    assert copied("--notify.metrics_to", str(file)).returncode == 0
    before = samples_of(file)
    assert before["deconvnet_retrain_outcome", "unchanged"] == 1 and before["deconvnet_champion_version",] == 1
    assert copied("--notify.metrics_to", str(file), "--data.root", str(copied.data / "gone")).returncode == 2
    after = samples_of(file)
    assert after["deconvnet_retrain_outcome", "failed"] == 1 and after["deconvnet_retrain_outcome", "unchanged"] == 0
    changed = {name[0] for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    assert changed == {"deconvnet_retrain_outcome", "deconvnet_retrain_last_run_timestamp_seconds"}


def test_a_webhook_that_fails_does_not_change_how_a_run_ends(copied: Retrainings) -> None:
    with hook_server() as server:
        server.status = 500
        done = copied("--notify.url", server.url, "--data.root", str(copied.data / "gone"))
    assert done.returncode == 2 and "there is no data folder" in done.stderr
    assert "not delivered to the webhook at 127.0.0.1: HTTP status 500" in done.stdout and SECRET not in done.stdout + done.stderr
    assert len(server.texts) == 1


def test_stale_data_are_reported_once_in_a_while(copied: Retrainings) -> None:
    """Seven days are set. The runs are 0, 6, 12, 14 and 22 days after the last change."""
    told: list[list[str]] = []
    for age in (0, 6, 6, 2, 8):
        file = copied.workspace / "generations" / data_age.FILE
        found = data_age.DataAge(**json.loads(file.read_text()))
        moved = {
            key: value and str(datetime.fromisoformat(value) - timedelta(days=age))
            for key, value in vars(found).items()
            if key != "key"
        }
        file.write_text(json.dumps({"key": found.key, **moved}))
        with hook_server() as server:
            done = copied("--notify.url", server.url, "--notify.stale_days", "7")
        assert done.returncode == 0 and "Nothing new" in done.stdout
        told.append(server.texts)
    assert [len(texts) for texts in told] == [0, 0, 1, 0, 1]
    assert told[2][0].startswith(f"stale data in {copied.data}: no image or mask is new or changed for 12 days, since ")
    assert told[4][0].startswith(f"stale data in {copied.data}: no image or mask is new or changed for 22 days, since ")
    with hook_server() as server:
        file.write_text(json.dumps(vars(data_age.DataAge("other images", "2020-01-01T00:00:00+00:00"))))
        copied("--notify.url", server.url)
    assert server.texts == [], "the data have changed since"


def check_metrics(found: dict[tuple[str, ...], float], promoted: bool, quality: float) -> None:
    """The metrics after the second retraining: 30 images of which one can't be used, and a champion that is right in 60 % of the pixels."""
    labels = {name[0] for name in found}
    assert labels == {metric.name for metric in vars(run_metrics).values() if isinstance(metric, Metric)}
    assert found["deconvnet_retrain_outcome", "promoted"] == promoted and found["deconvnet_retrain_outcome", "refused"] == (
        not promoted
    )
    assert sum(value for name, value in found.items() if name[0] == "deconvnet_retrain_outcome") == 1
    assert found["deconvnet_champion_version",] == (2 if promoted else 1)
    assert found["deconvnet_retrain_mean_iou", "champion"] == pytest.approx(iou(0.6), abs=1e-3)
    assert found["deconvnet_retrain_mean_iou", "challenger"] == pytest.approx(iou(quality), abs=1e-3)
    assert found["deconvnet_rejects", "not an image", "prepare"] == 1 and found["deconvnet_rejected_images_ratio",] == 1 / 35
    assert found["deconvnet_rejected_images_limit_ratio",] == 0.05 and found["deconvnet_images", "val"] == 5
    now = found["deconvnet_retrain_last_run_timestamp_seconds",]
    assert found["deconvnet_retrain_last_success_timestamp_seconds",] == pytest.approx(now, abs=1)
    for name in ("champion", "data"):
        assert 0 <= now - found[f"deconvnet_{name}_since_timestamp_seconds",] < 3600


def iou(quality: float) -> float:
    """IoU of each of the six classes as `training_gives` has it measured: errors are divided evenly among the other classes."""
    wrong = (1 - quality) / 5
    right = quality + wrong
    return right / (right + 10 * wrong)


def check_versions(of: Retrainings) -> None:
    """The tables have the versions of the kept generations alone, each with all its parts, and no other file."""
    used = generations.used_versions(str(of.workspace))
    assert set(used) == set(MADE_BY)
    for name, numbers in used.items():
        table = str(of.workspace / name)
        assert tables.kept_versions(table) == sorted(numbers)
        commits = [tables.require_commit(tables.at_version(table, number)) for number in numbers]
        assert {part.name for commit in commits for part in commit.parts} == set(tables.part_files(table))
    for number in range(len(of.generations())):
        workspace = of.workspace_of(number)
        assert not {path.name for path in Path(workspace.root).iterdir()} & {"images", "proposals", "examples"}
        assert tables.require_commit(workspace.images).rows == tables.require_commit(workspace.proposals).rows > 0


def test_val_images_that_are_new_or_have_moved_are_left_out_of_the_comparison(copied: Retrainings) -> None:
    """Of five val images one moves to train, and one of train moves to val; then most of them do."""
    lists = [copied.data / f"ImageSets/Segmentation/{name}.txt" for name in ("train", "val")]
    train, val = (file.read_text().split() for file in lists)
    for number, (kept, moved) in enumerate(((4, 1), (2, 3)), 2):
        lists[0].write_text("\n".join([*train[moved:], *val[kept:]]) + "\n")
        lists[1].write_text("\n".join([*val[:kept], *train[:moved]]) + "\n")
        with training_gives(0.4):
            done = copied()
        assert done.returncode == 0, done.stdout + done.stderr
        told = f"compared on the val images of both models: {kept}; left out, because new since the champion: {moved}"
        assert told in done.stdout and f"version {number} is not promoted" in done.stdout
    assert "only 2 of the champion's 5 val images are still in val and unchanged" in done.stdout
    outcome = copied.generations()[-1].outcome
    assert outcome and (outcome["images"], outcome["new_images"], outcome["gone_images"]) == (2, 3, 3)


def test_a_killed_run_is_resumed_and_its_challenger_measured_beside_the_champion(copied: Retrainings) -> None:
    """A run is killed; the next resumes its generation. A run beside another is refused. Nothing rises by 90 points."""
    retrainings = copied
    retrainings.add_images()
    plan = retrainings("--dry-run")
    assert "5 new, 0 gone" in plan.stdout and "from edeconvnet version 1" in plan.stdout and len(retrainings.generations()) == 1
    rules = ("--retrain.margin", "0.9", "--retrain.keep", "1")
    alone = command(*retrainings.arguments(*LOCAL, *rules), script=SCRIPT)
    first = subprocess.Popen(alone, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/")
    assert first.stdout
    said = ""
    for line in first.stdout:
        said += line
        if "fcn8s:" in line:
            beside = retrainings(*rules)
            assert beside.returncode == 3 and "has held the lock" in beside.stderr and "Traceback" not in beside.stderr
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    assert "5 new, 0 changed," in said and " same, 0 gone" in said and "0 relabelled" not in said
    begun = retrainings.generations()[-1]
    assert not begun.finished and begun.version == 1

    done = retrainings(*rules)  # the lock of a dead process of this machine is not waited for
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("prepare", "proposals", "examples"):
        assert f"{stage}: complete, not run again" in done.stdout
    assert f"generation {begun.name}: from edeconvnet version 1" in done.stdout

    client = MlflowClient(retrainings.store, retrainings.store)
    version = client.get_model_version("edeconvnet", "2")
    outcome = retrainings.generations()[-1].outcome
    assert outcome and outcome["version"] == 2 and version.tags["verdict.against"] == "version 1"
    assert version.tags["verdict.why"] == outcome["why"] and outcome["why"] in version.description
    parent = json.loads((Path(generations.folder(str(retrainings.workspace), begun.name)) / "pipeline.json").read_text())
    assert client.get_run(parent["mlflow_run_id"]).data.tags["verdict.why"] == outcome["why"]
    # The champion was evaluated on today's images, and the registry records the decision.
    report = Path(generations.folder(str(retrainings.workspace), begun.name)) / "report"
    old, new = (json.loads((report / name / "results.json").read_text()) for name in ("champion", ""))
    rise = new["rows"]["edeconvnet_crf"]["mean_iou"] - old["rows"]["edeconvnet_crf"]["mean_iou"]
    assert outcome["rise"] == pytest.approx(rise) and outcome["lower"] <= rise <= outcome["upper"]
    images = read_images(str(report / "against_champion.parquet"))
    assert len(images) == old["images"] and {row["image_id"] for row in images} == {
        row["image_id"] for row in read_images(str(report / "images.parquet"))
    }
    for row in images:
        assert (report / row["picture.champion"]).is_file() and (report / row["picture.challenger"]).is_file()
    assert f"{len(images)} images" in (report / "index.html").read_text().split('id="champion_images"')[1]
    assert outcome["promoted"] is False and aliases(retrainings.store, "edeconvnet") == {"champion": 1, "challenger": 2}
    assert len(retrainings.generations()) == 2
