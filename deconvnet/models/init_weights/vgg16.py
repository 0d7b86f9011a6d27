"""ImageNet's VGG-16 as initial weights: reading files of weights, and loading them into a network.

A layer has VGG-16's own name, such as "conv3_2", which is `conv3.2` in our networks.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from deconvnet.models.layers import VGG16_CHANNELS, VGG16_CONVOLUTIONS
from deconvnet.models.network import Network
from deconvnet.models.preprocessing import CONVENTIONS
from infra import storage
from infra.errors import UserError

_FULLY_CONNECTED = {"fc6": "classifier.0", "fc7": "classifier.3"}
_NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class LoadReport:
    """What `load_vgg16` loaded.

    Attributes:
        convention: input convention of the file.
        loaded: VGG-16's layers whose weights were loaded.
        skipped: layers that keep their initialisation, and why.
    """

    convention: str
    loaded: tuple[str, ...]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class _Layer:
    """A layer of a file.

    Attributes:
        weight: (O, I, kH, kW), or (O, I) of a fully connected layer.
        bias: (O,).
        norm: the batch norm after it ("weight", "bias", "running_mean", "running_var"); None where the file has none.
    """

    weight: Tensor
    bias: Tensor
    norm: Mapping[str, Tensor] | None = None

    def folded(self) -> "_Layer":
        """Return the layer that computes the same without batch norm."""
        if self.norm is None:
            return self
        scale = self.norm["weight"] / (self.norm["running_var"] + 1e-5).sqrt()
        bias = (self.bias - self.norm["running_mean"]) * scale + self.norm["bias"]
        return _Layer(self.weight * scale.view(-1, 1, 1, 1), bias)


def load_vgg16(model: Network, uri: str) -> LoadReport:
    """Load VGG-16's convolutions into a network, and fc6 and fc7 where the file has them and they fit.

    Batch norms are loaded from files that have them (torchvision's vgg16_bn, pruned weights); otherwise they keep their
    initialisation.

    Args:
        model: changed in place.
        uri: local, https or s3; one of
            `.pth` or `.safetensors` with torchvision's names (vgg16 or vgg16_bn, input RGB 0–1);
            `.npz` with Caffe's ("conv1_1.weight", …, input BGR 0–255);
            `.npz` of `write_vgg16` (pruned weights).

    Returns:
        Which layers were loaded.

    Raises:
        UserError: if the file can't be read, is not VGG-16, or has another input convention or width than the model; the model is then
            unchanged.
    """
    convention, layers = _read_layers(uri)
    _check_convention(uri, convention, model.convention)
    top, own = (len(weight) for weight in (layers["conv5_3"].weight, _conv(model, "conv5_3").weight))
    if top != own:
        raise UserError(
            f"{uri} holds VGG-16 at width {top / VGG16_CHANNELS[-1][-1]:g} ({top} channels in conv5_3) and the model is of width "
            f"{model.width:g} ({own}): name weights of its width, or of width 1 to have them pruned"
        )

    skipped: dict[str, str] = {}
    for name in _FULLY_CONNECTED:
        if name not in layers:
            skipped[name] = "not in the file"
        elif layers[name].weight.numel() != _conv(model, name).weight.numel():
            skipped[name] = f"of another size than the model's {tuple(_conv(model, name).weight.shape)}"
            del layers[name]
    for name, layer in layers.items():
        conv = _conv(model, name)
        if layer.weight.numel() != conv.weight.numel() or layer.bias.shape != conv.weight.shape[:1]:
            raise UserError(f"{uri} is not VGG-16: its {name} is {tuple(layer.weight.shape)}, not {tuple(conv.weight.shape)}")
    with torch.no_grad():
        for name, layer in layers.items():
            _fill(model, name, layer)
    return LoadReport(convention, tuple(layers), skipped)


def read_vgg16(uri: str, convention: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the 13 convolutions of VGG-16 at width 1, batch norms folded in.

    Args:
        uri: file, as for `load_vgg16`.
        convention: input convention that the file must have.

    Returns:
        Weight (O, I, 3, 3) and bias (O,) by layer.

    Raises:
        UserError: if the file can't be read, is not VGG-16 at width 1, or has another input convention.
    """
    found, layers = _read_layers(uri)
    _check_convention(uri, found, convention)
    inputs = 3
    for name, outputs in zip(VGG16_CONVOLUTIONS, (c for block in VGG16_CHANNELS for c in block), strict=True):
        shape, expected = tuple(layers[name].weight.shape), (outputs, inputs, 3, 3)
        if shape != expected or layers[name].bias.shape != shape[:1]:
            raise UserError(f"{uri} is not VGG-16 at width 1: its {name} is {shape}, not {expected}")
        inputs = outputs
    return {name: ((layer := layers[name].folded()).weight, layer.bias) for name in VGG16_CONVOLUTIONS}


def write_vgg16(uri: str, tensors: Mapping[str, Tensor], convention: str) -> None:
    """Write VGG-16's convolutions as an `.npz` file.

    Args:
        uri: of the file (local or s3).
        tensors: "conv1_1.weight", "conv1_1.bias", … and, where there is batch norm, "conv1_1.norm.weight", ….
        convention: their input convention.
    """
    sink = io.BytesIO()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
    np.savez(sink, **arrays, convention=np.array(CONVENTIONS.index(convention)))
    storage.write_bytes(uri, sink.getvalue())


def _unit(model: Network, name: str) -> nn.Module:
    """Return the model's unit of a VGG-16 layer: conv3_2 is conv3.2."""
    return model.get_submodule(name.replace("_", "."))


def _conv(model: Network, name: str) -> nn.Conv2d:
    """Return the model's convolution of a VGG-16 layer."""
    conv = _unit(model, name).get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    return conv


def _fill(model: Network, name: str, layer: _Layer) -> None:
    """Copy a layer of a file into the model; its batch norm is folded where the model has none."""
    norm = dict(_unit(model, name).named_children()).get("norm")
    if norm is None:
        layer = layer.folded()
    elif layer.norm is not None:
        for entry, value in layer.norm.items():
            getattr(norm, entry).copy_(value)
    conv = _conv(model, name)
    conv.weight.copy_(layer.weight.view_as(conv.weight))
    if conv.bias is not None:
        conv.bias.copy_(layer.bias)


def _read(uri: str) -> dict[str, Tensor]:
    """Read a file's tensors, as float32. Raises UserError if it is not a complete file of weights."""
    suffix = PurePosixPath(urlsplit(uri).path).suffix.lower()
    with storage.local_copy(uri) as path:
        try:
            values: Any
            if suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    values = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
            elif suffix == ".safetensors":
                values = safetensors.torch.load_file(path)
            elif suffix in (".pth", ".pt"):
                values = torch.load(path, map_location="cpu", weights_only=True)
            else:
                raise UserError(f"{uri} can't be used: weights are .pth, .safetensors or .npz files")
            return {str(name): value.float() for name, value in values.items() if isinstance(value, Tensor)}
        except UserError:
            raise
        except Exception as error:  # a foreign or truncated file makes these readers raise almost anything
            raise UserError(f"{uri} can't be used: it is not a whole {suffix} file of weights") from error


def _read_layers(uri: str) -> tuple[str, dict[str, _Layer]]:
    """Read a file's input convention and its layers by VGG-16's names. Raises UserError if it is not VGG-16."""
    tensors = _read(uri)
    if any(name.startswith("features.") for name in tensors):
        return "torchvision", _torchvision_layers(tensors, uri)
    number = tensors.get("convention")  # `write_vgg16` adds it; Caffe's own files have no such entry
    return CONVENTIONS[int(number)] if number is not None else "caffe", _caffe_layers(tensors, uri)


def _check_convention(uri: str, found: str, expected: str) -> None:
    """Raise UserError if a file's input convention is not the model's."""
    if found != expected:
        raise UserError(f"{uri} expects {found} input and the model is built for {expected}: set model.convention to {found}")


def _caffe_layers(tensors: Mapping[str, Tensor], uri: str) -> dict[str, _Layer]:
    """Find the layers among tensors with Caffe's names."""
    layers = {}
    for name in (*VGG16_CONVOLUTIONS, *_FULLY_CONNECTED):
        if f"{name}.weight" in tensors and f"{name}.bias" in tensors:
            norm = {entry: tensors[key] for entry in _NORM_ENTRIES if (key := f"{name}.norm.{entry}") in tensors}
            layers[name] = _Layer(tensors[f"{name}.weight"], tensors[f"{name}.bias"], norm or None)
        elif name in VGG16_CONVOLUTIONS:
            raise UserError(f"{uri} is not VGG-16: it has no {name}.weight and {name}.bias")
    return layers


def _torchvision_layers(tensors: Mapping[str, Tensor], uri: str) -> dict[str, _Layer]:
    """Find the layers among tensors with torchvision's names, in which layers are numbered."""
    numbers = sorted(int(m[1]) for name in tensors if (m := re.fullmatch(r"features\.(\d+)\.weight", name)))
    convolutions = [n for n in numbers if tensors[f"features.{n}.weight"].ndim == 4]
    if len(convolutions) != len(VGG16_CONVOLUTIONS):
        raise UserError(f"{uri} is not VGG-16: it has {len(convolutions)} convolutions, not {len(VGG16_CONVOLUTIONS)}")
    prefixes = dict(zip(VGG16_CONVOLUTIONS, (f"features.{n}" for n in convolutions), strict=True))
    norms = {name: f"features.{n + 1}" for name, n in zip(VGG16_CONVOLUTIONS, convolutions, strict=True) if n + 1 in numbers}
    prefixes |= {name: prefix for name, prefix in _FULLY_CONNECTED.items() if f"{prefix}.weight" in tensors}
    try:
        return {
            name: _Layer(
                tensors[f"{prefix}.weight"],
                tensors[f"{prefix}.bias"],
                {entry: tensors[f"{norms[name]}.{entry}"] for entry in _NORM_ENTRIES} if name in norms else None,
            )
            for name, prefix in prefixes.items()
        }
    except KeyError as error:
        raise UserError(f"{uri} is not VGG-16: it has no {error.args[0]}") from error
