"""The base of every settings section, and the settings of where things run."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator


class Section(BaseModel):
    """A section of the settings: unknown keys are refused, values are frozen once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ClusterSettings(Section):
    """Where the jobs run (Ray)."""

    address: str | None = Field(None, description="Ray address to join; empty: RAY_ADDRESS, else a Ray started here")
    num_cpus: PositiveInt | None = Field(
        None, description="CPUs of a Ray started here, or processes of the local executor; empty: all of the machine's"
    )
    object_store_mb: int = Field(512, ge=100, description="object store of a Ray started here, MB")
    data_nodes: str | None = Field(
        None, description="nodes for proposals, crops and evaluation on CPUs, by their Ray labels (pool=cpu); empty: any"
    )
    training_nodes: str | None = Field(None, description="nodes for training workers, by their Ray labels (pool=gpu); empty: any")

    @field_validator("data_nodes", "training_nodes")
    @classmethod
    def _labels(cls, text: str | None) -> str | None:
        for pair in text.split(",") if text else ():
            if not re.fullmatch(r"\s*[\w./-]+\s*=\s*[\w.-]+\s*", pair):
                raise ValueError("must be labels, key=value, separated by commas: pool=cpu")
        return text

    def selector(self, nodes: Literal["data_nodes", "training_nodes"]) -> dict[str, str]:
        """The Ray label selector of a setting: {} for any node."""
        text: str | None = getattr(self, nodes)
        pairs = (pair.split("=") for pair in (text or "").split(",") if pair)
        return {key.strip(): value.strip() for key, value in pairs}
