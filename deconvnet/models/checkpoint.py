"""Model folders and training states: tensors in a safetensors file, everything else in a JSON file beside it. Nothing is pickled.

A *model folder* holds `model.safetensors` and `model.json`: architecture, constructor arguments, class names, input convention. A
*training state* (checkpoint) holds `state.safetensors` and `state.json`: see `deconvnet.training.interfaces.State`. The JSON file is
written last and has the SHA-256 of the tensors, so a folder without it is not complete, and tensors of another save are noticed. Each
checkpoint has a folder of its own. Folders are local or on S3.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from deconvnet.models.architectures import ARCHITECTURES
from deconvnet.models.network import Network
from infra import storage
from infra.errors import UserError

FORMAT = 1


def save_model(model: Network, uri: str, classes: Sequence[str], extra: Mapping[str, Any] | None = None) -> None:
    """Save a network as a model folder.

    Args:
        model: the network.
        uri: the folder (local or s3).
        classes: class names by id, background first.
        extra: JSON values to keep with it.

    Raises:
        ValueError: if the number of names is not that of the network's classes.
    """
    if len(classes) != model.num_classes:
        raise ValueError(f"{len(classes)} class names for {model.num_classes} classes")
    meta = {
        "architecture": model.architecture,
        "config": model.config(),
        "classes": list(classes),
        "convention": model.convention,
        "extra": dict(extra or {}),
    }
    _write(uri, "model", model.state_dict(), meta)


def load_model(uri: str, device: str | torch.device = "cpu") -> tuple[Network, dict[str, Any]]:
    """Load the network of a model folder.

    Args:
        uri: the folder (local or s3).
        device: where to put the network.

    Returns:
        The network, in evaluation mode, and the content of model.json: "architecture", "config" (constructor arguments), "classes",
        "convention" and "extra".

    Raises:
        UserError: if the folder is not a complete, undamaged model.
    """
    tensors, meta = _read(uri, "model")
    try:
        with torch.device("meta"):  # no memory and no initialisation for values that are replaced at once
            model = ARCHITECTURES[meta["architecture"]].network_class()(**meta["config"])
        if len(meta["classes"]) != model.num_classes or meta["convention"] != model.convention:
            raise ValueError("its class names or input convention contradict its architecture")
        model.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{uri} can't be used: model.json doesn't describe its tensors ({_first_line(error)})") from error
    return model.to(device).eval(), meta


def save_state(uri: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Save a training state.

    Args:
        uri: folder of this checkpoint (local or s3).
        tensors: by name.
        meta: JSON values.
    """
    _write(uri, "state", tensors, meta)


def load_state(uri: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load a training state.

    Args:
        uri: folder of the checkpoint (local or s3).

    Returns:
        The tensors, on the CPU, and the JSON values.

    Raises:
        UserError: if the folder is not a complete, undamaged training state.
    """
    return _read(uri, "state")


def newest_state(uri: str, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Load the complete training state with the most steps among the folders directly below `uri`.

    Folders that a killed run left half written are passed over.

    Args:
        uri: folder of checkpoint folders (local or s3); may be absent.
        prefix: only folders whose name begins with this are looked at.

    Returns:
        What `load_state` returns, or None where there is no complete state.
    """
    found: list[tuple[int, str]] = []
    for file in storage.list_files(uri):
        folder, _, name = file.rpartition("/")
        if name == "state.json" and "/" not in folder and folder.startswith(prefix):
            with suppress(ValueError, KeyError, TypeError, FileNotFoundError):  # a half-written file; one deleted meanwhile
                found.append((int(storage.read_json(storage.join(uri, file))["step"]), folder))
    for _, folder in sorted(found, reverse=True):
        with suppress(UserError):
            return load_state(storage.join(uri, folder))
    return None


def _write(uri: str, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write NAME.safetensors, then NAME.json."""
    data = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    storage.write_bytes(storage.join(uri, f"{name}.safetensors"), data)
    digest = hashlib.sha256(data).hexdigest()
    storage.write_json(storage.join(uri, f"{name}.json"), {"format": FORMAT, **meta, "sha256": digest})


def _read(uri: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read NAME.json and NAME.safetensors. Raises UserError if they are not a complete, undamaged pair."""
    try:
        meta = storage.read_json(storage.join(uri, f"{name}.json"))
        data = storage.read_bytes(storage.join(uri, f"{name}.safetensors"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{uri} is not a checkpoint: it needs {name}.json and {name}.safetensors") from error
    except ValueError as error:
        raise UserError(f"{uri} can't be used: {name}.json is not JSON") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise UserError(f"{uri} can't be used: {name}.json is of format {found!r}, this version reads format {FORMAT}")
    if hashlib.sha256(data).hexdigest() != meta.get("sha256"):
        raise UserError(f"{uri} can't be used: {name}.safetensors is damaged, or of another save than {name}.json")
    try:
        return safetensors.torch.load(data), meta
    except safetensors.SafetensorError as error:
        raise UserError(f"{uri} can't be used: {name}.safetensors is not a safetensors file") from error


def _first_line(error: Exception) -> str:
    """Return an exception's message as one line; torch's lists every tensor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
