"""The description of one training stage, and the function that every training process runs for it.

A stage trains one network on one table: "fcn8s" trains FCN-8s, "stage1" and "stage2" train DeconvNet. The function is the same
for workers on Ray and for the single process of a local run.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from deconvnet.models import checkpoint
from deconvnet.models.architectures import Architecture, architecture_of_stage
from deconvnet.models.factory import build_network, initialise
from deconvnet.settings import ComputeSettings, ModelSettings, StageSettings
from deconvnet.training.data.batching import check_batching
from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
from deconvnet.training.data.dev_set import DevSet, dev_counts
from deconvnet.training.data.examples import Examples, NoExamples, open_examples
from deconvnet.training.distributed import rank_and_world_size
from deconvnet.training.interfaces import ReportFunction, State, TrainingResult
from deconvnet.training.trainer import Diverged, Trainer
from infra import storage
from infra.device import cudnn_benchmark, fast_bf16
from infra.errors import Interrupted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """The description of one training stage. It can be pickled and sent to Ray workers.

    Attributes:
        stage: name of the stage. "fcn8s" trains FCN-8s; "stage1" and "stage2" train DeconvNet.
        model: section `model` of the settings. Its field `vgg16`, if set, is the URI of VGG-16 weights that have the same width
            (channels per layer) as the network.
        settings: settings of this stage, such as batch size and learning rate.
        compute: settings of the training processes, such as their number and their threads.
        examples_uri: URI of the table to train on: an `examples` table of crops for DeconvNet, an `images` table for FCN-8s.
        dev_uri: URI of the table of dev examples, on which the network is evaluated after each epoch. It is a table of the same
            kind as `examples_uri`. From an `images` table only the split "dev" is used. None: no evaluation.
        classes: class names by class id, background first.
        checkpoints_uri: folder (local or in a bucket) that holds the checkpoints of all runs.
        run_name: name of this run's folder below `checkpoints_uri`. If there are checkpoints in it, the run is resumed.
        out_uri: folder (local or in a bucket) that the trained model is saved in.
        seed: seed of the initial weights, the order of examples, augmentation and dropout.
        init: URI of a folder with a trained model to start from. None: the initial weights are chosen by `model` (VGG-16 or
            random weights).
        fingerprint: digest of everything that the trained model depends on. It is stored with the model.
    """

    stage: str
    model: ModelSettings
    settings: StageSettings
    compute: ComputeSettings
    examples_uri: str
    dev_uri: str | None
    classes: tuple[str, ...]
    checkpoints_uri: str
    run_name: str
    out_uri: str
    seed: int = 0
    init: str | None = None
    fingerprint: str = ""

    @property
    def architecture(self) -> Architecture:
        """Return the architecture (description of DeconvNet or FCN-8s) that this stage trains."""
        return architecture_of_stage(self.stage)

    @property
    def run_uri(self) -> str:
        """Return the URI of the folder with this run's checkpoints, as an absolute path or URI."""
        return storage.join(storage.absolute(self.checkpoints_uri), self.run_name)

    def check(self, workers: int, min_workers: int | None = None) -> None:
        """Check that a global batch (the examples of one optimiser step) can be divided among the training processes.

        A warning is logged if FCN-8s has no batch norm and starts from random weights.

        Args:
            workers: number of training processes.
            min_workers: smallest number that training may continue with after failures. None: always `workers`.

        Raises:
            UserError: if a process would get no example, `min_workers` exceeds `workers`, or the micro-batch (the examples that a
                process computes at once) exceeds the global batch or is too small for the network's batch norm.
        """
        sizes = (self.settings.batch, self.settings.micro_batch, workers, min_workers)
        check_batching(*sizes, setting=f"train.{self.stage}", needs_two=self.architecture.needs_two_examples)
        if self.stage == "fcn8s" and not self.model.fcn_batch_norm and self.model.vgg16 is None and self.init is None:
            logger.warning(
                "  FCN-8s hardly learns from random weights without batch norm: set model.fcn_batch_norm to true, or name "
                "weights in model.vgg16"
            )

    def dev_examples(self) -> Examples | None:
        """Open the table of dev examples, on which the network is evaluated during training.

        Only the table's metadata are read. A message is logged if the table has no dev examples, or more than are used.

        Returns:
            The examples, or None if the job has no such table or the table has no dev examples.

        Raises:
            FileNotFoundError: if the table is not complete.
            UserError: if it can't be read.
        """
        if self.dev_uri is None:
            return None
        try:
            found = open_examples(self.dev_uri, self.architecture.input_size(self.model), self.architecture.split_filter("dev"))
        except NoExamples:
            logger.info(
                f"  {self.dev_uri} has no dev examples, so the mean IoU is not measured during training: "
                "schedule plateau never reduces the learning rate, and early_stopping_patience has no effect"
            )
            return None
        used, total = dev_counts(found)
        if used < total:
            logger.info(f"  the mean IoU is measured on {used:,} of {total:,} dev examples, spread evenly over the table")
        return found

    def batch_plan(self, workers: int) -> BatchPlan:
        """Return a plan of the global batches (the examples of each optimiser step) and of their division among the processes.

        Args:
            workers: number of training processes.

        Returns:
            The plan. It says which examples each training process sees at each step.

        Raises:
            FileNotFoundError: if the table of training examples is not complete.
            UserError: if the table holds no training examples.
        """
        architecture = self.architecture
        jitter = self.settings.scale_jitter if architecture.whole_images else 0.0
        size, split = architecture.input_size(self.model), architecture.split_filter("train")
        examples = open_examples(self.examples_uri, size, split, jitter)
        return BatchPlan.of(examples, self.settings.batch, workers, self.seed)

    def log_plan(self, plan: BatchPlan) -> None:
        """Log the number of examples per epoch, the number of steps per epoch and the largest number of steps of the training.

        Args:
            plan: plan of the batches, made by `batch_plan`.
        """
        logger.info(
            f"  each epoch: {plan.examples.total:,} examples in {plan.steps_per_epoch:,} steps of {self.settings.batch}; "
            f"at most {self.settings.total_steps(plan.steps_per_epoch):,} steps in all"
        )


def run_job(
    job: TrainingJob,
    loader: BatchLoader,
    dev: DevSet | None,
    device: torch.device,
    *,
    state: State | None,
    report: ReportFunction,
    should_stop: Callable[[], bool],
    should_save: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Train the network of a job, from the start or from a checkpoint. Rank 0 saves the trained network at `job.out_uri`.

    Each training process (rank) calls this.

    Args:
        job: description of the training stage.
        loader: source of this rank's batches.
        dev: source of this rank's dev examples, on which the network is evaluated after each epoch; None for no evaluation.
        device: device to compute on.
        state: training state to continue from; None to start anew.
        report: function that is called with metrics by name, and with the training state if a checkpoint must be saved (else
            None).
        should_stop: called before each step. If it returns True on any rank, training stops.
        should_save: called before each step. If it returns True on any rank, a checkpoint is reported after the step.

    Returns:
        The numbers of steps and epochs, the mean IoU on the dev examples, and the mean time of each phase of a step.

    Raises:
        UserError: if the weights or the checkpoint to start from don't fit the network.
        Diverged: (a UserError) if the loss becomes infinite or NaN.
        Interrupted: if training was stopped by `should_stop`. A checkpoint was reported before.
    """
    rank, _ = rank_and_world_size()
    torch.manual_seed(job.seed)
    model = build_network(job.architecture, job.model, len(job.classes))
    if state is None and rank == 0:  # DDP copies rank 0's weights to all ranks
        initialise(model, job.model, job.classes, job.init)
    precision = {"bf16": job.compute.bf16 and fast_bf16(device), "bf16_allreduce": job.compute.allreduce_dtype == "bfloat16"}
    trainer = Trainer(model, job.settings, loader, seed=job.seed, dev=dev, device=device, **precision)
    if state is not None:
        trainer.load_state_dict(state)
    try:
        with cudnn_benchmark():
            outcome = trainer.fit(report=report, should_stop=should_stop, should_save=should_save)
    except Interrupted:
        raise Interrupted(f"{job.stage} was interrupted and has left a checkpoint: the same command resumes it") from None
    except Diverged as error:
        raise Diverged(f"{job.stage}: {error}") from None
    if rank == 0:
        values = asdict(outcome)
        del values["step_seconds"]  # a model file does not depend on how fast it was made
        extra = {"stage": job.stage, "seed": job.seed, **values}
        checkpoint.save_model(model, storage.absolute(job.out_uri), job.classes, extra, job.fingerprint)
    return outcome


_METRIC_TEXTS = (
    ("loss", "loss {:.4f}"),
    ("pixel_accuracy", "pixel accuracy {:.1%}"),
    ("lr", "lr {:.2g}"),
    ("samples_per_s", "{:.1f} examples/s"),
    ("dev_mean_iou", "dev mean IoU {:.4f}"),
    ("final_dev_mean_iou", "final dev mean IoU {:.4f}"),
)


def progress_line(metrics: Mapping[str, Any], total_steps: int) -> str:
    """Format the metrics of a training run as one line of text for the log.

    Args:
        metrics: metrics by name. "step" and "epoch" are required. "loss", "pixel_accuracy", "lr", "samples_per_s",
            "dev_mean_iou" and "final_dev_mean_iou" are shown if present.
        total_steps: largest number of steps of the training, shown beside the current step.

    Returns:
        The line, such as "step 20/1,000, epoch 0.40, loss 1.2345".
    """
    parts = [f"step {metrics['step']:,}/{total_steps:,}", f"epoch {metrics['epoch']:.2f}"]
    return ", ".join(parts + [form.format(metrics[name]) for name, form in _METRIC_TEXTS if name in metrics])


def log_step_seconds(step_seconds: Mapping[str, float]) -> None:
    """Log the mean time of a training step and of its phases: "0.44 s a step: forward and backward 0.40, optimiser 0.03".

    The longest phases come first. Phases below 1 % of a step are left out. If there were no steps, nothing is logged.

    Args:
        step_seconds: seconds a step by phase (`TrainingResult.step_seconds`).
    """
    total = sum(step_seconds.values())
    if not total:
        return
    unit, factor = ("s", 1) if total >= 0.1 else ("ms", 1000)
    shown = sorted(((seconds, phase) for phase, seconds in step_seconds.items() if seconds >= 0.01 * total), reverse=True)
    parts = [f"{phase.replace('_', ' ')} {factor * seconds:.2f}" for seconds, phase in shown]
    logger.info(f"  {factor * total:.2f} {unit} a step: {', '.join(parts)}")
