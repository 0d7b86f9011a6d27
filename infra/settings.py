"""The base class of all settings sections, and the settings of the machines that jobs run on."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator


class Section(BaseModel):
    """Base class of settings sections: unknown keys are errors, defaults are validated too, and values can't be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ClusterSettings(Section):
    """Where jobs run: which Ray cluster, and which of its nodes."""

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
        """Refuse text that is not key=value pairs separated by commas."""
        for pair in text.split(",") if text else ():
            if not re.fullmatch(r"\s*[\w./-]+\s*=\s*[\w.-]+\s*", pair):
                raise ValueError("must be labels, key=value, separated by commas: pool=cpu")
        return text

    def selector(self, nodes: Literal["data_nodes", "training_nodes"]) -> dict[str, str]:
        """The Ray label selector of a setting.

        Args:
            nodes: name of the setting.

        Returns:
            Label values by key; {} for any node.
        """
        text: str | None = getattr(self, nodes)
        pairs = (pair.split("=") for pair in (text or "").split(",") if pair)
        return {key.strip(): value.strip() for key, value in pairs}
