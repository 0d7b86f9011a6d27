"""A start of DeconvNet's decoder from which a short training learns: what fc7 knows reaches the score from the first step.

From the paper's Gaussian (§4.3) class information fades on its way through fourteen random deconvolutions: after each unpooling
the pattern of switches outweighs the values, and thousands of steps pass before much but background is learned.
"""

from typing import cast

import torch
from torch import Tensor, nn

from deconvnet.models.deconvnet import DeconvNet

SHARE = 0.8
"""Of each kernel's squared norm that interpolates; the rest is He's noise."""
SHIFT = 1.0
"""Of the batch norms' biases: ReLU then lets most of a normalised response pass."""
_NORM = 2.0  # squared, of each output's kernel: what He's initialisation gives


def interpolate(model: DeconvNet) -> None:
    """Make each 3×3 deconvolution of `model` a box filter that spreads what unpooling placed, channel by channel, plus noise.

    As FCN's deconvolutions start bilinear. Where a layer narrows, channel o takes inputs o, o + outputs, … fc6-deconv gets He's
    initialisation. Draws from torch's random numbers.
    """
    with torch.no_grad():
        projection = cast(nn.ConvTranspose2d, model.fc6_deconv.conv).weight
        nn.init.normal_(projection, std=(_NORM / projection.shape[0]) ** 0.5)  # stride 1 from 1×1: each pixel sees one product
        for number in (5, 4, 3, 2, 1):
            for unit in cast(nn.Sequential, model.get_submodule(f"deconv{number}")):
                weight = cast(nn.ConvTranspose2d, unit.conv).weight
                nn.init.normal_(weight, std=(_NORM * (1 - SHARE) / (weight.shape[0] * weight[0, 0].numel())) ** 0.5)
                weight += SHARE**0.5 * _boxes(weight)
                nn.init.constant_(cast(nn.BatchNorm2d, unit.norm).bias, SHIFT)


def _boxes(like: Tensor) -> Tensor:
    """Box filters in the shape of a deconvolution's kernel (in, out, k, k), each output's of squared norm 2."""
    inputs, outputs = like.shape[:2]
    boxes = torch.zeros_like(like)
    for channel in range(max(inputs, outputs)):
        boxes[channel % inputs, channel % outputs] = 1.0
    return boxes * (_NORM / boxes.square().sum((0, 2, 3), keepdim=True)).sqrt()
