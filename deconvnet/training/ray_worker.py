"""The function that each worker of a training run on Ray Train runs."""

import logging
import tempfile
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from deconvnet.models import checkpoint
from deconvnet.training.data.dev_set import DevSet
from deconvnet.training.data.examples import Examples
from deconvnet.training.distributed import rank_and_world_size
from deconvnet.training.interfaces import State
from deconvnet.training.job import TrainingJob, run_job
from deconvnet.training.local_trainer import LOCAL_CHECKPOINT
from deconvnet.training.trainer import Diverged
from infra.errors import Interrupted
from infra.memory import freed_memory_is_kept
from infra.runtime.report_queue import StopFlag

logger = logging.getLogger(__name__)


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank of a Ray Train run.

    This runs in a worker process. Rank 0 saves the checkpoints and the trained network.

    Args:
        config: a dictionary with the keys "job" (the `TrainingJob`), "dev" (the examples to evaluate on, or None) and "queue"
            (handle of the Ray actor of class `ReportQueue`, which tells whether the driver wants the run to stop).

    Returns:
        The results by name: "steps", "epochs", "dev_mean_iou", "best_dev_mean_iou" and "step_seconds". If training was stopped or
        diverged, only the key "interrupted" or "diverged" with the error message.

    Raises:
        UserError: if the weights or the checkpoint to start from don't fit the network, or an example can't be decoded.
    """
    job: TrainingJob = config["job"]
    dev: Examples | None = config["dev"]
    _quieten_ray()
    rank, world_size = rank_and_world_size()
    torch.set_num_threads(job.compute.worker_threads)

    def report(metrics: dict[str, float], state: State | None) -> None:
        """Report metrics to Ray Train. If there is a training state to save, rank 0 adds it as a checkpoint."""
        if rank or state is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save_state(folder, state.tensors, state.values)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    try:
        with freed_memory_is_kept():
            outcome = run_job(
                job,
                ray.train.get_dataset_shard("train"),
                DevSet(dev, rank, world_size) if dev else None,
                ray.train.torch.get_device(),
                state=_newest_state(job),
                report=report,
                should_stop=StopFlag(config["queue"]) if rank == 0 else lambda: False,
            )
    except Interrupted as stopped:
        return {"interrupted": str(stopped)}
    except Diverged as error:  # not raised, because a restart would diverge again
        return {"diverged": str(error)}
    return asdict(outcome)


def _newest_state(job: TrainingJob) -> State | None:
    """Load the newest checkpoint of a run: the last one of Ray Train or the last one of `train_locally`.

    Args:
        job: description of the training stage.

    Returns:
        The training state with the larger number of steps, or None if there is no checkpoint.
    """
    states = []
    if (last := ray.train.get_checkpoint()) is not None:
        with last.as_directory() as folder:
            states.append(State(*checkpoint.load_state(folder)))
    if local := checkpoint.newest_state(job.run_uri, LOCAL_CHECKPOINT):
        states.append(State(*local))
    return max(states, key=lambda state: int(state.values["step"]), default=None)


def _quieten_ray() -> None:
    """Suppress Ray's log messages about each report and each execution of a data set in this worker."""
    for library in ("", "ray.train", "ray.data"):  # "" is the root logger, for loggers of Ray with other names
        logging.getLogger(library).setLevel(logging.WARNING)
    # This logger warns that progress bars are off, which is intended.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
