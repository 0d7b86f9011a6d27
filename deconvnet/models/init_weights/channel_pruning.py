"""Fitting of VGG-16's weights to a network of fewer channels per layer, or with batch norm.

A network that is narrower than the published one can't use VGG-16's ImageNet weights directly, but it can start from the pruned
weights. The method follows He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017. It works on
the responses to a sample of inputs, one layer after the other:

1. A pivoted factorisation of the full network's responses selects the channels to keep.
2. The weights of these channels are fitted by regression. Its inputs are the responses of the previous *pruned* layer, so each
   layer corrects the errors of the layers before it.

A network of VGG-16's width keeps all channels and weights. It only gets batch norms with which the layers compute what VGG-16's
layers do, apart from a factor per layer. Otherwise, batch norm would shift and scale each channel by its own amount, and much
of what VGG-16 has learned would be lost.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deconvnet.models.layers import VGG16_CONVOLUTIONS, channels

SAMPLES = 30_000
"""Number of positions, over all inputs, at which the responses of a layer are sampled."""
HELD_OUT = 0.1
"""Fraction of the inputs that is not used for fitting. R² is measured on these inputs."""
RIDGE = 1e-2
"""Strength of the ridge penalty in the regression, relative to the mean variance of the regression's inputs."""
ROUNDS = 8
"""Number of rounds in which the weights of a layer are fitted (see `regress`)."""
_BATCH_NORM_EPSILON = 1e-5  # torch's default
_CHUNK = 32  # number of inputs that a layer processes at once


@dataclass(frozen=True)
class PrunedLayer:
    """A convolution of the pruned network, to be followed by ReLU.

    O is the number of output channels and I the number of input channels. A response is the output of the convolution before
    ReLU.

    Attributes:
        name: VGG-16's name of the layer, such as "conv1_1".
        weight: tensor of shape (O, I, 3, 3).
        bias: tensor of shape (O,).
        mean: mean response of each channel over all inputs, of shape (O,).
        var: biased variance of the responses of each channel, of shape (O,).
        kept_channels: indices of the channels of the full (unpruned) layer that were kept, ascending.
        r2: coefficient of determination (R², at most 1) of the outputs after ReLU, compared with the full network's outputs. It
            is measured on inputs that were held out of the fit.
    """

    name: str
    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    kept_channels: tuple[int, ...]
    r2: float

    def tensors(self) -> dict[str, Tensor]:
        """Convert the layer to a convolution and a batch norm, which together compute the same as the layer.

        With batch norm, the scale of a convolution's weights has no effect on the output. It only decides how fast the weights
        change at a given learning rate. So each output channel's weights are scaled to a squared norm of 2, as in He's
        initialisation. Otherwise one training step would destroy the small weights of the first layer, whose inputs are pixel
        values from 0 to 255.

        Returns:
            Tensors named "NAME.weight", "NAME.bias", "NAME.norm.weight" and so on, in the form that `vgg16.write_vgg16` takes.
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
    """Prune VGG-16's 13 convolutions (reduce their numbers of channels), one layer after the other.

    At width 1, all channels and weights are kept, and only the statistics are measured. Otherwise, for each layer, the channels
    to keep are selected and their new weights are fitted. Both use the responses (outputs before ReLU) of the full network at
    randomly drawn positions of the inputs.

    The outputs of each pruned layer approximate the full network's kept channels, divided by one number per layer. This number
    is chosen so that the outputs after ReLU have a mean square of 1. VGG-16's own outputs are in the hundreds, which would make
    training hard without batch norm. With batch norm the division has no effect.

    Args:
        full: weight (O, I, 3, 3) and bias (O,) of each convolution of the full network, by VGG-16's layer names. Other layers are
            ignored.
        inputs: at least 2 images of shape (N, 3, H, W), with H and W at least 16. They are normalised as the weights in `full`
            expect, and have the size that the pruned network will get.
        width: channels per layer as a fraction of VGG-16's, at most 1.
        seed: seed for drawing the positions.
        dtype: dtype in which the full network is computed.

    Yields:
        The pruned layers in order, from conv1_1 to conv5_3.
    """
    names = list(VGG16_CONVOLUTIONS)
    positions = _sampled_positions(names, inputs.shape, np.random.default_rng(seed))
    full_responses = _responses(full, inputs, positions, dtype)
    fitted = min(len(inputs) - 1, round(len(inputs) * (1 - HELD_OUT)))
    x, inputs_scale = inputs.float(), torch.tensor(1.0)
    for name, following in zip(names, [*names[1:], None], strict=True):
        if _follows_pooling(name):
            x = F.max_pool2d(x, 2)
        target = full_responses.pop(name).float()
        patches = _patches(x, positions[name])
        if width == 1:  # nothing is pruned; the inputs were divided by a number, which the weights make up for
            kept = list(range(target.shape[-1]))
            weight, bias = full[name][0].flatten(1) * inputs_scale, full[name][1]
        else:
            # The importance of a channel is the norm of its weights in the next layer.
            importance = full[following][0].square().sum((0, 2, 3)).sqrt() if following else torch.ones(target.shape[-1])
            kept = select_channels(target[:fitted].flatten(0, 1).relu() * importance, channels(target.shape[-1], width))
            target = target[..., kept]
            weight, bias = regress(patches[:fitted].flatten(0, 1), target[:fitted].flatten(0, 1))
        scale = target[:fitted].relu().square().mean().sqrt().clamp(min=1e-6)
        weight, bias, target, inputs_scale = weight / scale, bias / scale, target / scale, scale
        found = patches[fitted:].flatten(0, 1) @ weight.T + bias
        r2 = r_squared(found.relu(), target[fitted:].flatten(0, 1).relu())
        weight = weight.view(len(kept), -1, 3, 3)
        x = torch.cat([F.conv2d(part, weight, bias, padding=1) for part in x.split(_CHUNK)])
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        x.relu_()
        yield PrunedLayer(name, weight, bias, mean, var, tuple(kept), r2)


def select_channels(responses: Tensor, count: int) -> list[int]:
    """Select the channels from which all others can be predicted best by a linear map.

    The selection is greedy. Each step adds the channel with the largest variance that the channels selected so far don't
    explain. QR factorisation with pivoting makes the same choice. Here it is computed by a Cholesky factorisation of the
    covariance matrix.

    Args:
        responses: tensor of shape (M, C) with M samples of C channels.
        count: number of channels to select, at most C.

    Returns:
        The indices of the selected channels, ascending.
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
    """Fit a linear map to targets so that both agree after ReLU.

    Where a target is negative, any negative prediction is equally good. So the map is fitted by ridge regression in several
    rounds. After each round, every negative target is replaced by its prediction, or by 0 if the prediction is positive. Each
    round lowers an upper bound of the squared error after ReLU. All rounds share one matrix factorisation. The bias is not
    penalised.

    Args:
        x: inputs of shape (M, I) for M samples.
        y: targets before ReLU, of shape (M, O).
        rounds: number of rounds.

    Returns:
        Weight of shape (O, I) and bias of shape (O,).
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
    """Compute the coefficient of determination R² of predictions, over all channels together.

    It is 1 − (sum of squared errors) / (sum of squared distances from each channel's mean).

    Args:
        found: predictions of shape (M, C), for M samples of C channels.
        target: true values of shape (M, C).

    Returns:
        At most 1. The value 1 means perfect predictions. The value 0 means they are only as good as predicting each channel's
        mean.
    """
    spread = (target - target.mean(0)).square().sum()
    return float(1 - (found - target).square().sum() / spread.clamp(min=1e-12))


def _follows_pooling(name: str) -> bool:
    """Return whether a layer comes directly after a pooling layer. This is so for conv2_1, conv3_1, conv4_1 and conv5_1.

    Args:
        name: VGG-16's name of the layer, such as "conv3_1".
    """
    return name.endswith("_1") and name != "conv1_1"


def _sampled_positions(names: list[str], shape: torch.Size, rng: np.random.Generator) -> dict[str, Tensor]:
    """Draw the pixel positions at which the responses (outputs before ReLU) of each layer are sampled.

    For each layer and input, P positions are drawn with replacement. P is chosen so that all N inputs together have about
    30,000 positions (the constant SAMPLES). If the layer's output has no more than P pixels, each pixel is taken once instead.

    Args:
        names: VGG-16's layer names in order.
        shape: shape of the inputs, (N, 3, H, W).
        rng: source of the random numbers.

    Returns:
        For each layer name, an int64 tensor of shape (N, P). It holds pixel indices in row-major order.
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
    """Compute the responses (outputs of the convolutions before ReLU) of the full network at the sampled positions.

    Args:
        full: weight (O, I, 3, 3) and bias (O,) of each layer by name.
        inputs: images converted by `preprocessing.prepare`, of shape (N, 3, H, W).
        positions: for each layer name, the pixel indices (row-major) to sample, of shape (N, P).
        dtype: dtype to compute in.

    Returns:
        Responses of shape (N, P, C) for each layer name, in `dtype`. C is the layer's number of channels.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in positions}
    convolutions = {name: full[name] for name in positions}
    layers = {n: (w.to(dtype, memory_format=torch.channels_last), b.to(dtype)) for n, (w, b) in convolutions.items()}
    for start in range(0, len(inputs), _CHUNK):
        x = inputs[start : start + _CHUNK].to(dtype, memory_format=torch.channels_last)
        for name, where in positions.items():
            x = F.conv2d(F.max_pool2d(x, 2) if _follows_pooling(name) else x, *layers[name], padding=1)
            rows = x.permute(0, 2, 3, 1).flatten(1, 2)
            found[name].append(rows[torch.arange(len(rows))[:, None], where[start : start + _CHUNK]])
            x.relu_()
    return {name: torch.cat(parts) for name, parts in found.items()}


def _patches(x: Tensor, positions: Tensor) -> Tensor:
    """Cut out the 3×3 patch around each sampled position.

    Args:
        x: input of a layer, of shape (N, C, H, W). It is padded with zeros at the border.
        positions: pixel indices in row-major order, of shape (N, P).

    Returns:
        Tensor of shape (N, P, C·9). The last dimension is ordered like the weights of one output channel of a convolution,
        flattened from (C, 3, 3).
    """
    found = []
    for part, where in zip(x.split(_CHUNK), positions.split(_CHUNK), strict=True):
        rows, columns = where // x.shape[3], where % x.shape[3]
        padded = F.pad(part, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
        images = torch.arange(len(part))[:, None]
        seen = [padded[images, rows + dy, columns + dx] for dy in range(3) for dx in range(3)]
        found.append(torch.stack(seen, dim=-1).flatten(2))
    return torch.cat(found)
