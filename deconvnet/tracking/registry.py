"""Read and write MLflow's model registry: find a version of a model, download it, and update the model's description."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from deconvnet.inference.saved_ensemble import read_options
from deconvnet.tracking.store import error_summary
from deconvnet.tracking.texts.descriptions import MAX_LENGTH, MODEL_HEADING, model_description, truncated
from infra import storage
from infra.errors import UserError
from infra.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException

CHAMPION, CHALLENGER = "champion", "challenger"
"""Names of two aliases. The champion is the version in use, the challenger is the newest version that a pipeline registered."""
REJECTED = "not promoted"
"""Value of the tag `verdict` of a version that was compared with the champion and did not replace it."""
_MAX_VERSIONS = 100  # largest number of versions that a model's description lists


class NotRegistered(UserError):
    """An error because the model registry has no such model, version or alias."""


class NoSuchAlias(NotRegistered):
    """An error because a registered model does not have an alias. It may have it later."""


class RegistryUnavailable(UserError):
    """An error because MLflow's registry can't be asked, for example because it can't be reached or denies access."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: name of the registered model.
        number: version number, as text.
        id: text that is different for every version ever registered, even if a registry was deleted and its version numbers are
            used again.
        source: URI of the version's files.
    """

    name: str
    number: str
    id: str
    source: str

    @property
    def title(self) -> str:
        """Return the name and number, for messages."""
        return f"{self.name} version {self.number}"


@contextmanager
def registry_client(tracking_uri: str, name: str) -> Iterator["MlflowClient"]:
    """Provide a client of the model registry while a `with` block runs.

    If the block raises an exception of MLflow, or an OSError (for example because the disk is full), it is replaced by a
    UserError.

    Args:
        tracking_uri: URI of the MLflow store.
        name: name of the registered model, for the error message.

    Yields:
        The client.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    except (MlflowException, OSError) as error:
        store = without_secrets(tracking_uri)
        raise UserError(f"MLflow's registry at {store} can't be used for {name}: {error_summary(error)}") from None


def find(source: str, tracking_uri: str, setting: str) -> Version:
    """Find the version of a registered model that a URI names now.

    Args:
        source: URI of the form models:/NAME@ALIAS or models:/NAME/VERSION.
        tracking_uri: URI of the MLflow store. "" if tracking is switched off.
        setting: name of the setting that has the value `source`, for the error message.

    Returns:
        The version, with its number.

    Raises:
        NotRegistered: if there is no such version. The message says which models or aliases there are. It is NoSuchAlias if only
            the alias is missing.
        RegistryUnavailable: if the registry does not answer.
        UserError: if the URI has another form, or tracking is switched off.
    """
    path, at, alias = source.removeprefix("models:/").partition("@")
    name, _, number = (path, "", "") if at else path.partition("/")
    if not source.startswith("models:/") or not name or not (alias or number):
        raise UserError(f"{setting} {source} names no registered model: write models:/NAME@ALIAS or models:/NAME/VERSION")
    if not tracking_uri:
        raise UserError(
            f"{setting} {source} is a registered model, but tracking.enabled is false: enable it or name a model folder"
        )
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        found = client.get_model_version_by_alias(name, alias) if at else client.get_model_version(name, number)
    except MlflowException as error:
        reason = _alternatives(client, name, setting) or f": {error_summary(error)}"
        raise _registry_error(error, f"{setting} {source} is not in {without_secrets(tracking_uri)}{reason}", alias) from None
    return Version(found.name, str(found.version), str(found.creation_timestamp), found.source)


def fetch(version: Version, tracking_uri: str, target: str) -> None:
    """Download the ensemble of a registered version to a folder: deconvnet/, fcn8s/ and options.json.

    Args:
        version: the version, from `find`.
        tracking_uri: URI of the MLflow store.
        target: folder to write to, local or in a bucket.

    Raises:
        UserError: if the version can't be downloaded, or was not registered by `deconvnet.tracking.register`.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    title = f"models:/{version.name}/{version.number}"
    uri = f"{version.source.rstrip('/')}/artifacts/ensemble"  # the model's other files are code, which is not used here
    with TemporaryDirectory(prefix="deconvnet-model-") as local:
        try:
            folder = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=local, tracking_uri=tracking_uri, registry_uri=tracking_uri
            )
            try:
                read_options(folder)
            except UserError:
                raise UserError(f"{title} was not registered by this project: name a model that it registered") from None
            storage.copy_tree(folder, target)
        except (MlflowException, OSError) as error:
            reason = error_summary(error)
            raise UserError(f"{title} can't be fetched, or was not registered by this project: {reason}") from error


def aliases(tracking_uri: str, name: str) -> dict[str, int]:
    """Read the aliases of a registered model.

    Args:
        tracking_uri: URI of the MLflow store.
        name: name of the registered model.

    Returns:
        Version numbers by alias. {} if the registry has no such model.

    Raises:
        UserError: if the registry does not answer.
    """
    from mlflow.exceptions import MlflowException

    with registry_client(tracking_uri, name) as client:
        try:
            return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise


def all_versions(client: "MlflowClient", name: str) -> list["ModelVersion"]:
    """List all versions of a registered model, newest first. The list is empty if the registry has no such model.

    Args:
        client: MLflow client of the registry.
        name: name of the registered model.

    Raises:
        MlflowException: if the registry does not answer.
    """
    quote = '"' if "'" in name else "'"
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name={quote}{name}{quote}", 1000, ["version_number DESC"], token)
        found += page
        if not (token := page.token):
            return found


def update_model_description(client: "MlflowClient", name: str) -> None:
    """Update the generated part of a registered model's description in MLflow. Text that a user wrote above it is kept.

    The new text is made from the tags and aliases of the model's newest versions.

    Args:
        client: MLflow client of the registry.
        name: name of the registered model.

    Raises:
        MlflowException: if the registry does not answer or does not accept the description.
    """
    model = client.get_registered_model(name)
    if versions := all_versions(client, name)[:_MAX_VERSIONS]:
        own = (model.description or "").partition(MODEL_HEADING)[0].strip()
        text = model_description(model, without_secrets(client.tracking_uri), versions, MAX_LENGTH - len(own) - 2)
        client.update_registered_model(name, truncated(f"{own}\n\n{text}" if own else text))


def _registry_error(error: "MlflowException", message: str, alias: str) -> UserError:
    """Convert an error of MLflow's registry to a UserError.

    Args:
        error: error that MLflow raised when a version was looked up.
        message: message of the returned error.
        alias: alias that was looked up; "" if the version was looked up by its number.

    Returns:
        NoSuchAlias or NotRegistered if the registry has answered that it has no such entry. RegistryUnavailable otherwise.
    """
    if error.error_code == "INVALID_PARAMETER_VALUE":  # the model does not have this alias, or the version is not a number
        return NoSuchAlias(message) if alias else NotRegistered(message)
    return NotRegistered(message) if error.error_code == "RESOURCE_DOES_NOT_EXIST" else RegistryUnavailable(message)


def _alternatives(client: "MlflowClient", name: str, setting: str) -> str:
    """List the models or aliases that exist, for an error message about a missing model version.

    Args:
        client: MLflow client of the registry.
        name: name of the registered model that was searched for.
        setting: name of the setting that named the version.

    Returns:
        The rest of a sentence, which begins with a comma. "" if the registry does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        known = dict(client.get_registered_model(name).aliases)
    except MlflowException:
        try:
            names = [model.name for model in client.search_registered_models(max_results=10)]
        except MlflowException:
            return ""
        return f", which has {', '.join(names)}" if names else ", which has no registered model: train one first"
    if not known:
        return f", where {name} has no alias: use models:/{name}/VERSION"
    listed = ", ".join(f"{alias} (version {number})" for alias, number in sorted(known.items()))
    return f", where {name} has {listed}: use --{setting} models:/{name}@{min(known)}"
