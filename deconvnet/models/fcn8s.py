"""FCN-8s (Long, Shelhamer, Darrell, CVPR 2015), at any width."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet.models.layers import FC_CHANNELS, channels, he_initialise, unit, vgg16_blocks
from deconvnet.models.network import Network


class Upsample(nn.ConvTranspose2d):
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
        top, fc = channels(512, width), channels(FC_CHANNELS, width)

        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = vgg16_blocks(width, norm=batch_norm)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc6 = unit(nn.Conv2d(top, fc, 7, padding=3), norm=batch_norm)
        self.fc7 = unit(nn.Conv2d(fc, fc, 1), norm=batch_norm)
        self.dropout = nn.Dropout(0.5)
        self.score = nn.Conv2d(fc, num_classes, 1)
        self.score_pool4 = nn.Conv2d(top, num_classes, 1)
        self.score_pool3 = nn.Conv2d(channels(256, width), num_classes, 1)
        he_initialise(self)
        for layer in (self.score, self.score_pool4, self.score_pool3):
            nn.init.zeros_(layer.weight)
        self.up_score = Upsample(num_classes, 2)
        self.up_pool4 = Upsample(num_classes, 2)
        self.up_pool3 = Upsample(num_classes, 8)

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
