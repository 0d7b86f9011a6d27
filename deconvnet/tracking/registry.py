"""Finding a version in MLflow's model registry by what a person calls it, and fetching the ensemble in it."""

import os
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from deconvnet.inference.saved_ensemble import read_options
from deconvnet.tracking.mlflow_runs import check, first_line, tracking_uri, without_secrets
from infra import storage
from infra.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

FORMS = "models:/NAME@ALIAS or models:/NAME/VERSION"


@dataclass(frozen=True)
class Version:
    """A version of a registered model. id: what tells it from all others, also from one of a registry made anew. source: its files."""

    name: str
    number: str
    id: str
    source: str


def find(source: str, tracking_uri: str, setting: str) -> Version:
    """The version that `source` (models:/NAME@ALIAS or models:/NAME/VERSION) means now.

    setting: the setting that named it, for messages. Raises UserError where there is none, saying what there is.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    place, at, alias = source.removeprefix("models:/").partition("@")
    name, _, number = (place, "", "") if at else place.partition("/")
    if not source.startswith("models:/") or not name or not (alias or number):
        raise UserError(f"{setting} {source} names no registered model: {FORMS} would")
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        found = client.get_model_version_by_alias(name, alias) if at else client.get_model_version(name, number)
    except MlflowException as error:
        there = _what_there_is(client, name, setting)
        why = there or f": {first_line(error)}"
        raise UserError(f"{setting} {source} is not in {without_secrets(tracking_uri)}{why}") from None
    return Version(found.name, str(found.version), str(found.creation_timestamp), found.source)


def fetch(version: Version, tracking_uri: str, target: str) -> None:
    """Copy the ensemble in a version (deconvnet/, fcn8s/, options.json) to the folder `target` (local or s3).

    Raises UserError where it can't be fetched, or the model is not one that `deconvnet.tracking.register` files.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    called = f"models:/{version.name}/{version.number}"
    try:
        with TemporaryDirectory(prefix="deconvnet-model-") as local:
            made = mlflow.artifacts.download_artifacts(
                artifact_uri=version.source, dst_path=local, tracking_uri=tracking_uri, registry_uri=tracking_uri
            )
            folder = storage.join(made, "artifacts", "ensemble")
            try:
                read_options(folder)
            except UserError:
                raise UserError(f"{called} is not an ensemble that this project registered, and no other can be used") from None
            storage.copy_tree(folder, target)
    except (MlflowException, OSError) as error:
        raise UserError(f"{called} can't be fetched: {first_line(error)}") from error


def _what_there_is(client: "MlflowClient", name: str, setting: str) -> str:
    """What the registry has instead, as the rest of a sentence; "" where it doesn't say."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = dict(client.get_registered_model(name).aliases)
    except MlflowException:
        try:
            names = [model.name for model in client.search_registered_models(max_results=10)]
        except MlflowException:
            return ""
        return f", which has {', '.join(names)}" if names else ", which has no registered model: train one first"
    if not aliases:
        return f", where {name} has no alias: models:/{name}/VERSION would do"
    known = ", ".join(f"{alias} (version {number})" for alias, number in sorted(aliases.items()))
    return f", where {name} has {known}: --{setting} models:/{name}@{next(iter(sorted(aliases)))} would do"


def model_store(workspace: str | None, uri: str | None) -> str:
    """The MLflow store that knows the model. Raises UserError within 15 s where it can't be used."""
    if not (workspace or uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise UserError(
            "where is the model registered? Name the pipeline's workspace (--workspace runs/quickstart), or MLflow's server "
            "(MLFLOW_TRACKING_URI or --tracking.uri)"
        )
    store = tracking_uri(workspace or "", uri)
    if store.startswith("sqlite:///") and not storage.exists(store.removeprefix("sqlite:///")):
        raise UserError(f"there is no MLflow store {store}: name the workspace of a pipeline that has run, or MLflow's server")
    check(store)
    return store
