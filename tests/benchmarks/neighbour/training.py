"""The neighbour's training loop: a budget of time or steps, checkpoints, and a history that is part of them.

It needs torch alone, whichever network it is given.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from proposals.masks import VOID_ID

CHECKPOINT_SECONDS = 40
"""Wall-clock time between checkpoints: no more work is lost if the process is killed."""


@dataclass(frozen=True)
class Recipe:
    """What decides on the outcome of a training. A run folder has one, and is continued with the same only.

    Attributes:
        minutes: budget: processor time of all threads, divided by `threads`. It is that of an idle machine with as many cores;
            what else runs on the machine, dev evaluations and loading don't count. 0 if `steps` is given.
        steps: budget in steps. 0 if `minutes` is given.
        threads: torch's threads.
        seed: seed of dev, order, augmentation and the decoder's initial weights.
        batch: crops a step.
        crop: side of a crop, px.
        lr: initial learning rate of the decoder, for AdamW. It falls with the share of the budget that is left, to the power of
            0.9.
        encoder_lr_factor: that of the pretrained encoder, as a share of `lr`.
        weight_decay: AdamW's.
        warmup: share of the budget in which the rate rises from 0.
    """

    minutes: float = 0.0
    steps: int = 0
    threads: int = 2
    seed: int = 0
    batch: int = 16
    crop: int = 256
    lr: float = 2e-3
    encoder_lr_factor: float = 0.3
    weight_decay: float = 0.01
    warmup: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a recipe with two budgets, or none.

        Raises:
            ValueError: if not exactly one of `minutes` and `steps` is above 0.
        """
        if (self.minutes > 0) == (self.steps > 0):
            raise ValueError(f"give either minutes or steps, not minutes {self.minutes:g} and steps {self.steps}")

    def share_done(self, progress: "Progress") -> float:
        """Return the share of the budget that is used, 0 to 1."""
        return min(1.0, progress.step / self.steps if self.steps else progress.cpu_seconds / self.threads / (60 * self.minutes))

    def rate(self, share_done: float) -> float:
        """Return the learning rate of the decoder when this share of the budget is used."""
        return self.lr * (1 - share_done) ** 0.9 * min(1.0, (share_done + 1e-3) / (self.warmup + 1e-3))


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: steps done.
        cpu_seconds: processor time of the steps, batches included.
        wall_seconds: time on the clock that they took.
        history: reports: dicts of step, minutes, loss and, at times, dev_mean_iou.
    """

    step: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


Batch = Callable[[int], tuple[torch.Tensor, torch.Tensor]]
"""Makes images (N, 3, S, S) and masks (N, S, S) of a step, from 0."""


class Run:
    """A training in a folder, which is continued where it was left.

    Attributes:
        network: the network, in training mode between steps.
        progress: how far it is.
    """

    def __init__(self, folder: Path, recipe: Recipe, network: nn.Module, encoder: nn.Module) -> None:
        """Begin or resume a training.

        Args:
            folder: folder of the run; made if it is absent.
            recipe: what to do.
            network: the network with its initial weights. They are replaced if the folder has a checkpoint.
            encoder: the part of the network that is pretrained.

        Raises:
            ValueError: if the folder was begun with another recipe.
        """
        self.folder, self.recipe, self.network, self.progress = folder, recipe, network, Progress()
        known = {id(parameter) for parameter in encoder.parameters()}
        others = [parameter for parameter in network.parameters() if id(parameter) not in known]
        groups = [{"params": list(encoder.parameters()), "factor": recipe.encoder_lr_factor}, {"params": others, "factor": 1.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / "recipe.json"
        if not written.exists():
            written.write_text(json.dumps(asdict(recipe), indent=1))
        before = json.loads(written.read_text())
        if changed := {name: before.get(name) for name, value in asdict(recipe).items() if before.get(name) != value}:
            raise ValueError(f"{folder} was begun with {changed}: give the same options, or another folder")
        if self._checkpoint.exists():
            state = torch.load(self._checkpoint, weights_only=True)
            network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
        self.network.train()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def is_done(self) -> bool:
        """Whether the budget is used up."""
        return self.recipe.share_done(self.progress) >= 1

    def save(self) -> None:
        """Write the checkpoint, complete or not at all."""
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        torch.save(state, unfinished := self._checkpoint.with_suffix(".unfinished"))
        unfinished.replace(self._checkpoint)

    def step(self, batch: Batch) -> float:
        """Do a step, which counts towards the budget, and return its loss."""
        wall, cpu = time.perf_counter(), time.process_time()
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.progress.step)  # for dropout, if the network has any
        rate = self.recipe.rate(self.recipe.share_done(self.progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        images, masks = batch(self.progress.step)
        scores = self.network(images.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(scores, masks.long(), ignore_index=VOID_ID)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} after {self.progress.step} steps: lower the learning rate")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.progress.step += 1
        self.progress.cpu_seconds += time.process_time() - cpu
        self.progress.wall_seconds += time.perf_counter() - wall
        return loss.item()

    def train(self, batch: Batch, report_every: int, dev_every: int, dev: Callable[[], float]) -> None:
        """Do the steps that are left, with reports and checkpoints.

        Args:
            batch: makes the examples of a step.
            report_every: steps between two reports of the mean loss since the one before.
            dev_every: steps between two measurements of `dev`, which don't count towards the budget. A multiple of
                `report_every`.
            dev: computes the mean IoU on dev.
        """
        saved, losses = time.monotonic(), []
        while not self.is_done:
            losses.append(self.step(batch))
            done = self.progress
            if done.step % report_every == 0 or self.is_done:
                line = {"step": done.step, "minutes": round(done.cpu_seconds / self.recipe.threads / 60, 3)}
                line |= {"loss": round(sum(losses) / len(losses), 4)}
                if done.step % dev_every == 0 or self.is_done:
                    self.network.eval()
                    line["dev_mean_iou"] = round(dev(), 4)
                    self.network.train()
                done.history.append(line)
                losses = []
                print(json.dumps(line | self.speed()), flush=True)
            if self.is_done or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()

    def speed(self) -> dict[str, float]:
        """Return how many images a second were trained on, by the processor time of `threads` cores and by the clock."""
        images, cpu, wall = self.progress.step * self.recipe.batch, self.progress.cpu_seconds, self.progress.wall_seconds
        return {"images_per_second": round(images * self.recipe.threads / cpu, 2), "by_the_clock": round(images / wall, 2)}
