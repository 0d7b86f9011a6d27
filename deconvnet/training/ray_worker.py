"""The function that each worker of a training run on Ray Train runs."""

import logging
import math
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any

import cv2
import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from deconvnet.models import checkpoint
from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.data.examples import Examples
from deconvnet.training.distributed import broadcast_state, rank_and_world_size
from deconvnet.training.interfaces import State
from deconvnet.training.job import TrainingJob, run_job
from deconvnet.training.trainer import Diverged
from infra import storage
from infra.errors import Interrupted
from infra.memory import keep_freed_memory
from infra.runtime.ray_compat import PREEMPTION_SECONDS, preemption_deadline
from infra.runtime.report_queue import StopFlag


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank of a Ray Train run.

    This runs in a worker process. Rank 0 saves the checkpoints and the trained network.

    Args:
        config: a dictionary with the keys "job" (the `TrainingJob`), "plan" (the `BatchPlan`, for any number of workers), "dev"
            (the examples to evaluate on, or None) and "queue" (handle of the Ray actor of class `ReportQueue`, which tells
            whether the driver wants the run to stop).

    Returns:
        The results by name: "steps", "epochs", "dev_mean_iou", "best_dev_mean_iou" and "step_seconds". If training was stopped or
        diverged, only the key "interrupted" or "diverged" with the error message.

    Raises:
        UserError: if the weights or the checkpoint to start from don't fit the network, or an example can't be decoded.
    """
    job: TrainingJob = config["job"]
    plan: BatchPlan = config["plan"]
    dev: Examples | None = config["dev"]
    _quieten_ray()
    rank, world_size = rank_and_world_size()
    torch.set_num_threads(job.compute.worker_threads)
    cv2.setNumThreads(1)  # the loader already decodes examples in several threads
    device = ray.train.torch.get_device()
    loader = BatchLoader(
        plan.for_workers(world_size), rank, max(1, job.compute.cpus_per_worker - 1), own_process=device.type == "cuda"
    )

    saved = checkpoint.newest_state(job.run_uri) if rank == 0 else None
    preemption = PreemptionPolicy(preemption_deadline, lambda seconds: config["queue"].put.remote({"leaving": seconds}))
    checkpoints = RayCheckpoints(job.run_uri, preemption)
    try:
        with keep_freed_memory():
            outcome = run_job(
                job,
                loader,
                DevSet(dev, rank, world_size) if dev else None,
                device,
                state=broadcast_state(State(*saved) if saved else None),
                report=checkpoints.report if rank == 0 else lambda metrics, state: ray.train.report(metrics),
                should_stop=StopFlag(config["queue"]) if rank == 0 else lambda: False,
                should_save=preemption.should_save if rank == 0 else lambda: False,
            )
    except Interrupted as stopped:
        return {"interrupted": str(stopped)}
    except Diverged as error:  # not raised, because a restart would diverge again
        return {"diverged": str(error)}
    return asdict(outcome)


class PreemptionPolicy:
    """Decides when to save checkpoints after Ray's notice that a node of the training will be preempted.

    The first checkpoint is saved right after the notice, and training continues. The last one is started early enough to be
    complete before the deadline. Then training waits for Ray to restart it, because further steps would be lost.
    """

    MARGIN_SECONDS = 2.0

    def __init__(
        self,
        deadline: Callable[[], float | None],
        on_notice: Callable[[float], None],
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Store the functions. Nothing is checked yet.

        Args:
            deadline: returns the time, by `clock`, at which a node will be preempted: infinity if the time is not known, None if
                no node will be preempted.
            on_notice: called once, after the first checkpoint was saved, with the seconds that are left.
            clock: returns the time in seconds.
            sleep: waits for some seconds.
        """
        self._deadline, self._on_notice, self._clock, self._sleep = deadline, on_notice, clock, sleep
        self._calls: deque[float] = deque(maxlen=3)
        self._noticed_at: float | None = None
        self._saved = False  # since the notice
        self._saving_seconds = 0.0

    def seconds_left(self) -> float | None:
        """Return the seconds until a node is preempted and Ray restarts the training. None if there is no notice."""
        deadline, now = self._deadline(), self._clock()
        if deadline is None:
            return None
        if self._noticed_at is None:
            self._noticed_at = now
        return (self._noticed_at + PREEMPTION_SECONDS if math.isinf(deadline) else deadline) - now

    def should_save(self) -> bool:
        """Return whether a checkpoint must be saved after the next step. This is called before each step."""
        self._calls.append(self._clock())
        left = self.seconds_left()
        return left is not None and (not self._saved or 0 < left <= self._reserve())

    def on_saved(self, seconds: float) -> None:
        """Record that a checkpoint was saved. If it was the last one before the deadline, wait until Ray ends this process.

        Args:
            seconds: how long it took to save the checkpoint.
        """
        left = self.seconds_left()
        if left is None:
            return
        if not self._saved:
            self._on_notice(left)
        self._saved, self._saving_seconds = True, seconds
        if 0 < left <= self._reserve():
            self._sleep(left + self.MARGIN_SECONDS)  # Ray ends this process meanwhile

    def _reserve(self) -> float:
        """Return how many seconds before the deadline the last checkpoint must begin, by the faster of the last two steps."""
        step = min((after - before for before, after in pairwise(self._calls)), default=0.0)
        return 2 * (step + self._saving_seconds) + self.MARGIN_SECONDS


class RayCheckpoints:
    """Reports rank 0's metrics and checkpoints to Ray Train.

    The training waits only until a checkpoint's tensors are copied in memory. A thread of Ray Train then writes the copy. The
    memory of the copy is reused, because filling new memory takes far longer. So before the next copy is made, the training waits
    until the previous one was written.
    """

    def __init__(self, run_uri: str, preemption: PreemptionPolicy) -> None:
        """Prepare to report. Nothing is written yet.

        Args:
            run_uri: folder of the run's checkpoints (local or in a bucket), which is Ray Train's experiment folder.
            preemption: tells whether a node will be preempted. If so, the training waits until each checkpoint was written.
        """
        self._run_uri, self._preemption = run_uri, preemption
        self._copy: dict[str, Tensor] = {}
        self._writing = threading.Lock()

    def report(self, metrics: dict[str, float], state: State | None) -> None:
        """Report metrics and, if there is a training state to save, a checkpoint.

        Args:
            metrics: the metrics by name.
            state: the training state. Its tensors may change after this call.
        """
        modes = ray.train.CheckpointUploadMode
        if state is None:  # a synchronous report would wait until the asynchronous one before it has been uploaded
            ray.train.report(metrics, checkpoint_upload_mode=modes.ASYNC if self._writing.locked() else modes.SYNC)
            return
        self._writing.acquire()
        waits = self._preemption.seconds_left() is not None
        kept = state if waits else self._copied(state)
        started = time.monotonic()
        ray.train.report(
            metrics,
            # Ray requires a local folder. It stays empty, because `_write` writes the state itself. Ray deletes it.
            checkpoint=ray.train.Checkpoint.from_directory(tempfile.mkdtemp()),
            checkpoint_upload_mode=modes.SYNC if waits else modes.ASYNC,
            checkpoint_upload_fn=partial(self._write, kept),
            delete_local_checkpoint_after_upload=True,
        )
        if waits:
            self._preemption.on_saved(time.monotonic() - started)

    def _copied(self, state: State) -> State:
        """Copy a state's tensors to the memory of the previous copy, on the CPU."""
        for name, tensor in state.tensors.items():
            if name not in self._copy:
                self._copy[name] = torch.empty_like(tensor, device="cpu")
            self._copy[name].copy_(tensor.detach())
        return State({name: self._copy[name] for name in state.tensors}, state.values)

    def _write(self, state: State, folder: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Write a checkpoint. Ray Train calls this, in a thread unless the training waits.

        Args:
            state: the training state.
            folder: unused.
            name: name of the checkpoint's folder, chosen by Ray.

        Returns:
            The checkpoint, in a folder with this name below `run_uri`.
        """
        try:
            checkpoint.save_state(storage.join(self._run_uri, name), state.tensors, state.values)
        finally:
            self._writing.release()
        where = ray.train.get_context().get_storage()
        return ray.train.Checkpoint(where.build_checkpoint_path_from_name(name), where.storage_filesystem)


def _quieten_ray() -> None:
    """Suppress Ray's log messages about each report in this worker."""
    for library in ("", "ray.train"):  # "" is the root logger, for loggers of Ray with other names
        logging.getLogger(library).setLevel(logging.WARNING)
