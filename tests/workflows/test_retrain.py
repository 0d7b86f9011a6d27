"""retrain.py: the first champion, a run without new data, new images, and two runs at a time.

Only the last test evaluates networks.
"""

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from mlflow import MlflowClient

from deconvnet.evaluation.drift import read_statistics
from deconvnet.evaluation.image_measures import read_images
from deconvnet.tracking.registry import aliases
from deconvnet.training import local_trainer
from infra.storage import tables
from infra.storage.lock import read_record
from tests.hook_server import SECRET, hook_server
from tests.workflows.commands import Done
from tests.workflows.doubles import training_gives, untrained
from tests.workflows.retrainings import Retrainings, check_metrics, check_versions, samples_of
from workflows.pipelines import generations
from workflows.pipelines.workspace import STAGE_OF_TABLE

pytestmark = pytest.mark.xdist_group("retrain")


def test_the_first_run_makes_the_champion(retrainings: Retrainings) -> None:
    (first,) = retrainings.generations()
    assert first.finished and first.previous is None and first.outcome and first.outcome["champion"] == 1
    assert aliases(retrainings.store, "edeconvnet") == {"champion": 1, "challenger": 1}
    assert not (retrainings.workspace / "generations" / first.name / "train").exists(), (
        "checkpoints of a finished generation are deleted"
    )
    assert json.loads((retrainings.workspace / "workspace.lock").read_text())["expires"] == 0, "the lock was not released"


def test_a_dry_run_says_whether_a_run_would_train(retrainings: Retrainings, tmp_path: Path) -> None:
    first, unchanged, forced = (
        retrainings("--dry-run", *more).stdout for more in (["--workspace", str(tmp_path / "new")], [], ["--force"])
    )
    assert "every image is new" in first and "would run" in first and "would stop" not in first
    assert "nothing is new since " in unchanged and "a run would stop here (--force trains anyway)" in unchanged
    assert "every image" not in unchanged and "would run" not in unchanged
    assert "0 new, 0 gone; " in forced and "would run" in forced and "would stop" not in forced and "every image" not in forced


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
    retrained: Retrainings, quality: float, champion: int, why: str, tmp_path: Path
) -> None:
    """The champion is right in 60 % of the pixels. The next retraining starts from whichever is champion then."""
    retrained.add_images()
    (retrained.data / "JPEGImages/broken.jpg").write_bytes(b"no image")
    (retrained.data / "SegmentationClass/broken.png").write_bytes(b"no mask")
    with (retrained.data / "ImageSets/Segmentation/train.txt").open("a") as file:
        file.write("broken\n")
    metrics = tmp_path / "metrics" / "deconvnet.prom"
    with training_gives(quality) as starts, hook_server() as server:
        done = retrained("--retrain.keep", "1", "--notify.url", server.url, "--notify.metrics_to", str(metrics))
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = server.texts
    assert told.startswith(f"edeconvnet version 2 of {retrained.workspace} is ") and why.split("(")[0] in told
    assert ("is the champion: " if champion == 2 else "is not promoted, version 1 stays: ") in told
    for file in retrained.workspace.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    assert f"version 2 is {'' if champion == 2 else 'not '}promoted" in done.stdout and why in done.stdout
    assert f"champion edeconvnet version {champion}" in done.stdout
    assert f"report   {retrained.workspace_of(-1).report()}" in done.stdout.splitlines()
    assert aliases(retrained.store, "edeconvnet") == {"champion": champion, "challenger": 2}
    check_metrics(samples_of(metrics), promoted=champion == 2, quality=quality)
    version = MlflowClient(retrained.store, retrained.store).get_model_version("edeconvnet", "2")
    assert version.tags["verdict"] == ("promoted" if champion == 2 else "not promoted") and why in version.tags["verdict.why"]
    statistics = read_statistics(f"{version.source}/artifacts/ensemble")
    assert statistics and statistics.images == 5 and statistics == read_statistics(retrained.workspace_of(-1).report())
    assert starts == {"fcn8s": 0.6, "stage1": 0.6, "stage2": quality}
    assert "compared on the val images of both models: 5" in done.stdout
    check_versions(retrained)
    used = retrained.workspace_of(-1).versions()
    assert set(used) == set(STAGE_OF_TABLE) and version.tags["tables"] == " ".join(used.values())
    tags = MlflowClient(retrained.store).get_run(version.run_id).data.tags
    assert tags["tables.images"] == used["images"] and tags["tables.examples.stage2"] == used["examples/stage2"]
    # Kept are the newest and the one that made the champion.
    kept = retrained.generations()
    assert [each.outcome and each.outcome["version"] for each in kept] == ([2] if champion == 2 else [1, 2])
    assert ("deleted: retrain.keep is 1" in done.stdout) is (champion == 2)
    outcome = kept[-1].outcome
    assert outcome and outcome["promoted"] is (champion == 2) and outcome["champion"] == champion
    assert outcome["rise"] == pytest.approx(0, abs=1e-9) if quality == 0.6 else (outcome["rise"] > 0) is (quality > 0.6)
    plan = retrained("--force", "--dry-run")
    assert f"from edeconvnet version {champion};" in plan.stdout


def test_val_images_that_are_new_or_moved_or_whose_mask_changed_are_left_out_of_the_comparison(retrained: Retrainings) -> None:
    """Of five val images one moves to train, and two of train move to val; then three and four do. A mask is corrected, too."""
    lists = [retrained.data / f"ImageSets/Segmentation/{name}.txt" for name in ("train", "val")]
    train, val = (file.read_text().split() for file in lists)
    masks = [retrained.data / f"SegmentationClass/{val[n]}.png" for n in (0, 3)]  # the last of those that stay at first
    shutil.copy(masks[0], masks[1])
    for number, (kept, moved, same, other) in enumerate(((4, 2, 3, 3), (2, 4, 2, 4)), 2):
        lists[0].write_text("\n".join([*train[moved:], *val[kept:]]) + "\n")
        lists[1].write_text("\n".join([*val[:kept], *train[:moved]]) + "\n")
        with training_gives(0.4):
            done = retrained()
        assert done.returncode == 0, done.stdout + done.stderr
        left_out = f"left out, because added or changed since the champion's registration: {other}"
        told = f"compared on the val images of both models: {same}; {left_out}"
        assert told in done.stdout and f"version {number} is not promoted" in done.stdout
    assert "only 2 of the champion's 5 val images are still in val and unchanged" in done.stdout
    outcome = retrained.generations()[-1].outcome
    assert outcome and (outcome["images"], outcome["new_images"], outcome["gone_images"]) == (2, 4, 3)


def test_a_challenger_becomes_the_champion_without_new_data_if_there_is_none(retrained: Retrainings) -> None:
    MlflowClient(retrained.store, retrained.store).delete_registered_model_alias("edeconvnet", "champion")
    with hook_server() as server:
        done = retrained("--notify.url", server.url)
    assert done.returncode == 0 and "Nothing new" in done.stdout
    assert "champion edeconvnet version 1: there was none" in done.stdout
    assert aliases(retrained.store, "edeconvnet") == {"champion": 1, "challenger": 1}
    assert server.texts == [f"edeconvnet version 1 of {retrained.workspace} is the champion: there was none"]


def leave_lock_of_dead_process(file: Path) -> None:
    """Let a lock be as a process of this machine leaves it that is killed while it holds the lock."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    record = read_record(str(file))
    assert record
    file.write_bytes(replace(record, pid=ended.pid, expires=time.time() + 900).to_bytes())


def test_a_run_that_ended_is_resumed_and_its_challenger_measured_beside_the_champion(retrained: Retrainings) -> None:
    """A run that ended in its first training is resumed by the next. A run beside another is refused. Nothing gains 90 points."""
    retrainings, beside = retrained, list[Done]()
    retrainings.add_images()
    plan = retrainings("--dry-run")
    assert "5 new, 0 gone" in plan.stdout and "from edeconvnet version 1" in plan.stdout and len(retrainings.generations()) == 1
    rules = ("--retrain.margin", "0.9", "--retrain.keep", "1")

    def train(*_: object, **__: object) -> NoReturn:
        beside.append(retrainings(*rules))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_trainer, "train_locally", train)
        first = retrainings(*rules)
    (refused,) = beside
    assert refused.returncode == 3 and "has held the lock" in refused.stderr and "Traceback" not in refused.stderr
    assert first.returncode == 75 and "5 new, 0 changed," in first.stdout
    assert " same, 0 gone" in first.stdout and "0 relabelled" not in first.stdout
    begun = retrainings.generations()[-1]
    assert not begun.finished and begun.version == 1

    for folder in (retrainings.workspace, Path(generations.folder(str(retrainings.workspace), begun.name))):
        leave_lock_of_dead_process(folder / "workspace.lock")  # which is not waited for
    with untrained():
        done = retrainings(*rules)
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
    run = client.get_run(parent["mlflow_run_id"]).data
    assert run.tags["verdict.why"] == outcome["why"]
    assert {f"verdict.{name}": outcome[name] for name in ("images", "rise", "lower", "upper")}.items() <= run.metrics.items()
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
