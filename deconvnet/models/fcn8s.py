"""The network FCN-8s, with an adjustable width (number of channels per layer).

Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet.models.layers import FC_CHANNELS, MatrixConv2d, channels, he_initialise, unit, vgg16_blocks
from deconvnet.models.network import Network


class Upsample(nn.ConvTranspose2d):
    """A learnable deconvolution that enlarges score maps (one map of scores for each class) by a whole factor.

    The initial weights make it a bilinear interpolation. The layer first repeats the border pixels outwards, so that the scores
    don't fade towards the border.
    """

    def __init__(self, classes: int, factor: int) -> None:
        """Build the layer, with weights that interpolate bilinearly.

        Args:
            classes: number of score maps (one for each class), the same in the input and the output.
            factor: whole number, at least 1, by which height and width are multiplied.

        Raises:
            ValueError: if the factor is less than 1.
        """
        if factor < 1:
            raise ValueError(f"factor is {factor}; it must be at least 1")
        side = 2 * factor - factor % 2  # of the kernel, so that it lies symmetrically about the centre of an input pixel
        super().__init__(classes, classes, side, stride=factor, padding=factor + factor // 2, bias=False)
        ramp = 1 - (torch.arange(side) - (side - 1) / 2).abs() / factor
        with torch.no_grad():
            self.weight.zero_()
            self.weight[range(classes), range(classes)] = torch.outer(ramp, ramp)

    def forward(self, scores: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Enlarge score maps.

        The computation ignores autocast and uses the dtype of the weights, because the network learns much less when this layer
        is computed in bfloat16.

        Args:
            scores: tensor of shape (N, C, H, W), with one map for each class.
            output_size: unused; it is there because the base class has it.

        Returns:
            Tensor of shape (N, C, factor·H, factor·W).
        """
        with torch.autocast(scores.device.type, enabled=False):
            scores = F.pad(scores.to(self.weight.dtype), (1, 1, 1, 1), mode="replicate")
            return super().forward(scores, output_size)


class FCN8s(Network):
    """VGG-16 made fully convolutional, with scores from three depths added up (§4 of Long et al., CVPR 2015).

    This is the network at width 1, for an image that is padded to H×W (multiples of 32):

        ===========================  ===============  ===================================================
        layer                        output           scores
        ===========================  ===============  ===================================================
        conv1 … conv3, pools: 256    H/8  × W/8       computed by score_pool3
        conv4, pool4: 512            H/16 × W/16      computed by score_pool4
        conv5, pool5: 512            H/32 × W/32
        fc6: 7×7, 4096, dropout      H/32 × W/32
        fc7: 1×1, 4096, dropout      H/32 × W/32      computed by score, the input of up_score
        up_score: 2×                 H/16 × W/16      added to score_pool4's, the input of up_pool4
        up_pool4: 2×                 H/8  × W/8       added to score_pool3's, the input of up_pool3
        up_pool3: 8×                 H × W            the result
        ===========================  ===============  ===================================================

    The layers score, score_pool4 and score_pool3 are 1×1 convolutions that compute one score map for each class.

    The dropout rate is 0.5. Images are padded at the bottom and right with 0, which is the mean colour of the network's input.
    The scores are cropped to the image again. The authors' code adds a border of 100 pixels. It is not needed here, because fc6
    has a padding of 3.

    Initially the score layers are 0 and the upsampling layers interpolate bilinearly. All other layers have He's
    initialisation.
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
        """Build the network with random weights.

        Args:
            num_classes: number of classes, including background.
            width: number of channels per layer as a fraction of the published network's. Each layer's channels are rounded to a
                multiple of 8.
            batch_norm: whether each VGG-16 layer is followed by batch norm. It is needed when training does not start from
                VGG-16's weights.
            convention: format of the input pixels. "caffe": BGR, 0–255, minus the mean. "torchvision": RGB, 0–1, minus the
                mean, divided by the standard deviation.
            input_size: longest side in pixels of the images that the network is trained on. Inference scales larger images down
                to this size, so that objects have about the same size as in training. None: images are not scaled.

        Raises:
            ValueError: if an argument is out of range.
        """
        if input_size is not None and input_size < 32:
            raise ValueError(f"input_size is {input_size}; it must be at least 32, or None")
        super().__init__(num_classes, width, convention)
        self.batch_norm, self.input_size = batch_norm, input_size
        top, fc = channels(512, width), channels(FC_CHANNELS, width)

        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = vgg16_blocks(width, norm=batch_norm)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc6 = unit(nn.Conv2d(top, fc, 7, padding=3), norm=batch_norm)
        self.fc7 = unit(MatrixConv2d(fc, fc, 1), norm=batch_norm)
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
        """Return the arguments of the constructor by name, as JSON values, so that the network can be built again."""
        return {**super().config(), "batch_norm": self.batch_norm, "input_size": self.input_size}

    def forward(self, images: Tensor) -> Tensor:
        """Compute the scores of all classes for every pixel.

        Args:
            images: normalised images, as returned by the method `prepare`, of shape (N, 3, H, W). H and W may have any value.

        Returns:
            Scores before softmax, of shape (N, num_classes, H, W).

        Raises:
            ValueError: if the images are not a float tensor of shape (N, 3, H, W).
        """
        self.check_input(images)
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % 32, 0, -height % 32))
        x = self.pool(self.conv2(self.pool(self.conv1(x))))
        pool3 = self.pool(self.conv3(x))
        pool4 = self.pool(self.conv4(pool3))
        x = self.pool(self.conv5(pool4))
        x = self.dropout(self.fc7(self.dropout(self.fc6(x))))
        x = self.up_score(self.score(x)) + self.score_pool4(pool4)
        x = self.up_pool4(x) + self.score_pool3(pool3)
        scores: Tensor = self.up_pool3(x)
        return scores[..., :height, :width]
