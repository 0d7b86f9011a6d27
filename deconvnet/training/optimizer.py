"""The SGD optimiser's parameter groups, and the learning rate during training.

The learning-rate schedules come from Noh et al. (ICCV 2015, §6.1) and from Caffe's solver.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from deconvnet.models.fused.available import use_fused
from deconvnet.settings import EncoderBlock, StageSettings

NORMS = (nn.modules.batchnorm._BatchNorm,)
"""Base classes of batch norms of any kind, plain or synchronised."""
ENCODER: tuple[str, ...] = get_args(EncoderBlock)
"""Names of the submodules of both networks that have VGG-16's convolutions."""


def parameter_groups(
    model: nn.Module, weight_decay: float, bias_lr_factor: float = 1.0, encoder_lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Divide a model's parameters into groups for an optimiser: weights, biases, and the parameters of batch norm.

    If `encoder_lr_factor` is not 1, the encoder's parameters have groups of their own.

    Args:
        model: the model. Its frozen parameters are left out.
        weight_decay: weight decay of the weights, and of the biases if `bias_lr_factor` is 1. Batch norm has no weight decay.
        bias_lr_factor: factor on the learning rate of biases. If it is not 1, biases have no weight decay, as in the released
            DeconvNet's training.
        encoder_lr_factor: factor on the learning rate of all parameters of the encoder, which are the submodules named in
            `ENCODER`. It multiplies `bias_lr_factor` where both apply.

    Returns:
        The groups that are not empty. Each has the keys "params", "names" (of the parameters in the model), "weight_decay" and
        "lr_factor" (factor on the learning rate).
    """
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    bias_decay = weight_decay if bias_lr_factor == 1.0 else 0.0
    kinds = {"weight": (weight_decay, 1.0), "bias": (bias_decay, bias_lr_factor), "norm": (0.0, 1.0)}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind = "norm" if id(parameter) in norms else "bias" if name.endswith("bias") else "weight"
        decay, factor = kinds[kind]
        in_encoder = encoder_lr_factor != 1.0 and name.split(".")[0] in ENCODER
        factor *= encoder_lr_factor if in_encoder else 1.0
        empty: dict[str, Any] = {"params": [], "names": [], "weight_decay": decay, "lr_factor": factor}
        group = groups.setdefault((kind, in_encoder), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def make_sgd(model: nn.Module, settings: StageSettings, fused: bool = True) -> torch.optim.SGD:
    """Make the SGD optimiser of a training stage.

    Args:
        model: the model, whose trainable parameters are optimised.
        settings: settings of the stage. Learning rate, momentum, weight decay, `bias_lr_factor` and `encoder_lr_factor` are used.
        fused: whether `FusedSGD` may be used on CPUs. If it is False, or numba cannot compile it, torch's SGD is used.

    Returns:
        The optimiser, with separate parameter groups for weights, biases and batch norm (see `parameter_groups`).
    """
    groups = parameter_groups(model, settings.weight_decay, settings.bias_lr_factor, settings.encoder_lr_factor)
    if all(p.is_cuda for p in model.parameters()):
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
    if fused and all(use_fused(p.device) and p.dtype == torch.float32 for p in model.parameters()):
        from deconvnet.models.fused.cpu.sgd import FusedSGD  # needs numba

        return FusedSGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def named_parameters(optimiser: torch.optim.SGD) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over the parameters of an optimiser.

    Args:
        optimiser: an optimiser made by `make_sgd`.

    Yields:
        The name of each parameter in the model, and the parameter.
    """
    for group in optimiser.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups of an optimiser.

    Args:
        optimiser: an optimiser made by `make_sgd`. Each of its groups has a factor "lr_factor".
        rate: the learning rate. In each parameter group it is multiplied by the group's "lr_factor".
    """
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_factor"]


@dataclass
class Schedule:
    """The learning rate at each step, and the decision when to end the training early.

    The setting `schedule` selects one of these. The names gamma, patience, min_lr, step_every and lr are settings of the stage,
    too. "Dev mean IoU" is the mean IoU on the examples that the network is evaluated on after each epoch.

    * plateau: the rate is multiplied by `gamma` after `patience` epochs without a rise of the dev mean IoU. Training ends when
      the rate falls below `min_lr`.
    * step: the rate is multiplied by `gamma` every `step_every` steps.
    * poly: the rate is lr · (1 − step / total_steps)^0.9.
    * constant: the rate is always lr.

    In addition, if `early_stopping_patience` is set, training ends after this number of epochs without a rise of the dev mean
    IoU.

    Attributes:
        settings: settings of the training stage.
        total_steps: largest number of steps of the whole training.
        scale: factor by which schedule plateau has reduced the rate so far, at most 1.
        best: highest dev mean IoU so far; None before the first evaluation.
        epochs_flat: number of epochs since the last rise of the dev mean IoU.
        epochs_waited: number of epochs since the last rise or the last reduction of the rate, whichever was later.
    """

    settings: StageSettings
    total_steps: int
    scale: float = 1.0
    best: float | None = None
    epochs_flat: int = 0
    epochs_waited: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: number of the step, from 0, counted over all epochs.
        """
        settings = self.settings
        match settings.schedule:
            case "step":
                return float(settings.lr * settings.gamma ** (step // settings.step_every))
            case "poly":
                return float(settings.lr * max(0.0, 1 - step / self.total_steps) ** 0.9)
        return settings.lr * self.scale

    def observe(self, score: float | None) -> bool:
        """Take the result of an epoch into account. With schedule "plateau" this may reduce the learning rate.

        Args:
            score: mean IoU on the dev examples after the epoch. If it is None or NaN, nothing changes.

        Returns:
            True if the score is the highest so far.
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
        """Return whether the training should end now, before the largest number of steps is reached."""
        settings = self.settings
        patience = settings.early_stopping_patience
        flat = patience is not None and self.epochs_flat >= patience
        return flat or (settings.schedule == "plateau" and settings.lr * self.scale < min(settings.min_lr, settings.lr))

    def state_dict(self) -> dict[str, Any]:
        """Return the values that a checkpoint must store to continue the schedule, as JSON values.

        Returns:
            The attributes "scale", "best", "epochs_flat" and "epochs_waited" by name.
        """
        return {name: getattr(self, name) for name in ("scale", "best", "epochs_flat", "epochs_waited")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the schedule from the values in a checkpoint.

        Args:
            state: values that `state_dict` returned.
        """
        for name in self.state_dict():
            setattr(self, name, state[name])
