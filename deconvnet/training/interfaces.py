"""The types that the training loop works with: batches, training states and results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

Batch = tuple[np.ndarray, np.ndarray]
"""A batch: uint8 RGB images of shape (n, 3, S, S), and uint8 masks of shape (n, S, S) with class ids and 255 for void pixels."""


@dataclass(frozen=True)
class State:
    """The state of a training run between two steps, as stored in a checkpoint.

    Attributes:
        tensors: the network's parameters and buffers, named "model.NAME", and SGD's momenta, named "momentum.NAME". They share
            memory with the network and the optimiser, so later steps change them.
        values: JSON values: "step" (number of steps done), "seed" (of the training), "order" (version of the order of examples),
            and "schedule" (a dictionary with the state of the learning-rate schedule).
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class TrainingResult:
    """The result of a finished training run.

    Attributes:
        steps: number of optimiser steps done.
        epochs: number of epochs done. It is a fraction if `max_steps` ended the training within an epoch.
        dev_mean_iou: mean IoU (0–1) of the final network on the dev examples (held out for evaluation). None if there are none.
        best_dev_mean_iou: highest mean IoU on the dev examples after any epoch. None if there was no such evaluation.
        step_seconds: mean seconds per step by phase (`meter.PHASES`), over all ranks and all steps since the run was last started
            or resumed; {} if there were no steps. It is ignored when two outcomes are compared.
    """

    steps: int
    epochs: float
    dev_mean_iou: float | None
    best_dev_mean_iou: float | None
    step_seconds: Mapping[str, float] = field(default_factory=dict, compare=False)


ReportFunction = Callable[[dict[str, float], State | None], None]
"""A function that every rank calls with metrics by name, and with the training state if a checkpoint must be saved (else None).
"""
