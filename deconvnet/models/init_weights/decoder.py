"""Initial weights of DeconvNet's decoder from which class information reaches the score from the first step.

With the paper's Gaussian (§6.1) it fades on its way through fourteen random deconvolutions: after each unpooling the pattern of
switches outweighs the values, and the network needs thousands of steps before it predicts much but background.
"""

from typing import cast

import torch
from torch import Tensor, nn

from deconvnet.models.deconvnet import DeconvNet

BOX_SHARE = 0.8
"""Share of each kernel's squared norm that the box filter has; the rest is noise of He's initialisation."""
NORM_BIAS = 1.0
"""Initial bias of the decoder's batch norms, with which ReLU passes most of a normalised response."""
_SQUARED_NORM = 2.0  # of each output channel's kernel, as He's initialisation gives it


def interpolate(model: DeconvNet) -> None:
    """Initialise the decoder so that it interpolates what unpooling places (`model.decoder_init: interpolation`).

    Each 3×3 deconvolution becomes a box filter, channel by channel, plus noise, as FCN's deconvolutions start as bilinear
    interpolation. Where a layer has fewer output than input channels, output o takes the inputs o, o + outputs, …. fc6-deconv gets
    He's initialisation.

    Args:
        model: changed in place; random numbers are drawn from torch's global generator.
    """
    with torch.no_grad():
        projection = cast(nn.ConvTranspose2d, model.fc6_deconv.conv).weight
        # Of a 1×1 map each output pixel is one product with each input channel: fan-in is the number of channels.
        nn.init.normal_(projection, std=(_SQUARED_NORM / projection.shape[0]) ** 0.5)
        for number in (5, 4, 3, 2, 1):
            for unit in cast(nn.Sequential, model.get_submodule(f"deconv{number}")):
                weight = cast(nn.ConvTranspose2d, unit.conv).weight
                fan_in = weight.shape[0] * weight[0, 0].numel()
                nn.init.normal_(weight, std=(_SQUARED_NORM * (1 - BOX_SHARE) / fan_in) ** 0.5)
                weight += BOX_SHARE**0.5 * _box_filters(weight)
                nn.init.constant_(cast(nn.BatchNorm2d, unit.norm).bias, NORM_BIAS)


def _box_filters(like: Tensor) -> Tensor:
    """Make box filters of a deconvolution's shape (in, out, k, k), of squared norm 2 for each output channel."""
    inputs, outputs = like.shape[:2]
    boxes = torch.zeros_like(like)
    for channel in range(max(inputs, outputs)):
        boxes[channel % inputs, channel % outputs] = 1.0
    return boxes * (_SQUARED_NORM / boxes.square().sum((0, 2, 3), keepdim=True)).sqrt()
