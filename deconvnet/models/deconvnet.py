"""DeconvNet (Noh, Hong, Han: Learning Deconvolution Network for Semantic Segmentation, ICCV 2015), at any width."""

from typing import Any, cast

from torch import Tensor, nn

from deconvnet.models.layers import FC_CHANNELS, Deconv3x3, Unpool, block, channels, he_initialise, unit, vgg16_blocks
from deconvnet.models.network import Network

DECODER_CHANNELS = {5: (512, 512, 512), 4: (512, 512, 256), 3: (256, 256, 128), 2: (128, 64), 1: (64, 64)}
"""Output channels of the deconvolutions after each unpooling, in the order they run."""


class DeconvNet(Network):
    """VGG-16 and its mirror image: pooling remembers where each maximum was, unpooling puts activations back there (§3).

    At width 1 and 224×224 input:

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

    Every convolution and deconvolution but `score` is followed by batch norm and ReLU; there is no dropout. 251.8 million
    parameters at 21 classes. Convolutions start from He's initialisation (until VGG-16's weights are loaded), deconvolutions and
    `score` from a Gaussian of σ 0.01, biases from 0.
    """

    architecture = "deconvnet"
    input_size: int

    def __init__(self, num_classes: int = 21, width: float = 1.0, input_size: int = 224, convention: str = "caffe") -> None:
        """Build the network with random weights.

        Args:
            num_classes: classes with background.
            width: channels relative to the paper's; each layer's are rounded to a multiple of 8.
            input_size: side of the square input, px, a multiple of 32. The kernel of fc6 covers all of pool5: input_size / 32.
            convention: input convention, "caffe" or "torchvision", see `deconvnet.models.preprocessing`.

        Raises:
            ValueError: for values out of range.
        """
        super().__init__(num_classes, width, convention)
        if input_size < 32 or input_size % 32:
            raise ValueError(f"input_size is {input_size}; it must be a multiple of 32")
        self.input_size = input_size
        top, fc, kernel = channels(512, width), channels(FC_CHANNELS, width), input_size // 32

        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = vgg16_blocks(width, norm=True)
        self.pool = nn.MaxPool2d(2, 2, return_indices=True)
        self.fc6 = unit(nn.Conv2d(top, fc, kernel))
        self.fc7 = unit(nn.Conv2d(fc, fc, 1))
        self.fc6_deconv = unit(nn.ConvTranspose2d(fc, top, kernel))
        inputs = top
        for number, paper in DECODER_CHANNELS.items():
            outputs = tuple(channels(c, width) for c in paper)
            self.add_module(f"unpool{number}", Unpool())
            self.add_module(f"deconv{number}", block(Deconv3x3, inputs, outputs))
            inputs = outputs[-1]
        self.score = nn.Conv2d(inputs, num_classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        """Set the initial weights (§6.1)."""
        he_initialise(self)
        for layer in self.modules():
            if isinstance(layer, nn.ConvTranspose2d) or layer is self.score:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(cast(Tensor, layer.bias))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON values."""
        return {**super().config(), "input_size": self.input_size}

    def forward(self, images: Tensor) -> Tensor:
        """Score every pixel.

        Args:
            images: prepared images (N, 3, S, S), S the input size.

        Returns:
            Scores before softmax (N, num_classes, S, S).

        Raises:
            ValueError: if the images have another size.
        """
        if images.shape[-2:] != (self.input_size, self.input_size):
            raise ValueError(f"DeconvNet of input size {self.input_size} was given {tuple(images.shape)}")
        switches, x = {}, images
        for number in (1, 2, 3, 4, 5):
            x, switches[number] = self.pool(self.get_submodule(f"conv{number}")(x))
        x = self.fc6_deconv(self.fc7(self.fc6(x)))
        for number in (5, 4, 3, 2, 1):
            x = self.get_submodule(f"unpool{number}")(x, switches[number])
            x = self.get_submodule(f"deconv{number}")(x)
        scores: Tensor = self.score(x)
        return scores
