"""Where a door finds a registered model: the settings, and MLflow's store."""

import os

from pydantic import Field

from deconvnet.tracking.mlflow_runs import check, tracking_uri
from infra import storage
from infra.errors import UserError
from infra.settings import Section


class StoreSettings(Section):
    """MLflow."""

    uri: str | None = Field(
        None, description="where the model is registered, where MLFLOW_TRACKING_URI says nothing; empty: in the workspace"
    )


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
