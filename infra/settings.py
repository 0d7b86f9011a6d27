"""The base class of all sections of settings, and the settings of the machines on which jobs run."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator


class Section(BaseModel):
    """The base class of all sections of settings.

    Unknown keys are errors, defaults are validated too, and values can't be changed after creation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ClusterSettings(Section):
    """Where jobs run: on which Ray cluster, and on which of its nodes."""

    address: str | None = Field(
        None, description="address of a Ray cluster to join; empty: that in RAY_ADDRESS, else Ray is started on this machine"
    )
    num_cpus: PositiveInt | None = Field(
        None,
        description="CPUs of a Ray started on this machine, or processes of the local executor; empty: all CPUs of the machine",
    )
    object_store_mb: int = Field(512, ge=100, description="size of the object store of a Ray started on this machine, in MB")
    data_nodes: str | None = Field(
        None,
        description="Ray labels (pool=cpu) of the nodes for proposals, training crops and evaluation on CPUs; empty: any node",
    )
    training_nodes: str | None = Field(
        None, description="Ray labels (pool=gpu) of the nodes for training workers; empty: any node"
    )

    @field_validator("data_nodes", "training_nodes")
    @classmethod
    def _check_labels(cls, text: str | None) -> str | None:
        """Return the text unchanged; raise ValueError if it does not consist of key=value pairs separated by commas."""
        for pair in text.split(",") if text else ():
            if not re.fullmatch(r"\s*[\w./-]+\s*=\s*[\w.-]+\s*", pair):
                raise ValueError("must be labels, key=value, separated by commas: pool=cpu")
        return text

    def selector(self, nodes: Literal["data_nodes", "training_nodes"]) -> dict[str, str]:
        """Return the Ray labels that select the nodes for one kind of job.

        Args:
            nodes: name of the setting that holds the labels.

        Returns:
            Label values by key; {} if any node will do.
        """
        text: str | None = getattr(self, nodes)
        pairs = (pair.split("=") for pair in (text or "").split(",") if pair)
        return {key.strip(): value.strip() for key, value in pairs}
