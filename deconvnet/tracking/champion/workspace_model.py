"""Distinguish the versions of a registered model that belong to a workspace from those of other workspaces."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deconvnet.tracking.registry import CHALLENGER, CHAMPION, REJECTED, aliases, all_versions, registry_client
from deconvnet.tracking.store import sqlite_file
from infra import storage
from infra.errors import UserError
from infra.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_WORKSPACE, _WORKSPACE_ID, _GENERATION = "workspace", "workspace.id", "generation"  # names of a version's tags


@dataclass(frozen=True)
class WorkspaceModel:
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

    def foreign_version(self, alias: str | None = None) -> "ModelVersion | None":
        """Find the newest version that another workspace has registered under this name. Return None if there is none.

        Args:
            alias: an alias, such as "challenger", to look only at the version that has it. None for all versions.

        Raises:
            UserError: if the registry does not answer.
        """
        number = None if alias is None else aliases(self.store, self.name).get(alias)
        with registry_client(self.store, self.name) as client:
            versions = [v for v in all_versions(client, self.name) if alias is None or int(v.version) == number]
            return next((version for version in versions if not self._owns(client, version)), None)

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
        MLflow run of the version names the workspace. If that run was deleted, nobody knows, and the version counts as foreign.

        Args:
            client: client of the MLflow store.
            version: a version of the model, as the registry returned it.

        Raises:
            MlflowException: if the registry does not answer.
        """
        from mlflow.exceptions import MlflowException

        if _WORKSPACE_ID in version.tags:
            return bool(version.tags[_WORKSPACE_ID] == self.workspace_id)
        root = storage.absolute(self.workspace)
        database = sqlite_file(self.store)
        if database and not storage.in_bucket(root) and database.is_relative_to(root):
            return True
        try:
            tags = client.get_run(version.run_id).data.tags if version.run_id else {}
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        registered_by = storage.absolute(tags[_WORKSPACE]) if tags.get(_WORKSPACE) else ""
        return f"{registered_by}/".startswith(f"{root}/")

    def baseline_version(self) -> int | None:
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
