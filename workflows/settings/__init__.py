"""Define the settings of all commands, composed of the sections that the packages define."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.models.architectures import ARCHITECTURES, architecture_of_stage
from deconvnet.ranking.settings import RankSettings
from deconvnet.serving.settings import ServerSettings
from deconvnet.settings import (
    ComputeSettings,
    DataSettings,
    InitSettings,
    ModelSettings,
    RetrainSettings,
    SegmentSettings,
    TrainSettings,
)
from deconvnet.tracking.settings import StoreSettings, TrackingSettings
from deconvnet.training.data.batching import check_batching
from infra.settings import ClusterSettings, Location, NotifySettings, Section
from proposals.settings import ExampleSettings, ForestSettings, ProposalSettings
from workflows import cli
from workflows.cli import CommandSettings

CONFIGS = Path(__file__).parents[1] / "configs"
"""Folder with the YAML files that come with the project."""
MODEL_FORMS = "models:/NAME@ALIAS or models:/NAME/VERSION"
"""Forms of the URI of a registered model, for descriptions of settings."""


_ExecutorName = Annotated[
    Literal["ray", "local"],
    Field(description="where the work runs: on Ray's nodes, or in processes of this machine without Ray"),
]


class PipelineSettings(CommandSettings):
    """Settings that all commands with a pipeline have in common."""

    workspace: Location = Field("runs/default", min_length=1, description="folder or bucket prefix of everything the run writes")
    seed: NonNegativeInt = Field(0, description="seed of the generated data, the dev split, the crops and the initial weights")
    executor: _ExecutorName = "ray"
    data: DataSettings = DataSettings()

    @model_validator(mode="before")
    @classmethod
    def _generated_classes(cls, raw: Any) -> Any:
        """Insert the classes of the generated data set into raw settings if they name neither a data folder nor classes.

        Args:
            raw: settings as read from YAML. Values that are not a mapping are left to pydantic, which reports them.

        Returns:
            `raw`, or a copy with the classes.
        """
        data = raw.get("data", {}) if isinstance(raw, dict) else None
        if not isinstance(data, dict) or data.get("root"):
            return raw
        return {**raw, "data": {"classes": GENERATED_CLASSES, **data}}


class Settings(PipelineSettings):
    """Settings of train_pipeline.py, retrain.py and evaluate.py."""

    RENAMED: ClassVar = {
        "deconv_start": "decoder_init",
        "lr_factor": "gamma",
        "stop_after": "early_stopping_patience",
        "fcn_share": "fcn_weight",
        "spread_strength": "soft_nms_strength",
        "spread_power": "soft_nms_power",
        "spread_first": "soft_nms_first",
    }

    proposals: ProposalSettings = ProposalSettings()
    examples: ExampleSettings = ExampleSettings()
    model: ModelSettings = ModelSettings()
    init: InitSettings = InitSettings()
    compute: ComputeSettings = ComputeSettings()
    train: TrainSettings = TrainSettings()
    segment: SegmentSettings = SegmentSettings()
    retrain: RetrainSettings = RetrainSettings()
    notify: NotifySettings = NotifySettings()
    tracking: TrackingSettings = TrackingSettings()
    cluster: ClusterSettings = ClusterSettings()

    @property
    def has_stage1(self) -> bool:
        """Return whether DeconvNet is first trained on crops of objects (stage 1). This is False if proposals.kind is windows."""
        return self.proposals.kind != "windows"

    @model_validator(mode="after")
    def _across_sections(self) -> "Settings":
        """Check that settings of different sections fit together. Raise ValueError if they don't."""
        for architecture in ARCHITECTURES.values():
            width = architecture.width(self.model)
            if self.model.vgg16 and width > 1:
                name = "width" if getattr(self.model, architecture.vgg16_width_field) is None else architecture.vgg16_width_field
                raise ValueError(
                    f"model.{name} {width:g} can't start from VGG-16 weights, which have the paper's width: "
                    f"set model.{name} to 1 or less, or leave model.vgg16 empty"
                )
        if self.segment.proposals > self.proposals.max_boxes:
            raise ValueError(
                f"segment.proposals {self.segment.proposals} is more than proposals.max_boxes {self.proposals.max_boxes}: "
                "lower the first or raise the second"
            )
        kind = self.proposals.kind if self.segment.early_exit is not None else None
        if kind == "windows":
            raise ValueError("segment.early_exit has no effect with proposals.kind windows: leave it empty, as all are used")
        if kind == "edgebox" and not self.data.has_background:
            raise ValueError(
                "segment.early_exit may leave parts of an image without boxes, and data.background none has no background class "
                "for them: leave early_exit empty, or set proposals.kind to both, so that windows cover the image"
            )
        for name in TrainSettings.model_fields:
            stage, compute = getattr(self.train, name), self.compute
            sizes = (stage.batch, stage.micro_batch, compute.workers, compute.min_workers)
            check_batching(*sizes, setting=f"train.{name}", needs_two=architecture_of_stage(name).needs_two_examples)
        if self.data.root is None and self.data.classes != GENERATED_CLASSES:
            classes = ", ".join(self.data.classes)
            raise ValueError(
                f"data.classes {classes if len(classes) <= 80 else classes[:77] + '…'} don't fit the generated data (data.root "
                f"is empty), whose classes are {', '.join(GENERATED_CLASSES)}: leave data.classes out, or name a folder in "
                "data.root"
            )
        return self


class EdgeTrackingSettings(TrackingSettings):
    """Experiment tracking (MLflow). Trainings of edge detectors are logged to an experiment of their own."""

    experiment: str = Field("edges", min_length=1, description="MLflow experiment that the runs are logged to")


class EdgeSettings(PipelineSettings):
    """Settings of train_edges.py."""

    workspace: Location = Field("runs/edges", min_length=1, description="folder or bucket prefix of everything the run writes")
    seed: NonNegativeInt = Field(0, description="seed of the choice of images and of the trees")
    bsds: Location | None = Field(
        None,
        description="folder of BSDS500: its train split is added to the training images, its val split to the comparison; if "
        "data.root is empty, it is the only data",
    )
    forest: ForestSettings = ForestSettings()
    proposals: ProposalSettings = Field(ProposalSettings(), description="EdgeBox's settings in the comparison")
    tracking: EdgeTrackingSettings = EdgeTrackingSettings()
    cluster: ClusterSettings = ClusterSettings()

    @property
    def masks(self) -> bool:
        """Return whether the edge detector learns from the masks of `data`. It is False if BSDS500 is the only data."""
        return self.data.root is not None or self.bsds is None


class PredictComputeSettings(Section):
    """Number and resources of the processes that predict."""

    actors: PositiveInt | None = Field(
        None, description="Ray processes that predict, each with a copy of the model; empty: as many as fit"
    )
    cpus_per_actor: PositiveInt = Field(1, description="CPUs and torch threads of each process of Ray")
    gpu: bool | None = Field(None, description="predict on GPUs; empty: where there is one")
    gpus_per_actor: float = Field(1.0, gt=0, le=1, description="share of a GPU for each process: 0.25 puts four on one GPU")


class PredictSettings(RankSettings, CommandSettings):
    """Settings of predict.py."""

    input: Location = Field(min_length=1, description="folder or bucket prefix of images, with all folders below it")
    output: Location = Field(min_length=1, description="folder or bucket prefix that masks, overlays and tables are written to")
    model: str = Field("models:/edeconvnet@champion", description=f"registered model: {MODEL_FORMS}")
    workspace: Location | None = Field(None, description="workspace of a pipeline, whose own MLflow store (SQLite) has the model")
    executor: _ExecutorName = "ray"
    overlays: bool = Field(False, description="also write the images with their masks drawn over them")
    confidence: Literal["table", "maps"] = Field(
        "table",
        description="table: only columns that say how sure each prediction is; maps: also a grey PNG of each pixel's "
        "probability (255: 1)",
    )
    max_rejects: float = Field(0.5, ge=0, le=1, description="share of images that may be unusable before the run fails")
    max_pixels: PositiveInt | None = Field(
        None, description="larger images are rejected; empty: the limit the model was registered with"
    )
    compute: PredictComputeSettings = PredictComputeSettings()
    tracking: StoreSettings = StoreSettings()
    cluster: ClusterSettings = ClusterSettings()


class ServeSettings(ServerSettings, CommandSettings):
    """Settings of serve.py."""

    tracking: StoreSettings = StoreSettings()
    cluster: ClusterSettings = ClusterSettings()


def parser(description: str) -> cli.SettingsParser[Settings]:
    """Return the command-line parser of train_pipeline.py, retrain.py and evaluate.py.

    Args:
        description: text at the top of `--help`.
    """
    return cli.SettingsParser(description, Settings, CONFIGS / "quickstart.yaml")


def add_replace_lost_run(command: cli.SettingsParser[Settings]) -> None:
    """Add the option --replace-lost-run to the parser of a command that works in a workspace."""
    command.add_argument(
        "--replace-lost-run",
        action="store_true",
        help="if the workspace is locked, wait for up to retrain.lock_minutes to find out whether the other command still runs: "
        "exit with code 3 if it renews the lock, take the lock over if it expires",
    )


def load(config: str, *arguments: str) -> Settings:
    """Load the settings of a pipeline from a YAML file, and override some of them.

    Args:
        config: local path or URI of the file.
        arguments: options that override the file, as on the command line: "--train.stage1.lr", "0.1".

    Returns:
        The settings. Local paths in them are absolute.

    Raises:
        UserError: if the file or the options have errors. The message has a sentence for each.
    """
    return cli.load(config, Settings, arguments)


def as_dict(settings: Section, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Convert settings to JSON-like values.

    Args:
        settings: a section, or all settings of a command.
        only: names of the settings to include. None for all.

    Returns:
        The values by the names that are used in YAML, nested by section.
    """
    dumped = settings.model_dump(mode="json", by_alias=True)
    return dumped if only is None else {key: dumped[key] for key in only}
