"""The sums that a training run keeps between two reports, to log loss, accuracy and speed."""

import time

import torch
from torch import Tensor

from deconvnet.training.distributed import sum_over_ranks


class Meter:
    """The sums from which loss, accuracy and speed since the last report are computed.

    They stay on the device (such as a GPU) until they are read, so that adding to them does not make the training wait.
    """

    def __init__(self) -> None:
        """Start with empty sums, and start the clock by which the speed is measured."""
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._steps = 0
        self._examples = 0
        self._since = time.perf_counter()

    def add(self, loss: Tensor, correct: Tensor | None) -> None:
        """Add the results of a micro-batch (the examples that this rank computes at once).

        Args:
            loss: the micro-batch's contribution to the loss of the step, a scalar tensor on the device.
            correct: number of correctly classified pixels, a scalar tensor on the device. None if they were not counted.
        """
        self._losses.append(loss)
        if correct is not None:
            self._correct.append(correct)

    def count_step(self, examples: int) -> None:
        """Count an optimiser step and its examples.

        Args:
            examples: number of examples in the global batch (over all ranks, which are the training processes).
        """
        self._steps += 1
        self._examples += examples

    def read(self, valid_pixels: int) -> dict[str, float]:
        """Compute the metrics since this object was made, over all ranks (training processes).

        Every rank must call this, after at least one step.

        Args:
            valid_pixels: number of non-void pixels in the global batch of the last step. The number of correct pixels is
                divided by it. So the correct pixels must have been counted in this step only.

        Returns:
            "loss" (mean over the steps), "pixel_accuracy" (0–1, of the last step) and "samples_per_s" (examples per second).
        """
        sums = torch.stack([torch.stack(self._losses).sum().double(), torch.stack(self._correct).sum().double()])
        loss, correct = sum_over_ranks(sums.cpu()).tolist()
        speed = self._examples / (time.perf_counter() - self._since)
        return {"loss": loss / self._steps, "pixel_accuracy": correct / max(valid_pixels, 1), "samples_per_s": speed}
