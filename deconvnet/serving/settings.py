"""Define the settings of a server: where it listens, its processes, its limits, and how a new model takes over."""

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from infra.settings import Location, Section


class ServerSettings(Section):
    """Address, processes, limits and models of a server."""

    model: str = Field(
        "models:/edeconvnet@champion",
        description="registered model: models:/NAME@ALIAS or models:/NAME/VERSION; if the alias moves, the server changes models",
    )
    workspace: Location | None = Field(None, description="workspace of a pipeline, whose own MLflow store (SQLite) has the model")
    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen at; 0.0.0.0: reachable from other machines, without login"
    )
    port: int = Field(8000, ge=1, le=65535, description="port to listen at")
    replicas: PositiveInt = Field(1, description="processes that predict, each with the model")
    cpus_per_replica: PositiveInt = Field(1, description="CPUs and torch threads of each process")
    gpus_per_replica: float = Field(0.0, ge=0, le=1, description="share of a GPU that each process takes; 0: predict on CPUs")
    max_pixels: PositiveInt | None = Field(
        25_000_000, description="larger images are refused (400); empty: the limit the model was registered with"
    )
    max_megabytes: PositiveInt = Field(32, description="larger request bodies are refused (413), MiB")
    max_total_megabytes: PositiveInt = Field(
        256, description="memory for all request bodies together, MiB; where it runs out, the largest upload is refused (429)"
    )
    max_waiting: PositiveInt = Field(64, description="requests that wait or are answered at a time; more are refused (429)")
    read_timeout: PositiveInt = Field(
        60, description="seconds in which a request's body must arrive; a slower request is refused (408)"
    )
    request_timeout: PositiveInt = Field(
        300, description="seconds from the arrival of a request's body within which its image must be predicted; if not: 504"
    )
    poll_seconds: PositiveInt = Field(
        10, description="seconds between two requests to MLflow's registry for the versions that the aliases name"
    )
    challenger: str | None = Field(
        None, description="registered model for canary and shadow; empty: models:/NAME@challenger of the same NAME as model"
    )
    canary: float = Field(0.0, ge=0, lt=1, description="share of the requests that the challenger answers; 0: none")
    shadow: bool = Field(
        False, description="the challenger predicts the champion's images too; only how its masks differ is logged and counted"
    )

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        """Check that the memory for all bodies holds the largest one. Raise ValueError if it doesn't."""
        if self.max_total_megabytes < self.max_megabytes:
            raise ValueError(
                f"max_total_megabytes {self.max_total_megabytes} is less than max_megabytes {self.max_megabytes}, the largest "
                "body: raise the first or lower the second"
            )
        return self
