"""Each setting of a training stage changes what is trained, reported, saved or computed at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.models.checkpoint import load_model
from deconvnet.models.fcn8s import FCN8s
from deconvnet.settings import ComputeSettings, FcnStageSettings, ModelSettings
from deconvnet.training.job import TrainingJob
from deconvnet.training.local_trainer import LocalCheckpoints, train_locally
from deconvnet.training.trainer import Trainer
from tests.deconvnet.training_tables import images_table

BASE = {"batch": 4, "epochs": 3, "lr": 0.01, "schedule": "constant", "log_every": 1, "checkpoint_every": 100, "bn_batches": 0}
PLATEAU = {"schedule": "plateau", "patience": 1}
EFFECTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "epochs": (2, {}, "weights reports saves batches"),
    "max_steps": (5, {}, "weights reports saves batches"),
    "batch": (2, {}, "weights reports saves batches"),
    "micro_batch": (2, {}, "weights reports batches"),
    "lr": (0.02, {}, "weights reports"),
    "freeze": (("conv1", "conv2"), {}, "weights reports"),
    "momentum": (0.5, {}, "weights reports"),
    "weight_decay": (0.1, {}, "weights reports"),
    "bias_lr_factor": (5.0, {}, "weights reports"),
    "encoder_lr_factor": (0.1, {}, "weights reports"),
    "schedule": ("poly", {}, "weights reports"),
    "step_every": (3, {"schedule": "step", "step_every": 2}, "weights reports"),
    "gamma": (0.5, PLATEAU, "weights reports"),
    "patience": (2, PLATEAU, "weights reports"),
    "early_stopping_patience": (1, {}, "weights reports saves batches"),
    "min_lr": (0.005, PLATEAU, "weights reports saves batches"),
    "grad_clip": (0.001, {}, "weights reports"),
    "checkpoint_every": (3, {}, "saves"),
    "log_every": (2, {}, "reports"),
    "bn_batches": (2, {}, "weights batches"),
    "scale_jitter": (0.4, {}, "weights reports"),
}
"""For each setting another value, the settings beside which it has an effect, and what is different then."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return images_table(str(tmp_path_factory.mktemp("images") / "images"), 10)


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, Any]]:
    """What was trained with other settings, by their text."""
    return {}


def trained(images: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """Train an FCN-8s on eight images. On the dev images its results never change."""
    found: dict[str, Any] = {"reports": [], "saves": [], "batches": []}
    forward, save = FCN8s.forward, LocalCheckpoints.save

    def counted(network: FCN8s, batch: torch.Tensor) -> torch.Tensor:
        found["batches"].append(len(batch))
        return forward(network, batch)

    def saved(checkpoints: LocalCheckpoints, state: Any) -> None:
        found["saves"].append(state.values["step"])
        save(checkpoints, state)

    job = TrainingJob(
        stage="fcn8s",
        model=ModelSettings(fcn_width=0.03, fcn_input_size=64, fcn_batch_norm=True),
        settings=FcnStageSettings(**{**BASE, **changes}),
        compute=ComputeSettings(threads=1, bf16=False),
        examples_uri=images,
        dev_uri=images,
        classes=("background", "red", "green"),
        checkpoints_uri=f"{folder}/runs",
        run_name="run",
        out_uri=f"{folder}/model",
    )
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", lambda _: ConfusionMatrix(3, np.eye(3, dtype=np.int64)))
        patch.setattr(FCN8s, "forward", counted)
        patch.setattr(LocalCheckpoints, "save", saved)
        patch.setattr(LocalCheckpoints, "may_save", lambda _: True)  # however long the machine takes
        train_locally(job, device="cpu", on_report=lambda metrics: found["reports"].append(without_times(metrics)))
    state = load_model(job.out_uri)[0].state_dict()
    found["weights"] = {name: value.numpy().tobytes() for name, value in state.items()}
    return found


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that are the same whenever the same is trained."""
    return {name: value for name, value in metrics.items() if name != "samples_per_s" and not name.startswith("time.")}


def test_every_setting_of_a_stage_is_in_the_table() -> None:
    assert set(EFFECTS) == set(FcnStageSettings.model_fields)


def test_the_same_settings_train_the_same(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(images, tmp_path / "a", monkeypatch) == trained(images, tmp_path / "b", monkeypatch)


@pytest.mark.parametrize("name", EFFECTS)
def test_a_setting_of_a_stage_changes_what_it_should(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, dict[str, Any]], name: str
) -> None:
    value, beside, expected = EFFECTS[name]
    if str(beside) not in known:
        known[str(beside)] = trained(images, tmp_path / "before", monkeypatch, **beside)
    before = known[str(beside)]
    after = trained(images, tmp_path / "after", monkeypatch, **{**beside, name: value})
    assert {each for each in before if before[each] != after[each]} == set(expected.split())
