"""Reading and writing files of VGG-16 weights, and loading them into a network.

Layers are called by VGG-16's own names, such as "conv3_2". In the networks of this package this layer is the submodule
`conv3.2`.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast
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
class _Layer:
    """The weights of one layer in a file.

    Attributes:
        weight: tensor of shape (O, I, kH, kW), or (O, I) for a fully connected layer.
        bias: tensor of shape (O,).
        norm: tensors of the batch norm after the layer, with the keys "weight", "bias", "running_mean" and "running_var". None
            if there is no batch norm in the file.
    """

    weight: Tensor
    bias: Tensor
    norm: Mapping[str, Tensor] | None = None

    def folded(self) -> "_Layer":
        """Return an equivalent layer without batch norm.

        Returns:
            A layer whose weight and bias include the batch norm's scale and shift. If there is no batch norm, the layer itself.
        """
        if self.norm is None:
            return self
        scale = self.norm["weight"] / (self.norm["running_var"] + 1e-5).sqrt()
        bias = (self.bias - self.norm["running_mean"]) * scale + self.norm["bias"]
        return _Layer(self.weight * scale.view(-1, 1, 1, 1), bias)


def load_vgg16(model: Network, uri: str) -> tuple[str, ...]:
    """Load VGG-16's weights into a network.

    All convolutions are loaded, and also fc6 and fc7 if the file has them in the network's size. Batch norms are loaded if the
    file has them, as torchvision's vgg16_bn and files of pruned weights do. Otherwise they keep their initial values.

    Args:
        model: the network, changed in place.
        uri: file of weights (local, https:// or in a bucket) in one of these formats: a `.pth` or `.safetensors` file with the
            tensor names of torchvision's vgg16 or vgg16_bn (for RGB input, 0–1); a `.npz` file with Caffe's tensor names
            ("conv1_1.weight", …, for BGR input, 0–255); a `.npz` file of pruned weights made by `write_vgg16`.

    Returns:
        VGG-16's names of the layers whose weights were loaded. The network's other layers keep their initial weights.

    Raises:
        UserError: if the file can't be read, does not hold VGG-16, or has another width or format of the input pixels than the
            network. In this case the network is not changed.
    """
    convention, layers = _read_layers(uri)
    _check_convention(uri, convention, model.convention)
    top, own = (len(weight) for weight in (layers["conv5_3"].weight, _conv(model, "conv5_3").weight))
    if top != own:
        raise UserError(
            f"{uri} holds VGG-16 at width {top / VGG16_CHANNELS[-1][-1]:g} ({top} channels in conv5_3) and the model is of width "
            f"{model.width:g} ({own}): name weights of its width, or of width 1 to have them fitted"
        )

    for name in _FULLY_CONNECTED.keys() & layers.keys():
        if layers[name].weight.numel() != _conv(model, name).weight.numel():
            del layers[name]
    for name, layer in layers.items():
        conv = _conv(model, name)
        if layer.weight.numel() != conv.weight.numel() or layer.bias.shape != conv.weight.shape[:1]:
            raise UserError(f"{uri} is not VGG-16: its {name} is {tuple(layer.weight.shape)}, not {tuple(conv.weight.shape)}")
    with torch.no_grad():
        for name, layer in layers.items():
            _fill(model, name, layer)
    return tuple(layers)


def read_vgg16(uri: str, convention: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Read VGG-16's layers from a file, with batch norms folded into them.

    Args:
        uri: file of weights (.pth, .safetensors or .npz; local, https:// or in a bucket), as described for `load_vgg16`.
        convention: format of the input pixels that the weights must expect, "caffe" (BGR, 0–255) or "torchvision" (RGB, 0–1).

    Returns:
        For each VGG-16 layer name, the weight and the bias of shape (O,). The 13 convolutions have weights of shape (O, I, 3, 3).
        The fully connected layers fc6 and fc7 are present if the file has them, in the shape that they have there.

    Raises:
        UserError: if the file can't be read, does not hold VGG-16 at full width, or has another format of the input pixels.
    """
    found, layers = _read_layers(uri)
    _check_convention(uri, found, convention)
    inputs = 3
    for name, outputs in zip(VGG16_CONVOLUTIONS, (c for block in VGG16_CHANNELS for c in block), strict=True):
        shape, expected = tuple(layers[name].weight.shape), (outputs, inputs, 3, 3)
        if shape != expected or layers[name].bias.shape != shape[:1]:
            raise UserError(f"{uri} is not VGG-16 at width 1: its {name} is {shape}, not {expected}")
        inputs = outputs
    return {name: ((folded := layer.folded()).weight, folded.bias) for name, layer in layers.items()}


def write_vgg16(uri: str, tensors: Mapping[str, Tensor], convention: str) -> None:
    """Write VGG-16's convolutions to an `.npz` file.

    Args:
        uri: URI of the file (local or in a bucket). An existing file is overwritten.
        tensors: weights named "conv1_1.weight", "conv1_1.bias" and so on. Batch norms, if there are any, are named
            "conv1_1.norm.weight" and so on.
        convention: format of the input pixels that the weights expect, "caffe" (BGR, 0–255) or "torchvision" (RGB, 0–1). It is
            stored in the file.
    """
    sink = io.BytesIO()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
    np.savez(sink, **arrays, convention=np.array(CONVENTIONS.index(convention)))
    storage.write_bytes(uri, sink.getvalue())


def _unit(model: Network, name: str) -> nn.Module:
    """Return the submodule of a network that holds a VGG-16 layer, its batch norm (if any) and ReLU.

    Args:
        model: the network.
        name: VGG-16's name of the layer. For "conv3_2" the submodule `conv3.2` is returned, for "fc6" the submodule `fc6`.
    """
    return model.get_submodule(name.replace("_", "."))


def _conv(model: Network, name: str) -> nn.Conv2d:
    """Return the convolution of a network that corresponds to a VGG-16 layer.

    Args:
        model: the network.
        name: VGG-16's name of the layer, such as "conv3_2".
    """
    conv = _unit(model, name).get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    return conv


def _fill(model: Network, name: str, layer: _Layer) -> None:
    """Copy a layer from a file into a network, with its batch norm.

    If the network has no batch norm there, the file's batch norm is folded into the weights. If only the network has one, it
    keeps its initial values.

    Args:
        model: the network, changed in place.
        name: VGG-16's name of the layer, such as "conv3_2".
        layer: the layer's weights from the file.
    """
    norm = dict(_unit(model, name).named_children()).get("norm")
    if norm is None:
        layer = layer.folded()
    elif layer.norm is not None:
        for entry, value in layer.norm.items():
            getattr(norm, entry).copy_(value)
    conv = _conv(model, name)
    conv.weight.copy_(layer.weight.view_as(conv.weight))
    cast(Tensor, conv.bias).copy_(layer.bias)


def _read(uri: str) -> dict[str, Tensor]:
    """Read all tensors of a file of weights.

    Args:
        uri: URI of a .pth, .pt, .safetensors or .npz file (local, https:// or in a bucket).

    Returns:
        The tensors by their names in the file, as float32.

    Raises:
        UserError: if the file has another format, is incomplete or can't be read.
    """
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
        except Exception as error:  # these readers raise all kinds of errors for wrong or truncated files
            raise UserError(f"{uri} can't be used: it is not a whole {suffix} file of weights") from error


def _read_layers(uri: str) -> tuple[str, dict[str, _Layer]]:
    """Read a file of VGG-16 weights and group its tensors by layer.

    Args:
        uri: file of weights (.pth, .safetensors or .npz; local, https:// or in a bucket), as described for `load_vgg16`.

    Returns:
        The format of the input pixels that the weights expect ("caffe" or "torchvision"), and the layers by VGG-16's names.

    Raises:
        UserError: if the file can't be read or does not hold VGG-16.
    """
    tensors = _read(uri)
    if any(name.startswith("features.") for name in tensors):
        return "torchvision", _layers(_with_caffe_names(tensors, uri), uri)
    number = tensors.get("convention")  # `write_vgg16` adds it; Caffe's own files have no such entry
    return CONVENTIONS[int(number)] if number is not None else "caffe", _layers(tensors, uri)


def _check_convention(uri: str, found: str, expected: str) -> None:
    """Check that the weights of a file expect the same format of input pixels as the network.

    Args:
        uri: URI of the file, for the error message.
        found: format that the file's weights expect, "caffe" or "torchvision".
        expected: format that the network is set to.

    Raises:
        UserError: if the formats differ.
    """
    if found != expected:
        raise UserError(f"{uri} expects {found} input and the model is built for {expected}: set model.convention to {found}")


def _layers(tensors: Mapping[str, Tensor], uri: str) -> dict[str, _Layer]:
    """Collect the weights, biases and batch norms of VGG-16's layers from the tensors of a file.

    Args:
        tensors: tensors of the file by name. The names begin with Caffe's layer names, such as "conv1_1.weight".
        uri: URI of the file, for the error message.

    Returns:
        One entry for each layer in the file, by Caffe's layer name, such as "conv1_1" or "fc6". All convolutions are present;
        the fully connected layers fc6 and fc7 may be missing.

    Raises:
        UserError: if a convolution of VGG-16 or a part of a batch norm is missing.
    """
    layers = {}
    for name in (*VGG16_CONVOLUTIONS, *_FULLY_CONNECTED):
        if f"{name}.weight" in tensors and f"{name}.bias" in tensors:
            norm = {entry: tensors[key] for entry in _NORM_ENTRIES if (key := f"{name}.norm.{entry}") in tensors}
            if norm and len(norm) < len(_NORM_ENTRIES):
                raise UserError(f"{uri} is not VGG-16: the batch norm of its {name} has {', '.join(norm)} only")
            layers[name] = _Layer(tensors[f"{name}.weight"], tensors[f"{name}.bias"], norm or None)
        elif name in VGG16_CONVOLUTIONS:
            raise UserError(f"{uri} is not VGG-16: it has no {name}.weight and {name}.bias")
    return layers


def _with_caffe_names(tensors: Mapping[str, Tensor], uri: str) -> dict[str, Tensor]:
    """Replace torchvision's tensor names by Caffe's names, for example "features.0.weight" by "conv1_1.weight".

    Args:
        tensors: tensors of a file by torchvision's name.
        uri: URI of the file, for the error message.

    Returns:
        The tensors by names such as "conv1_1.weight" and "conv1_1.norm.weight". Tensors of other layers are left out.

    Raises:
        UserError: if the number of convolutions is not VGG-16's.
    """
    numbers = sorted(int(m[1]) for name in tensors if (m := re.fullmatch(r"features\.(\d+)\.weight", name)))
    convolutions = [n for n in numbers if tensors[f"features.{n}.weight"].ndim == 4]
    if len(convolutions) != len(VGG16_CONVOLUTIONS):
        raise UserError(f"{uri} is not VGG-16: it has {len(convolutions)} convolutions, not {len(VGG16_CONVOLUTIONS)}")
    names = {prefix: name for name, prefix in _FULLY_CONNECTED.items()}
    for name, number in zip(VGG16_CONVOLUTIONS, convolutions, strict=True):
        names[f"features.{number}"] = name
        if number + 1 in numbers:
            names[f"features.{number + 1}"] = f"{name}.norm"
    split = [(*name.rpartition("."), value) for name, value in tensors.items()]
    return {f"{names[layer]}.{entry}": value for layer, _, entry, value in split if layer in names}
