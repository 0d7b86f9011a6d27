"""DeconvNet (Noh, Hong, Han, ICCV 2015), at any width."""

from typing import Any, cast

from torch import Tensor, nn

from deconvnet.models.layers import FC_CHANNELS, Deconv3, Unpool, block, channels, he_initialise, unit, vgg16_blocks
from deconvnet.models.network import Network

_DECONV_LAYERS = {5: (512, 512, 512), 4: (512, 512, 256), 3: (256, 256, 128), 2: (128, 64), 1: (64, 64)}


class DeconvNet(Network):
    """VGG-16 and its mirror image: pooling keeps where each maximum was, unpooling puts activations back there (§3).

    Every convolution and deconvolution but the last is followed by batch norm and ReLU; there is no dropout. 251.8 million
    parameters at 21 classes and width 1. Convolutions start from He's initialisation until VGG's weights are loaded,
    deconvolutions and the score from a Gaussian of σ 0.01, biases from 0.

    num_classes: with background. width: channels relative to the paper's, rounded to multiples of 8. input_size: side of the
    square input in pixels, a multiple of 32; fc6 covers all of pool5, so its kernel is input_size / 32. convention: of the
    input, see `deconvnet.models.preprocessing`. Raises ValueError for values out of range.
    """

    architecture = "deconvnet"
    input_size: int

    def __init__(self, num_classes: int = 21, width: float = 1.0, input_size: int = 224, convention: str = "caffe") -> None:
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
        for number, layers in _DECONV_LAYERS.items():
            outputs = tuple(channels(c, width) for c in layers)
            self.add_module(f"unpool{number}", Unpool())
            self.add_module(f"deconv{number}", block(Deconv3, inputs, outputs))
            inputs = outputs[-1]
        self.score = nn.Conv2d(inputs, num_classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        he_initialise(self)
        for layer in self.modules():
            if isinstance(layer, nn.ConvTranspose2d) or layer is self.score:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(cast(Tensor, layer.bias))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {**super().config(), "input_size": self.input_size}

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) prepared images, S the input size -> (N, num_classes, S, S) scores before softmax."""
        if images.shape[-2:] != (self.input_size, self.input_size):
            raise ValueError(f"DeconvNet of input size {self.input_size} was given {tuple(images.shape)}")
        switches, x = {}, images
        for number in (1, 2, 3, 4, 5):
            x, switches[number] = self.pool(self.get_submodule(f"conv{number}")(x))
        x = self.fc6_deconv(self.fc7(self.fc6(x)))
        for number in (5, 4, 3, 2, 1):
            x = self.get_submodule(f"unpool{number}")(x, switches[number])
            x = self.get_submodule(f"deconv{number}")(x)
        return self.score(x)
