"""All settings of a pipeline run. Each room owns the type of its part; this module composes them."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, NonNegativeInt, model_validator

from deconvnet.datasets.synthetic import GENERATED_CLASSES
from deconvnet.settings import (
    ComputeSettings,
    DataSettings,
    InitSettings,
    ModelSettings,
    RetrainSettings,
    SegmentSettings,
    TrainSettings,
)
from deconvnet.training.sampler import check_batching
from infra.settings import ClusterSettings, Section, TrackingSettings
from proposals.settings import ExampleSettings, ProposalSettings
from workflows import options
from workflows.options import CONFIGS, DoorSettings, shown

QUICKSTART = CONFIGS / "quickstart.yaml"


class Settings(DoorSettings):
    """A pipeline run."""

    PLACES: ClassVar[tuple[str, ...]] = ("workspace", "data.root", "model.vgg16", "proposals.edge_model", "init.from")

    workspace: str = Field("runs/default", min_length=1, description="folder or s3:// prefix of all that the run makes")
    seed: NonNegativeInt = Field(0, description="of everything drawn: generated data, dev split, crops, initial weights")
    data: DataSettings = DataSettings()
    proposals: ProposalSettings = ProposalSettings()
    examples: ExampleSettings = ExampleSettings()
    model: ModelSettings = ModelSettings()
    init: InitSettings = InitSettings()
    compute: ComputeSettings = ComputeSettings()
    train: TrainSettings = TrainSettings()
    segment: SegmentSettings = SegmentSettings()
    retrain: RetrainSettings = RetrainSettings()
    tracking: TrackingSettings = TrackingSettings()
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="before")
    @classmethod
    def _generated_classes(cls, raw: Any) -> Any:
        """The generated data set has classes of its own."""
        data = raw.get("data", {}) if isinstance(raw, dict) else None
        if not isinstance(data, dict) or data.get("root"):
            return raw
        return {**raw, "data": {"classes": GENERATED_CLASSES, **data}}

    @model_validator(mode="after")
    def _across_sections(self) -> "Settings":
        for name in ("width", "fcn_width"):
            width = getattr(self.model, name)
            if self.model.vgg16 and width is not None and width > 1:
                raise ValueError(
                    f"model.{name} {width:g} can't start from VGG-16 weights, which are as wide as the paper's: "
                    f"set model.{name} to 1 or less, or leave model.vgg16 empty"
                )
        if self.segment.proposals > self.proposals.max_boxes:
            raise ValueError(
                f"segment.proposals {self.segment.proposals} is more than proposals.max_boxes {self.proposals.max_boxes}: "
                "lower the first or raise the second"
            )
        for name in TrainSettings.model_fields:
            stage, compute = getattr(self.train, name), self.compute
            check_batching(stage.batch, stage.micro_batch, compute.workers, compute.min_workers, setting=f"train.{name}")
        if self.data.root is None and self.data.classes != GENERATED_CLASSES:
            raise ValueError(
                f"data.classes {shown(self.data.classes)} don't fit the generated data (data.root is empty), whose classes are "
                f"{', '.join(GENERATED_CLASSES)}: leave data.classes out, or name a folder in data.root"
            )
        return self


def parser(description: str) -> argparse.ArgumentParser:
    """A pipeline door's command line: --config, and an option for every setting."""
    return options.parser(description, Settings, QUICKSTART)


def from_arguments(arguments: argparse.Namespace) -> Settings:
    """The settings that a parsed command line describes. Raises UserError."""
    return options.from_arguments(arguments, Settings)


def load(config: str, overrides: Mapping[str, str] | None = None) -> Settings:
    """Settings from a YAML file, with `overrides` (dotted name → text) on top. Raises UserError, one sentence a fault."""
    return options.load(config, Settings, overrides)


def as_dict(settings: Section, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Settings as JSON-able values, by the names used in YAML."""
    dumped = settings.model_dump(mode="json", by_alias=True)
    return dumped if only is None else {key: dumped[key] for key in only}
