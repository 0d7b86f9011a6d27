"""The network DeconvNet, with an adjustable width (number of channels per layer).

Noh, Hong, Han: Learning Deconvolution Network for Semantic Segmentation, ICCV 2015.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from deconvnet.models.layers import (
    FC_CHANNELS,
    Deconv3x3,
    MatrixConv2d,
    MatrixDeconv2d,
    Unpool,
    block,
    channels,
    he_initialise,
    unit,
    vgg16_blocks,
)
from deconvnet.models.network import Network

DECODER_CHANNELS = {5: (512, 512, 512), 4: (512, 512, 256), 3: (256, 256, 128), 2: (128, 64), 1: (64, 64)}
"""Output channels of the decoder's deconvolutions at width 1, in the order they run. The keys are the numbers of the blocks."""


class DeconvNet(Network):
    """VGG-16 followed by its mirror image as decoder (§3 of Noh et al., ICCV 2015).

    Each pooling layer remembers the position of every maximum. The matching unpooling layer puts activations back at these
    positions. The table shows the network at width 1 with an input of 224×224. The entry "2× 3×3, 64" stands for two 3×3
    convolutions with 64 channels.

        =================  =======  ============================  =======
        encoder            output   decoder                       output
        =================  =======  ============================  =======
        conv1: 2× 3×3, 64  224×224  fc6_deconv: 7×7, 512          7×7
        pool1              112×112  unpool5                       14×14
        conv2: 2×, 128     112×112  deconv5: 3× 3×3, 512          14×14
        pool2              56×56    unpool4                       28×28
        conv3: 3×, 256     56×56    deconv4: 512, 512, 256        28×28
        pool3              28×28    unpool3                       56×56
        conv4: 3×, 512     28×28    deconv3: 256, 256, 128        56×56
        pool4              14×14    unpool2                       112×112
        conv5: 3×, 512     14×14    deconv2: 128, 64              112×112
        pool5              7×7      unpool1                       224×224
        fc6: 7×7, 4096     1×1      deconv1: 64, 64               224×224
        fc7: 1×1, 4096     1×1      score: 1×1, num_classes       224×224
        =================  =======  ============================  =======

    Every convolution and deconvolution except `score` is followed by batch norm and ReLU. There is no dropout. With 21 classes
    the network has 251.8 million parameters.

    Before any trained weights are loaded, convolutions have He's initialisation. Deconvolutions and `score` have Gaussian
    weights with σ = 0.01. Biases are 0.
    """

    architecture = "deconvnet"
    input_size: int

    def __init__(
        self,
        num_classes: int = 21,
        width: float = 1.0,
        input_size: int = 224,
        convention: str = "caffe",
        encoder_width: float | None = None,
        decoder_width: float | None = None,
        fc_channels: int | None = None,
    ) -> None:
        """Build the network with random weights.

        Args:
            num_classes: number of classes, including background.
            width: number of channels per layer as a fraction of the published network's. Each layer's channels are rounded to a
                multiple of 8.
            input_size: side of the square input in pixels, a multiple of 32. The kernel of fc6 has the side input_size / 32, so
                that it covers the whole output of pool5.
            convention: format of the input pixels. "caffe": BGR, 0–255, minus the mean. "torchvision": RGB, 0–1, minus the
                mean, divided by the standard deviation.
            encoder_width: width of conv1 to conv5, if it is not `width`.
            decoder_width: width of fc6_deconv and of deconv5 to deconv1, if it is not `width`.
            fc_channels: number of channels of fc6 and fc7. None: 4096 × `width`, rounded to a multiple of 8.

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__(num_classes, width, convention)
        if input_size < 32 or input_size % 32:
            raise ValueError(f"input_size is {input_size}; it must be a multiple of 32")
        self.input_size = input_size
        self.encoder_width, self.decoder_width, self.fc_channels = encoder_width, decoder_width, fc_channels
        encoder, decoder = (width if own is None else own for own in (encoder_width, decoder_width))
        fc, kernel = channels(FC_CHANNELS, width) if fc_channels is None else fc_channels, input_size // 32

        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = vgg16_blocks(encoder, norm=True)
        self.pool = nn.MaxPool2d(2, 2, return_indices=True)
        self.fc6 = unit(MatrixConv2d(channels(512, encoder), fc, kernel))
        self.fc7 = unit(MatrixConv2d(fc, fc, 1))
        inputs = channels(512, decoder)
        self.fc6_deconv = unit(MatrixDeconv2d(fc, inputs, kernel))
        for number, paper in DECODER_CHANNELS.items():
            outputs = tuple(channels(c, decoder) for c in paper)
            self.add_module(f"unpool{number}", Unpool())
            self.add_module(f"deconv{number}", block(Deconv3x3, inputs, outputs))
            inputs = outputs[-1]
        self.score = nn.Conv2d(inputs, num_classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        """Set the initial weights of all layers, as in §6.1 of Noh et al. (ICCV 2015).

        Convolutions get He's initialisation. Deconvolutions and the score layer get Gaussian weights with σ = 0.01. Biases are
        0.
        """
        if self.score.weight.is_meta:  # the weights have no memory, and torch would take long to draw no numbers
            return
        he_initialise(self)
        for layer in self.modules():
            if isinstance(layer, nn.ConvTranspose2d) or layer is self.score:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(cast(Tensor, layer.bias))

    def config(self) -> dict[str, Any]:
        """Return the arguments of the constructor by name, as JSON values, so that the network can be built again."""
        own = {name: getattr(self, name) for name in ("input_size", "encoder_width", "decoder_width", "fc_channels")}
        return {**super().config(), **own}

    def forward(self, images: Tensor) -> Tensor:
        """Compute the scores of all classes for every pixel.

        Args:
            images: normalised images, as returned by the method `prepare`, of shape (N, 3, S, S). S is the network's input
                size.

        Returns:
            Scores before softmax, of shape (N, num_classes, S, S).

        Raises:
            ValueError: if the images have another size, or are not a float tensor of shape (N, 3, S, S).
        """
        self.check_input(images)
        if images.shape[-2:] != (self.input_size, self.input_size):
            raise ValueError(f"DeconvNet of input size {self.input_size} was given {tuple(images.shape)}")
        switches, x = {}, images
        for number in (1, 2, 3, 4, 5):
            x, switches[number] = self.pool(self.get_submodule(f"conv{number}")(x))
        x = self.fc6_deconv(self.fc7(self.fc6(x)))
        for number in (5, 4, 3, 2, 1):
            x = self.get_submodule(f"unpool{number}")(x, _evenly_spaced_channels(switches[number], x.shape[1]))
            x = self.get_submodule(f"deconv{number}")(x)
        scores: Tensor = self.score(x)
        return scores


def _evenly_spaced_channels(switches: Tensor, count: int) -> Tensor:
    """Take the pooling positions of evenly spaced channels, for a decoder with another number of channels than the encoder.

    Args:
        switches: positions of the maxima, of shape (N, C, H, W).
        count: number of channels that are needed.

    Returns:
        Tensor of shape (N, count, H, W).
    """
    if switches.shape[1] == count:
        return switches
    return switches[:, torch.arange(count, device=switches.device) * switches.shape[1] // count]
