"""Models and training states as files: tensors in safetensors, everything else in JSON beside them. Nothing is pickled.

A model is a folder of `model.safetensors` and `model.json` (architecture, its arguments, classes, input convention, digest
of the tensors); a training state likewise `state.*`. The JSON is written last, so a folder without it is not a checkpoint,
and holds the digest, so that tensors of another save are noticed. Save each checkpoint to a folder of its own.
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
    """Write `model` to the folder `uri` (local or s3). classes: names by id, background first. extra: JSON values kept with it.

    Raises ValueError where the names are not as many as the network's classes.
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
    """The network of the folder `uri`, in eval mode on `device`, and its description.

    The description has architecture, config, classes, convention and extra. Raises UserError for a folder that is not a
    whole, undamaged model.
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
    """Write a training state: named tensors, and JSON values, to the folder `uri` (local or s3)."""
    _write(uri, "state", tensors, meta)


def load_state(uri: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and JSON values of `save_state`. Raises UserError for anything else."""
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
    data = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    storage.write_bytes(storage.join(uri, f"{name}.safetensors"), data)
    digest = hashlib.sha256(data).hexdigest()
    storage.write_json(storage.join(uri, f"{name}.json"), {"format": FORMAT, **meta, "sha256": digest})


def _read(uri: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
    """An exception in one line; torch's lists every tensor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
