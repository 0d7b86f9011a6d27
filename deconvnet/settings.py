"""Settings of the data, the networks, their training, segmentation, retraining and experiment tracking.

Each class describes one section of the YAML settings files. The description of each field says what it means.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from deconvnet.datasets.palette import VOC_CLASSES
from infra.settings import Location, Section


class GeneratedSettings(Section):
    """The number and the size of the images in the generated data set, which is used if `data.root` is empty.

    This is the section `data.generated` of the settings files. Each field is explained by its description.
    """

    train: PositiveInt = Field(300, description="number of images to train on")
    val: PositiveInt = Field(60, description="number of images for the final results")
    height: int = Field(120, ge=32, le=1024, description="height of the images, px")
    width: int = Field(160, ge=32, le=1024, description="width of the images, px")


class DataSettings(Section):
    """The annotated images: a data set in Pascal VOC's folder layout, or a generated one.

    This is the section `data` of the settings files. Each field is explained by its description.
    """

    root: Location | None = Field(
        None,
        description="folder in VOC's layout (JPEGImages, SegmentationClass, ImageSets/Segmentation); empty: data are generated",
    )
    train_split: str = Field("train", description="split to train on, listed in ImageSets/Segmentation/<this>.txt")
    val_split: str = Field("val", description="split for the final results only, listed in ImageSets/Segmentation/<this>.txt")
    test_split: str | None = Field(None, description="split that evaluate.py --split test evaluates on; empty: there is none")
    classes: tuple[str, ...] = Field(VOC_CLASSES, description="class names by id; the first is background, unless there is none")
    background: Literal["first", "none"] = Field(
        "first", description="first: class 0 is the background (pixels of no object); none: class 0 is a class like the others"
    )
    dev_fraction: float = Field(
        0.05, gt=0, le=0.5, description="share of the training images that is drawn (by seed) for validation during training"
    )
    max_rejects: float = Field(0.05, ge=0, le=1, description="share of the images that may be unusable before the run stops")
    max_pixels: PositiveInt = Field(100_000_000, description="images with more pixels are rejected")
    limit: PositiveInt | None = Field(None, description="largest number of images used of each split, drawn by seed; empty: all")
    version: NonNegativeInt | None = Field(None, description="version of the table images to train on; empty: the files are read")
    generated: GeneratedSettings = GeneratedSettings()

    @property
    def has_background(self) -> bool:
        """Return whether class 0 is the background."""
        return self.background == "first"

    @model_validator(mode="after")
    def _generated_background(self) -> "DataSettings":
        """Raise ValueError if `background` is "none" for generated data, which always has a background."""
        if self.root is None and not self.has_background:
            raise ValueError("data.background none does not fit the generated data (data.root is empty), which has a background")
        return self

    @field_validator("classes")
    @classmethod
    def _classes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Check the class names.

        Args:
            names: class names by class id.

        Returns:
            The same names.

        Raises:
            ValueError: if there are not 2 to 255 names, or a name occurs twice.
        """
        if not 2 <= len(names) <= 255:
            raise ValueError("needs between 2 and 255 names, background first if there is one")
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"names must differ; repeated: {', '.join(repeated)}")
        return names


class ModelSettings(Section):
    """The networks. Settings whose names begin with fcn_ are for FCN-8s only.

    `convention` and `vgg16` are for both networks. All other settings are for DeconvNet.

    This is the section `model` of the settings files. Each field is explained by its description.
    """

    width: float = Field(
        1.0, gt=0, le=2, description="channels of each DeconvNet layer relative to the paper's, rounded to multiples of 8"
    )
    encoder_width: float | None = Field(None, gt=0, le=2, description="width of DeconvNet's encoder; empty: the same as width")
    decoder_width: float | None = Field(None, gt=0, le=2, description="width of DeconvNet's decoder; empty: the same as width")
    fc_channels: PositiveInt | None = Field(None, description="channels of DeconvNet's fc6 and fc7; empty: 4096 × width")
    input_size: int = Field(224, ge=32, le=1024, description="side of DeconvNet's square input, px; a multiple of 32")
    convention: Literal["caffe", "torchvision"] = Field(
        "caffe",
        description="input convention, which must be that of vgg16: caffe: BGR 0–255 minus the mean; torchvision: RGB 0–1 minus "
        "the mean, divided by the standard deviation",
    )
    vgg16: Location | None = Field(
        None,
        description="file of VGG-16's ImageNet weights to start from (.pth, .safetensors, .npz; path, https or s3); they are "
        "fitted to networks of width below 1 or with batch norm; empty: random weights",
    )
    decoder_init: Literal["gaussian", "interpolation"] = Field(
        "gaussian",
        description="initial weights of DeconvNet's decoder: the paper's Gaussian (σ 0.01), or interpolation (box filters), "
        "which learns within hundreds of steps",
    )
    fcn_width: float | None = Field(
        None, gt=0, le=2, description="channels of each FCN-8s layer relative to the paper's; empty: the same as width"
    )
    fcn_batch_norm: bool = Field(False, description="batch norm after FCN-8s's convolutions; needed where vgg16 is empty")
    fcn_input_size: int = Field(
        512,
        ge=32,
        le=2048,
        description="side of the square canvas that FCN-8s is trained on, px; a multiple of 32; larger images are scaled down",
    )

    @field_validator("input_size", "fcn_input_size")
    @classmethod
    def _multiple_of_32(cls, size: int) -> int:
        """Return an input size in pixels. Raise ValueError unless it is a multiple of 32: the networks halve it five times."""
        if size % 32:
            raise ValueError(f"must be a multiple of 32; {size // 32 * 32} or {size // 32 * 32 + 32} would do")
        return size


class ComputeSettings(Section):
    """The processes that train. They are Ray Train workers, or a single process with the local executor.

    This is the section `compute` of the settings files. Each field is explained by its description.
    """

    workers: PositiveInt = Field(1, description="number of training workers (DDP); with gpu each has one GPU")
    min_workers: PositiveInt | None = Field(
        None,
        description="smallest number of workers with which training continues when nodes are lost; workers are added when nodes "
        "return; empty: training waits until all workers can run",
    )
    gpu: bool = Field(False, description="train and evaluate on GPUs (NCCL) instead of CPUs (gloo)")
    cpus_per_worker: PositiveInt = Field(1, description="number of CPUs that Ray reserves for each worker")
    threads: PositiveInt | None = Field(
        None, description="torch threads of each worker; empty: cpus_per_worker, or all CPUs with the local executor"
    )
    bf16: bool = Field(
        True, description="compute in bfloat16 where it is fast: on GPUs from Ampere on, on CPUs with AVX-512 BF16"
    )
    allreduce_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="number format in which workers exchange gradients; bfloat16: half the bytes, for slow links between nodes",
    )
    max_failures: int = Field(3, ge=0, description="number of times that failed workers are restarted from the last checkpoint")

    @property
    def worker_threads(self) -> int:
        """Return the number of CPU threads that torch uses in each training worker (a process of Ray Train)."""
        return self.cpus_per_worker if self.threads is None else self.threads


EncoderBlock = Literal["conv1", "conv2", "conv3", "conv4", "conv5"]
"""A block of VGG-16's convolutions, named as the submodule that has them in both networks."""
_Batch = Annotated[PositiveInt, Field(description="examples in a global batch, over all workers")]
_LearningRate = Annotated[PositiveFloat, Field(description="initial learning rate")]
_BiasLrFactor = Annotated[
    PositiveFloat,
    Field(description="factor on the learning rate of biases; unless it is 1, biases have no weight decay (released code: 2)"),
]
_BnBatches = Annotated[
    int,
    Field(
        ge=0, description="number of batches from which batch norm's statistics are recomputed after training; 0: not recomputed"
    ),
]


class StageSettings(Section):
    """One training stage. The defaults are those of Noh et al. (ICCV 2015, §6.1) for DeconvNet.

    These are the sections `train.stage1` and `train.stage2` of the settings files. Each field is explained by its description.
    """

    epochs: PositiveInt = Field(30, description="largest number of passes over the examples")
    max_steps: PositiveInt | None = Field(None, description="largest number of optimiser steps; empty: only epochs limits them")
    batch: _Batch = 64
    micro_batch: PositiveInt | None = Field(
        None, description="largest number of examples that a worker computes at once; empty: its whole share of the batch"
    )
    lr: _LearningRate = 0.01
    freeze: tuple[EncoderBlock, ...] = Field(
        (),
        description="blocks of VGG-16 whose weights and batch-norm statistics are not trained, which saves time; only for "
        "networks that start from trained weights",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: NonNegativeFloat = Field(0.0005, description="weight decay of SGD; parameters of batch norm have none")
    bias_lr_factor: _BiasLrFactor = 1.0
    encoder_lr_factor: PositiveFloat = Field(1.0, description="factor on the learning rate of VGG-16's convolutions")
    schedule: Literal["plateau", "step", "poly", "constant"] = Field(
        "plateau",
        description="learning rate over time: plateau: multiplied by gamma when the dev mean IoU stops rising; step: multiplied "
        "by gamma every step_every steps; poly: proportional to the share of steps left, to the power 0.9; constant",
    )
    step_every: PositiveInt = Field(9000, description="schedule step: steps between two reductions of the learning rate")
    gamma: float = Field(0.1, gt=0, lt=1, description="schedules plateau and step: factor of each reduction")
    patience: PositiveInt = Field(2, description="schedule plateau: epochs without a rise of the dev mean IoU before a reduction")
    early_stopping_patience: PositiveInt | None = Field(
        None, description="epochs without a rise of the dev mean IoU before training stops; empty: it does not stop early"
    )
    min_lr: NonNegativeFloat = Field(1e-5, description="schedule plateau: training stops when the learning rate falls below this")
    grad_clip: PositiveFloat | None = Field(
        None, description="largest norm of the gradients over all parameters; larger ones are scaled down to it; empty: no limit"
    )
    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints; each epoch ends with one, too")
    log_every: PositiveInt = Field(20, description="steps between two logged losses")
    bn_batches: _BnBatches = 500
    scale_jitter: float = Field(
        0.0, ge=0, lt=1, description="FCN-8s: training images are scaled by a random factor between 1 − this and 1 + this"
    )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the largest number of optimiser steps that `epochs` and `max_steps` allow, given the number in an epoch."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


class FcnStageSettings(StageSettings):
    """The training stage of FCN-8s. The defaults are those of Long, Shelhamer, Darrell (CVPR 2015).

    This is the section `train.fcn8s` of the settings files. It has the fields of `StageSettings`, some with other defaults.
    """

    batch: _Batch = 20
    lr: _LearningRate = 1e-4
    bias_lr_factor: _BiasLrFactor = 2.0
    bn_batches: _BnBatches = 0


class InitSettings(Section):
    """Fine-tuning: a trained model to start from instead of VGG-16's weights or random weights.

    This is the section `init` of the settings files.
    """

    from_: Location | None = Field(
        None,
        alias="from",
        description="model folder, workspace, or registered model (models:/NAME@ALIAS) to start from; the weights of the last "
        "layer are copied for classes of the same name; empty: no fine-tuning",
    )


class TrainSettings(Section):
    """The training stages: FCN-8s on whole images, and DeconvNet on crops of objects (stage 1), then of proposals (stage 2).

    This is the section `train` of the settings files, with a section for each stage.
    """

    fcn8s: FcnStageSettings = FcnStageSettings()
    stage1: StageSettings = StageSettings()
    stage2: StageSettings = StageSettings()


class CrfSettings(Section):
    """The dense CRF (Krähenbühl, Koltun, NIPS 2011) that refines masks. The defaults are those of the released DeconvNet.

    This is the section `segment.crf` of the settings files. Each field is explained by its description.
    """

    iterations: PositiveInt = Field(10, description="number of mean-field iterations")
    xy_sigma: PositiveFloat = Field(3.0, description="standard deviation of the smoothness kernel, px")
    xy_weight: NonNegativeFloat = Field(3.0, description="weight of the smoothness kernel")
    bilateral_xy_sigma: PositiveFloat = Field(20.0, description="standard deviation of the appearance kernel in position, px")
    bilateral_rgb_sigma: PositiveFloat = Field(
        3.0, description="standard deviation of the appearance kernel in colour, of values from 0 to 255"
    )
    bilateral_weight: NonNegativeFloat = Field(5.0, description="weight of the appearance kernel")


class SegmentSettings(Section):
    """Segmentation of images by DeconvNet on object proposals, and its ensemble with FCN-8s (Noh et al., ICCV 2015, §5).

    This is the section `segment` of the settings files. Each field is explained by its description.
    """

    proposals: PositiveInt = Field(
        50, description="number of an image's best boxes that DeconvNet segments, besides all windows (proposals.kind)"
    )
    min_side: NonNegativeFloat = Field(
        0.0, description="boxes whose shorter side, after enlarging, is below this are left out, px (released code: 112)"
    )
    aggregation: Literal["max", "sum", "mean"] = Field(
        "max", description="how the scores of overlapping boxes are combined in a pixel; mean suits windows"
    )
    ensemble: Literal["mean", "product"] = Field(
        "mean",
        description="how DeconvNet and FCN-8s are combined: mean of their probabilities (paper), or product of their scores "
        "(released code)",
    )
    fcn_weight: float = Field(0.5, ge=0, le=1, description="weight of FCN-8s in the mean; DeconvNet has the rest (paper: 0.5)")
    flip: bool = Field(False, description="also segment the mirrored image, and average the scores; takes twice the time")
    batch: PositiveInt = Field(50, description="number of boxes that go through DeconvNet at once")
    early_exit: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="stop after ten boxes that have changed the predicted class of at most this share of the image's pixels; all "
        "windows or, without windows, at least twenty boxes are used; saves time on CPUs; empty: all boxes are used",
    )
    bf16: bool = Field(True, description="compute in bfloat16 where the device is fast at it")
    int8: bool = Field(
        False,
        description="compute the networks in 8-bit integers on CPUs that are fast at it (AVX-512 VNNI, AVX-VNNI or AMX); some "
        "pixels get another class",
    )
    max_side: int = Field(
        1024,
        ge=32,
        description="images with a longer side are scaled down to this, px; masks are scaled back to the image's size",
    )
    crf: CrfSettings = CrfSettings()


class RetrainSettings(Section):
    """Conditions for replacing the champion (the model in use) by a retrained model, and the number of earlier runs to keep.

    This is the section `retrain` of the settings files. Each field is explained by its description.
    """

    margin: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="a model is promoted only if the lower end of the 90 % interval of its rise in mean IoU is above this",
    )
    max_class_drop: float = Field(
        0.05, ge=0, le=1, description="a model is not promoted if the IoU (0–1) of a class falls by more than this"
    )
    keep: PositiveInt = Field(3, description="number of finished retraining runs whose files are kept, besides the champion's")
    lock_minutes: PositiveInt = Field(
        15, description="minutes after which another run may take the lock of the workspace, if its holder has not renewed it"
    )
