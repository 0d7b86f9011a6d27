"""Read and write MLflow's model registry: find a version of a model, download it, and update the model's description."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from deconvnet.inference.saved_ensemble import read_options
from deconvnet.tracking.store import error_summary, registry_error, sqlite_file
from deconvnet.tracking.texts.descriptions import MAX_LENGTH, MODEL_HEADING, model_description
from infra import storage
from infra.errors import UserError
from infra.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
"""Names of two aliases. The champion is the version in use, the challenger is the newest version that a pipeline registered."""
REJECTED = "not promoted"
"""Value of the tag `verdict` of a version that was compared with the champion and did not replace it."""
_WORKSPACE, _WORKSPACE_ID, _GENERATION = "workspace", "workspace.id", "generation"  # names of a version's tags
_MAX_VERSIONS = 100  # largest number of versions that a model's description lists


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
        NotRegistered: if there is no such version. The message says which models or aliases there are.
        UserError: if the URI has another form, tracking is switched off, or the registry does not answer.
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
        raise registry_error(error, f"{setting} {source} is not in {without_secrets(tracking_uri)}{reason}") from None
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
        client.update_registered_model(name, f"{own}\n\n{text}" if own else text)


def _alternatives(client: "MlflowClient", name: str, setting: str) -> str:
    """Return a text for an error message about a missing model version, which says which models or aliases there are.

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


@dataclass(frozen=True)
class OwnModel:
    """A registered model, with methods that distinguish one workspace's versions from the versions of other workspaces.

    Users who share an MLflow server may register their models under the same name. A version of another workspace is called
    foreign. It was measured on other images, so this program never compares it with this workspace's versions, and never makes
    it the champion (the version in use).

    Attributes:
        store: URI of the MLflow store.
        name: name of the registered model.
        workspace: path or URI of the workspace, which holds the files of all generations (retraining runs).
        workspace_id: text that identifies the workspace, even if it is moved. "" if it has none yet.
    """

    store: str
    name: str
    workspace: str
    workspace_id: str

    def foreign_version(self) -> "ModelVersion | None":
        """Find the newest version that another workspace has registered under this name. Return None if there is none.

        Raises:
            UserError: if the registry does not answer.
        """
        with registry_client(self.store, self.name) as client:
            return next((version for version in all_versions(client, self.name) if not self._owns(client, version)), None)

    def check_owned(self) -> None:
        """Check that this workspace registered all versions of the model.

        Raises:
            UserError: if there is a version of another workspace, or the registry does not answer.
        """
        if version := self.foreign_version():
            raise UserError(
                f"{self.refusal(version)}, so none is made champion: give this workspace's models another name by "
                "--tracking.model_name"
            )

    def refusal(self, version: "ModelVersion") -> str:
        """Return a phrase for error messages which says that another workspace registered `version`."""
        where = without_secrets(self.store)
        other = f"the workspace {version.tags[_WORKSPACE]}" if _WORKSPACE in version.tags else "another workspace"
        return f"{self.name} at {where} also holds models of {other} (version {version.version})"

    def _owns(self, client: "MlflowClient", version: "ModelVersion") -> bool:
        """Return whether this workspace registered a version of the model.

        A tag of the version names its workspace. Versions without this tag were registered by hand, or by an earlier release of
        this program. Such a version counts as this workspace's own if the MLflow store is a file in the workspace, or if the
        MLflow run of the version names the workspace.

        Args:
            client: client of the MLflow store.
            version: a version of the model, as the registry returned it.

        Raises:
            MlflowException: if the registry does not answer.
        """
        if _WORKSPACE_ID in version.tags:
            return bool(version.tags[_WORKSPACE_ID] == self.workspace_id)
        root = storage.absolute(self.workspace)
        database = sqlite_file(self.store)
        if database and not storage.in_bucket(root) and database.is_relative_to(root):
            return True
        tags = client.get_run(version.run_id).data.tags if version.run_id else {}
        registered_by = storage.absolute(tags[_WORKSPACE]) if tags.get(_WORKSPACE) else ""
        return f"{registered_by}/".startswith(f"{root}/")

    def version_to_beat(self) -> int | None:
        """Find the version with which the next new model is to be compared.

        Returns:
            The version number of the champion (the version in use). If there is no champion, the number of the challenger (the
            newest version that an earlier pipeline run registered), unless it was rejected. None if there is neither.

        Raises:
            UserError: if the registry does not answer.
        """
        versions = aliases(self.store, self.name)
        if CHAMPION in versions or CHALLENGER not in versions:
            return versions.get(CHAMPION)
        with registry_client(self.store, self.name) as client:
            rejected = client.get_model_version(self.name, str(versions[CHALLENGER])).tags.get("verdict") == REJECTED
        return None if rejected else versions[CHALLENGER]

    def versions_of(self, generation: str) -> set[int]:
        """Return the numbers of the versions that a generation (a retraining run of this workspace) has registered.

        Args:
            generation: name of the generation.

        Raises:
            UserError: if the registry does not answer.
        """
        with registry_client(self.store, self.name) as client:
            tags = {int(version.version): version.tags for version in all_versions(client, self.name)}
        of_generation = {_WORKSPACE_ID: self.workspace_id, _GENERATION: generation}
        return {number for number, found in tags.items() if of_generation.items() <= found.items()}


def origin_tags(workspace: str, workspace_id: str, classes: Sequence[str], generation: str = "") -> dict[str, str]:
    """Make the tags that record the origin of a model version: its workspace, its generation and a digest of its classes.

    Args:
        workspace: path or URI of the workspace. It is shown to users.
        workspace_id: text that identifies the workspace, even if it is moved.
        classes: names of the classes in the order of their ids.
        generation: name of the generation (a retraining run) that registers the version. "" if there is none.

    Returns:
        Values of the tags by name.
    """
    digest = hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]
    tags = {_WORKSPACE: without_secrets(workspace), _WORKSPACE_ID: workspace_id, "classes.digest": digest}
    return tags | ({_GENERATION: generation} if generation else {})
