"""`init.from`: which model folder a training starts from."""

from deconvnet.tracking.registry import fetch, find
from infra import storage
from infra.errors import UserError

# Where a network of each architecture lies below what a person may name: a model folder, a workspace, a registered ensemble.
PLACES = {
    "deconvnet": ("", "deconvnet", "models/stage2", "stage2", "artifacts/ensemble/deconvnet"),
    "fcn8s": ("", "fcn8s", "models/fcn8s", "artifacts/ensemble/fcn8s"),
}


WHOLE = "fetched.json"  # written last to what was fetched


def starting_model(source: str, architecture: str, tracking_uri: str, keep: str) -> str | None:
    """The model folder of `architecture` in `source`: a model folder, a workspace, or a registered model (models:/NAME@ALIAS).

    A registered model is copied to `keep`, where every worker sees it. None where `source` holds only the other architecture.
    Raises UserError where it holds neither.
    """
    folder = _fetched(source, tracking_uri, keep) if source.startswith("models:") else source
    return _networks(folder, source).get(architecture)


def source_key(source: str, tracking_uri: str) -> str:
    """What tells the weights that `source` holds now from others it held or will hold. Raises UserError where it holds none."""
    if source.startswith("models:"):
        return f"{source} version {find(source, tracking_uri, 'init.from').number}"
    folders = _networks(source, source).values()
    return " ".join(storage.read_json(storage.join(folder, "model.json"))["sha256"] for folder in folders)


def _networks(folder: str, source: str) -> dict[str, str]:
    """The model folders below `folder`, by architecture. Raises UserError, naming `source`, where there is none."""
    found = {kind: place for kind in PLACES if (place := _find(folder, kind))}
    if not found:
        raise UserError(f"init.from {source} holds no model: name a model folder, a workspace, or models:/NAME@ALIAS")
    return found


def _find(folder: str, architecture: str) -> str | None:
    for place in PLACES[architecture]:
        candidate = storage.join(folder, place) if place else folder
        described = storage.join(candidate, "model.json")
        if storage.exists(described) and storage.read_json(described).get("architecture") == architecture:
            return candidate
    return None


def _fetched(source: str, tracking_uri: str, keep: str) -> str:
    version = find(source, tracking_uri, "init.from")
    target = storage.join(keep, f"{version.name}-{version.number}-{version.id}")
    whole = storage.join(target, WHOLE)
    if not storage.exists(whole):
        fetch(version, tracking_uri, target)
        storage.write_json(whole, True)
    return target
