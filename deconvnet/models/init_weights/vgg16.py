"""Weights to start from: VGG-16's of ImageNet (or what `deconvnet.models.init_weights.channel_pruning` made of them), and those of a model of other classes."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from deconvnet.models.layers import VGG16_LAYERS
from deconvnet.models.network import Network
from deconvnet.models.preprocessing import CONVENTIONS
from infra import storage
from infra.errors import UserError

_CONVOLUTIONS = tuple(f"conv{b}_{i}" for b, layers in enumerate(VGG16_LAYERS, 1) for i in range(1, len(layers) + 1))
_FULLY_CONNECTED = {"fc6": "classifier.0", "fc7": "classifier.3"}
_NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class LoadReport:
    """loaded: VGG-16's layers that were filled; left: those that keep their initialisation, and why."""

    convention: str
    loaded: tuple[str, ...]
    left: Mapping[str, str]


@dataclass(frozen=True)
class _Layer:
    """weight (O, I, kH, kW) or (O, I), bias (O,); norm: the batch norm after it, by entry, where the file has one."""

    weight: Tensor
    bias: Tensor
    norm: Mapping[str, Tensor] | None = None

    def folded(self) -> "_Layer":
        """The same function without batch norm."""
        if self.norm is None:
            return self
        scale = self.norm["weight"] / (self.norm["running_var"] + 1e-5).sqrt()
        bias = (self.bias - self.norm["running_mean"]) * scale + self.norm["bias"]
        return _Layer(self.weight * scale.view(-1, 1, 1, 1), bias)


def load_vgg16(model: Network, uri: str) -> LoadReport:
    """Fill the convolutions of `model` (in place) with VGG-16's, and fc6 and fc7 where the file has them and they fit.

    uri: local, https or s3. `.pth` and `.safetensors` with torchvision's names (vgg16 or vgg16_bn; RGB 0–1), or `.npz` with
    `conv1_1.weight` … (BGR 0–255), or a narrower one of `write_vgg16`. Batch norms are filled from files that have them (vgg16_bn,
    narrower ones); from others they are left as they start. Raises UserError for a file that can't be read or is not VGG-16, of
    another input convention than the model's, or of another width; the model is then untouched.
    """
    convention, layers = _read_layers(uri)
    _check_convention(uri, convention, model.convention)
    top, own = (len(weight) for weight in (layers["conv5_3"].weight, _conv(model, "conv5_3").weight))
    if top != own:
        raise UserError(
            f"{uri} holds VGG-16 at width {top / VGG16_LAYERS[-1][-1]:g} ({top} channels in conv5_3) and the model is of width "
            f"{model.width:g} ({own}): name weights of its width, or of width 1 to have them made narrower"
        )

    left: dict[str, str] = {}
    for name in _FULLY_CONNECTED:
        if name not in layers:
            left[name] = "not in the file"
        elif layers[name].weight.numel() != _conv(model, name).weight.numel():
            left[name] = f"of another size than the model's {tuple(_conv(model, name).weight.shape)}"
            del layers[name]
    for name, layer in layers.items():
        conv = _conv(model, name)
        if layer.weight.numel() != conv.weight.numel() or layer.bias.shape != conv.weight.shape[:1]:
            raise UserError(f"{uri} is not VGG-16: its {name} is {tuple(layer.weight.shape)}, not {tuple(conv.weight.shape)}")
    with torch.no_grad():
        for name, layer in layers.items():
            _fill(model, name, layer)
    return LoadReport(convention, tuple(layers), left)


def read_vgg16(uri: str, convention: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight (O, I, 3, 3) and bias (O,) of the 13 convolutions at width 1, batch norms folded in. Raises UserError as `load_vgg16`.

    convention: the one that is expected of them.
    """
    found, layers = _read_layers(uri)
    _check_convention(uri, found, convention)
    inputs = 3
    for name, outputs in zip(_CONVOLUTIONS, (c for block in VGG16_LAYERS for c in block), strict=True):
        shape, expected = tuple(layers[name].weight.shape), (outputs, inputs, 3, 3)
        if shape != expected or layers[name].bias.shape != shape[:1]:
            raise UserError(f"{uri} is not VGG-16 at width 1: its {name} is {shape}, not {expected}")
        inputs = outputs
    return {name: ((layer := layers[name].folded()).weight, layer.bias) for name in _CONVOLUTIONS}


def write_vgg16(uri: str, tensors: Mapping[str, Tensor], convention: str) -> None:
    """Write convolutions (`conv1_1.weight` …) and their batch norms (`conv1_1.norm.weight` …), where given, as an `.npz` file."""
    sink = io.BytesIO()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
    np.savez(sink, **arrays, convention=np.array(CONVENTIONS.index(convention)))
    storage.write_bytes(uri, sink.getvalue())


def map_scores(
    model: Network, state: Mapping[str, Tensor], old_classes: Sequence[str], new_classes: Sequence[str]
) -> dict[str, Tensor]:
    """A state for `model` (of `new_classes`) from the `state` of one of `old_classes`, matched by class name.

    What belongs to a class (rows of the score layers, channels of FCN-8s's upsampling) is taken over for the names that both
    have; names that are new keep `model`'s own values; all the rest is taken over as it is. Raises UserError where `state` is
    of another architecture, width or input size.
    """
    own = model.state_dict()
    if differing := sorted(own.keys() ^ state.keys()):
        raise UserError(
            f"the weights to start from are of another architecture than {model.architecture}: {differing[0]} differs"
        )
    shared = [name for name in new_classes if name in old_classes]
    old = torch.tensor([old_classes.index(name) for name in shared], dtype=torch.long)
    new = torch.tensor([new_classes.index(name) for name in shared], dtype=torch.long)
    mapped = {}
    for name, value in own.items():
        by_class = _class_dimensions(name)
        expected = tuple(len(old_classes) if d in by_class else size for d, size in enumerate(value.shape))
        if tuple(state[name].shape) != expected:
            raise UserError(f"the weights to start from don't fit: {name} is {tuple(state[name].shape)}, not {expected}")
        if by_class:
            mapped[name] = value.detach().cpu().clone()
            mapped[name][_index(new, by_class)] = state[name].cpu()[_index(old, by_class)]
        else:
            mapped[name] = state[name]
    return mapped


def initialise_from(
    model: Network, state: Mapping[str, Tensor], old_classes: Sequence[str], new_classes: Sequence[str], convention: str
) -> tuple[str, ...]:
    """Fill `model` (in place) by `map_scores`. convention: the input convention `state` was trained with.

    Returns the classes whose scores were taken over. Raises UserError as `map_scores` does, and for another convention.
    """
    if convention != model.convention:
        raise UserError(
            f"the weights to start from expect {convention} input and the model is built for {model.convention}: "
            f"set model.convention to {convention}"
        )
    model.load_state_dict(map_scores(model, state, old_classes, new_classes))
    return tuple(name for name in new_classes if name in old_classes)


def _class_dimensions(name: str) -> tuple[int, ...]:
    """The dimensions of a tensor that are counted in classes: score layers put them out, upsampling takes them in too."""
    return (0,) if name.startswith("score") else (0, 1) if name.startswith("up_") else ()


def _index(classes: Tensor, dimensions: tuple[int, ...]) -> tuple[Tensor, ...]:
    return (classes,) if len(dimensions) == 1 else (classes[:, None], classes[None, :])


def _unit(model: Network, name: str) -> nn.Module:
    """The model's layer of VGG's name: conv3_2 is conv3.2."""
    return model.get_submodule(name.replace("_", "."))


def _conv(model: Network, name: str) -> nn.Conv2d:
    conv = _unit(model, name).get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    return conv


def _fill(model: Network, name: str, layer: _Layer) -> None:
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
    """The named float32 tensors of a file."""
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
    """The input convention of a file of VGG-16, and its layers by VGG's names."""
    tensors = _read(uri)
    if any(name.startswith("features.") for name in tensors):
        return "torchvision", _torchvision_layers(tensors, uri)
    number = tensors.get("convention")  # of a file of ours; Caffe's own have no such entry
    return CONVENTIONS[int(number)] if number is not None else "caffe", _caffe_layers(tensors, uri)


def _check_convention(uri: str, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(f"{uri} expects {found} input and the model is built for {expected}: set model.convention to {found}")


def _caffe_layers(tensors: Mapping[str, Tensor], uri: str) -> dict[str, _Layer]:
    layers = {}
    for name in (*_CONVOLUTIONS, *_FULLY_CONNECTED):
        if f"{name}.weight" in tensors and f"{name}.bias" in tensors:
            norm = {entry: tensors[key] for entry in _NORM_ENTRIES if (key := f"{name}.norm.{entry}") in tensors}
            layers[name] = _Layer(tensors[f"{name}.weight"], tensors[f"{name}.bias"], norm or None)
        elif name in _CONVOLUTIONS:
            raise UserError(f"{uri} is not VGG-16: it has no {name}.weight and {name}.bias")
    return layers


def _torchvision_layers(tensors: Mapping[str, Tensor], uri: str) -> dict[str, _Layer]:
    numbers = sorted(int(m[1]) for name in tensors if (m := re.fullmatch(r"features\.(\d+)\.weight", name)))
    convolutions = [n for n in numbers if tensors[f"features.{n}.weight"].ndim == 4]
    if len(convolutions) != len(_CONVOLUTIONS):
        raise UserError(f"{uri} is not VGG-16: it has {len(convolutions)} convolutions, not {len(_CONVOLUTIONS)}")
    prefixes = dict(zip(_CONVOLUTIONS, (f"features.{n}" for n in convolutions), strict=True))
    norms = {name: f"features.{n + 1}" for name, n in zip(_CONVOLUTIONS, convolutions, strict=True) if n + 1 in numbers}
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
