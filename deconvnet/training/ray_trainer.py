"""Running a training stage on Ray Train.

The training is distributed over several workers by DDP, with NCCL on GPUs and gloo on CPUs. Each worker makes its own batches.
If a worker or its node dies, Ray Train restarts all workers from the last checkpoint. It starts the same number again. With
`compute.min_workers` it starts as many as there is room for.

The driver (the process that calls `train_on_ray`) checks the settings, starts the run, logs the workers' reports and waits.
When it is interrupted by Ctrl-C, SIGTERM or `ray job stop`, it asks the workers to stop. They save a checkpoint first.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from deconvnet.models import checkpoint
from deconvnet.settings import ComputeSettings
from deconvnet.training.dataloader import BatchPlan, DevSet, Examples
from deconvnet.training.interfaces import State
from deconvnet.training.job import TrainingJob, progress_line, run_job
from deconvnet.training.local_trainer import LOCAL_CHECKPOINT
from deconvnet.training.ray_dataloader import ray_data_config
from deconvnet.training.trainer import Diverged, rank_and_world_size
from infra import storage
from infra.errors import Interrupted, UserError, find_user_error
from infra.runtime.cluster import actor_slots, can_autoscale, check_nodes, live_nodes
from infra.runtime.interrupts import caught_signals
from infra.runtime.ray_compat import ElasticTrainer
from infra.runtime.report_queue import ReportQueue, StopFlag

POLL_SECONDS = 0.2
"""Seconds between two looks of Ray Train's controller at the workers, and of the driver at the report queue.

Ray's default of 2 s would delay every report.
"""
PLACEMENT_SECONDS = 20
"""Seconds that workers wait for their promised resources, if their number may change. Then the nodes are counted again."""
COLLECTIVE_SECONDS = 600
"""Seconds that a worker waits for the others in a collective operation. Writing a checkpoint takes less."""

logger = logging.getLogger(__name__)


def train_on_ray(
    job: TrainingJob,
    *,
    nodes: Mapping[str, str] | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a training stage on Ray and save the trained network in the model folder `job.out_uri`.

    Ray must be running. This function waits for the end of the training and logs its progress. A run that was interrupted is
    resumed from its newest complete checkpoint. It does not matter whether this function or `train_locally` saved the
    checkpoint.

    Args:
        job: description of the training stage.
        nodes: Ray labels of the nodes that workers may run on; None or {} for any node.
        callbacks: Ray Train callbacks, which run in the controller process. They must not raise errors.
        should_stop: called regularly in the driver. If it returns True, the workers save a checkpoint and stop.

    Returns:
        The results by name: "steps", "epochs", "dev_mean_iou" and "best_dev_mean_iou". See `Outcome`.

    Raises:
        UserError: if the settings, the cluster or the data are not suitable, or the loss diverges.
        Interrupted: if the training was stopped. The same call resumes it from the last checkpoint.
    """
    compute = job.compute
    job.check(compute.workers, compute.min_workers)
    check_resources(compute, nodes)
    plan, dev = job.batch_plan(compute.workers), job.dev_examples()
    _set_ray_train_variables(compute)
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # on another node the queue could die with it
    queue = ray.remote(ReportQueue).options(num_cpus=0, label_selector=here).remote()
    trainer = _ray_trainer(job, plan, dev, queue, nodes, callbacks)
    job.log_plan(plan)
    try:
        found = _Run(job, trainer, queue, job.total_steps(plan)).wait(should_stop)
    finally:
        ray.kill(queue)
    if "interrupted" in found:
        raise Interrupted(found["interrupted"])
    if "diverged" in found:
        raise Diverged(found["diverged"])
    return found


def check_resources(compute: ComputeSettings, nodes: Mapping[str, str] | None = None) -> None:
    """Check that Ray has the CPUs and GPUs for the smallest permitted number of workers, or may get them later.

    If the run has to wait for resources, this is logged.

    Args:
        compute: settings with the number of workers and their resources.
        nodes: Ray labels of the nodes that workers may run on; None or {} for any node.

    Raises:
        UserError: if this Ray can never have the resources.
    """
    workers = compute.min_workers or compute.workers
    fits = actor_slots(nodes or {}, compute.cpus_per_worker, 1 if compute.gpu else 0)
    if fits >= workers:
        return
    check_nodes(nodes or {}, "cluster.training_nodes")
    each = f"{compute.cpus_per_worker} CPU{'s' * (compute.cpus_per_worker > 1)}" + (" and a GPU" if compute.gpu else "")
    what = f"room for {workers} training workers of {each} each (Ray has it for {fits})"
    if not can_autoscale() and len(live_nodes()) == 1:
        raise UserError(
            f"compute requests {what}: lower compute.workers or compute.cpus_per_worker"
            + (", or set compute.gpu to false" if compute.gpu else "")
        )
    logger.info(f"  waiting for {what}")


def _set_ray_train_variables(compute: ComputeSettings) -> None:
    """Set environment variables that configure Ray Train. Variables that the user has set stay as they are.

    Args:
        compute: settings of the training processes.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))
    if len(ray.nodes()) == 1:  # if this node is preempted, the driver ends with it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if compute.min_workers is not None:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACEMENT_SECONDS))


def _ray_trainer(
    job: TrainingJob,
    plan: BatchPlan,
    dev: Examples | None,
    queue: Any,
    nodes: Mapping[str, str] | None,
    callbacks: Sequence[ray.train.UserCallback],
) -> ElasticTrainer:
    """Make the Ray trainer for a job, without starting it.

    Args:
        job: description of the training stage.
        plan: plan of the global batches.
        dev: the dev examples; None for no evaluation.
        queue: handle of a `ReportQueue` actor that connects the run with the driver.
        nodes: Ray labels of the nodes that workers may run on; None or {} for any node.
        callbacks: further Ray Train callbacks.
    """
    compute = job.compute
    filesystem, path = storage.filesystem(storage.absolute(job.checkpoints_uri))
    return ElasticTrainer(
        queue,
        _worker,
        train_loop_config={"job": job, "dev": dev, "queue": queue},
        # CPU tensors (counts, the stop flag) are always summed by gloo, so that they don't wait for the GPU.
        torch_config=ray.train.torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if compute.gpu else "gloo", timeout_s=COLLECTIVE_SECONDS
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.workers if compute.min_workers is None else (compute.min_workers, compute.workers),
            label_selector=dict(nodes) if nodes else None,
            use_gpu=compute.gpu,
            resources_per_worker={"CPU": compute.cpus_per_worker, **({"GPU": 1} if compute.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=job.run_name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=[ReportForwarder(queue), *callbacks],
        ),
        datasets={"train": plan},
        dataset_config=ray_data_config(max(1, compute.cpus_per_worker - 1)),
    )


class ReportForwarder(ray.train.UserCallback):
    """A Ray Train callback that puts rank 0's metrics, and the reasons of failures, into the report queue.

    Its methods never raise errors, because Ray would then retry without end.
    """

    def __init__(self, queue: Any) -> None:
        """Store the queue.

        Args:
            queue: handle of a `ReportQueue` actor.
        """
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Put rank 0's metrics into the queue. Ray Train's controller calls this after every `ray.train.report`.

        Args:
            run_context: unused.
            metrics: metrics of each rank.
            checkpoint: unused.
        """
        self._queue.put.remote(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Put the reasons of failures into the queue. Ray Train's controller calls this when workers have failed.

        Args:
            run_context: unused.
            worker_exceptions: the errors by rank. The last line of each message is used, shortened to 200 characters.
        """
        reasons = {
            rank: str(error).strip().splitlines()[-1][:200] for rank, error in worker_exceptions.items() if str(error).strip()
        }
        self._queue.put.remote({"failed": reasons})


class ReportCallback(ray.train.UserCallback):
    """A Ray Train callback that passes rank 0's metrics to a function."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Store the function.

        Args:
            report: function that takes the metrics by name. It is called in the controller process, and must return at once and
                never raise errors.
        """
        self._report = report

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass rank 0's metrics to the function. Ray Train's controller calls this after every `ray.train.report`.

        Args:
            run_context: unused.
            metrics: metrics of each rank.
            checkpoint: unused.
        """
        if metrics:
            self._report(metrics[0])


class _Run:
    """The driver's side of a Ray Train run: it starts the run in a thread, logs its messages, and stops it on request."""

    def __init__(self, job: TrainingJob, trainer: ElasticTrainer, queue: Any, total_steps: int) -> None:
        """Prepare the run without starting it.

        Args:
            job: description of the training stage.
            trainer: the Ray trainer.
            queue: handle of the `ReportQueue` actor that the run puts its messages in.
            total_steps: largest number of steps, which is shown in the log.
        """
        self._job, self._trainer, self._queue, self._total_steps = job, trainer, queue, total_steps
        self._value: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._workers: int | None = None

    def wait(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Start the run, log its messages and wait for its end.

        SIGINT and SIGTERM are caught meanwhile. The first one makes the workers save a checkpoint and stop; a second one raises
        KeyboardInterrupt.

        Args:
            should_stop: called regularly. If it returns True, the workers are asked to stop.

        Returns:
            The return value of rank 0's `_worker`.

        Raises:
            UserError: if a mistake of the user made the run fail.
            Interrupted: if a stop was requested while no workers were running.
        """
        thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)  # in the main thread Ray would catch Ctrl-C
        requested = False
        with caught_signals() as caught:
            thread.start()
            while thread.is_alive():
                if (caught or should_stop()) and not requested:
                    logger.info("  stopping: the workers finish their step and leave a checkpoint (again to stop at once)")
                    self._queue.request_stop.remote()
                    requested = True
                if requested and self._workers == 0:
                    raise Interrupted("interrupted while waiting for nodes: the same command resumes from the last checkpoint")
                self._log_messages()
                thread.join(POLL_SECONDS)
            self._log_messages()
        if self._error is not None:
            raise _user_error(self._error, self._job.checkpoints_uri) from self._error
        return self._value

    def _fit(self) -> None:
        """Run the trainer to its end. The result or the error is stored in this object, because this runs in a thread."""
        try:
            self._value = dict(self._trainer.fit().return_value)
        except BaseException as error:
            self._error = error

    def _log_messages(self) -> None:
        """Log all messages in the report queue: metrics, failures, and changes of the number of workers."""
        for message in ray.get(self._queue.take.remote()):
            if "failed" in message:
                reasons = "; ".join(f"worker {rank}: {reason}" for rank, reason in message["failed"].items())
                logger.info(f"  workers failed ({reasons}); Ray Train restarts them from the last checkpoint, or gives up")
            elif "workers" in message:
                self._workers = message["workers"]
                logger.info(f"  workers: {self._workers or 'none yet; waiting for nodes to train on'}")
            else:
                logger.info(f"  {progress_line(message, self._total_steps)}")


def _user_error(error: BaseException, checkpoints_uri: str) -> BaseException:
    """Find the cause of a failed run that the user can do something about.

    Args:
        error: the error that Ray Train raised.
        checkpoints_uri: folder of the checkpoints, which may be on a full disk.

    Returns:
        The UserError that made a worker or the controller fail, or a UserError about a full disk. If there is neither, `error`
        itself.
    """
    for failure in (*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", error)):
        cause = getattr(failure, "_base_exc", failure)
        if user_error := find_user_error(cause):
            return user_error
        if storage.is_full(cause):  # checkpoints for S3 are first written to a temporary folder
            folder = tempfile.gettempdir() if storage.is_s3(checkpoints_uri) else checkpoints_uri
            return storage.disk_user_error(cause, folder) or error
    return error


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train as one rank of a Ray Train run. This runs in a worker process.

    Rank 0 saves the checkpoints and the trained network.

    Args:
        config: the `TrainingJob` as "job", the dev examples or None as "dev", and the handle of the `ReportQueue` actor as
            "queue".

    Returns:
        The fields of `Outcome` by name. If training was stopped or diverged, the key "interrupted" or "diverged" with the error
        message instead.
    """
    job: TrainingJob = config["job"]
    dev: Examples | None = config["dev"]
    _quieten_ray()
    rank, world_size = rank_and_world_size()
    torch.set_num_threads(job.compute.threads or job.compute.cpus_per_worker)

    def report(metrics: dict[str, float], state: State | None) -> None:
        """Report metrics to Ray Train, on rank 0 with a checkpoint if there is a training state to save."""
        if rank or state is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save_state(folder, state.tensors, state.values)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    try:
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
    """Load the newer of Ray Train's last checkpoint and the last checkpoint of `train_locally`.

    Args:
        job: description of the training stage.

    Returns:
        The training state with more steps, or None if there is no checkpoint.
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
