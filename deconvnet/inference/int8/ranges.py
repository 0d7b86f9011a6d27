"""Largest activations of a network's layers, which say how activations are rounded to 8-bit integers.

They are recorded while a network predicts some images, and kept in the network's model folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from infra import storage
from infra.errors import UserError

Ranges = dict[str, Tensor]
"""The largest activation of each output channel, float32 (channels,), by the name of the layer, such as "conv1.1"."""

_PREFIX = "activation_ranges-"


def units(network: nn.Module) -> dict[str, nn.Sequential]:
    """Return the layers of a network that were made by `layers.unit`, by name, in the order in which they run.

    Args:
        network: the network, which may have been converted by `fusion.for_inference`.
    """
    return {
        name: module for name, module in network.named_modules() if isinstance(module, nn.Sequential) and hasattr(module, "conv")
    }


@contextmanager
def recorded(network: nn.Module) -> Iterator[Ranges]:
    """Record the largest activations while a `with` block runs.

    Args:
        network: the network that predicts in this block.

    Yields:
        The ranges so far. At first there are none; each prediction adds to them.
    """
    found: Ranges = {}

    def record(name: str, output: Tensor) -> None:
        largest = output.amax((0, 2, 3)).float().cpu()
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    hooks = [
        unit.register_forward_hook(lambda module, args, output, name=name: record(name, output))
        for name, unit in units(network).items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def largest(first: Ranges, second: Ranges) -> Ranges:
    """Return the larger ones of two ranges of the same network, of which either may be empty."""
    return {name: torch.maximum(first.get(name, value), value) for name, value in {**first, **second}.items()}


def save_ranges(folder: str, ranges: Mapping[str, Tensor]) -> None:
    """Save ranges in the folder of their network. Those of earlier weights of the network are deleted.

    Args:
        folder: the model folder (see `models.checkpoint`), local or in a bucket.
        ranges: the ranges.
    """
    file = _file(folder)
    storage.write_bytes(file, safetensors.torch.save({name: value.clone() for name, value in ranges.items()}))
    earlier = [name for name in storage.list_files(folder) if name.startswith(_PREFIX) and storage.join(folder, name) != file]
    storage.remove_files(folder, earlier)


def load_ranges(folder: str) -> Ranges | None:
    """Load the ranges of a network.

    Args:
        folder: the model folder, local or in a bucket.

    Returns:
        The ranges. None if there are none for its present weights.

    Raises:
        UserError: if the file is damaged, or the folder holds no model.
    """
    file = _file(folder)
    if not storage.exists(file):
        return None
    try:
        return safetensors.torch.load(storage.read_bytes(file))
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is damaged: delete it, and evaluate the model again") from error


def required_ranges(folders: Sequence[str]) -> list[Ranges]:
    """Load the ranges of several networks, all of which are needed.

    Args:
        folders: the model folders, local or in a bucket.

    Returns:
        The ranges of each network.

    Raises:
        UserError: if a network has none, or its file is damaged.
    """
    found = {folder: load_ranges(folder) for folder in folders}
    if missing := [folder for folder, ranges in found.items() if ranges is None]:
        raise UserError(
            f"segment.int8 needs the ranges of the activations of {' and '.join(missing)}, which are recorded when a pipeline "
            "evaluates its networks: run workflows/evaluate.py with segment.int8 true, or set it to false"
        )
    return [ranges for ranges in found.values() if ranges is not None]


def _file(folder: str) -> str:
    """Return the path or URI of a network's ranges, which names the network's weights.

    Raises:
        UserError: if the folder holds no model.
    """
    try:
        digest = storage.read_json(storage.join(folder, "model.json"))["sha256"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a model: it has no complete model.json") from error
    return storage.join(folder, f"{_PREFIX}{digest[:16]}.safetensors")
