"""The largest activation of each layer of a network, from which the scales of the 8-bit activations follow (calibration).

It is recorded while the network predicts some images, and stored in the network's model folder.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from deconvnet.models.checkpoint import weights_digest
from deconvnet.models.layers import units
from infra import storage
from infra.errors import UserError

Ranges = dict[str, float]
"""The largest activation of each layer by the layer's name, such as "conv1.1"."""

_PREFIX = "activation_ranges-"


@contextmanager
def recording(network: nn.Module) -> Iterator[Ranges]:
    """Record the largest activations while a `with` block runs.

    Args:
        network: the network that predicts in this block.

    Yields:
        The ranges so far. At first there are none; each prediction adds to them.
    """
    found: Ranges = {}

    def record(name: str, output: Tensor) -> None:
        found[name] = max(found.get(name, 0.0), float(output.amax()))

    hooks = [
        unit.register_forward_hook(lambda module, args, output, name=name: record(name, output))
        for name, unit in units(network).items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def merged(first: Ranges, second: Ranges) -> Ranges:
    """Return the larger ones of two ranges of the same network, of which either may be empty."""
    return {name: max(first.get(name, 0.0), second.get(name, 0.0)) for name in {**first, **second}}


def save_ranges(folder: str, ranges: Ranges, inputs_digest: str) -> None:
    """Save ranges in the folder of their network. Other ranges there are deleted.

    Args:
        folder: the model folder (see `models.checkpoint`), local or in a bucket.
        ranges: the ranges.
        inputs_digest: digest of the images and options with which they were recorded, at least 16 hexadecimal digits.
    """
    name = f"{_prefix(folder)}{inputs_digest[:16]}.json"
    storage.write_json(storage.join(folder, name), ranges)
    storage.remove_files(folder, [each for each in _files(folder) if each != name])


def has_ranges(folder: str, inputs_digest: str) -> bool:
    """Return whether a network has ranges for its present weights that were recorded with these images and options.

    Args:
        folder: the model folder, local or in a bucket.
        inputs_digest: digest of the images and options, as given to `save_ranges`.

    Raises:
        UserError: if the folder holds no model.
    """
    return _files(folder) == [f"{_prefix(folder)}{inputs_digest[:16]}.json"]


def load_ranges(folder: str) -> Ranges | None:
    """Load the ranges of a network.

    Args:
        folder: the model folder, local or in a bucket.

    Returns:
        The ranges. None if there are none for its present weights.

    Raises:
        UserError: if the file is damaged, or the folder holds no model.
    """
    if (file := ranges_file(folder)) is None:
        return None
    try:
        return {str(name): float(value) for name, value in storage.read_json(file).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: delete it, and evaluate the model again") from error


def ranges_file(folder: str) -> str | None:
    """Return the file with the ranges of a network. Its name says from which weights, images and options they were made.

    Args:
        folder: the model folder, local or in a bucket.

    Returns:
        The URI of the file. None if there are no ranges for the network's present weights.

    Raises:
        UserError: if the folder holds no model.
    """
    prefix = _prefix(folder)
    names = [name for name in _files(folder) if name.startswith(prefix)]
    return storage.join(folder, names[0]) if names else None


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


def _files(folder: str) -> list[str]:
    """Return the names of the files with ranges in a model folder, also of those of earlier weights."""
    return [name for name in storage.list_files(folder) if name.startswith(_PREFIX)]


def _prefix(folder: str) -> str:
    """Return how the name of the file with a network's ranges begins, which names the network's weights.

    Raises:
        UserError: if the folder holds no model.
    """
    return f"{_PREFIX}{weights_digest(folder)[:16]}-"
