"""The training loop, in plain PyTorch.

The loop runs in one process, or in several processes (ranks) of torch.distributed. In both cases the network learns nearly the
same, because the global batch does not depend on the number of ranks, and the loss is the mean over all non-void pixels of the
global batch. Only batch norm's statistics are those of a rank's own examples, unless these are few (`SYNC_BATCH_NORM_BELOW`).

Before each step, the random generator for dropout is seeded with the seed, the step and the rank. So a checkpoint with the seed
and the step is enough to restore the random state.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.models.fused.available import use_fused
from deconvnet.models.fused.loss import summed_cross_entropy
from deconvnet.models.network import Network
from deconvnet.models.sync_batchnorm import convert_sync, recompute_statistics
from deconvnet.training.data.batching import even_ranges, micro_batch_count
from deconvnet.training.data.dataloader import BatchLoader
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.data.device_batches import TensorBatch, host_batch, host_batches, to_device
from deconvnet.training.data.sampler import ORDER_VERSION
from deconvnet.training.distributed import data_parallel, gradient_sync, rank_and_world_size, step_seed, sum_over_ranks
from deconvnet.training.interfaces import ReportFunction, State, TrainingResult
from deconvnet.training.meter import Meter, StepTimes
from deconvnet.training.optimizer import NORMS, Schedule, make_sgd, named_parameters, set_rate
from infra.errors import Interrupted, UserError
from proposals.masks import VOID_ID

if TYPE_CHECKING:
    from deconvnet.settings import StageSettings

SYNC_BATCH_NORM_BELOW = 32
"""Smallest number of examples per rank and forward pass with which batch norm works well on its own.

If a rank would have fewer, batch norm is synchronised over all ranks.
"""


class Diverged(UserError):
    """The error raised when the loss becomes infinite or NaN. All ranks (training processes) raise it at the same step."""


class Trainer:
    """The training loop of a network, with SGD. Each rank (process of torch.distributed) makes its own trainer.

    Attributes:
        step: number of optimiser steps done.
        total_steps: largest number of steps that the settings allow.
    """

    def __init__(
        self,
        model: Network,
        settings: "StageSettings",
        loader: BatchLoader,
        *,
        seed: int,
        dev: DevSet | None = None,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        bf16_allreduce: bool = False,
    ) -> None:
        """Move the model to the device and make its optimiser and learning-rate schedule.

        Args:
            model: the network, which is trained in place. All ranks start from the weights of rank 0.
            settings: settings of the training stage.
            loader: source of this rank's batches.
            seed: seed of the random numbers for dropout.
            dev: source of this rank's dev examples, on which the network is evaluated after each epoch. None: no evaluation.
            device: device to compute on.
            bf16: whether to compute the network in bfloat16. The weights and the loss stay in float32.
            bf16_allreduce: whether the ranks exchange gradients in bfloat16.
        """
        self.settings, self.loader, self.dev, self.seed, self.bf16 = settings, loader, dev, seed, bf16
        self.bf16_allreduce = bf16_allreduce
        self.device = torch.device(device)
        self.rank, self.world_size = rank_and_world_size()
        self.micro_batches = micro_batch_count(settings.batch, self.world_size, settings.micro_batch)
        # Convolutions on CPUs (oneDNN) and on tensor cores are faster in this memory format. It does not change the results.
        model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.world_size > 1 and settings.batch // (self.world_size * self.micro_batches) < SYNC_BATCH_NORM_BELOW:
            convert_sync(model)
        # On all ranks or none: fused and plain synchronised batch norm exchange different numbers, and weights would drift apart.
        if fused := int(sum_over_ranks(torch.tensor(int(use_fused(self.device))))) == self.world_size:
            from deconvnet.models.fused.layers import use_fused_layers  # needs numba

            use_fused_layers(model)
        model.freeze(settings.freeze)
        self.model = model
        self._network: nn.Module = model  # `fit` replaces it by a DDP wrapper
        self.optimiser = make_sgd(model, settings, fused)
        self.total_steps = settings.total_steps(loader.steps_per_epoch)
        self.schedule = Schedule(settings, self.total_steps)
        self.step = 0
        self._meter = Meter()
        self._times = StepTimes(self.device)
        self._dev_mean_iou: float | None = None  # on the dev examples, with the present weights; None if not evaluated

    def fit(
        self,
        *,
        report: ReportFunction = lambda metrics, state: None,
        should_stop: Callable[[], bool] = lambda: False,
        should_save: Callable[[], bool] = lambda: False,
    ) -> TrainingResult:
        """Train from the current step to the end.

        Training ends after `total_steps` steps, or earlier if the schedule is finished. Then, if the settings ask for it, batch
        norm's statistics are recomputed. Finally, the network is evaluated on the dev examples, if there are any.

        Args:
            report: function that gets metrics by name and, if a checkpoint must be saved, the training state (else None). It is
                called after each epoch and every `log_every` steps. It gets the state after each epoch and every
                `checkpoint_every` steps. Both numbers are settings of the stage.
            should_stop: called before each step. If it returns True on any rank (training process), all ranks stop.
            should_save: called before each step. If it returns True on any rank, the state is reported after the step.

        Returns:
            The numbers of steps and epochs, the mean IoU on the dev examples, and the mean time of each phase of a step.

        Raises:
            Interrupted: if `should_stop` returned True. The state was reported before.
            Diverged: if the loss is infinite or NaN.
        """
        self._times = times = StepTimes(self.device)
        if self.world_size > 1:
            self._network = data_parallel(self.model, self.device, lambda: times.lap("forward_and_backward"), self.bf16_allreduce)
        self.model.train()
        self._meter = Meter()
        for images, masks in self._remaining_batches():
            flags = [np.count_nonzero(masks.numpy() != VOID_ID), should_stop(), should_save()]
            times.lap("waiting_for_data")
            valid_pixels, stop, save = sum_over_ranks(torch.tensor(flags, dtype=torch.int64)).tolist()
            times.lap("all_reduce")
            if stop:
                report(self._position(), self.state_dict())
                raise Interrupted(f"stopped after step {self.step}")
            saves_now = bool(save) or self._checkpoint_is_due(self.step + 1)
            reports_now = saves_now or (self.step + 1) % self.settings.log_every == 0
            rate = self.train_step(images, masks, valid_pixels, count_correct=reports_now)
            if reports_now:
                metrics = {**self._position(), "lr": rate, **self._loss_metrics(valid_pixels)}
                if self._ends_epoch(self.step):
                    metrics |= self._evaluate_epoch()
                report(metrics | times.read(), self.state_dict() if saves_now else None)
                times.lap("checkpoints")
                self._meter = Meter()
            if self._ends_epoch(self.step) and self.schedule.finished:
                break
        self._recompute_batch_norm()
        if self.dev is not None:
            if self._dev_mean_iou is None:
                self._dev_mean_iou = self.evaluate().mean_iou
            report({**self._position(), "final_dev_mean_iou": self._dev_mean_iou}, None)
        times.read()
        epochs = self.step / self.loader.steps_per_epoch
        return TrainingResult(self.step, epochs, self._dev_mean_iou, self.schedule.best, times.means())

    def train_step(self, images: Tensor, masks: Tensor, valid_pixels: int, count_correct: bool) -> float:
        """Do one optimiser step on a global batch (the examples of all ranks together).

        This rank's share is computed in smaller pieces (micro-batches) if the settings ask for them.

        Args:
            images: this rank's images: uint8 RGB tensor of shape (n, 3, S, S) on the CPU.
            masks: this rank's masks: uint8 tensor of shape (n, S, S) with class ids and 255 for void, on the CPU.
            valid_pixels: number of non-void pixels in the global batch.
            count_correct: whether to count correctly classified pixels. This costs an additional arg max.

        Returns:
            The learning rate of this step.
        """
        torch.manual_seed(step_seed(self.seed, self.step, self.rank))
        rate = self.schedule.rate(self.step)
        set_rate(self.optimiser, rate)
        pieces = even_ranges(len(images), self.micro_batches)
        for piece in pieces:
            x, truth = to_device((images[piece.start : piece.stop], masks[piece.start : piece.stop]), self.device)
            self._times.lap("copy_to_device")
            last = piece == pieces[-1]
            with gradient_sync(self._network, last):
                with self._autocast():
                    scores = self._network(self.model.prepare(x))
                loss = summed_cross_entropy(scores, truth, VOID_ID, 1 / max(valid_pixels, 1))
                (loss * self.world_size).backward()  # DDP averages the gradients over the ranks, but they must be summed
            self._times.lap("all_reduce" if last and self.world_size > 1 else "forward_and_backward")
            self._meter.add(loss.detach(), (scores.detach().argmax(1) == truth).sum() if count_correct else None)
            self._times.lap("forward_and_backward")
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._times.lap("optimiser")
        self._meter.count_step(self.settings.batch)
        self.step += 1
        self._dev_mean_iou = None
        return rate

    def evaluate(self) -> ConfusionMatrix:
        """Evaluate the model on the dev examples of all ranks (training processes). Every rank must call this.

        The model is in evaluation mode afterwards. The batch-norm statistics of rank 0 are copied to all ranks first.

        Returns:
            The confusion matrix over all dev examples, on every rank.

        Raises:
            ValueError: if the trainer has no dev examples.
        """
        if self.dev is None:
            raise ValueError("there are no dev examples to evaluate on")
        if self.world_size > 1:  # rank 0's batch-norm statistics are saved, so evaluate with them
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        self.model.eval()
        found = ConfusionMatrix(self.model.num_classes)
        size = -(-self.settings.batch // (self.world_size * self.micro_batches))
        with torch.inference_mode(), self._autocast():
            for images, masks in self.dev.batches(size):
                x, _ = to_device(host_batch((images, masks)), self.device)
                found.update(masks, self.model(self.model.prepare(x)).argmax(1).to(torch.uint8).cpu().numpy())
        sum_over_ranks(torch.from_numpy(found.matrix))  # in place
        self._times.lap("validation")
        return found

    def state_dict(self) -> State:
        """Return the training state for a checkpoint. Its tensors are not copied, so later steps change them."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in named_parameters(self.optimiser):
            if (momentum := self.optimiser.state[parameter].get("momentum_buffer")) is not None:
                tensors[f"momentum.{name}"] = momentum
        values = {"step": self.step, "seed": self.seed, "order": ORDER_VERSION, "schedule": self.schedule.state_dict()}
        return State(tensors, values)

    def load_state_dict(self, state: State) -> None:
        """Continue from a checkpoint.

        Args:
            state: training state of a trainer with the same network and seed.

        Raises:
            UserError: if the network or the seed differs, or the checkpoint was made with another order of the examples.
        """
        if state.values.get("order") != ORDER_VERSION:
            raise UserError(
                "the checkpoint was written by another version of this program, with another order of the examples: delete it"
            )
        weights = {name.removeprefix("model."): value for name, value in state.tensors.items() if name.startswith("model.")}
        own = self.model.state_dict()
        if state.values["seed"] != self.seed or {n: v.shape for n, v in weights.items()} != {n: v.shape for n, v in own.items()}:
            raise UserError("the checkpoint is of a training with another network or seed: delete it, or use those settings")
        self.model.load_state_dict(weights)
        for name, parameter in named_parameters(self.optimiser):
            if (momentum := state.tensors.get(f"momentum.{name}")) is not None:
                # in the memory layout of the parameter, which torch's SGD on GPUs takes for granted
                self.optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum.detach())
        self.schedule.load_state_dict(state.values["schedule"])
        self.step = int(state.values["step"])

    def _remaining_batches(self) -> Iterator[TensorBatch]:
        """Iterate over this rank's batches from the current step to the last. There are none if training has finished."""
        if self.step < self.total_steps and not self.schedule.finished:
            yield from self._batches(self.step, self.total_steps)

    def _batches(self, first_step: int, stop_step: int) -> Iterator[TensorBatch]:
        """Iterate over this rank's batches of some steps, as tensors on the CPU."""
        return host_batches(self.loader.batches(first_step, stop_step), self.device)

    def _ends_epoch(self, step: int) -> bool:
        """Return whether an epoch, or the whole training, ends after a step.

        Args:
            step: number of steps done, including this one.
        """
        return step % self.loader.steps_per_epoch == 0 or step == self.total_steps

    def _checkpoint_is_due(self, step: int) -> bool:
        """Return whether a step ends an epoch or is a multiple of the setting `checkpoint_every`.

        Args:
            step: number of steps done, including this one.
        """
        return self._ends_epoch(step) or step % self.settings.checkpoint_every == 0

    def _position(self) -> dict[str, float]:
        """Return the progress for a report: the numbers of finished steps ("step") and epochs ("epoch", a fraction)."""
        return {"step": self.step, "epoch": self.step / self.loader.steps_per_epoch}

    def _loss_metrics(self, valid_pixels: int) -> dict[str, float]:
        """Return the loss, accuracy and speed since the last report. All ranks (training processes) must call this.

        Args:
            valid_pixels: number of non-void pixels in the last global batch.

        Returns:
            "loss", "pixel_accuracy" (0–1) and "samples_per_s".

        Raises:
            Diverged: if the loss is infinite or NaN.
        """
        metrics = self._meter.read(valid_pixels)
        if not math.isfinite(loss := metrics["loss"]):
            raise Diverged(f"the loss is {loss} by step {self.step}: lower lr (now {self.settings.lr:g}), or set grad_clip")
        return metrics

    def _evaluate_epoch(self) -> dict[str, float]:
        """Evaluate the network after an epoch and update the learning-rate schedule. The model is in training mode afterwards.

        Returns:
            The metrics "dev_mean_iou" and "dev_pixel_accuracy" (0–1), or {} if there are no dev examples.
        """
        if self.dev is None:
            return {}
        found = self.evaluate()
        self.model.train()
        self.schedule.observe(found.mean_iou)
        self._dev_mean_iou = found.mean_iou
        return {"dev_mean_iou": found.mean_iou, "dev_pixel_accuracy": found.pixel_accuracy}

    def _recompute_batch_norm(self) -> None:
        """Recompute the running mean and variance of every batch norm with the final weights, if the settings ask for it.

        They are averages over `bn_batches` batches (a setting of the stage). The batches are taken from the epochs that would
        follow the training, and are augmented as in training. The last mean IoU is discarded, as it no longer holds.
        """
        if not self.settings.bn_batches or not any(isinstance(m, NORMS) for m in self.model.modules()):
            return
        first = self.settings.epochs * self.loader.steps_per_epoch
        inputs = (
            self.model.prepare(to_device((images[piece.start : piece.stop], masks[piece.start : piece.stop]), self.device)[0])
            for images, masks in self._batches(first, first + self.settings.bn_batches)
            for piece in even_ranges(len(images), self.micro_batches)
        )
        with self._autocast():
            recompute_statistics(self.model, inputs)
        self._times.lap("batch_norm")
        self._dev_mean_iou = None

    def _autocast(self) -> torch.autocast:
        """Return a context manager in which the network is computed in bfloat16 if the trainer was made with `bf16=True`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
