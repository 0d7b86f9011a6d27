"""The training loop in plain PyTorch: a network and batches in, metrics and checkpoints out.

One process and many (torch.distributed, a rank each) learn the same: the global batch does not depend on the number of ranks, and
the loss is the mean over its non-void pixels. Dropout's random numbers are seeded before each step from seed, step and rank, so a
checkpoint that holds seed and step holds the random state.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.models.sync_batchnorm import convert_sync, recompute_statistics
from deconvnet.training.interfaces import Batch, BatchLoader, DevLoader, Outcome, Report, SegmentationNetwork, State
from deconvnet.training.optimizer import Schedule, make_sgd, named_parameters, set_rate
from deconvnet.training.sampler import even_ranges, micro_batch_count
from infra.errors import Interrupted, UserError
from proposals.masks import VOID_ID

if TYPE_CHECKING:
    from deconvnet.settings import StageSettings

SYNC_BELOW = 32
"""Batch norm is synchronised over the ranks where one of them would normalise over fewer examples than this."""


class Diverged(UserError):
    """The loss is infinite or not a number. Every rank raises it, at the same step."""


class Trainer:
    """Trains a network by SGD; each rank of torch.distributed makes one, or a single process does.

    Attributes:
        step: optimiser steps done.
        total_steps: the most that the settings allow.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: "StageSettings",
        loader: BatchLoader,
        *,
        seed: int,
        dev: DevLoader | None = None,
        device: torch.device | str = "cpu",
        bf16: bool = False,
    ) -> None:
        """Move the model to the device and prepare its optimiser and schedule.

        Args:
            model: a `SegmentationNetwork`; trained in place. Rank 0's weights are used on all ranks.
            settings: batch size, epochs, learning rate, schedule, …
            loader: this rank's share of the batches.
            seed: of dropout.
            dev: this rank's share of the examples evaluated on after each epoch; None for no evaluation.
            device: where to compute.
            bf16: compute the network in bfloat16; weights and the loss stay float32.
        """
        self.settings, self.loader, self.dev, self.seed, self.bf16 = settings, loader, dev, seed, bf16
        self.device = torch.device(device)
        self.rank, self.world_size = rank_and_world_size()
        self.micro_batches = micro_batch_count(settings.batch, self.world_size, settings.micro_batch)
        # Convolutions on CPUs (oneDNN) and on tensor cores are faster with channels last; it changes no value's meaning.
        model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.world_size > 1 and settings.batch // (self.world_size * self.micro_batches) < SYNC_BELOW:
            model = convert_sync(model)
        self.model = self._network = model  # `fit` wraps the latter in DDP
        self.optimiser = make_sgd(model, settings)
        steps = settings.epochs * loader.steps_per_epoch
        self.total_steps = min(steps, settings.max_steps or steps)
        self.schedule = Schedule(settings, self.total_steps)
        self.step = 0
        self._meter = Meter()
        self._dev_mean_iou: float | None = None  # of the network as it is now

    def fit(
        self,
        *,
        report: Report = lambda metrics, state: None,
        should_stop: Callable[[], bool] = lambda: False,
        should_save: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Train from the current step to the end.

        Args:
            report: called every `log_every` steps with the loss, at the end of each epoch with the dev scores, and with the state
                every `checkpoint_every` steps and at the end of each epoch.
            should_stop: checked before each step; True on any rank stops all.
            should_save: checked before each step; True on any rank makes a checkpoint due after it.

        Returns:
            Steps, epochs and dev scores.

        Raises:
            Interrupted: if a stop was requested; `report` was given the state before.
            Diverged: if the loss is not finite.
        """
        self._network = self._distributed() if self.world_size > 1 else self.model
        self.model.train()
        self._meter = Meter()
        for images, masks in self._remaining_batches():
            flags = [np.count_nonzero(masks != VOID_ID), should_stop(), should_save()]
            valid_pixels, stop, save = sum_over_ranks(torch.tensor(flags, dtype=torch.int64)).tolist()
            if stop:
                report(self._position(), self.state_dict())
                raise Interrupted(f"stopped after step {self.step}")
            due = bool(save) or self._checkpoint_is_due(self.step + 1)
            logs = due or (self.step + 1) % self.settings.log_every == 0
            rate = self.train_step(images, masks, valid_pixels, count_correct=logs)
            if logs:
                metrics = {**self._position(), "lr": rate, **self._loss_metrics(valid_pixels)}
                if self._ends_epoch(self.step):
                    metrics |= self._evaluate_epoch()
                report(metrics, self.state_dict() if due else None)
                self._meter = Meter()
            if self._ends_epoch(self.step) and self.schedule.finished:
                break
        if self.settings.bn_batches and _has_batch_norm(self.model):
            self._recompute_batch_norm()
        if self.dev is not None:
            if self._dev_mean_iou is None:
                self._dev_mean_iou = self.evaluate().mean_iou
            report({**self._position(), "final_dev_mean_iou": self._dev_mean_iou}, None)
        return Outcome(self.step, self.step / self.loader.steps_per_epoch, self._dev_mean_iou, self.schedule.best)

    def train_step(self, images: np.ndarray, masks: np.ndarray, valid_pixels: int, count_correct: bool) -> float:
        """Do one optimiser step on a global batch, in micro-batches where the settings ask for them.

        Args:
            images: this rank's share: uint8 (n, 3, S, S), RGB.
            masks: uint8 (n, S, S), class ids, 255 = void.
            valid_pixels: non-void pixels of the global batch.
            count_correct: whether to count the correctly classified pixels, which takes an arg max.

        Returns:
            The learning rate used.
        """
        torch.manual_seed(_step_seed(self.seed, self.step, self.rank))
        rate = self.schedule.rate(self.step)
        set_rate(self.optimiser, rate)
        pieces = even_ranges(len(images), self.micro_batches)
        for piece in pieces:
            x, truth = self._to_device(images[piece.start : piece.stop], masks[piece.start : piece.stop])
            with self._gradient_sync(last=piece == pieces[-1]):
                with self._autocast():
                    scores = self._network(self._prepare(x))
                loss = F.cross_entropy(scores.float(), truth, ignore_index=VOID_ID, reduction="sum") / max(valid_pixels, 1)
                (loss * self.world_size).backward()  # DDP averages gradients over ranks; the loss is a share of the mean already
            self._meter.add(loss.detach(), (scores.detach().argmax(1) == truth).sum() if count_correct else None)
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._meter.count_step(self.settings.batch)
        self.step += 1
        self._dev_mean_iou = None
        return rate

    def evaluate(self) -> ConfusionMatrix:
        """Return the confusion matrix of the model over the dev examples of all ranks; leaves the model in evaluation mode."""
        if self.dev is None:
            raise ValueError("there are no dev examples to evaluate on")
        if self.world_size > 1:  # rank 0's batch-norm statistics are those that are saved
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        self.model.eval()
        found = ConfusionMatrix(cast(SegmentationNetwork, self.model).num_classes)
        size = -(-self.settings.batch // (self.world_size * self.micro_batches))
        with torch.inference_mode(), self._autocast():
            for images, masks in self.dev.batches(size):
                x, _ = self._to_device(images, masks)
                found.update(masks, self.model(self._prepare(x)).argmax(1).to(torch.uint8).cpu().numpy())
        return ConfusionMatrix(found.num_classes, sum_over_ranks(torch.from_numpy(found.matrix)).numpy())

    def state_dict(self) -> State:
        """Return what a checkpoint keeps."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in named_parameters(self.optimiser):
            if (momentum := self.optimiser.state[parameter].get("momentum_buffer")) is not None:
                tensors[f"momentum.{name}"] = momentum
        return State(tensors, {"step": self.step, "seed": self.seed, "schedule": self.schedule.state_dict()})

    def load_state_dict(self, state: State) -> None:
        """Continue from a checkpoint.

        Args:
            state: of a training of the same network and seed.

        Raises:
            UserError: if it is of another.
        """
        weights = {name.removeprefix("model."): value for name, value in state.tensors.items() if name.startswith("model.")}
        own = self.model.state_dict()
        if state.values["seed"] != self.seed or {n: v.shape for n, v in weights.items()} != {n: v.shape for n, v in own.items()}:
            raise UserError("the checkpoint belongs to a training with another network or seed: remove it, or take its settings")
        self.model.load_state_dict(weights)
        for name, parameter in named_parameters(self.optimiser):
            if (momentum := state.tensors.get(f"momentum.{name}")) is not None:
                self.optimiser.state[parameter]["momentum_buffer"] = momentum.detach().to(parameter.device, copy=True)
        self.schedule.load_state_dict(state.values["schedule"])
        self.step = int(state.values["step"])

    def _remaining_batches(self) -> Iterator[Batch]:
        """Yield the batches from the current step on; none if the training is finished."""
        if self.step < self.total_steps and not self.schedule.finished:
            yield from self.loader.batches(self.step, self.total_steps)

    def _ends_epoch(self, step: int) -> bool:
        """True if an epoch, or the training, ends after `step` steps."""
        return step % self.loader.steps_per_epoch == 0 or step == self.total_steps

    def _checkpoint_is_due(self, step: int) -> bool:
        """True if the settings ask for a checkpoint after `step` steps."""
        return self._ends_epoch(step) or step % self.settings.checkpoint_every == 0

    def _position(self) -> dict[str, float]:
        """Return the step and epoch of a report."""
        return {"step": self.step, "epoch": self.step / self.loader.steps_per_epoch}

    def _loss_metrics(self, valid_pixels: int) -> dict[str, float]:
        """Read the meter. Raises Diverged."""
        metrics = self._meter.read(valid_pixels)
        if not math.isfinite(loss := metrics["loss"]):
            raise Diverged(f"the loss is {loss} by step {self.step}: lower lr (now {self.settings.lr:g}), or set grad_clip")
        return metrics

    def _evaluate_epoch(self) -> dict[str, float]:
        """Evaluate on the dev examples, if there are any, and let the schedule see the score."""
        if self.dev is None:
            return {}
        found = self.evaluate()
        self.model.train()
        self.schedule.observe(found.mean_iou)
        self._dev_mean_iou = found.mean_iou
        return {"dev_mean_iou": found.mean_iou, "dev_pixel_accuracy": found.pixel_accuracy}

    def _recompute_batch_norm(self) -> None:
        """Recompute batch norm's statistics over batches of an epoch that training did not come to."""
        first = self.settings.epochs * self.loader.steps_per_epoch
        inputs = (
            self._prepare(self._to_device(images[piece.start : piece.stop], masks[piece.start : piece.stop])[0])
            for images, masks in self.loader.batches(first, first + self.settings.bn_batches)
            for piece in even_ranges(len(images), self.micro_batches)
        )
        with self._autocast():
            recompute_statistics(self.model, inputs)
        self._dev_mean_iou = None

    def _prepare(self, images: Tensor) -> Tensor:
        """Turn uint8 images into the network's input."""
        return cast(SegmentationNetwork, self.model).prepare(images)

    def _autocast(self) -> torch.autocast:
        """Return the context in which the network is computed: in bfloat16 if `bf16`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of a backward pass; DDP averages gradients only at the last micro-batch."""
        network = self._network
        return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()

    def _distributed(self) -> DistributedDataParallel:
        """Wrap the model in DDP, which first copies rank 0's weights to all ranks."""
        ids = None
        if self.device.type == "cuda":
            ids = [self.device.index if self.device.index is not None else torch.cuda.current_device()]
        return DistributedDataParallel(self.model, device_ids=ids, gradient_as_bucket_view=True)

    def _to_device(self, images: np.ndarray, masks: np.ndarray) -> tuple[Tensor, Tensor]:
        """Copy uint8 arrays to the device: uint8 images in channels_last and int64 masks."""
        x, y = (torch.from_numpy(np.require(a, requirements=("C", "W"))) for a in (images, masks))
        if self.device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        x = x.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return x, y.to(self.device, non_blocking=True).long()


class Meter:
    """Sums of what is logged, kept on the device since the meter was made."""

    def __init__(self) -> None:
        """Begin with nothing added; speed counts from now."""
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._steps = 0
        self._examples = 0
        self._since = time.perf_counter()

    def add(self, loss: Tensor, correct: Tensor | None) -> None:
        """Add a micro-batch.

        Args:
            loss: its part of the step's loss, a scalar on the device.
            correct: its correctly classified pixels; None where they are not counted.
        """
        self._losses.append(loss)
        if correct is not None:
            self._correct.append(correct)

    def count_step(self, examples: int) -> None:
        """Count a step of `examples` examples over all ranks."""
        self._steps += 1
        self._examples += examples

    def read(self, valid_pixels: int) -> dict[str, float]:
        """Return the means over all ranks.

        Args:
            valid_pixels: non-void pixels of the last step, the only one whose correct pixels were counted.

        Returns:
            "loss" (mean over the steps), "pixel_accuracy" (of the last step), "samples_per_s".
        """
        sums = torch.stack([torch.stack(self._losses).sum().double(), torch.stack(self._correct).sum().double()])
        loss, correct = sum_over_ranks(sums.cpu()).tolist()
        speed = self._examples / (time.perf_counter() - self._since)
        return {"loss": loss / self._steps, "pixel_accuracy": correct / max(valid_pixels, 1), "samples_per_s": speed}


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes: (0, 1) outside torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a CPU tensor over all ranks (gloo), in place, and return it."""
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(values)
    return values


def _has_batch_norm(model: nn.Module) -> bool:
    """True if a model has batch norm of any kind."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Mix seed, step (from 0) and rank into the seed of torch's random numbers."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
