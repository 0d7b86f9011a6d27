"""Conversion of images to the input of a network.

Published VGG-16 weights come with two input conventions (formats of the input pixels), Caffe's and torchvision's. A network
must get its input in the convention of the weights that it started from.
"""

from typing import Literal

import torch
from torch import Tensor

Convention = Literal["caffe", "torchvision"]
CONVENTIONS: tuple[Convention, ...] = ("caffe", "torchvision")

_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
_TORCHVISION_MEAN_RGB = (0.485, 0.456, 0.406)
_TORCHVISION_STD_RGB = (0.229, 0.224, 0.225)


def prepare(images: Tensor, convention: str) -> Tensor:
    """Convert images to a network's input.

    Args:
        images: uint8 RGB images of shape (N, 3, H, W) on any device. Their memory format is kept.
        convention: "caffe": BGR values from 0 to 255 minus the ImageNet mean. "torchvision": RGB values from 0 to 1 minus the
            ImageNet mean, divided by the ImageNet standard deviation.

    Returns:
        float32 tensor of shape (N, 3, H, W).

    Raises:
        ValueError: if the convention is unknown, or the images have another dtype or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}; expected uint8 (N, 3, H, W), RGB with values from 0 to 255, which "
            "torch.from_numpy(image).permute(2, 0, 1)[None] makes of one image (H, W, 3)"
        )
    if convention == "caffe":
        values = images.flip(1).float()
        return values.sub_(values.new_tensor(_CAFFE_MEAN_BGR).view(3, 1, 1))
    if convention == "torchvision":
        values = images.float().div_(255)
        mean, std = (values.new_tensor(v).view(3, 1, 1) for v in (_TORCHVISION_MEAN_RGB, _TORCHVISION_STD_RGB))
        return values.sub_(mean).div_(std)
    raise ValueError(f"unknown input convention {convention!r}: one of {', '.join(CONVENTIONS)}")
