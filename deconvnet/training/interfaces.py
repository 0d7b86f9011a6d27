"""The types that the training loop works with: networks, batches, training states and results."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

Batch = tuple[np.ndarray, np.ndarray]
"""A batch: uint8 RGB images of shape (n, 3, S, S), and uint8 masks of shape (n, S, S) with class ids and 255 for void pixels."""


class SegmentationNetwork(Protocol):
    """The interface of a network that can be trained. It is an `nn.Module`.

    When called with images that `prepare` has converted, it returns class scores before softmax, of shape (N, num_classes, S,
    S).

    Attributes:
        num_classes: number of classes, including background.
    """

    num_classes: int

    def prepare(self, images: Tensor) -> Tensor:
        """Convert images to the network's input, by normalising the pixel values.

        Args:
            images: uint8 RGB images of shape (N, 3, S, S).

        Returns:
            Floating-point tensor of the same shape.
        """
        ...


class BatchLoader(Protocol):
    """The interface of a source of training batches for one rank (training process).

    Every optimiser step uses a global batch, which is divided into one share per rank. The loader gives the share of its rank.
    The shares of two ranks may differ in size by one example.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of global batches, and so of optimiser steps, in an epoch."""
        ...

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """Iterate over this rank's shares of consecutive global batches.

        Args:
            first_step: number of the first optimiser step, counted from 0 over all epochs.
            stop_step: number of the step after the last one.

        Yields:
            One batch for each step: uint8 RGB images of shape (n, 3, S, S), and uint8 masks of shape (n, S, S) with class ids
            and 255 for void.
        """
        ...


class DevLoader(Protocol):
    """The interface of a source of dev examples (for evaluation during training) for one rank (training process)."""

    def batches(self, size: int) -> Iterator[Batch]:
        """Iterate over this rank's share of the dev examples.

        Args:
            size: largest number of examples in a batch.

        Yields:
            Batches that together hold each example of the share once: uint8 RGB images of shape (n, 3, S, S), and uint8 masks
            of shape (n, S, S) with class ids and 255 for void.
        """
        ...


@dataclass(frozen=True)
class State:
    """The state of a training run between two steps, as stored in a checkpoint.

    Attributes:
        tensors: the network's parameters and buffers, named "model.NAME", and SGD's momenta, named "momentum.NAME". They share
            memory with the network and the optimiser, so later steps change them.
        values: JSON values: "step" (number of steps done), "seed" (of the training), and "schedule" (a dictionary with the
            state of the learning-rate schedule).
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of a finished training run.

    Attributes:
        steps: number of optimiser steps done.
        epochs: number of epochs done. It is a fraction if `max_steps` ended the training within an epoch.
        dev_mean_iou: mean IoU (0–1) of the final network on the dev examples. None if there are no dev examples.
        best_dev_mean_iou: highest mean IoU on the dev examples after any epoch. None if there was no such evaluation.
    """

    steps: int
    epochs: float
    dev_mean_iou: float | None
    best_dev_mean_iou: float | None


Report = Callable[[dict[str, float], State | None], None]
"""A function that every rank calls with metrics by name, and with the training state if a checkpoint must be saved (else None).
"""
