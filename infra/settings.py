"""The base of every settings section, and the settings of where things run."""

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class Section(BaseModel):
    """A section of the settings: unknown keys are refused, values are frozen once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ClusterSettings(Section):
    """Where the jobs run (Ray)."""

    address: str | None = Field(None, description="Ray address to join; empty: RAY_ADDRESS, else a Ray started here")
    num_cpus: PositiveInt | None = Field(None, description="CPUs of a Ray started here; empty: all of the machine's")
    object_store_mb: int = Field(512, ge=100, description="object store of a Ray started here, MB")


class TrackingSettings(Section):
    """MLflow."""

    uri: str | None = Field(None, description="tracking server; empty: MLFLOW_TRACKING_URI, else SQLite in the workspace")
    experiment: str = Field("deconvnet", min_length=1, description="experiment the runs are filed under")
    model_name: str = Field("edeconvnet", min_length=1, description="registered model's name")
    register_model: bool = Field(True, description="register the ensemble at the end of the pipeline")
