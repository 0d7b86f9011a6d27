"""A training stage in this process, without Ray: the same batches, loop and checkpoints as `ray_trainer`, fed by threads."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import cv2
import torch

from deconvnet.models import checkpoint
from deconvnet.training.dataloader import DevSet, ThreadedLoader
from deconvnet.training.interfaces import State
from deconvnet.training.job import TrainingJob, progress_line, run_job
from infra import storage
from infra.runtime.local_executor import available_cpus

LOCAL_CHECKPOINT = "step_"
"""What the names of this trainer's checkpoint folders begin with; Ray Train's begin with `checkpoint_`."""

CHECKPOINT_SECONDS = 300.0
"""A checkpoint is saved at least this often, besides those that `checkpoint_every` asks for."""

logger = logging.getLogger(__name__)


def train_locally(
    job: TrainingJob,
    *,
    device: torch.device | str | None = None,
    on_report: Callable[[dict[str, float]], None] = lambda metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train one stage to its end in this process and save the network as a model folder at `job.out_uri`.

    One process takes the whole global batch, whatever `job.compute.workers` is. A run that `train_on_ray` began is resumed from
    its newest complete checkpoint, and the other way round.

    Args:
        job: what to train.
        device: where to compute; None: the GPU if there is one, else the CPU.
        on_report: called with the metrics of each report ("step", "epoch", "loss", …).
        should_stop: checked before each step; where it returns True a checkpoint is saved and the training stops.

    Returns:
        {"steps", "epochs", "dev_mean_iou", "best_dev_mean_iou"}.

    Raises:
        UserError: for settings or data that can't be trained with, and where the loss diverges.
        Interrupted: where `should_stop` returned True.
    """
    job.check(workers=1)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    threads = job.compute.threads or available_cpus()
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)  # the loader's threads decode an example each
    plan = job.batch_plan(workers=1)
    job.log_plan(plan)
    dev_examples = job.dev_examples()
    checkpoints = LocalCheckpoints(job.run_uri)
    state = checkpoints.newest()
    if state:
        logger.info(f"  resumed from the checkpoint of step {state.values['step']:,}")

    def report(metrics: dict[str, float], state: State | None) -> None:
        """Log a report and save the checkpoint that is due."""
        logger.info(f"  {progress_line(metrics, job.total_steps(plan))}")
        on_report(metrics)
        if state is not None:
            checkpoints.save(state)

    outcome = run_job(
        job,
        ThreadedLoader(plan, threads=threads),
        DevSet(dev_examples, threads=threads) if dev_examples else None,
        device,
        state=state,
        report=report,
        should_stop=should_stop,
        should_save=lambda: checkpoints.seconds_since_save() >= CHECKPOINT_SECONDS,
    )
    checkpoints.clear()
    return asdict(outcome)


class LocalCheckpoints:
    """The checkpoints of one run, of which the newest is kept."""

    def __init__(self, uri: str) -> None:
        """Keep checkpoints in the folder `uri` of a run (local or s3)."""
        self._uri = uri
        self._saved_at = time.monotonic()

    def newest(self) -> State | None:
        """Load the newest complete checkpoint, of this trainer or Ray Train; None if there is none."""
        found = checkpoint.newest_state(self._uri)
        return State(*found) if found else None

    def seconds_since_save(self) -> float:
        """Seconds since the last save, or since this object was made."""
        return time.monotonic() - self._saved_at

    def save(self, state: State) -> None:
        """Save a checkpoint, then delete this trainer's older ones."""
        name = f"{LOCAL_CHECKPOINT}{state.values['step']:09}"
        checkpoint.save_state(storage.join(self._uri, name), state.tensors, state.values)
        self._remove(keep=name)
        self._saved_at = time.monotonic()

    def clear(self) -> None:
        """Delete all of this trainer's checkpoints: the training has ended."""
        self._remove(keep=None)

    def _remove(self, keep: str | None) -> None:
        """Delete this trainer's checkpoints but one."""
        for name in {file.split("/")[0] for file in storage.list_files(self._uri)}:
            if name.startswith(LOCAL_CHECKPOINT) and name != keep:
                storage.remove(storage.join(self._uri, name))
