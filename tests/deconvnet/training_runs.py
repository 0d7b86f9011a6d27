"""Trainings of a small network on a small table, and what they report."""

import json

import torch

from deconvnet.settings import StageSettings
from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.data.examples import Examples
from deconvnet.training.interfaces import State, TrainingResult
from deconvnet.training.trainer import Trainer
from tests.deconvnet.training_tables import Small

HELD_BYTES = 51_000  # a third of `crops`


def stage(**changes) -> StageSettings:
    values = {"batch": 8, "epochs": 2, "lr": 0.05, "schedule": "constant", "log_every": 1, "bn_batches": 0, "checkpoint_every": 5}
    return StageSettings(**{**values, **changes})


class Seen:
    """Collects what a training reports: metrics, and copies of states."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.metrics: list[dict] = []
        self.states: list[State] = []
        self.stop_at = stop_at

    def __call__(self, metrics, state) -> None:
        self.metrics.append(metrics)
        if state is not None:
            self.states.append(
                State({n: t.detach().clone() for n, t in state.tensors.items()}, json.loads(json.dumps(state.values)))
            )

    def stopping(self) -> bool:
        return self.stop_at is not None and bool(self.metrics) and self.metrics[-1]["step"] >= self.stop_at

    @property
    def losses(self) -> list[float]:
        return [m["loss"] for m in self.metrics if "loss" in m]


def loader(crops: Examples, rank: int = 0, workers: int = 1) -> BatchLoader:
    """Batches of 8, of which a third of an epoch fits in memory."""
    return BatchLoader(BatchPlan.of(crops, 8, workers, 0, HELD_BYTES), rank, 1)


def run(
    crops: Examples, seen: Seen, dropout: float = 0.0, state: State | None = None, seed: int = 0, **changes
) -> tuple[Small, TrainingResult]:
    torch.manual_seed(0)
    model = Small(dropout)
    trainer = Trainer(model, stage(**changes), loader(crops), seed=seed, dev=DevSet(crops, limit=16))
    if state is not None:
        trainer.load_state_dict(state)
    return model, trainer.fit(report=seen, should_stop=seen.stopping)
