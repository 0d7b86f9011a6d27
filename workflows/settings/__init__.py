"""Define the settings of all commands, composed of the sections that the packages define."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.models.architectures import ARCHITECTURES
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
        """Return whether DeconvNet is trained on crops of objects (stage 1) first. With windows alone it is not."""
        return self.proposals.kind != "windows"

    @model_validator(mode="after")
    def _across_sections(self) -> "Settings":
        """Check that settings of different sections fit together. Raise ValueError if they don't."""
        for architecture in ARCHITECTURES.values():
            width = architecture.width(self.model)
            if self.model.vgg16 and width > 1:
                name = "width" if getattr(self.model, architecture.vgg16_width) is None else architecture.vgg16_width
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
                "segment.early_exit would leave parts of images without boxes, and there is no background for them "
                "(data.background none): leave it empty, or let windows cover the images by proposals.kind both"
            )
        for name in TrainSettings.model_fields:
            stage, compute = getattr(self.train, name), self.compute
            check_batching(stage.batch, stage.micro_batch, compute.workers, compute.min_workers, setting=f"train.{name}")
        if self.data.root is None and self.data.classes != GENERATED_CLASSES:
            classes = ", ".join(self.data.classes)
            raise ValueError(
                f"data.classes {classes if len(classes) <= 80 else classes[:77] + '…'} don't fit the generated data (data.root is "
                f"empty), whose classes are {', '.join(GENERATED_CLASSES)}: leave data.classes out, or name a folder in data.root"
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
        description="folder of BSDS500: its train split is added to the training images, its val split to the comparison; if data.root "
        "is empty, it is the only data",
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
        description="table: only columns that say how sure each prediction is; maps: also a grey PNG of each pixel's probability (255: 1)",
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


class ImportSettings(CommandSettings):
    """Settings of import_data.py."""

    from_: Literal["coco", "cvat", "kaggle", "label_studio", "labelme", "masks", "supervisely", "yolo"] | None = Field(
        None, alias="from", description="format of the annotations"
    )
    images: Location | None = Field(
        None, description="folder or bucket prefix of images; empty (cvat, labelme, supervisely, yolo): beside the annotations"
    )
    annotations: Location | None = Field(None, description="file or folder of annotations, depending on the format (formats.md)")
    to: Location | None = Field(None, description="new local folder to write, in VOC's layout")
    add_to: Location | None = Field(
        None,
        description="instead of to: local folder in VOC's layout to add images to; images that it already has get the new masks",
    )
    val_images: Location | None = Field(None, description="folder of the val images; empty: the same as images")
    val_annotations: Location | None = Field(None, description="annotations of val, if they are separate; empty: lists or a draw")
    train_list: Location | None = Field(
        None, description="text file with the names of train's images, one a line; empty: all that are not in val_list"
    )
    val_list: Location | None = Field(
        None, description="text file with the names of val's images; empty: all that are not in train_list"
    )
    val_share: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of the images drawn for val if no split is given; 0 (only with add_to): all go to train",
    )
    seed: NonNegativeInt = Field(0, description="seed of that draw")
    classes: tuple[str, ...] = Field(
        (),
        description="classes to import, in this order, separated by commas; masks: names of the ids from 0; check: names of the folder's "
        "ids; empty: all classes found, or with add_to (not masks) those of the folder",
    )
    background: str | None = Field(
        None, description="class that is the background; masks: also its value, or none; empty: recognised by its name"
    )
    fold_case: bool = Field(False, description="make class names that differ only in upper and lower case one class")
    others: Literal["background", "void"] = Field(
        "background", description="what objects of classes that are not imported become (not for masks)"
    )
    overlap: Literal["small", "order"] = Field(
        "small", description="which of two overlapping objects is on top: the smaller, or the later in the file (not for masks)"
    )
    boxes: Literal["void", "object"] = Field(
        "void", description="coco, cvat, label_studio, supervisely, yolo: what boxes without an outline become"
    )
    run_order: Literal["columns", "rows"] | None = Field(
        None, description="kaggle: run lengths count pixels down the columns or along the rows; empty: by the column's name"
    )
    crowd: Literal["void", "object"] = Field("void", description="coco: what crowds (iscrowd) become; if all are masks: objects")
    table: Location | None = Field(
        None,
        description="masks: text file of classes and their ids or colours, as `road, 7` or `road, 128 64 128`; empty: inferred",
    )
    mask_suffix: str = Field("", description="masks: end of the masks' names before the dot: _mask for a.jpg and a_mask.png")
    image_suffix: str = Field("", description="masks: end of the images' names in place of it: _leftImg8bit for Cityscapes")
    strange: Literal["reject", "void"] = Field(
        "reject", description="masks: what values without a class do: reject the image, or become void"
    )
    transparent: Literal["background", "void", "opaque"] = Field(
        "background",
        description="masks: what transparent pixels become; opaque: the value that a pixel has below its transparency",
    )
    encoding: str | None = Field(
        None, description="encoding of annotation files that are not in UTF-8, such as gbk; empty: they are refused"
    )
    max_rejects: float = Field(0.05, ge=0, le=1, description="share of images that may be unusable before the import fails")
    max_void: float = Field(
        0.1, ge=0, le=1, description="share of annotations that may become void or be left out before the import fails"
    )
    max_pixels: PositiveInt = Field(100_000_000, description="larger images are rejected")
    threads: PositiveInt | None = Field(None, description="threads; empty: one per CPU")
    check: Location | None = Field(None, description="import nothing: check this folder in VOC's layout")
    report: Location | None = Field(None, description="folder for check.md and contact_sheet.png; empty: the data folder")
    train_split: str = Field("train", description="check, add_to: the list of training images")
    val_split: str = Field("val", description="check, add_to: the list of validation images")

    @model_validator(mode="after")
    def _complete(self) -> "ImportSettings":
        """Check that the settings describe either an import or a check of an existing folder. Raise ValueError if they don't."""
        if self.check:
            if self.from_ or self.to or self.add_to:
                raise ValueError("--check is for an existing folder: leave out from, to and add_to (an import is checked anyway)")
            return self
        if self.from_ is None:
            raise ValueError(
                "give --from coco, labelme, masks or another format to import data (or --check DIR to check a folder)"
            )
        if not (self.to or self.add_to):
            raise ValueError("to is not given: name a new folder by --to, or one to add the images to by --add_to")
        if self.to and self.add_to:
            raise ValueError("to makes a new folder, and add_to adds to one: leave out one of them")
        if not (self.annotations and self.images):
            self._check_inputs(self.from_)
        if self.table and (self.from_ != "masks" or self.classes):
            raise ValueError("table is for masks, and names their classes itself: leave out classes, or table")
        try:
            b"".decode(self.encoding or "utf-8")
        except LookupError:
            raise ValueError(f"encoding {self.encoding} is not known: name one of Python's, such as gbk or cp1252") from None
        if self.val_annotations and (self.train_list or self.val_list):
            raise ValueError("val_annotations gives the split already: leave out train_list and val_list")
        return self

    def _check_inputs(self, name: str) -> None:
        """Check that the settings name the annotations and images that a format needs. Raise ValueError if they don't.

        Args:
            name: name of the format, such as "coco".
        """
        from deconvnet.datasets import formats  # imports OpenCV

        known = formats.get_format(name)
        if not self.annotations:
            raise ValueError(f"annotations is not given: name {known.annotations} by --annotations")
        if not self.images and not known.images_beside_annotations:
            raise ValueError("images is not given: name the folder of images by --images")


def parser(description: str) -> cli.SettingsParser[Settings]:
    """Return the command-line parser of train_pipeline.py, retrain.py and evaluate.py.

    Args:
        description: text at the top of `--help`.
    """
    return cli.SettingsParser(description, Settings, CONFIGS / "quickstart.yaml")


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
