"""SGD's parameter groups, and the learning rate over a training (DeconvNet, §6.1; the released solver's alternatives)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from deconvnet.settings import StageSettings

NORMS = (nn.modules.batchnorm._BatchNorm,)


def parameter_groups(model: nn.Module, weight_decay: float, bias_lr_factor: float = 1.0) -> list[dict[str, Any]]:
    """Divide a model's parameters into the groups of an optimiser: weights, biases, and batch norm's scales and shifts.

    Args:
        model: its frozen parameters are left out.
        weight_decay: of weights and, if `bias_lr_factor` is 1, of biases. Batch norm has none.
        bias_lr_factor: factor on the learning rate of biases; if it is not 1, biases have no weight decay (the released solver).

    Returns:
        Non-empty groups with the keys "params", "names", "weight_decay" and "lr_factor" (factor on the learning rate).
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
        {"params": [p for _, p in members], "names": [n for n, _ in members], "weight_decay": decay, "lr_factor": factor}
        for members, decay, factor in groups
        if members
    ]


def make_sgd(model: nn.Module, settings: "StageSettings") -> torch.optim.SGD:
    """Make the optimiser of a training stage.

    Args:
        model: its trainable parameters are optimised.
        settings: learning rate, momentum, weight decay and `bias_lr_factor`.

    Returns:
        SGD with the groups of `parameter_groups`.
    """
    groups = parameter_groups(model, settings.weight_decay, settings.bias_lr_factor)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def named_parameters(optimiser: torch.optim.SGD) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of an optimiser of `make_sgd`, with their names in the model."""
    for group in optimiser.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate.

    Args:
        optimiser: of `make_sgd`.
        rate: multiplied by each group's "lr_factor".
    """
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_factor"]


@dataclass
class Schedule:
    """The learning rate by step, and whether training should stop.

    `settings.schedule` is one of
        plateau: lr × gamma after `patience` epochs in which the dev mean IoU did not rise; training ends when the rate falls below
            `min_lr`;
        step: lr × gamma every `step_every` steps;
        poly: lr · (1 − step / total_steps)^0.9;
        constant: lr.
    With each of them training ends after `early_stopping_patience` epochs without a rise, if that is set.

    Attributes:
        settings: of the training stage.
        total_steps: steps of the whole training.
        scale: plateau: product of the reductions so far.
        best: highest dev mean IoU so far; None before the first.
        epochs_flat: epochs since the last rise.
        epochs_waited: epochs since the last rise or reduction.
    """

    settings: "StageSettings"
    total_steps: int
    scale: float = 1.0
    best: float | None = None
    epochs_flat: int = 0
    epochs_waited: int = 0

    def rate(self, step: int) -> float:
        """Compute a step's learning rate.

        Args:
            step: from 0.
        """
        settings = self.settings
        match settings.schedule:
            case "step":
                return float(settings.lr * settings.gamma ** (step // settings.step_every))
            case "poly":
                return float(settings.lr * max(0.0, 1 - step / self.total_steps) ** 0.9)
        return settings.lr * self.scale

    def observe(self, score: float | None) -> bool:
        """Take in the score of an epoch.

        Args:
            score: dev mean IoU; None or NaN (there is none) changes nothing.

        Returns:
            True if it is the best so far.
        """
        if score is None or score != score:
            return False
        if self.best is None or score > self.best:
            self.best, self.epochs_flat, self.epochs_waited = score, 0, 0
            return True
        self.epochs_flat += 1
        self.epochs_waited += 1
        if self.settings.schedule == "plateau" and self.epochs_waited >= self.settings.patience:
            self.scale *= self.settings.gamma
            self.epochs_waited = 0
        return False

    @property
    def finished(self) -> bool:
        """True if training should end before `total_steps`."""
        settings = self.settings
        patience = settings.early_stopping_patience
        flat = patience is not None and self.epochs_flat >= patience
        return flat or (settings.schedule == "plateau" and settings.lr * self.scale < min(settings.min_lr, settings.lr))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON values."""
        return {name: getattr(self, name) for name in ("scale", "best", "epochs_flat", "epochs_waited")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name in self.state_dict():
            setattr(self, name, state[name])
