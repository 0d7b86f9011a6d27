"""Define the settings of experiment tracking and of the model registry."""

from pydantic import Field, field_validator

from infra.settings import Section


class StoreSettings(Section):
    """The MLflow store (tracking server and model registry) that holds the model."""

    uri: str | None = Field(
        None, description="tracking server, if MLFLOW_TRACKING_URI names none; empty: SQLite in the workspace"
    )


class TrackingSettings(StoreSettings):
    """Experiment tracking and the model registry (MLflow).

    This is the section `tracking` of the settings files. Each field is explained by its description.
    """

    enabled: bool = Field(True, description="log runs to MLflow; false: nothing is logged or registered, MLflow is not needed")
    experiment: str = Field("deconvnet", min_length=1, description="experiment that the runs belong to")
    model_name: str = Field(
        "edeconvnet",
        min_length=1,
        description="name of the registered model, without / : and @; on a shared MLflow, one for each workspace",
    )
    register_model: bool = Field(True, description="register the ensemble at the end of the pipeline")
    system_metrics: bool = Field(True, description="log the load of the driver's machine: CPU, memory, disk, network, GPUs")

    @field_validator("model_name")
    @classmethod
    def _check_model_name(cls, name: str) -> str:
        """Refuse a name that MLflow would refuse in the last stage, or that could not be told from models:/NAME@ALIAS."""
        if any(mark in name for mark in "/:@"):
            raise ValueError("a name without / : and @ is needed")
        return name
