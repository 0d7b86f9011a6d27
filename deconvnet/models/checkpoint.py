"""Reading and writing of model folders and training checkpoints.

A model folder holds a trained network: `model.safetensors` with its tensors, and `model.json` with its architecture,
constructor arguments, class names and input convention. A checkpoint holds a training state
(`deconvnet.training.interfaces.State`) in the files `state.safetensors` and `state.json`. Each checkpoint has its own folder.
Folders are local or on S3, and nothing in them is pickled.

The JSON file is written after the tensors and contains their SHA-256. So a folder without a JSON file is incomplete, and a JSON
file with the tensors of another save is detected.
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


def save_model(
    model: Network, uri: str, classes: Sequence[str], extra: Mapping[str, Any] | None = None, fingerprint: str = ""
) -> None:
    """Save a network in a model folder, as the files model.safetensors and model.json. Existing files are overwritten.

    Args:
        model: the network.
        uri: the folder (local or in a bucket).
        classes: class names by class id, background first.
        extra: further JSON values to store in model.json, under the key "extra".
        fingerprint: digest of everything that the model depends on, to be stored in model.json; "" to store none.

    Raises:
        ValueError: if the number of class names differs from the network's number of classes.
    """
    if len(classes) != model.num_classes:
        raise ValueError(f"{len(classes)} class names for {model.num_classes} classes")
    meta = {
        "architecture": model.architecture,
        "config": model.config(),
        "classes": list(classes),
        "convention": model.convention,
        "extra": dict(extra or {}),
        **({"fingerprint": fingerprint} if fingerprint else {}),
    }
    _write(uri, "model", model.state_dict(), meta)


def load_model(uri: str, device: str | torch.device = "cpu") -> tuple[Network, dict[str, Any]]:
    """Load a network from a model folder.

    Args:
        uri: the folder (local or in a bucket).
        device: device to put the network on.

    Returns:
        The network in evaluation mode, and the content of model.json. Its keys are "architecture", "config" (constructor
        arguments), "classes" (names by class id), "convention" ("caffe" or "torchvision": format of the input pixels), "extra"
        (as passed to `save_model`), "fingerprint" (only if one was stored), "format" (version number of the file format) and
        "sha256" (digest of model.safetensors).

    Raises:
        UserError: if the folder does not hold a complete, undamaged model.
    """
    tensors, meta = _read(uri, "model")
    try:
        with torch.device("meta"):  # allocates no memory, because the weights are replaced below
            model = ARCHITECTURES[meta["architecture"]].network_class()(**meta["config"])
        if len(meta["classes"]) != model.num_classes or meta["convention"] != model.convention:
            raise ValueError("its class names or input convention contradict its architecture")
        model.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{uri} can't be used: model.json doesn't describe its tensors ({_short_message(error)})") from error
    return model.to(device).eval(), meta


def weights_digest(uri: str) -> str:
    """Return the SHA-256 of the weights in a model folder, as its file model.json states it. The weights are not read.

    Args:
        uri: the folder (local or in a bucket).

    Raises:
        UserError: if the folder holds no model.
    """
    try:
        return str(storage.read_json(storage.join(uri, "model.json"))["sha256"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{uri} is not a model: it has no complete model.json") from error


def save_state(uri: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Save a training state as a checkpoint: write the files state.safetensors and state.json.

    Args:
        uri: folder for this checkpoint (local or in a bucket).
        tensors: the tensors of the state by name, such as weights and momenta.
        meta: the JSON values of the state by name. "step", the number of training steps done, is needed by `newest_state`.
    """
    _write(uri, "state", tensors, meta)


def load_state(uri: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load a training state from a checkpoint.

    Args:
        uri: folder of the checkpoint (local or in a bucket).

    Returns:
        The tensors by name, on the CPU, and the content of state.json: the JSON values that `save_state` got, and also
        "format" (version number of the file format) and "sha256" (digest of state.safetensors).

    Raises:
        UserError: if the folder does not hold a complete, undamaged training state.
    """
    return _read(uri, "state")


def newest_state(uri: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Load the checkpoint with the most training steps.

    Incomplete checkpoints, which a killed run may have left, are ignored.

    Args:
        uri: folder whose direct subfolders are checkpoints (local or in a bucket). It need not exist.

    Returns:
        The tensors and JSON values as returned by `load_state`, or None if there is no complete checkpoint.
    """
    found: list[tuple[int, str]] = []
    for file in storage.list_files(uri):
        folder, _, name = file.rpartition("/")
        if name == "state.json" and "/" not in folder:
            with suppress(ValueError, KeyError, TypeError, FileNotFoundError):  # half written, or deleted meanwhile
                found.append((int(storage.read_json(storage.join(uri, file))["step"]), folder))
    for _, folder in sorted(found, reverse=True):
        with suppress(UserError):
            return load_state(storage.join(uri, folder))
    return None


def _write(uri: str, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a pair of files, NAME.safetensors and then NAME.json, to a folder.

    Args:
        uri: folder to write them in (local or in a bucket).
        name: NAME in the file names, "model" or "state".
        tensors: content of the safetensors file.
        meta: content of the JSON file, to which the format number and the SHA-256 of the tensors' file are added.
    """
    data = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    storage.write_bytes(storage.join(uri, f"{name}.safetensors"), data)
    digest = hashlib.sha256(data).hexdigest()
    storage.write_json(storage.join(uri, f"{name}.json"), {"format": FORMAT, **meta, "sha256": digest})


def _read(uri: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a pair of files, NAME.json and NAME.safetensors, and check by the SHA-256 that they belong together.

    Args:
        uri: folder that holds them (local or in a bucket).
        name: NAME in the file names, "model" or "state".

    Returns:
        The tensors by name, on the CPU, and the content of the JSON file.

    Raises:
        UserError: if a file is missing or damaged, has an unknown format number, or the two files come from different saves.
    """
    try:
        meta = storage.read_json(storage.join(uri, f"{name}.json"))
        data = storage.read_bytes(storage.join(uri, f"{name}.safetensors"))
    except (FileNotFoundError, NotADirectoryError) as error:
        kind = "model folder" if name == "model" else "checkpoint"
        raise UserError(f"{uri} is not a {kind}: it needs {name}.json and {name}.safetensors") from error
    except ValueError as error:
        raise UserError(f"{uri} can't be used: {name}.json is not JSON") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise UserError(f"{uri} can't be used: {name}.json is of format {found!r}, this version reads format {FORMAT}")
    if hashlib.sha256(data).hexdigest() != meta.get("sha256"):
        raise UserError(f"{uri} can't be used: {name}.safetensors is damaged, or was not saved together with {name}.json")
    try:
        return safetensors.torch.load(data), meta
    except safetensors.SafetensorError as error:
        raise UserError(f"{uri} can't be used: {name}.safetensors is not a safetensors file") from error


def _short_message(error: Exception) -> str:
    """Shorten the message of an exception to one line of at most 200 characters.

    torch's messages about unexpected weights list every tensor, on many lines. Only the first two lines that are not blank are
    kept, joined by a space.

    Args:
        error: the exception.

    Returns:
        The shortened message, or the name of the exception's class if it has no message.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__
