"""The two input conventions that VGG-16 weights come with; a network has the one that its weights expect."""

from typing import Literal

import torch
from torch import Tensor

Convention = Literal["caffe", "torchvision"]
CONVENTIONS: tuple[Convention, ...] = ("caffe", "torchvision")

_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
_TORCHVISION_MEAN_RGB = (0.485, 0.456, 0.406)
_TORCHVISION_STD_RGB = (0.229, 0.224, 0.225)


def prepare(images: Tensor, convention: str) -> Tensor:
    """Turn images into a network's input.

    Args:
        images: uint8 (N, 3, H, W), RGB, 0–255, on any device and in any memory format, which is kept.
        convention: "caffe": BGR 0–255 minus the ImageNet mean; "torchvision": RGB 0–1 minus the ImageNet mean, divided by its
            standard deviation.

    Returns:
        float32 (N, 3, H, W).

    Raises:
        ValueError: for another convention, dtype or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if convention == "caffe":
        values = images.flip(1).float()
        return values.sub_(values.new_tensor(_CAFFE_MEAN_BGR).view(3, 1, 1))
    if convention == "torchvision":
        values = images.float().div_(255)
        mean, std = (values.new_tensor(v).view(3, 1, 1) for v in (_TORCHVISION_MEAN_RGB, _TORCHVISION_STD_RGB))
        return values.sub_(mean).div_(std)
    raise ValueError(f"unknown input convention {convention!r}: one of {', '.join(CONVENTIONS)}")
