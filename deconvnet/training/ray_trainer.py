"""Running a training stage on Ray Train.

The training is distributed over several workers by DDP, with NCCL on GPUs and gloo on CPUs. Each worker makes its own batches.
If a worker or its node dies, Ray Train restarts the training from the last checkpoint, with the same number of workers. If
`compute.min_workers` is set, it continues with as many workers as the remaining nodes have resources for.

The driver (the process that calls `train_on_ray`) checks the settings, starts the run, logs the workers' reports and waits.
When it is interrupted by Ctrl-C, SIGTERM or `ray job stop`, it asks the workers to stop. They save a checkpoint first.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.train
import ray.train.torch

from deconvnet.settings import ComputeSettings
from deconvnet.training.data.dataloader import BatchPlan
from deconvnet.training.data.examples import Examples
from deconvnet.training.job import TrainingJob, log_step_seconds, progress_line
from deconvnet.training.ray_callbacks import ReportForwarder
from deconvnet.training.ray_worker import train_worker
from deconvnet.training.trainer import Diverged
from infra import storage
from infra.errors import Interrupted, UserError, find_user_error
from infra.memory import SINGLE_ARENA_ENV
from infra.runtime.cluster import actor_slots, alive_nodes, can_autoscale, check_nodes
from infra.runtime.interrupts import caught_signals
from infra.runtime.ray_compat import ElasticTrainer
from infra.runtime.report_queue import ReportQueue
from infra.settings import ClusterSettings

POLL_SECONDS = 0.2
"""Seconds between two checks of the workers by Ray Train's controller, and of the message queue by the driver.

Ray's default of 2 s would delay every report.
"""
PREEMPTION_POLL_SECONDS = 1.0
"""Seconds between two checks for nodes that will be preempted. Ray's default of 5 s would use up part of a short notice."""
PLACEMENT_SECONDS = 20
"""Timeout in seconds for the resources of the workers. Ray Train then reports that they are missing, and tries again."""
_STOPPED = "interrupted while waiting for resources for the workers: the same command resumes from the last checkpoint"
COLLECTIVE_SECONDS = 600
"""Longest time in seconds that a worker waits for the others in a collective operation. Writing a checkpoint takes less."""

logger = logging.getLogger(__name__)


def train_on_ray(
    job: TrainingJob,
    *,
    cluster: ClusterSettings | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a training stage on Ray and save the trained network in the model folder `job.out_uri`.

    Ray must be running. This function waits for the end of the training and logs its progress. A run that was interrupted is
    resumed from its newest complete checkpoint. It does not matter whether this function or `train_locally` saved the
    checkpoint.

    Args:
        job: description of the training stage.
        cluster: settings with the labels of the nodes on which workers may run. None for any node.
        callbacks: Ray Train callbacks, which run in the controller process. They must not raise errors.
        should_stop: function that is called regularly in this process. If it returns True, the workers save a checkpoint and
            stop.

    Returns:
        The results by name: the attributes of `interfaces.TrainingResult`, such as "steps" and "dev_mean_iou".

    Raises:
        UserError: if the settings, the cluster or the data are not suitable, or the loss diverges.
        Interrupted: if the training was stopped. The same call resumes it from the last checkpoint.
    """
    compute, cluster = job.compute, cluster or ClusterSettings()
    job.check(compute.workers, compute.min_workers)
    check_resources(compute, cluster)
    plan, dev = job.batch_plan(compute.workers), job.dev_examples()
    _set_ray_train_variables()
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # a queue on another node could die with that node
    queue = ray.remote(ReportQueue).options(num_cpus=0, label_selector=here).remote()
    trainer = _ray_trainer(job, plan, dev, queue, cluster.selector("training_nodes"), callbacks)
    job.log_plan(plan)
    try:
        found = _Run(job, trainer, queue, job.settings.total_steps(plan.steps_per_epoch)).wait(should_stop)
    finally:
        ray.kill(queue)
    log_step_seconds(found["step_seconds"])
    return found


def check_resources(compute: ComputeSettings, cluster: ClusterSettings) -> None:
    """Check that Ray has the CPUs and GPUs for the smallest permitted number of workers, or may get them later.

    If the resources are missing now but the cluster may grow, a message is logged which says that the run waits for them.

    Args:
        compute: settings of the training workers: their number, and the CPUs and GPUs of each.
        cluster: settings with the labels of the nodes on which workers may run.

    Raises:
        UserError: if this cluster can never have the resources.
    """
    fits = actor_slots(cluster.selector("training_nodes"), compute.cpus_per_worker, 1 if compute.gpu else 0)
    if fits >= _fewest_workers(compute):
        return
    check_nodes(cluster, "training_nodes")
    what = f"{_needed_workers(compute)} (Ray has resources for {fits})"
    if not can_autoscale(cluster) and len(alive_nodes()) == 1:
        raise UserError(
            f"compute requests {what}: lower compute.workers or compute.cpus_per_worker"
            + (", or set compute.gpu to false" if compute.gpu else "")
        )
    logger.info(f"  waiting for resources for {what}")


def _fewest_workers(compute: ComputeSettings) -> int:
    """Return the smallest number of workers with which a training may run."""
    return compute.workers if compute.min_workers is None else compute.min_workers


def _needed_workers(compute: ComputeSettings) -> str:
    """Describe the workers that a training needs to run, for a message: "2 training workers of 1 CPU each"."""
    each = f"{compute.cpus_per_worker} CPU{'s' * (compute.cpus_per_worker > 1)}" + (" and a GPU" if compute.gpu else "")
    workers = _fewest_workers(compute)
    return f"{workers} training workers of {each} each" if workers > 1 else f"a training worker of {each}"


def _set_ray_train_variables() -> None:
    """Set environment variables that configure Ray Train. Variables that the user has set stay as they are.

    The variables set how often Ray Train checks its workers and how often it checks for nodes that will be preempted. With a
    single node, this second check is disabled. They also set how long Ray Train waits for resources before it reports that they
    are missing.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", str(PREEMPTION_POLL_SECONDS))
    if len(ray.nodes()) == 1:  # if this node is preempted, the driver ends with it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
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
        plan: plan of the global batches (the examples of each optimiser step).
        dev: the examples to evaluate on; None for no evaluation.
        queue: handle of the Ray actor of class `ReportQueue`. It takes the run's messages to the driver, and stop requests to
            the run.
        nodes: Ray labels that a node must have for workers to run on it; None or {} for any node.
        callbacks: further Ray Train callbacks.
    """
    compute = job.compute
    filesystem, path = storage.filesystem(storage.absolute(job.checkpoints_uri))
    return ElasticTrainer(
        queue,
        train_worker,
        train_loop_config={"job": job, "plan": plan, "dev": dev, "queue": queue},
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
            worker_runtime_env={"env_vars": SINGLE_ARENA_ENV},
        ),
    )


class _Run:
    """The driver's side of a Ray Train run. It starts the run in a thread, logs its messages, and stops it on request.

    The driver is the process that calls `train_on_ray`.
    """

    def __init__(self, job: TrainingJob, trainer: ElasticTrainer, queue: Any, total_steps: int) -> None:
        """Prepare the run without starting it.

        Args:
            job: description of the training stage.
            trainer: the Ray trainer to run.
            queue: handle of the Ray actor of class `ReportQueue`. It takes the run's messages to the driver, and stop requests
                to the run.
            total_steps: largest number of steps, which is shown in the log.
        """
        self._job, self._trainer, self._queue, self._total_steps = job, trainer, queue, total_steps
        self._value: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._workers: int | None = None

    def wait(self, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Start the run, log its messages and wait for its end.

        SIGINT and SIGTERM are caught meanwhile. The first one makes the workers save a checkpoint and stop. A second one raises
        KeyboardInterrupt. If the first one comes too late to stop them, it takes effect at the end of the run.

        Args:
            should_stop: called regularly. If it returns True, the workers are asked to stop.

        Returns:
            The dictionary that the worker of rank 0 returned, with the results by name.

        Raises:
            UserError: if the run failed for a reason that the user can change, such as wrong data or a full disk.
            Diverged: (a UserError) if the loss became infinite or NaN.
            Interrupted: if the training was stopped, or a stop was requested while no workers were running.
            Exception: any other error of Ray Train.
        """
        thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)  # in the main thread Ray would catch Ctrl-C
        requested = False
        with caught_signals() as caught:
            thread.start()
            while thread.is_alive():
                self._log_messages()  # first, as they say whether workers run
                if (caught or should_stop()) and not requested:
                    if self._workers != 0:
                        what = "the workers finish their step and leave a checkpoint" if self._workers else "no workers run yet"
                        logger.info(f"  stopping: {what} (again to stop at once)")
                    self._queue.request_stop.remote()
                    requested = True
                if requested and self._workers == 0:
                    raise Interrupted(_STOPPED)
                thread.join(POLL_SECONDS)
            self._log_messages()
            return self._result()  # raises within the block; otherwise `caught_signals` would send the caught signal again

    def _result(self) -> dict[str, Any]:
        """Return what the worker of rank 0 returned, or raise the error with which the run ended (see `wait`)."""
        if self._error is not None:
            if isinstance(getattr(self._error, "controller_failure", None), Interrupted):
                raise Interrupted(_STOPPED) from self._error
            raise _user_error(self._error, self._job.checkpoints_uri) from self._error
        if "interrupted" in self._value:
            raise Interrupted(self._value["interrupted"])
        if "diverged" in self._value:
            raise Diverged(self._value["diverged"])
        return self._value

    def _fit(self) -> None:
        """Run the Ray trainer to its end. This runs in a thread.

        The return value of the worker of rank 0, or the error, is stored in this object.
        """
        try:
            self._value = dict(self._trainer.fit().return_value)
        except BaseException as error:
            self._error = error

    def _log_messages(self) -> None:
        """Take all messages from the run's message queue and log them.

        They are metrics, failures of workers, notices of nodes that will be preempted, and changes of the number of workers.
        """
        for message in ray.get(self._queue.take.remote()):
            if "failed" in message:
                reasons = "; ".join(f"worker {rank}: {reason}" for rank, reason in message["failed"].items()) or "no reason known"
                logger.info(f"  workers failed ({reasons}); Ray Train restarts them from the last checkpoint, or gives up")
            elif "leaving" in message:
                logger.info(f"  a node will be preempted in {message['leaving']:.0f} s: a checkpoint was saved")
            elif "workers" in message:
                self._log_workers(message["workers"])
            else:
                logger.info(f"  {progress_line(message, self._total_steps)}")

    def _log_workers(self, workers: int) -> None:
        """Log the number of workers if it has changed. Without `min_workers` it is logged only after a wait for resources.

        Args:
            workers: number of workers that run now; 0 while there are no resources for them.
        """
        compute = self._job.compute
        before, self._workers = self._workers, workers
        if workers == 0 != before:
            logger.info(f"  workers: none yet; waiting for free resources for {_needed_workers(compute)}")
        elif workers not in (0, before) and (compute.min_workers is not None or before is not None):
            logger.info(f"  workers: {workers}")


def _user_error(error: BaseException, checkpoints_uri: str) -> BaseException:
    """Find the cause of a failed run that the user can do something about.

    Args:
        error: the error that Ray Train raised.
        checkpoints_uri: folder of the checkpoints (local or in a bucket), which may be on a full disk.

    Returns:
        The UserError that made a worker or Ray Train's controller fail, or a UserError about a full disk. If there is neither,
        `error` itself.
    """
    for failure in (*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", error)):
        cause = getattr(failure, "_base_exc", failure)
        if user_error := find_user_error(cause):
            return user_error
        if storage.is_full(cause):
            return storage.disk_user_error(cause, checkpoints_uri) or error
    return error
