"""A data folder and the workspace of its retrainings, and what to expect of them."""

import shutil
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deconvnet.datasets.palette import GENERATED_CLASSES
from infra.live_metrics import Metric
from infra.storage import tables
from tests.workflows.commands import LOCAL, TINY, Done, call
from workflows import retrain
from workflows.operations import run_metrics
from workflows.pipelines import generations
from workflows.pipelines.workspace import STAGE_OF_TABLE, Workspace

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


def check_metrics(found: dict[tuple[str, ...], float], promoted: bool, quality: float) -> None:
    """The metrics after the second retraining: 30 images, one of them unusable, and a champion whose pixel accuracy is 60 %."""
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
    assert set(used) == set(STAGE_OF_TABLE)
    for name, numbers in used.items():
        table = str(of.workspace / name)
        assert tables.kept_versions(table) == sorted(numbers)
        commits = [tables.require_commit(tables.at_version(table, number)) for number in numbers]
        assert {part.name for commit in commits for part in commit.parts} == set(tables.part_files(table))
    for number in range(len(of.generations())):
        workspace = of.workspace_of(number)
        assert not {path.name for path in Path(workspace.root).iterdir()} & {"images", "proposals", "examples"}
        assert tables.require_commit(workspace.images).rows == tables.require_commit(workspace.proposals).rows > 0
