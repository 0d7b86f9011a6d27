"""Running metrics of a training: loss, accuracy and speed between two reports, and the time of each phase of a step."""

import time
from typing import Any

import torch
from torch import Tensor

from deconvnet.training.distributed import rank_and_world_size, sum_over_ranks

PHASES = (
    "waiting_for_data",
    "copy_to_device",
    "forward_and_backward",
    "all_reduce",
    "optimiser",
    "checkpoints",
    "validation",
    "batch_norm",
)
"""What the time of a training is spent on.

* `waiting_for_data`: waiting for the next batch.
* `copy_to_device`: copying a batch to the GPU. On a CPU its memory layout is changed.
* `forward_and_backward`: computing the loss and the gradients. If batch norm is synchronised, this includes its communication.
* `all_reduce`: waiting for the other workers, and averaging the gradients, as far as it is not hidden behind the backward pass.
* `optimiser`: clipping of gradients and the step of SGD.
* `checkpoints`: reports of metrics, and checkpoints.
* `validation`: evaluation on the dev examples.
* `batch_norm`: recomputation of batch norm's statistics at the end.
"""


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


class StepTimes:
    """A stopwatch that divides the whole time of a training among the phases in `PHASES`.

    `lap` ends a phase, and the next one begins at once. On a GPU, laps are events in its stream of work: they measure when the
    GPU reaches them, and neither the CPU nor the GPU waits for them before `read`.
    """

    def __init__(self, device: torch.device) -> None:
        """Start the stopwatch.

        Args:
            device: the device that the network is computed on.
        """
        self._clock = _CudaClock() if device.type == "cuda" else _Clock()
        self._start = self._clock.mark()
        self._laps: list[tuple[str, Any]] = []
        self._totals = dict.fromkeys(PHASES, 0.0)
        self._steps = 0

    def lap(self, phase: str) -> None:
        """End a phase.

        Args:
            phase: its name, one of `PHASES`. A step has exactly one phase "optimiser", by which steps are counted.
        """
        self._laps.append((phase, self._clock.mark()))

    def read(self) -> dict[str, float]:
        """Return the mean time of a step since the last call, over all ranks (training processes).

        Every rank must call this. On a GPU it waits for the end of the last phase.

        Returns:
            Seconds a step, as metrics named "time.PHASE_s". {} if there was no step.
        """
        found = dict.fromkeys(PHASES, 0.0)
        for phase, mark in self._laps:
            found[phase] += self._clock.seconds(self._start, mark)
            self._start = mark
        steps = sum(phase == "optimiser" for phase, _ in self._laps)
        self._laps.clear()
        sums = sum_over_ranks(torch.tensor(list(found.values()), dtype=torch.float64)) / rank_and_world_size()[1]
        found = dict(zip(PHASES, sums.tolist(), strict=True))
        self._steps += steps
        self._totals = {phase: self._totals[phase] + seconds for phase, seconds in found.items()}
        return {f"time.{phase}_s": seconds / steps for phase, seconds in found.items()} if steps else {}

    def means(self) -> dict[str, float]:
        """Return how long a step took on average, from the start to the last call of `read`.

        Returns:
            Seconds a step by phase. {} if there was no step.
        """
        return {phase: seconds / self._steps for phase, seconds in self._totals.items()} if self._steps else {}


class _Clock:
    """The clock of the CPU. Its marks are seconds."""

    def mark(self) -> Any:
        """Return the present time as a mark."""
        return time.perf_counter()

    def seconds(self, start: Any, stop: Any) -> float:
        """Return the seconds between two marks."""
        return float(stop - start)


class _CudaClock(_Clock):
    """The clock of the current GPU. Its marks are events, which the GPU records when it has done all work requested before."""

    def mark(self) -> torch.cuda.Event:
        """Append an event to the work of the GPU, and return it."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        """Return the seconds between two events. This waits until the GPU has reached the second one."""
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1000
