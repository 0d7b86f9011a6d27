"""VGG-16 pruned to fewer channels in each layer, so that a network narrower than the paper's can start from ImageNet's weights.

Layer by layer, on a sample of inputs (cf. He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017): a
pivoted factorisation of the full network's responses selects the channels to keep, and their weights are regressed on the responses
of the *pruned* network's previous layer, so that each layer corrects the errors of those before it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deconvnet.models.layers import VGG16_CONVOLUTIONS, channels

SAMPLES = 30_000
"""Positions at which a layer's responses are sampled, over all inputs."""
HELD_OUT = 0.1
"""Share of the inputs that nothing is fitted to; R² is measured on them."""
RIDGE = 1e-2
"""Ridge of the regression, relative to the mean variance of its inputs."""
ROUNDS = 8
"""Rounds of `regress` for each layer."""
_BATCH_NORM_EPSILON = 1e-5  # torch's default
_CHUNK = 32  # inputs that go through a layer at once


@dataclass(frozen=True)
class PrunedLayer:
    """A convolution of the pruned network, followed by ReLU.

    Attributes:
        name: VGG-16's name of the layer: "conv1_1" …
        weight: (O, I, 3, 3).
        bias: (O,).
        mean: (O,), mean of its responses to all inputs, before ReLU.
        var: (O,), their biased variance.
        kept_channels: the full network's channels that its outputs stand for, ascending.
        r2: R² of its responses, after ReLU, against the full network's on the held-out inputs.
    """

    name: str
    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    kept_channels: tuple[int, ...]
    r2: float

    def tensors(self) -> dict[str, Tensor]:
        """Split the layer into a convolution and a batch norm after it, which together compute the same.

        With batch norm the scale of weights only decides how fast they turn under a given learning rate. So each output channel's are
        scaled to a squared norm of 2, which He's initialisation has; the weights on pixels (0–255), as they are, would be lost in
        one step.

        Returns:
            "NAME.weight", "NAME.bias", "NAME.norm.weight", … as `vgg16.write_vgg16` takes them.
        """
        scale = (2 / self.weight.square().sum((1, 2, 3)).clamp(min=1e-12)).sqrt()
        var = self.var * scale.square()
        found = {
            "weight": self.weight * scale.view(-1, 1, 1, 1),
            "bias": self.bias * scale,
            "norm.weight": (var + _BATCH_NORM_EPSILON).sqrt() / scale,
            "norm.bias": self.mean,
            "norm.running_mean": self.mean * scale,
            "norm.running_var": var,
        }
        return {f"{self.name}.{entry}": value for entry, value in found.items()}


def prune_vgg16(
    full: Mapping[str, tuple[Tensor, Tensor]],
    inputs: Tensor,
    width: float,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[PrunedLayer]:
    """Prune VGG-16's 13 convolutions, one after the other.

    The responses of each pruned layer are those of the full network divided by one number, which makes their mean square 1. Batch norm
    cancels it, and without batch norm VGG's own responses, in the hundreds, would be hard to train on.

    Args:
        full: weight (O, I, 3, 3) and bias (O,) of the full network's layers, by VGG's names.
        inputs: (N, 3, H, W), N ≥ 2, H and W ≥ 16, prepared by the input convention of `full`, of the size that the pruned network will
            be given.
        width: channels relative to VGG-16's, below 1.
        seed: of the sampled positions.
        dtype: what the full network is computed in.

    Yields:
        The pruned layers in order.
    """
    names = list(VGG16_CONVOLUTIONS)
    positions = _sampled_positions(names, inputs.shape, np.random.default_rng(seed))
    full_responses = _responses(full, inputs, positions, dtype)
    fitted = min(len(inputs) - 1, round(len(inputs) * (1 - HELD_OUT)))
    x = inputs.float()
    for name, following in zip(names, [*names[1:], None], strict=True):
        if _follows_pooling(name):
            x = F.max_pool2d(x, 2)
        target = full_responses.pop(name).float()
        # A channel counts by how strongly the next layer weighs it.
        importance = full[following][0].square().sum((0, 2, 3)).sqrt() if following else torch.ones(target.shape[-1])
        kept = select_channels(target[:fitted].flatten(0, 1).relu() * importance, channels(target.shape[-1], width))
        target = target[..., kept]
        patches = _patches(x, positions[name])
        weight, bias = regress(patches[:fitted].flatten(0, 1), target[:fitted].flatten(0, 1))
        scale = target[:fitted].relu().square().mean().sqrt().clamp(min=1e-6)
        weight, bias, target = weight / scale, bias / scale, target / scale
        found = patches[fitted:].flatten(0, 1) @ weight.T + bias
        r2 = r_squared(found.relu(), target[fitted:].flatten(0, 1).relu())
        weight = weight.view(len(kept), -1, 3, 3)
        x = torch.cat([F.conv2d(part, weight, bias, padding=1) for part in x.split(_CHUNK)])
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        x.relu_()
        yield PrunedLayer(name, weight, bias, mean, var, tuple(kept), r2)


def select_channels(responses: Tensor, count: int) -> list[int]:
    """Select the channels from which the others can best be predicted.

    Greedily: each time the channel of which the selected ones explain least is added. It is the choice of pivoted QR, computed by a
    Cholesky factorisation of the covariance.

    Args:
        responses: (M, C), M samples of C channels.
        count: how many channels to select.

    Returns:
        Channel indices, ascending.
    """
    centred = responses - responses.mean(0)
    covariance = (centred.T @ centred).double()
    unexplained = covariance.diagonal().clone()  # variance of each channel that the selected ones don't explain
    factor = covariance.new_zeros(len(unexplained), count)
    selected: list[int] = []
    for step in range(count):
        unexplained[selected] = -1.0
        best = int(unexplained.argmax())
        column = covariance[:, best] - factor[:, :step] @ factor[best, :step]
        factor[:, step] = column / column[best].clamp(min=1e-12).sqrt()
        unexplained = (unexplained - factor[:, step].square()).clamp(min=0)
        selected.append(best)
    return sorted(selected)


def regress(x: Tensor, y: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """Fit a linear map so that ReLU of it approximates ReLU of y, by ridge regression in rounds.

    Where y is negative, any negative prediction is right. So after each round negative targets are replaced by the prediction, clipped
    at 0. Rounds lower an upper bound of the squared error and share one factorisation. The bias is not shrunk.

    Args:
        x: (M, I).
        y: (M, O).
        rounds: number of regressions.

    Returns:
        Weight (O, I) and bias (O,).
    """
    mean = x.mean(0)
    x = x - mean
    gram = (x.T @ x).double()
    gram.diagonal().add_(RIDGE * gram.diagonal().mean().clamp(min=1e-12))
    factor = torch.linalg.cholesky(gram)
    target = y
    for _ in range(rounds):
        bias = target.mean(0)
        weight = torch.cholesky_solve((x.T @ (target - bias)).double(), factor).float()
        target = torch.where(y > 0, y, (x @ weight + bias).clamp(max=0))
    return weight.T, bias - mean @ weight


def r_squared(found: Tensor, target: Tensor) -> float:
    """Compute R² over all channels: 1 − squared errors / squared distances from the channels' means.

    Args:
        found: predictions (M, C).
        target: what they approximate (M, C).

    Returns:
        At most 1, which means equal; 0 is as good as the channels' means.
    """
    spread = (target - target.mean(0)).square().sum()
    return float(1 - (found - target).square().sum() / spread.clamp(min=1e-12))


def _follows_pooling(name: str) -> bool:
    """True for the first layer of a block, which follows pooling; conv1_1 follows nothing."""
    return name.endswith("_1") and name != "conv1_1"


def _sampled_positions(names: list[str], shape: torch.Size, rng: np.random.Generator) -> dict[str, Tensor]:
    """Draw the positions at which each layer's maps are sampled.

    Returns:
        By layer: int64 (N, P), pixel indices in row-major order; all pixels of small maps, draws with repetition in large ones.
    """
    count, _, height, width = shape
    wanted = -(-SAMPLES // count)
    positions = {}
    for name in names:
        if _follows_pooling(name):
            height, width = height // 2, width // 2
        area = height * width
        every = np.broadcast_to(np.arange(area), (count, area))
        positions[name] = torch.from_numpy(every.copy() if area <= wanted else rng.integers(area, size=(count, wanted)))
    return positions


def _responses(
    full: Mapping[str, tuple[Tensor, Tensor]], inputs: Tensor, positions: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Compute the full network's responses before ReLU at the sampled positions: (N, P, C) by layer, in `dtype`."""
    found: dict[str, list[Tensor]] = {name: [] for name in positions}
    layers = {name: (w.to(dtype, memory_format=torch.channels_last), b.to(dtype)) for name, (w, b) in full.items()}
    for start in range(0, len(inputs), _CHUNK):
        x = inputs[start : start + _CHUNK].to(dtype, memory_format=torch.channels_last)
        for name, where in positions.items():
            x = F.conv2d(F.max_pool2d(x, 2) if _follows_pooling(name) else x, *layers[name], padding=1)
            rows = x.permute(0, 2, 3, 1).flatten(1, 2)
            found[name].append(rows[torch.arange(len(rows))[:, None], where[start : start + _CHUNK]])
            x.relu_()
    return {name: torch.cat(parts) for name, parts in found.items()}


def _patches(x: Tensor, positions: Tensor) -> Tensor:
    """Cut the 3×3 patches of x (N, C, H, W) around positions (N, P): (N, P, C·9), ordered as a convolution's weights."""
    found = []
    for part, where in zip(x.split(_CHUNK), positions.split(_CHUNK), strict=True):
        rows, columns = where // x.shape[3], where % x.shape[3]
        padded = F.pad(part, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
        images = torch.arange(len(part))[:, None]
        seen = [padded[images, rows + dy, columns + dx] for dy in range(3) for dx in range(3)]
        found.append(torch.stack(seen, dim=-1).flatten(2))
    return torch.cat(found)
