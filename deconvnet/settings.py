"""Settings of the data, the networks, their training, and segmentation."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from deconvnet.datasets.palette import VOC_CLASSES
from infra.settings import Section


class GeneratedSettings(Section):
    """The generated data set, which is used if `data.root` is empty."""

    train: PositiveInt = Field(300, description="number of images to train on")
    val: PositiveInt = Field(60, description="number of images for the final results")
    height: int = Field(120, ge=32, le=1024, description="height of the images, px")
    width: int = Field(160, ge=32, le=1024, description="width of the images, px")


class DataSettings(Section):
    """The annotated images: a data set in VOC's layout, or a generated one."""

    root: str | None = Field(
        None,
        description="folder in VOC's layout (JPEGImages, SegmentationClass, ImageSets/Segmentation); empty: a data set is generated",
    )
    train_split: str = Field("train", description="split to train on: ImageSets/Segmentation/<this>.txt lists its images")
    val_split: str = Field(
        "val", description="split for the final results only: ImageSets/Segmentation/<this>.txt lists its images"
    )
    classes: tuple[str, ...] = Field(VOC_CLASSES, description="class names by id; the first is background")
    dev_fraction: float = Field(
        0.05, gt=0, le=0.5, description="share of the training images that is drawn (by seed) for validation during training"
    )
    max_rejects: float = Field(
        0.05, ge=0, le=1, description="share of the images that may be unusable; if there are more, the run stops"
    )
    max_pixels: PositiveInt = Field(100_000_000, description="images with more pixels are rejected")
    limit: PositiveInt | None = Field(None, description="number of images to use of each split (drawn by seed); empty: all")
    generated: GeneratedSettings = GeneratedSettings()

    @field_validator("classes")
    @classmethod
    def _classes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not 2 <= len(names) <= 255:
            raise ValueError("needs between 2 and 255 names, background first")
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"names must differ; repeated: {', '.join(repeated)}")
        return names


class ModelSettings(Section):
    """Both networks."""

    width: float = Field(1.0, gt=0, le=2, description="channels relative to the paper's")
    input_size: int = Field(224, ge=32, le=1024, description="side of DeconvNet's input, px; a multiple of 32")
    convention: Literal["caffe", "torchvision"] = Field(
        "caffe", description="input convention: BGR 0–255 minus mean, or RGB 0–1 mean/std"
    )
    vgg16: str | None = Field(
        None,
        description="ImageNet VGG-16 weights (.pth, .safetensors, .npz; path, https or s3), made narrower for widths below 1; "
        "empty: from scratch",
    )
    decoder_init: Literal["gaussian", "interpolation"] = Field(
        "gaussian",
        description="DeconvNet's decoder starts as the paper's (σ 0.01), or as interpolation, which learns within hundreds of steps",
    )
    fcn_width: float | None = Field(None, gt=0, le=2, description="channels of FCN-8s relative to the paper's; empty: as width")
    fcn_batch_norm: bool = Field(False, description="batch norm in FCN-8s (needed from scratch)")
    fcn_input_size: int = Field(
        512,
        ge=32,
        le=2048,
        description="square canvas FCN-8s trains on, px; a multiple of 32; larger photographs are scaled to fit",
    )

    @field_validator("input_size", "fcn_input_size")
    @classmethod
    def _multiple_of_32(cls, size: int) -> int:
        if size % 32:
            raise ValueError(f"must be a multiple of 32; {size // 32 * 32} or {size // 32 * 32 + 32} would do")
        return size


class ComputeSettings(Section):
    """Training workers (Ray Train)."""

    workers: PositiveInt = Field(1, description="DDP workers; one GPU each where gpu is true")
    min_workers: PositiveInt | None = Field(
        None, description="training goes on with as few workers when nodes are lost, and grows again; empty: always all workers"
    )
    gpu: bool = Field(False, description="train on GPUs (NCCL); else on CPUs (gloo)")
    cpus_per_worker: PositiveInt = Field(1, description="CPUs Ray reserves for each worker")
    threads: PositiveInt | None = Field(None, description="torch threads a worker; empty: cpus_per_worker")
    bf16: bool = Field(True, description="train in bfloat16 where the device is fast at it: most GPUs, CPUs with AVX-512 BF16")
    max_failures: int = Field(3, ge=0, description="times a failed worker group is restarted from its last checkpoint")


class StageSettings(Section):
    """One training stage. The defaults are DeconvNet's (§4.3)."""

    epochs: PositiveInt = Field(30, description="most passes over the examples")
    max_steps: PositiveInt | None = Field(None, description="most optimiser steps; empty: epochs decide")
    batch: PositiveInt = Field(64, description="global batch, over all workers")
    micro_batch: PositiveInt | None = Field(
        None, description="examples a worker holds at once; empty: its whole share of the batch"
    )
    lr: PositiveFloat = Field(0.01, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: NonNegativeFloat = Field(0.0005, description="weight decay; batch norms don't decay")
    bias_lr_factor: PositiveFloat = Field(
        1.0, description="learning-rate factor of biases; with 2 as released, biases don't decay"
    )
    schedule: Literal["plateau", "step", "poly", "constant"] = Field(
        "plateau",
        description="plateau: lr × gamma when dev mean IoU stops rising; step: every step_every steps; poly: falls to 0 with the 0.9th "
        "power of the steps left; constant",
    )
    step_every: PositiveInt = Field(9000, description="step schedule: steps between divisions")
    gamma: float = Field(0.1, gt=0, lt=1, description="plateau and step: what lr is multiplied by")
    patience: PositiveInt = Field(2, description="plateau: epochs without a rise before lr falls")
    early_stopping_patience: PositiveInt | None = Field(
        None, description="epochs without a rise before training stops; empty: never"
    )
    min_lr: NonNegativeFloat = Field(1e-5, description="plateau: training stops when lr falls under this")
    grad_clip: PositiveFloat | None = Field(None, description="largest gradient norm; empty: not clipped")
    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints; each epoch ends with one too")
    log_every: PositiveInt = Field(20, description="steps between logged losses")
    bn_batches: int = Field(500, ge=0, description="batches the batch-norm statistics are recomputed over at the end; 0: not")
    scale_jitter: float = Field(0.0, ge=0, lt=1, description="random scale of whole photographs, ± this share (FCN-8s)")


class InitSettings(Section):
    """Where training starts from, other than VGG-16 or nothing: fine-tuning."""

    from_: str | None = Field(
        None, alias="from", description="model folder of a run, or models:/NAME@ALIAS; class scores are mapped by name"
    )


class FcnStageSettings(StageSettings):
    """The training of FCN-8s. The defaults are those of Long, Shelhamer and Darrell (CVPR 2015)."""

    batch: PositiveInt = Field(20, description="global batch, over all workers")
    lr: PositiveFloat = Field(1e-4, description="learning rate")
    bias_lr_factor: PositiveFloat = Field(
        2.0, description="learning-rate factor of biases; with 2 as released, biases don't decay"
    )
    bn_batches: int = Field(0, ge=0, description="batches the batch-norm statistics are recomputed over at the end; 0: not")


class TrainSettings(Section):
    """The three trainings."""

    fcn8s: FcnStageSettings = FcnStageSettings()
    stage1: StageSettings = StageSettings()
    stage2: StageSettings = StageSettings()


class CrfSettings(Section):
    """Dense CRF (Krähenbühl, Koltun 2011); the defaults are the released DeconvNet's."""

    iterations: PositiveInt = Field(10, description="rounds of mean field inference")
    xy_sigma: PositiveFloat = Field(3.0, description="smoothness kernel, px")
    xy_weight: NonNegativeFloat = Field(3.0, description="smoothness kernel's weight")
    bilateral_xy_sigma: PositiveFloat = Field(20.0, description="appearance kernel, px")
    bilateral_rgb_sigma: PositiveFloat = Field(3.0, description="appearance kernel, grey levels of 255")
    bilateral_weight: NonNegativeFloat = Field(5.0, description="appearance kernel's weight")


class SegmentSettings(Section):
    """Instance-wise segmentation (§3.3, §4.4)."""

    proposals: PositiveInt = Field(50, description="best boxes segmented a photograph")
    min_side: NonNegativeFloat = Field(
        0.0, description="extended boxes with a shorter side under this (px) are passed over; released code: 112"
    )
    aggregation: Literal["max", "sum"] = Field("max", description="how the boxes' scores meet in a pixel")
    ensemble: Literal["mean", "product"] = Field(
        "mean", description="mean of probabilities (paper) or product of scores (released code)"
    )
    fcn_weight: float = Field(0.5, ge=0, le=1, description="mean: FCN-8s' weight in it (paper: a half)")
    batch: PositiveInt = Field(50, description="boxes forwarded at once")
    bf16: bool = Field(True, description="label in bfloat16 where the device is fast at it")
    max_side: int = Field(1024, ge=32, description="larger photographs are worked at this side, px; labels return at full size")
    crf: CrfSettings = CrfSettings()


class RetrainSettings(Section):
    """When a retrained model takes the champion's place, and what is kept of earlier ones."""

    margin: float = Field(0.005, ge=0, lt=1, description="least rise of mean IoU over the champion's that promotes, of 1")
    max_class_drop: float = Field(0.05, ge=0, le=1, description="largest fall of one class's IoU that is put up with, of 1")
    keep: PositiveInt = Field(3, description="finished generations kept, beside the one that made the champion")
    lock_minutes: PositiveInt = Field(
        15, description="after so long without a sign of life a run's lock on the workspace expires"
    )


class TrackingSettings(Section):
    """Experiment tracking and model registry (MLflow)."""

    enabled: bool = Field(True, description="log runs to MLflow; false: nothing is logged or registered, MLflow is not needed")
    uri: str | None = Field(
        None, description="tracking server, if MLFLOW_TRACKING_URI names none; empty: a SQLite file in the workspace"
    )
    experiment: str = Field("deconvnet", min_length=1, description="experiment that the runs belong to")
    model_name: str = Field("edeconvnet", min_length=1, description="name of the registered model")
    register_model: bool = Field(True, description="register the ensemble at the end of the pipeline")
    system_metrics: bool = Field(True, description="log the load of the driver's machine: CPU, memory, disk, network, GPUs")
