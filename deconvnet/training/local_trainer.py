"""Running a training stage in this process, without Ray.

The batches, the training loop and the checkpoints are the same as in `ray_trainer`.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import cv2
import torch

from deconvnet.models import checkpoint
from deconvnet.training.data.dataloader import BatchLoader
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.interfaces import State
from deconvnet.training.job import TrainingJob, log_step_seconds, progress_line, run_job
from infra import storage
from infra.memory import keep_freed_memory
from infra.runtime.interrupts import caught_signals
from infra.runtime.local_executor import available_cpus

LOCAL_CHECKPOINT = "step_"
"""Prefix of the names of this module's checkpoint folders. Names of Ray Train's checkpoints begin with `checkpoint_`."""

CHECKPOINT_SECONDS = 300.0
"""Seconds after the last checkpoint at which another one is saved, besides those that the setting `checkpoint_every` requests.

If saving takes long, it is saved later (`CHECKPOINT_SHARE`).
"""

CHECKPOINT_SHARE, CHEAP_SECONDS = 0.05, 1.0
"""Checkpoints that take longer than `CHEAP_SECONDS` may use at most the share `CHECKPOINT_SHARE` of the training time."""

logger = logging.getLogger(__name__)


def train_locally(
    job: TrainingJob,
    *,
    device: torch.device | str | None = None,
    on_report: Callable[[dict[str, float]], None] = lambda metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a training stage in this process and save the trained network in the model folder `job.out_uri`.

    The process computes the whole global batch (all examples of an optimiser step), whatever `job.compute.workers` is. A run
    that was interrupted is resumed from its newest complete checkpoint. It does not matter whether this function or
    `train_on_ray` saved the checkpoint. Progress is logged. A first SIGINT or SIGTERM stops the training as `should_stop` does.

    Args:
        job: description of the training stage.
        device: device to compute on. None: the GPU if there is one, else the CPU.
        on_report: called with the metrics of each report ("step", "epoch", "loss" and others).
        should_stop: called before each step. If it returns True, a checkpoint is saved and training stops.

    Returns:
        The results by name: the attributes of `interfaces.TrainingResult`, such as "steps" and "dev_mean_iou".

    Raises:
        UserError: if the settings or the data are not suitable, or the loss diverges.
        Interrupted: if training was stopped by `should_stop` or a signal.
    """
    job.check(workers=1)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    threads = available_cpus() if job.compute.threads is None else job.compute.threads
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)  # the loader already decodes examples in several threads
    plan = job.batch_plan(workers=1)
    job.log_plan(plan)
    dev_examples = job.dev_examples()
    checkpoints = LocalCheckpoints(job.run_uri)
    state = checkpoints.newest()
    if state:
        logger.info(f"  resumed from the checkpoint of step {state.values['step']:,}")

    def report(metrics: dict[str, float], state: State | None) -> None:
        """Log the metrics, pass them to `on_report`, and save a checkpoint if the training state is given."""
        logger.info(f"  {progress_line(metrics, job.settings.total_steps(plan.steps_per_epoch))}")
        on_report(metrics)
        if state is not None and (stop.is_set or checkpoints.may_save()):
            checkpoints.save(state)

    with keep_freed_memory(), caught_signals() as caught:
        stop = StopLatch(lambda: bool(caught) or should_stop())
        outcome = run_job(
            job,
            BatchLoader(plan, threads=threads, own_process=device.type == "cuda"),
            DevSet(dev_examples, threads=threads) if dev_examples else None,
            device,
            state=state,
            report=report,
            should_stop=stop,
            should_save=lambda: checkpoints.seconds_since_save() >= CHECKPOINT_SECONDS and checkpoints.may_save(),
        )
    log_step_seconds(outcome.step_seconds)
    return asdict(outcome)


class StopLatch:
    """A callable that returns whether the training should stop, and stays True once it was True.

    Attributes:
        is_set: whether a call has returned True. The next checkpoint is then the last one of this process.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        """Store the function that decides.

        Args:
            should_stop: returns True if the training should stop.
        """
        self._should_stop = should_stop
        self.is_set = False

    def __call__(self) -> bool:
        """Return whether the training should stop."""
        self.is_set = self._should_stop() or self.is_set
        return self.is_set


class LocalCheckpoints:
    """The checkpoints of one training run in a single local process. Only the newest one is kept.

    It is not deleted when the training ends. If the pipeline then fails to complete the stage, the next run starts from it.
    """

    def __init__(self, uri: str) -> None:
        """Remember the folder, without reading or writing anything.

        Args:
            uri: folder of the run's checkpoints (local or in a bucket).
        """
        self._uri = uri
        self._saved_at = time.monotonic()
        self._saving_seconds = 0.0

    def newest(self) -> State | None:
        """Load the newest complete checkpoint, no matter whether Ray Train or this class saved it.

        Returns:
            The training state, or None if there is no complete checkpoint.
        """
        found = checkpoint.newest_state(self._uri)
        return State(*found) if found else None

    def seconds_since_save(self) -> float:
        """Return the number of seconds since the last call of `save`, or since this object was made."""
        return time.monotonic() - self._saved_at

    def may_save(self) -> bool:
        """Return whether the last checkpoint was cheap, or took at most `CHECKPOINT_SHARE` of the time since then."""
        return self._saving_seconds <= max(CHEAP_SECONDS, CHECKPOINT_SHARE * self.seconds_since_save())

    def save(self, state: State) -> None:
        """Save a checkpoint in a new subfolder, and delete the checkpoints of fewer steps that this class has saved.

        Those of earlier processes are deleted, too. Checkpoints of more steps are kept: they are of another run, which took over
        the workspace while this one was suspended.

        Args:
            state: the training state.
        """
        started = time.monotonic()
        saved = f"{LOCAL_CHECKPOINT}{state.values['step']:09}"
        checkpoint.save_state(storage.join(self._uri, saved), state.tensors, state.values)
        for name in {file.split("/")[0] for file in storage.list_files(self._uri)}:
            if name.startswith(LOCAL_CHECKPOINT) and name < saved:
                storage.remove(storage.join(self._uri, name))
        self._saved_at = time.monotonic()
        self._saving_seconds = self._saved_at - started
