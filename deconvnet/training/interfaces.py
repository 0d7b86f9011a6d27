"""What the training loop takes and gives: batches, networks, states and outcomes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

Batch = tuple[np.ndarray, np.ndarray]
"""Images uint8 (n, 3, S, S), RGB, and masks uint8 (n, S, S), class ids with 255 = void."""


class SegmentationNetwork(Protocol):
    """What can be trained: an `nn.Module` from prepared images to scores (N, num_classes, S, S)."""

    num_classes: int

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images into the network's input.

        Args:
            images: uint8 (N, 3, S, S), RGB.
        """
        ...


class BatchLoader(Protocol):
    """A rank's share of each global batch. The shares of two ranks may differ by one example."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        ...

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Yield this rank's share of some global batches.

        Args:
            first_step: first global step, counted over all epochs.
            stop_step: global step to stop before.
        """
        ...


class DevLoader(Protocol):
    """A rank's share of the examples that a training is evaluated on."""

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield the share in batches of at most `size` examples."""
        ...


@dataclass(frozen=True)
class State:
    """A training between two steps.

    Attributes:
        tensors: "model.NAME": parameters and buffers; "momentum.NAME": SGD's momenta. Not copies.
        values: JSON values: "step" (steps done), "seed", "schedule" (see `Schedule.state_dict`).
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A finished training.

    Attributes:
        steps: optimiser steps done.
        epochs: epochs done, a fraction where `max_steps` ended the training within one.
        dev_mean_iou: mean IoU of the final network on the dev examples; None without dev examples.
        best_dev_mean_iou: the highest after any epoch.
    """

    steps: int
    epochs: float
    dev_mean_iou: float | None
    best_dev_mean_iou: float | None


Report = Callable[[dict[str, float], State | None], None]
"""Called on every rank with metrics and, where a checkpoint is due, the state."""
