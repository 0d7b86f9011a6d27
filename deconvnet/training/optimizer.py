"""SGD's parameter groups, and the learning rate over a training (§4.3; the released solver's alternatives)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from deconvnet.settings import StageSettings

NORMS = (nn.modules.batchnorm._BatchNorm,)


def parameter_groups(model: nn.Module, weight_decay: float, bias_lr_factor: float = 1.0) -> list[dict[str, Any]]:
    """Groups for an optimiser: {"params", "names", "weight_decay", "gamma"}, empty ones left out.

    Weights decay; biases follow at `bias_lr_factor` × lr and, where that is not 1, don't decay (the released solver); batch norm's
    scale and shift never decay. Frozen parameters are left out.
    """
    norm = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    weights: list[tuple[str, nn.Parameter]] = []
    biases: list[tuple[str, nn.Parameter]] = []
    norms: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = norms if id(parameter) in norm else biases if name.endswith("bias") else weights
            kind.append((name, parameter))
    bias_decay = weight_decay if bias_lr_factor == 1.0 else 0.0
    groups = [(weights, weight_decay, 1.0), (biases, bias_decay, bias_lr_factor), (norms, 0.0, 1.0)]
    return [
        {"params": [p for _, p in members], "names": [n for n, _ in members], "weight_decay": decay, "gamma": factor}
        for members, decay, factor in groups
        if members
    ]


def make_sgd(model: nn.Module, settings: "StageSettings") -> torch.optim.SGD:
    """The stage's optimiser over the trainable parameters of `model`."""
    groups = parameter_groups(model, settings.weight_decay, settings.bias_lr_factor)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def named_parameters(optimiser: torch.optim.SGD) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of an optimiser of `make_sgd`, with their names in the model."""
    for group in optimiser.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to `rate` × the group's factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["gamma"]


@dataclass
class Schedule:
    """The learning rate by step, and whether training should stop.

    plateau: × `factor` after `patience` epochs in which dev mean IoU did not rise; training ends when the rate falls under `min_lr`.
    step: × `factor` every `step_every` steps. poly: lr · (1 − step / total)^0.9. constant: lr.
    Whatever the kind, training ends after `early_stopping_patience` epochs without a rise, where that is set.
    """

    kind: str
    lr: float
    total_steps: int
    step_every: int = 9000
    factor: float = 0.1
    patience: int = 2
    min_lr: float = 0.0
    early_stopping_patience: int | None = None
    # What the epochs so far have shown.
    scale: float = 1.0
    best: float | None = None
    epochs_flat: int = 0  # since the last rise
    epochs_waited: int = 0  # since the last rise or fall of the rate

    @staticmethod
    def of(settings: "StageSettings", total_steps: int) -> "Schedule":
        """The schedule that the stage's settings ask for."""
        return Schedule(
            settings.schedule,
            settings.lr,
            total_steps,
            settings.step_every,
            settings.gamma,
            settings.patience,
            settings.min_lr,
            settings.early_stopping_patience,
        )

    def rate(self, step: int) -> float:
        """Learning rate of the step `step` (from 0)."""
        if self.kind == "step":
            return float(self.lr * self.factor ** (step // self.step_every))
        if self.kind == "poly":
            return float(self.lr * max(0.0, 1 - step / self.total_steps) ** 0.9)
        return self.lr * self.scale

    def observe(self, score: float | None) -> bool:
        """Take in an epoch's dev mean IoU (None or NaN where there is none: nothing is learnt). True if it is the best so far."""
        if score is None or score != score:
            return False
        if self.best is None or score > self.best:
            self.best, self.epochs_flat, self.epochs_waited = score, 0, 0
            return True
        self.epochs_flat += 1
        self.epochs_waited += 1
        if self.kind == "plateau" and self.epochs_waited >= self.patience:
            self.scale *= self.factor
            self.epochs_waited = 0
        return False

    @property
    def finished(self) -> bool:
        """True if no further epoch is worth its time."""
        flat = self.early_stopping_patience is not None and self.epochs_flat >= self.early_stopping_patience
        return flat or (self.kind == "plateau" and self.lr * self.scale < min(self.min_lr, self.lr))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps (JSON)."""
        state = asdict(self)
        return {name: state[name] for name in ("scale", "best", "epochs_flat", "epochs_waited")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in self.state_dict():
            setattr(self, name, state[name])
