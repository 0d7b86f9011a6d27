"""Find the trained network from which a training starts, in the place that the setting `init.from` names.

A model folder is a folder with the weights of one network and a file model.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from deconvnet.tracking.registry import Version, fetch, find
from infra import storage
from infra.errors import UserError

_FOLDERS = {
    "deconvnet": ("", "deconvnet", "models/stage2", "stage2", "artifacts/ensemble/deconvnet"),
    "fcn8s": ("", "fcn8s", "models/fcn8s", "artifacts/ensemble/fcn8s"),
}
"""Folders in which to look for each architecture, relative to a model folder, a workspace or a registered ensemble."""
_COMPLETE = "fetched.json"  # written last, so it shows that a fetched model is complete


@dataclass(frozen=True)
class InitialModel:
    """What the setting `init.from` named when a run began. All trainings of the run start from it, even if an alias is moved.

    Attributes:
        source: value of the setting.
        version: the version of a registered model. None if `source` is a folder.
        weights: for a folder, the SHA-256 checksums of its networks' weights by architecture.
    """

    source: str
    version: Version | None
    weights: Mapping[str, str]

    @property
    def key(self) -> str:
        """Return a text that identifies the weights. A training is repeated if this text has changed.

        For a registered model, it is the version and its id, which another version of the same number in a new registry does not
        have. Otherwise it is the checksums, separated by spaces.
        """
        return f"{self.version.title} (id {self.version.id})" if self.version else " ".join(self.weights.values())


def find_initial_model(source: str, tracking_uri: str) -> InitialModel:
    """Find what the setting `init.from` names now.

    Args:
        source: value of the setting: a model folder, a workspace (folder of a pipeline run), or a registered model
            (models:/NAME@ALIAS or models:/NAME/VERSION).
        tracking_uri: URI of the MLflow store, used only for a registered model.

    Raises:
        UserError: if `source` holds no network, or is a registered model that does not exist.
    """
    if source.startswith("models:"):
        return InitialModel(source, find(source, tracking_uri, "init.from"), {})
    return InitialModel(source, None, {name: _checksum(folder) for name, folder in _model_folders(source, source).items()})


def initial_model_folder(start: InitialModel, architecture: str, tracking_uri: str, cache: str) -> str | None:
    """Find the weights of one architecture in the place from which the trainings of a run start.

    The weights are in a model folder, which is a folder with the weights of one network and a file model.json. A registered model
    is first copied to a cache folder, unless it is there already.

    Args:
        start: the network or registered model that `init.from` named when the run began, from `find_initial_model`.
        architecture: "deconvnet" or "fcn8s".
        tracking_uri: URI of the MLflow store, used only for a registered model.
        cache: folder, local or in a bucket, to which a registered model is copied. All training workers must be able to read it.

    Returns:
        URI of the model folder. None if there is only a network of the other architecture.

    Raises:
        UserError: if there is no network at all, a folder has another network than when the run began, or a registered model
            can't be fetched.
    """
    folder = _fetched(start.version, tracking_uri, cache) if start.version else start.source
    found = _model_folders(folder, start.source).get(architecture)
    if start.version is None and start.weights.get(architecture) != (_checksum(found) if found else None):
        raise UserError(f"init.from {start.source} was changed while the run needed it: run the same command again")
    return found


def _checksum(folder: str) -> str:
    """Return the SHA-256 of the weights in a model folder, as its file model.json states it."""
    return str(storage.read_json(storage.join(folder, "model.json"))["sha256"])


def _model_folders(folder: str, source: str) -> dict[str, str]:
    """Find the model folders in a folder. A model folder has the weights of one network and a file model.json.

    Args:
        folder: URI of a model folder, of a workspace (folder of a pipeline run) or of a copied registered model.
        source: value of the setting `init.from`, for the error message.

    Returns:
        URIs of the model folders by architecture ("deconvnet", "fcn8s"). Architectures without one are left out.

    Raises:
        UserError: if there is no model folder at all.
    """
    found = {architecture: model for architecture in _FOLDERS if (model := _model_folder(folder, architecture))}
    if not found:
        raise UserError(f"init.from {source} holds no model: name a model folder, a workspace, or models:/NAME@ALIAS")
    return found


def _model_folder(folder: str, architecture: str) -> str | None:
    """Find the folder with the weights of a network of one architecture, in the places where this project keeps such folders.

    Args:
        folder: URI of a model folder, of a workspace (folder of a pipeline run) or of a copied registered model.
        architecture: "deconvnet" or "fcn8s".

    Returns:
        URI of the first model folder that is found. None if there is no such folder.
    """
    for name in _FOLDERS[architecture]:
        candidate = storage.join(folder, name) if name else folder
        model = storage.join(candidate, "model.json")
        if storage.exists(model) and storage.read_json(model).get("architecture") == architecture:
            return candidate
    return None


def _fetched(version: Version, tracking_uri: str, cache: str) -> str:
    """Copy a registered model to the cache, unless it is there already.

    Args:
        version: the version of the registered model.
        tracking_uri: URI of the MLflow store.
        cache: folder of the cache, local or in a bucket.

    Returns:
        URI of the model's folder in the cache.

    Raises:
        UserError: if the registered model can't be downloaded.
    """
    target = storage.join(cache, f"{version.name}-{version.number}-{version.id}")
    complete = storage.join(target, _COMPLETE)
    if not storage.exists(complete):
        fetch(version, tracking_uri, target)
        storage.write_json(complete, True)
    return target
