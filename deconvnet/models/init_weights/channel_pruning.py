"""VGG-16 for networks narrower than the paper's: fewer channels a layer, fitted to what the full network says of real photographs.

Layer by layer, on a sample of inputs (cf. He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017):
which channels to keep is told by a pivoted factorisation of the full network's responses, and their weights are regressed on the
narrow network's *own* layer before, so that each layer makes good what the ones before it lost.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deconvnet.models.layers import VGG16_LAYERS, channels

SAMPLES = 30_000
"""Places at which a layer's responses are sampled, over all inputs."""
HELD_OUT = 0.1
"""Share of the inputs that nothing is fitted to: what a layer reaches is measured on them."""
RIDGE = 1e-2
"""Of the regression, relative to the mean variance of what it regresses on."""
ROUNDS = 8
"""Regressions a layer, see `regress`."""
_EPSILON = 1e-5  # batch norm's own
_CHUNK = 32


@dataclass(frozen=True)
class NarrowLayer:
    """A convolution of VGG's name, with ReLU after it.

    weight (O, I, 3, 3), bias (O,); mean, var (O,): of its responses to all inputs, before ReLU. kept: the channels of the full network
    that it stands for. fit: R² of its responses, after ReLU, on the inputs held out, against theirs.
    """

    name: str
    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    kept: tuple[int, ...]
    fit: float

    def tensors(self) -> dict[str, Tensor]:
        """As a file of weights has them: a convolution and the batch norm after it, which together are this layer.

        Batch norm makes the size of weights mean one thing only: how fast they turn under a given learning rate. So each channel's
        are scaled to a squared norm of 2, which He's start has; those on pixels (0–255) would be lost in a step as they are.
        """
        scale = (2 / self.weight.square().sum((1, 2, 3)).clamp(min=1e-12)).sqrt()
        var = self.var * scale.square()
        found = {
            "weight": self.weight * scale.view(-1, 1, 1, 1),
            "bias": self.bias * scale,
            "norm.weight": (var + _EPSILON).sqrt() / scale,
            "norm.bias": self.mean,
            "norm.running_mean": self.mean * scale,
            "norm.running_var": var,
        }
        return {f"{self.name}.{entry}": value for entry, value in found.items()}


def narrow_vgg16(
    full: Mapping[str, tuple[Tensor, Tensor]],
    inputs: Tensor,
    width: float,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[NarrowLayer]:
    """VGG-16's 13 convolutions at `width` (< 1), in order, from those at width 1.

    full: weight (O, I, 3, 3) and bias (O,) by VGG's names. inputs: (N, 3, H, W), N ≥ 2, prepared as `full` expects them and of the size
    that the narrow network will see, H and W at least 16. seed: of the places sampled. dtype: what the full network computes in.

    The narrow network's responses are the full one's over a number a layer, which makes their mean square 1: batch norm is blind to
    it, and without batch norm VGG's own hundreds would be hard to train on.
    """
    names = [f"conv{block}_{number}" for block, layers in enumerate(VGG16_LAYERS, 1) for number in range(1, len(layers) + 1)]
    places = _places(names, inputs.shape, np.random.default_rng(seed))
    wanted = _responses(full, inputs, places, dtype)
    fitted = min(len(inputs) - 1, round(len(inputs) * (1 - HELD_OUT)))
    x = inputs.float()
    for name, following in zip(names, [*names[1:], None], strict=True):
        if _pooled(name):
            x = F.max_pool2d(x, 2)
        target = wanted.pop(name).float()
        asked = full[following][0].square().sum((0, 2, 3)).sqrt() if following else torch.ones(target.shape[-1])
        kept = choose(target[:fitted].flatten(0, 1).relu() * asked, channels(target.shape[-1], width))
        target = target[..., kept]
        patches = _patches(x, places[name])
        weight, bias = regress(patches[:fitted].flatten(0, 1), target[:fitted].flatten(0, 1))
        scale = target[:fitted].relu().square().mean().sqrt().clamp(min=1e-6)
        weight, bias, target = weight / scale, bias / scale, target / scale
        found = patches[fitted:].flatten(0, 1) @ weight.T + bias
        fit = explained(found.relu(), target[fitted:].flatten(0, 1).relu())
        weight = weight.view(len(kept), -1, 3, 3)
        x = torch.cat([F.conv2d(part, weight, bias, padding=1) for part in x.split(_CHUNK)])
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        x.relu_()
        yield NarrowLayer(name, weight, bias, mean, var, tuple(kept), fit)


def choose(responses: Tensor, count: int) -> list[int]:
    """The `count` columns of responses (M, C) from which the others follow best, sorted.

    Each time the column of which those taken so far explain the least is taken: pivoted QR's choice, by Cholesky on the covariance.
    """
    centred = responses - responses.mean(0)
    covariance = (centred.T @ centred).double()
    left = covariance.diagonal().clone()  # what is not explained of each
    factor = covariance.new_zeros(len(left), count)
    taken: list[int] = []
    for step in range(count):
        left[taken] = -1.0
        best = int(left.argmax())
        column = covariance[:, best] - factor[:, :step] @ factor[best, :step]
        factor[:, step] = column / column[best].clamp(min=1e-12).sqrt()
        left = (left - factor[:, step].square()).clamp(min=0)
        taken.append(best)
    return sorted(taken)


def regress(x: Tensor, y: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """Weight (O, I) and bias (O,) by which ReLU of x (M, I) comes near ReLU of y (M, O): least squares with a ridge, in rounds.

    Where y is negative, ReLU asks only that the result be negative too: after each regression the wish there becomes what was found,
    or 0 where that was positive. Rounds lower an upper bound of the error, and share one factorisation. The bias is not shrunk.
    """
    mean = x.mean(0)
    x = x - mean
    gram = (x.T @ x).double()
    gram.diagonal().add_(RIDGE * gram.diagonal().mean().clamp(min=1e-12))
    factor = torch.linalg.cholesky(gram)
    wish = y
    for _ in range(rounds):
        bias = wish.mean(0)
        weight = torch.cholesky_solve((x.T @ (wish - bias)).double(), factor).float()
        wish = torch.where(y > 0, y, (x @ weight + bias).clamp(max=0))
    return weight.T, bias - mean @ weight


def explained(found: Tensor, wanted: Tensor) -> float:
    """R² of `found` against `wanted` (M, C): 1 − squared errors over squared distances from the channels' means, all summed."""
    spread = (wanted - wanted.mean(0)).square().sum()
    return float(1 - (found - wanted).square().sum() / spread.clamp(min=1e-12))


def _pooled(name: str) -> bool:
    """Whether pooling comes before a layer."""
    return name.endswith("_1") and name != "conv1_1"


def _places(names: list[str], shape: torch.Size, rng: np.random.Generator) -> dict[str, Tensor]:
    """Where each layer's maps are sampled: int64 (N, P), places counted along rows; drawn with repetition in large maps."""
    count, _, height, width = shape
    positions = -(-SAMPLES // count)
    places = {}
    for name in names:
        if _pooled(name):
            height, width = height // 2, width // 2
        area = height * width
        every = np.broadcast_to(np.arange(area), (count, area))
        places[name] = torch.from_numpy(every.copy() if area <= positions else rng.integers(area, size=(count, positions)))
    return places


def _responses(
    full: Mapping[str, tuple[Tensor, Tensor]], inputs: Tensor, places: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The full network's responses before ReLU at the places: (N, P, C) by layer, in `dtype`."""
    found: dict[str, list[Tensor]] = {name: [] for name in places}
    layers = {name: (w.to(dtype, memory_format=torch.channels_last), b.to(dtype)) for name, (w, b) in full.items()}
    for start in range(0, len(inputs), _CHUNK):
        x = inputs[start : start + _CHUNK].to(dtype, memory_format=torch.channels_last)
        for name, where in places.items():
            x = F.conv2d(F.max_pool2d(x, 2) if _pooled(name) else x, *layers[name], padding=1)
            rows = x.permute(0, 2, 3, 1).flatten(1, 2)
            found[name].append(rows[torch.arange(len(rows))[:, None], where[start : start + _CHUNK]])
            x.relu_()
    return {name: torch.cat(parts) for name, parts in found.items()}


def _patches(x: Tensor, places: Tensor) -> Tensor:
    """What a 3×3 convolution sees of x (N, C, H, W) at `places` (N, P): (N, P, C·9), ordered as its weights are."""
    found = []
    for part, where in zip(x.split(_CHUNK), places.split(_CHUNK), strict=True):
        rows, columns = where // x.shape[3], where % x.shape[3]
        padded = F.pad(part, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
        images = torch.arange(len(part))[:, None]
        seen = [padded[images, rows + dy, columns + dx] for dy in range(3) for dx in range(3)]
        found.append(torch.stack(seen, dim=-1).flatten(2))
    return torch.cat(found)
