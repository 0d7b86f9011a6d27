"""One training stage: what it is given (`TrainingJob`), and what every worker does with it, on Ray or in one local process."""

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from deconvnet.models import checkpoint
from deconvnet.models.architectures import Architecture, architecture_of_stage
from deconvnet.models.factory import build_network, initialise
from deconvnet.settings import ComputeSettings, ModelSettings, StageSettings
from deconvnet.training.dataloader import BatchPlan, Examples, open_examples
from deconvnet.training.interfaces import BatchLoader, DevLoader, Outcome, Report, State
from deconvnet.training.sampler import check_batching
from deconvnet.training.trainer import Diverged, Trainer, rank_and_world_size
from infra import storage
from infra.device import fast_bf16
from infra.errors import Interrupted, UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """All that one training stage is given. Picklable, so that it can be sent to Ray workers.

    Attributes:
        stage: "fcn8s", "stage1" or "stage2"; says which architecture is trained.
        model: settings of the networks; `vgg16` names weights of the network's own width.
        settings: batch size, learning rate, schedule, … of this stage.
        compute: workers, threads, GPU, bfloat16.
        examples_uri: table trained on: `examples`, or `images` for FCN-8s.
        dev_uri: table evaluated on after each epoch, of the same kind (for FCN-8s the same table); None for no evaluation.
        classes: class names by id, background first.
        checkpoints_uri: folder (local or s3) of the checkpoints of all runs.
        run_name: this run's folder below `checkpoints_uri`; a run of this name that has checkpoints is resumed.
        out_uri: folder that the trained model is saved to.
        seed: of the initial weights, the order of examples, augmentation and dropout.
        init: model folder to start from; None: as `model` says (VGG-16, or random).
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

    @property
    def architecture(self) -> Architecture:
        """The architecture that is trained."""
        return architecture_of_stage(self.stage)

    @property
    def run_uri(self) -> str:
        """Folder of this run's checkpoints."""
        return storage.join(storage.absolute(self.checkpoints_uri), self.run_name)

    def check(self, workers: int, min_workers: int | None = None) -> None:
        """Check that the batch can be shared.

        Args:
            workers: number of training processes.
            min_workers: fewest that the training may continue with; None: always `workers`.

        Raises:
            UserError: if it can't.
        """
        settings = self.settings
        check_batching(settings.batch, settings.micro_batch, workers, min_workers, setting=f"train.{self.stage}")

    def train_examples(self) -> Examples:
        """Open the examples to train on. Raises UserError if there are none."""
        jitter = self.settings.scale_jitter if self.architecture.whole_images else 0.0
        return open_examples(
            self.examples_uri, self.architecture.input_size(self.model), self.architecture.split("train"), jitter
        )

    def dev_examples(self) -> Examples | None:
        """Open the examples to evaluate on; None if there are none (a table may be empty)."""
        if self.dev_uri is None:
            return None
        try:
            return open_examples(self.dev_uri, self.architecture.input_size(self.model), self.architecture.split("dev"))
        except UserError:
            return None

    def batch_plan(self, workers: int) -> BatchPlan:
        """Plan the global batches over the training examples for a number of workers."""
        return BatchPlan.of(self.train_examples(), self.settings.batch, workers, self.seed)

    def total_steps(self, plan: BatchPlan) -> int:
        """Compute the most optimiser steps that the settings allow.

        Args:
            plan: a plan over the training examples.
        """
        return min(self.settings.epochs * plan.steps_per_epoch, self.settings.max_steps or sys.maxsize)

    def log_plan(self, plan: BatchPlan) -> None:
        """Log how many examples and steps there are."""
        logger.info(
            f"  {plan.examples.total:,} examples an epoch, {plan.steps_per_epoch:,} steps of {self.settings.batch}, "
            f"at most {self.total_steps(plan):,} steps"
        )


def run_job(
    job: TrainingJob,
    loader: BatchLoader,
    dev: DevLoader | None,
    device: torch.device,
    *,
    state: State | None,
    report: Report,
    should_stop: Callable[[], bool],
    should_save: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train the network of a job from start or checkpoint to its end; rank 0 saves it at `job.out_uri`.

    Args:
        job: what to train.
        loader: this rank's share of the batches.
        dev: this rank's share of the dev examples, or None.
        device: where to compute.
        state: checkpoint to resume from; None to begin.
        report: called with metrics, and with a `State` where a checkpoint is due.
        should_stop: checked before each step.
        should_save: checked before each step; True makes a checkpoint due after it.

    Returns:
        Steps done and the dev scores.

    Raises:
        UserError: if weights to start from don't fit, or the loss diverges.
        Interrupted: if `should_stop` returned True on any rank.
    """
    rank, _ = rank_and_world_size()
    torch.manual_seed(job.seed)
    model = build_network(job.architecture, job.model, len(job.classes))
    if state is None and rank == 0:  # DDP gives rank 0's weights to all
        initialise(model, job.model, job.classes, job.init)
    bf16 = job.compute.bf16 and fast_bf16(device)
    trainer = Trainer(model, job.settings, loader, seed=job.seed, dev=dev, device=device, bf16=bf16)
    if state is not None:
        trainer.load_state_dict(state)
    try:
        outcome = trainer.fit(report=report, should_stop=should_stop, should_save=should_save)
    except Interrupted:
        raise Interrupted(f"{job.stage} was interrupted and has left a checkpoint: the same command resumes it") from None
    except Diverged as error:
        raise Diverged(f"{job.stage}: {error}") from None
    if rank == 0:
        extra = {"stage": job.stage, "seed": job.seed, **asdict(outcome)}
        checkpoint.save_model(model, storage.absolute(job.out_uri), job.classes, extra)
    return outcome


_FORMATS = (
    ("loss", "loss {:.4f}"),
    ("pixel_accuracy", "pixel accuracy {:.1%}"),
    ("lr", "lr {:.2g}"),
    ("samples_per_s", "{:.1f} examples/s"),
    ("dev_mean_iou", "dev mean IoU {:.4f}"),
    ("final_dev_mean_iou", "final dev mean IoU {:.4f}"),
)


def progress_line(metrics: Mapping[str, Any], total_steps: int) -> str:
    """Format a report of training as one line.

    Args:
        metrics: "step", "epoch" and any of "loss", "pixel_accuracy", "lr", "samples_per_s", "dev_mean_iou", "final_dev_mean_iou".
        total_steps: shown as the number of steps to do.
    """
    parts = [f"step {metrics['step']:,}/{total_steps:,}", f"epoch {metrics['epoch']:.2f}"]
    return ", ".join(parts + [form.format(metrics[name]) for name, form in _FORMATS if name in metrics])
