"""The setting `init.from`: the model folder that a training starts from."""

from deconvnet.tracking.registry import fetch, find
from infra import storage
from infra.errors import UserError

_FOLDERS = {
    "deconvnet": ("", "deconvnet", "models/stage2", "stage2", "artifacts/ensemble/deconvnet"),
    "fcn8s": ("", "fcn8s", "models/fcn8s", "artifacts/ensemble/fcn8s"),
}
"""Folders where a network of each architecture may be, below a model folder, a workspace or a registered ensemble."""
_COMPLETE = "fetched.json"  # written last into a fetched model


def starting_model(source: str, architecture: str, tracking_uri: str, cache: str) -> str | None:
    """Find the model folder of an architecture in what `init.from` names.

    Args:
        source: a model folder, a workspace, or a registered model (models:/NAME@ALIAS or models:/NAME/VERSION).
        architecture: "deconvnet" or "fcn8s".
        tracking_uri: URI of the MLflow store; used for a registered model only.
        cache: folder that every worker can read, local or s3://, to which a registered model is copied.

    Returns:
        The model folder; None if `source` holds only the other architecture.

    Raises:
        UserError: if `source` holds no model.
    """
    folder = _fetched(source, tracking_uri, cache) if source.startswith("models:") else source
    return _model_folders(folder, source).get(architecture)


def source_key(source: str, tracking_uri: str) -> str:
    """Identify the weights that a source holds now, for the fingerprint of a stage.

    Args:
        source: as in `starting_model`.
        tracking_uri: URI of the MLflow store; used for a registered model only.

    Returns:
        The version of a registered model, else the checksums of the weights.

    Raises:
        UserError: if `source` holds no model.
    """
    if source.startswith("models:"):
        return f"{source} version {find(source, tracking_uri, 'init.from').number}"
    folders = _model_folders(source, source).values()
    return " ".join(storage.read_json(storage.join(folder, "model.json"))["sha256"] for folder in folders)


def _model_folders(folder: str, source: str) -> dict[str, str]:
    """Return the model folders below `folder` by architecture; raise UserError, naming `source`, if there are none."""
    found = {architecture: model for architecture in _FOLDERS if (model := _model_folder(folder, architecture))}
    if not found:
        raise UserError(f"init.from {source} holds no model: name a model folder, a workspace, or models:/NAME@ALIAS")
    return found


def _model_folder(folder: str, architecture: str) -> str | None:
    """Return the first folder below `folder` that holds a model of this architecture, or None."""
    for name in _FOLDERS[architecture]:
        candidate = storage.join(folder, name) if name else folder
        model = storage.join(candidate, "model.json")
        if storage.exists(model) and storage.read_json(model).get("architecture") == architecture:
            return candidate
    return None


def _fetched(source: str, tracking_uri: str, cache: str) -> str:
    """Copy a registered model to the cache, unless it is there already, and return its folder."""
    version = find(source, tracking_uri, "init.from")
    target = storage.join(cache, f"{version.name}-{version.number}-{version.id}")
    complete = storage.join(target, _COMPLETE)
    if not storage.exists(complete):
        fetch(version, tracking_uri, target)
        storage.write_json(complete, True)
    return target
