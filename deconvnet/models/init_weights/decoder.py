"""An initialisation of DeconvNet's decoder by interpolation filters, with which the network learns from the first step.

Noh et al. (ICCV 2015, §6.1) draw the decoder's initial weights from a Gaussian distribution. Then information about classes is
lost in fourteen random deconvolutions. After each unpooling, the pattern of the pooling positions is stronger than the values
themselves. The network needs thousands of steps before it predicts much except background.
"""

from typing import cast

import torch
from torch import Tensor, nn

from deconvnet.models.deconvnet import DeconvNet

BOX_SHARE = 0.8
"""Share of each kernel's squared norm that comes from the box filter. The rest is noise as in He's initialisation."""
NORM_BIAS = 1.0
"""Initial bias of the decoder's batch norms. With it most of the normalised responses pass the ReLU."""
_SQUARED_NORM = 2.0  # squared norm of each output channel's kernel in He's initialisation


def interpolate(model: DeconvNet) -> None:
    """Initialise DeconvNet's decoder so that it interpolates between the activations that unpooling places.

    Each 3×3 deconvolution becomes a box filter (all nine weights are equal) plus noise. This resembles the bilinear
    interpolation with which FCN's deconvolutions are initialised. Output channel o is filtered from input channel o. If a layer
    has fewer output than input channels, output channel o adds up the input channels o, o + (number of outputs), and so on. The
    batch norms after these layers get a bias of 1, so that most activations pass the ReLU. The layer fc6_deconv gets He's
    initialisation.

    The setting `model.decoder_init: interpolation` selects this.

    Args:
        model: the network, changed in place. Random numbers are drawn from torch's global generator.
    """
    with torch.no_grad():
        projection = cast(nn.ConvTranspose2d, model.fc6_deconv.conv).weight
        # The input is 1×1, so each output pixel has one product per input channel. Fan-in is the number of input channels.
        nn.init.normal_(projection, std=(_SQUARED_NORM / projection.shape[0]) ** 0.5)
        for number in (5, 4, 3, 2, 1):
            for unit in cast(nn.Sequential, model.get_submodule(f"deconv{number}")):
                weight = cast(nn.ConvTranspose2d, unit.conv).weight
                fan_in = weight.shape[0] * weight[0, 0].numel()
                nn.init.normal_(weight, std=(_SQUARED_NORM * (1 - BOX_SHARE) / fan_in) ** 0.5)
                weight += BOX_SHARE**0.5 * _box_filters(weight)
                nn.init.constant_(cast(nn.BatchNorm2d, unit.norm).bias, NORM_BIAS)


def _box_filters(like: Tensor) -> Tensor:
    """Make the weights of a deconvolution that applies box filters: within a kernel, all weights are equal.

    Args:
        like: tensor of shape (in, out, k, k), the weights of the deconvolution. It only provides shape, dtype and device.

    Returns:
        Tensor of the same shape. Input channel i and output channel o are connected if both numbers have the same remainder
        after division by the smaller number of channels. Other weights are 0. The squares of the weights of each output channel
        add up to 2.
    """
    inputs, outputs = like.shape[:2]
    boxes = torch.zeros_like(like)
    for channel in range(max(inputs, outputs)):
        boxes[channel % inputs, channel % outputs] = 1.0
    return boxes * (_SQUARED_NORM / boxes.square().sum((0, 2, 3), keepdim=True)).sqrt()
