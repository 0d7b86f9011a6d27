"""The training loop, in plain PyTorch: a network and shares of global batches in, metrics and checkpoints out.

It is the same loop for one process and for any number of them (torch.distributed, one rank each): the global batch stays the same
by accumulation over micro-batches, and the loss is the mean over the non-void pixels of the global batch. Random numbers (dropout)
are seeded before each step from seed, step and rank, so a checkpoint holds the random state by holding seed and step.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.models.sync_batchnorm import convert_sync, recompute_statistics
from deconvnet.training.optimizer import Schedule, make_sgd, set_rate
from deconvnet.training.sampler import micro_batches, nearly_equal
from infra.errors import Interrupted, UserError
from proposals.masks import VOID_ID

if TYPE_CHECKING:
    from deconvnet.settings import StageSettings

SYNC_BELOW = 32
"""Batch norm is synchronised over the workers where one of them normalises fewer examples than this at once."""

Batch = tuple[np.ndarray, np.ndarray]


class Diverged(UserError):
    """The loss is no number any more. Every rank raises it, at the same step."""


class Network(Protocol):
    """What is trained: an `nn.Module` of scores (N, C, H, W) that prepares its own input from uint8 (N, 3, H, W) RGB."""

    def prepare(self, images: Tensor) -> Tensor: ...


class BatchLoader(Protocol):
    """A rank's share of each global batch: uint8 images (n, 3, H, W) RGB and labels (n, H, W), 255 = void.

    Ranks' shares may differ by one example.
    """

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]: ...


class DevLoader(Protocol):
    """A rank's share of the examples that training is judged by, in batches of at most `size`."""

    def batches(self, size: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class State:
    """A training between two steps: tensors by name (the network's and SGD's momenta; not copies), and JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A training that has come to its end. `dev_mean_iou` is the final network's, `best_dev_mean_iou` the best epoch's."""

    steps: int
    epochs: float
    dev_mean_iou: float | None
    best_dev_mean_iou: float | None


Report = Callable[[dict[str, float], State | None], None]


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over ranks of a tensor on the CPU (gloo)."""
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(values)
    return values


def train(
    model: nn.Module,
    loader: BatchLoader,
    settings: "StageSettings",
    *,
    num_classes: int,
    seed: int,
    dev: DevLoader | None = None,
    device: torch.device | str = "cpu",
    bf16: bool = False,
    state: State | None = None,
    report: Report = lambda metrics, state: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train `model` (a `Network`) in place, from its first step or from `state`.

    `settings.batch` must be at least the number of ranks. `report(metrics, state)` is called at the same steps on every rank: every
    `log_every` steps and where a checkpoint is due, with the state to be kept then; a state may be gone on from by any number of ranks.
    `should_stop` is asked before each step; if any rank says yes, all report a checkpoint and raise Interrupted. `bf16` computes in
    bfloat16 by autocast. The network of the last step is the result, as in the paper, and not the best epoch's.

    Raises Diverged where the loss is not finite.
    """
    rank, world = rank_and_world_size()
    device = torch.device(device)
    pieces = micro_batches(settings.batch, world, settings.micro_batch)
    smallest, largest = settings.batch // (world * pieces), -(-settings.batch // (world * pieces))  # examples in a piece
    # Convolutions on CPUs (oneDNN) and on tensor cores are faster with channels last; it changes no value's meaning.
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if world > 1 and smallest < SYNC_BELOW:
        model = convert_sync(model)
    optimiser = make_sgd(model, settings)
    epoch_steps = loader.steps_per_epoch
    total = min(settings.epochs * epoch_steps, settings.max_steps or settings.epochs * epoch_steps)
    schedule = Schedule.of(settings, total)
    step = restore(state, model, optimiser, schedule, seed) if state else 0
    network = _distributed(model, device) if world > 1 else model
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    meter = Meter()
    final: float | None = None

    def now() -> State:
        return capture(model, optimiser, schedule, seed, step)

    model.train()
    for images, labels in loader.batches(step, total) if step < total and not schedule.finished else ():
        counted, stop = sum_over_ranks(
            torch.tensor([np.count_nonzero(labels != VOID_ID), should_stop()], dtype=torch.int64)
        ).tolist()
        if stop:
            report({"step": step, "epoch": step / epoch_steps}, now())
            raise Interrupted(f"stopped after step {step}")
        torch.manual_seed(_mixed(seed, step, rank))
        set_rate(optimiser, rate := schedule.rate(step))
        step += 1
        logs, ends = step % settings.log_every == 0, step % epoch_steps == 0 or step == total
        due = ends or step % settings.checkpoint_every == 0
        for piece in (parts := nearly_equal(len(images), pieces)):
            x, truth = _tensors(images[piece.start : piece.stop], labels[piece.start : piece.stop], device)
            with network.no_sync() if isinstance(network, DistributedDataParallel) and piece != parts[-1] else nullcontext():
                with autocast:
                    scores = network(cast(Network, model).prepare(x))
                loss = F.cross_entropy(scores.float(), truth, ignore_index=VOID_ID, reduction="sum") / max(counted, 1)
                (loss * world).backward()  # DDP averages gradients over the ranks; the loss is already a share of the mean
            meter.add(loss.detach(), (scores.detach().argmax(1) == truth).sum() if logs or due else None)
        if settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        meter.step(settings.batch)

        if logs or due:
            metrics = {"step": step, "epoch": step / epoch_steps, "lr": rate, **meter.read(counted)}
            if not math.isfinite(metrics["loss"]):
                raise Diverged(f"the loss is {metrics['loss']} by step {step}: lower lr (now {settings.lr:g}), or set grad_clip")
            if ends and dev is not None:
                found = evaluate(model, dev, num_classes, device, largest, bf16)
                schedule.observe(found.mean_iou)
                final = found.mean_iou
                metrics |= {"dev_mean_iou": found.mean_iou, "dev_pixel_accuracy": found.pixel_accuracy}
                model.train()
            report(metrics, now() if due else None)
            meter = Meter()
        if ends and schedule.finished:
            break

    if settings.bn_batches and _has_norm(model):
        first = settings.epochs * epoch_steps  # the order of an epoch that training did not come to
        batches = loader.batches(first, first + settings.bn_batches)
        prepared = (
            cast(Network, model).prepare(_tensors(images[p.start : p.stop], labels[p.start : p.stop], device)[0])
            for images, labels in batches
            for p in nearly_equal(len(images), pieces)
        )
        with autocast:
            recompute_statistics(model, prepared)
        final = None
    if dev is not None:
        if final is None:
            final = evaluate(model, dev, num_classes, device, largest, bf16).mean_iou
        report({"step": step, "epoch": step / epoch_steps, "final_dev_mean_iou": final}, None)
    return Outcome(step, step / epoch_steps, final, schedule.best)


def evaluate(
    model: nn.Module, dev: DevLoader, num_classes: int, device: torch.device | str = "cpu", batch: int = 32, bf16: bool = False
) -> ConfusionMatrix:
    """The confusion matrix of `model` over the dev examples of all ranks. Leaves the model in evaluation mode."""
    device = torch.device(device)
    _share_buffers(model)
    model.eval()
    found = ConfusionMatrix(num_classes)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for images, labels in dev.batches(batch):
            x, _ = _tensors(images, labels, device)
            found.update(labels, model(cast(Network, model).prepare(x)).argmax(1).to(torch.uint8).cpu().numpy())
    return ConfusionMatrix(num_classes, sum_over_ranks(torch.from_numpy(found.matrix)).numpy())


def capture(model: nn.Module, optimiser: torch.optim.SGD, schedule: Schedule, seed: int, step: int) -> State:
    """The state after `step` steps."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in _named_parameters(optimiser):
        if (momentum := optimiser.state[parameter].get("momentum_buffer")) is not None:
            tensors[f"momentum.{name}"] = momentum
    return State(tensors, {"step": step, "seed": seed, "schedule": schedule.state_dict()})


def restore(state: State, model: nn.Module, optimiser: torch.optim.SGD, schedule: Schedule, seed: int) -> int:
    """Put everything back as `capture` found it; returns the number of steps done. Raises UserError for another training's state."""
    weights = {name.removeprefix("model."): value for name, value in state.tensors.items() if name.startswith("model.")}
    expected = model.state_dict()
    if state.values["seed"] != seed or {n: v.shape for n, v in weights.items()} != {n: v.shape for n, v in expected.items()}:
        raise UserError("the checkpoint belongs to a training with another network or seed: remove it, or take its settings")
    model.load_state_dict(weights)
    for name, parameter in _named_parameters(optimiser):
        if (momentum := state.tensors.get(f"momentum.{name}")) is not None:
            optimiser.state[parameter]["momentum_buffer"] = momentum.detach().to(parameter.device, copy=True)
    schedule.load_state_dict(state.values["schedule"])
    return int(state.values["step"])


class Meter:
    """Sums of what is logged, on the device, since it was made."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.steps = 0
        self.examples = 0
        self.since = time.perf_counter()

    def add(self, loss: Tensor, correct: Tensor | None) -> None:
        """A micro-batch: its part of the step's loss, and its right pixels where they are counted."""
        self.losses.append(loss)
        if correct is not None:
            self.correct.append(correct)

    def step(self, examples: int) -> None:
        """A step is done, of so many examples over all ranks."""
        self.steps += 1
        self.examples += examples

    def read(self, counted: int) -> dict[str, float]:
        """Mean loss over the steps, pixel accuracy of the last of them (with `counted` pixels), examples a second; all ranks'."""
        sums = torch.stack([torch.stack(self.losses).sum().double(), torch.stack(self.correct).sum().double()])
        loss, correct = sum_over_ranks(sums.cpu()).tolist()
        speed = self.examples / (time.perf_counter() - self.since)
        return {"loss": loss / self.steps, "pixel_accuracy": correct / max(counted, 1), "samples_per_s": speed}


def _tensors(images: np.ndarray, labels: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 arrays -> uint8 images and int64 labels on the device."""
    x, y = (torch.from_numpy(np.require(a, requirements=("C", "W"))) for a in (images, labels))
    if device.type == "cuda":
        x, y = x.pin_memory(), y.pin_memory()
    x = x.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
    return x, y.to(device, non_blocking=True).long()


def _distributed(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    ids = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def _share_buffers(model: nn.Module) -> None:
    """Rank 0's batch-norm statistics, which are the ones that are kept, on every rank."""
    if rank_and_world_size()[1] > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _named_parameters(optimiser: torch.optim.SGD) -> Iterator[tuple[str, nn.Parameter]]:
    for group in optimiser.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _has_norm(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def _mixed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
