"""DeconvNet (Noh, Hong, Han, ICCV 2015) and FCN-8s (Long, Shelhamer, Darrell, CVPR 2015), at any width.

Both begin with VGG-16's convolutions, named alike: `conv3.2.conv` is VGG's conv3_2, `conv3.2.norm` the batch norm after it.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet.inputs import CONVENTIONS, prepare

VGG16_LAYERS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_DECONV_LAYERS = {5: (512, 512, 512), 4: (512, 512, 256), 3: (256, 256, 128), 2: (128, 64), 1: (64, 64)}
_FC = 4096


def channels(paper: int, width: float) -> int:
    """Channels of a layer that has `paper` of them at width 1: the nearest multiple of 8, at least 8."""
    return max(8, round(paper * width / 8) * 8)


class Network(nn.Module):
    """A segmentation network that knows how to be built again (`architecture`, `config()`) and what input it takes."""

    architecture: str
    input_size: int | None = None

    def __init__(self, num_classes: int, width: float, convention: str) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; at least 1 is needed")
        if not width > 0:
            raise ValueError(f"width is {width}; it must be above 0")
        if convention not in CONVENTIONS:
            raise ValueError(f"unknown input convention {convention!r}: one of {', '.join(CONVENTIONS)}")
        self.num_classes, self.width, self.convention = num_classes, width, convention

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {"num_classes": self.num_classes, "width": self.width, "convention": self.convention}

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) RGB photographs as this network takes them: in its weights' type, its convention's colours and mean."""
        return prepare(images, self.convention).to(next(self.parameters()).dtype)


class Unpool(nn.Module):
    """Undoes 2×2 max-pooling: each activation goes back to the place its switch names, zeros elsewhere.

    Windows don't overlap, so no two activations want the same place. The result takes the switches' memory format: fc6-deconv
    starts from 1×1, where channels_last is lost, and the decoder would be a third slower on CPUs without it.
    """

    def forward(self, x: Tensor, switches: Tensor) -> Tensor:
        """(N, C, H, W) activations and the int64 indices of the pooling -> (N, C, 2H, 2W)."""
        if switches.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        return F.max_unpool2d(x, switches, (2, 2))


def _unit(layer: nn.Module, norm: bool = True) -> nn.Sequential:
    """A layer, batch norm, ReLU."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=layer)
    if norm:
        parts["norm"] = nn.BatchNorm2d(cast(int, layer.out_channels))
    parts["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)


def _block(layer: Callable[[int, int], nn.Module], inputs: int, outputs: tuple[int, ...], norm: bool = True) -> nn.Sequential:
    """Units one after the other, named 1, 2, 3 as VGG's layers are."""
    units: OrderedDict[str, nn.Module] = OrderedDict()
    for number, out in enumerate(outputs, start=1):
        units[str(number)] = _unit(layer(inputs, out), norm)
        inputs = out
    return nn.Sequential(units)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class _Deconv3(nn.ConvTranspose2d):
    """A 3×3 deconvolution of stride 1, computed as the convolution with the turned kernel that it is: on CPUs twice as fast."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return F.conv2d(x, turned(self.weight), self.bias, padding=1)


def turned(kernel: Tensor) -> Tensor:
    """A deconvolution's kernel (in, out, k, k) as that of the convolution (out, in, k, k) which does the same at stride 1."""
    return kernel.transpose(0, 1).flip(2, 3)


def _vgg16_blocks(width: float, norm: bool) -> list[nn.Sequential]:
    """VGG-16's five blocks of convolutions, without the pooling between them."""
    blocks, inputs = [], 3
    for layers in VGG16_LAYERS:
        outputs = tuple(channels(c, width) for c in layers)
        blocks.append(_block(_conv3, inputs, outputs, norm))
        inputs = outputs[-1]
    return blocks


def _he(module: nn.Module) -> None:
    """He initialisation of every convolution below `module`, biases 0: from scratch, anything smaller dies out in 13 layers."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))


class DeconvNet(Network):
    """VGG-16 and its mirror image: pooling keeps where each maximum was, unpooling puts activations back there (§3).

    Every convolution and deconvolution but the last is followed by batch norm and ReLU; there is no dropout. 251.8 million
    parameters at 21 classes and width 1. Convolutions start from He's initialisation until VGG's weights are loaded,
    deconvolutions and the score from a Gaussian of σ 0.01, biases from 0.

    num_classes: with background. width: channels relative to the paper's, rounded to multiples of 8. input_size: side of the
    square input in pixels, a multiple of 32; fc6 covers all of pool5, so its kernel is input_size / 32. convention: of the
    input, see `deconvnet.inputs`. Raises ValueError for values out of range.
    """

    architecture = "deconvnet"
    input_size: int

    def __init__(self, num_classes: int = 21, width: float = 1.0, input_size: int = 224, convention: str = "caffe") -> None:
        super().__init__(num_classes, width, convention)
        if input_size < 32 or input_size % 32:
            raise ValueError(f"input_size is {input_size}; it must be a multiple of 32")
        self.input_size = input_size
        top, fc, kernel = channels(512, width), channels(_FC, width), input_size // 32

        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = _vgg16_blocks(width, norm=True)
        self.pool = nn.MaxPool2d(2, 2, return_indices=True)
        self.fc6 = _unit(nn.Conv2d(top, fc, kernel))
        self.fc7 = _unit(nn.Conv2d(fc, fc, 1))
        self.fc6_deconv = _unit(nn.ConvTranspose2d(fc, top, kernel))
        inputs = top
        for number, layers in _DECONV_LAYERS.items():
            outputs = tuple(channels(c, width) for c in layers)
            self.add_module(f"unpool{number}", Unpool())
            self.add_module(f"deconv{number}", _block(_Deconv3, inputs, outputs))
            inputs = outputs[-1]
        self.score = nn.Conv2d(inputs, num_classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        _he(self)
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


class _Upsample(nn.ConvTranspose2d):
    """A learnt deconvolution that enlarges scores `factor` times and starts as bilinear interpolation.

    The border is repeated first, so that scores don't fade towards it.
    """

    def __init__(self, classes: int, factor: int) -> None:
        super().__init__(classes, classes, 2 * factor, stride=factor, padding=factor + factor // 2, bias=False)
        ramp = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
        with torch.no_grad():
            self.weight.zero_()
            self.weight[range(classes), range(classes)] = torch.outer(ramp, ramp)

    def forward(self, scores: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, factor·H, factor·W), computed in the weights' type: in bfloat16 training learns far less."""
        with torch.autocast(scores.device.type, enabled=False):
            scores = F.pad(scores.to(self.weight.dtype), (1, 1, 1, 1), mode="replicate")
            return super().forward(scores, output_size)


class FCN8s(Network):
    """VGG-16 made fully convolutional, its scores joined with those of pool4 and pool3 (§4).

    Dropout 0.5 on fc6 and fc7. Images of any size are padded at the bottom and right with zeros (the mean colour) to a
    multiple of 32, and the scores are cropped; the released code's 100-pixel border is not needed, as fc6 is padded by 3.
    Score layers start from 0, upsampling from bilinear interpolation, the rest from He's initialisation.

    num_classes, width, convention: as for DeconvNet. batch_norm: after each convolution (needed without VGG's weights). input_size:
    the longest side of what it is trained on, px; who uses it scales larger photographs down to that, so that things are as large as
    those it has learned. None: as they are.
    """

    architecture = "fcn8s"

    def __init__(
        self,
        num_classes: int = 21,
        width: float = 1.0,
        batch_norm: bool = False,
        convention: str = "caffe",
        input_size: int | None = None,
    ) -> None:
        super().__init__(num_classes, width, convention)
        self.batch_norm, self.input_size = batch_norm, input_size
        top, fc = channels(512, width), channels(_FC, width)

        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = _vgg16_blocks(width, norm=batch_norm)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc6 = _unit(nn.Conv2d(top, fc, 7, padding=3), norm=batch_norm)
        self.fc7 = _unit(nn.Conv2d(fc, fc, 1), norm=batch_norm)
        self.dropout = nn.Dropout(0.5)
        self.score = nn.Conv2d(fc, num_classes, 1)
        self.score_pool4 = nn.Conv2d(top, num_classes, 1)
        self.score_pool3 = nn.Conv2d(channels(256, width), num_classes, 1)
        _he(self)
        for layer in (self.score, self.score_pool4, self.score_pool3):
            nn.init.zeros_(layer.weight)
        self.up_score = _Upsample(num_classes, 2)
        self.up_pool4 = _Upsample(num_classes, 2)
        self.up_pool3 = _Upsample(num_classes, 8)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        return {**super().config(), "batch_norm": self.batch_norm, "input_size": self.input_size}

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) prepared images of any size -> (N, num_classes, H, W) scores before softmax."""
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % 32, 0, -height % 32))
        x = self.pool(self.conv2(self.pool(self.conv1(x))))
        pool3 = self.pool(self.conv3(x))
        pool4 = self.pool(self.conv4(pool3))
        x = self.pool(self.conv5(pool4))
        x = self.dropout(self.fc7(self.dropout(self.fc6(x))))
        x = self.up_score(self.score(x)) + self.score_pool4(pool4)
        x = self.up_pool4(x) + self.score_pool3(pool3)
        return self.up_pool3(x)[..., :height, :width]


NETWORKS: dict[str, type[Network]] = {net.architecture: net for net in (DeconvNet, FCN8s)}
