"""All uses of Ray's private API in this project, with the reason for each.

They were written for Ray 2.60. `tests/infra/runtime/test_ray_compat.py` fails if another version of Ray lacks a class or argument
that is used here. In this case, find it in Ray's source code at the path that the docstring gives, and adapt this file.
No other file of the project imports a module of Ray with `_private`, `_internal` or `.v2.` in its name.
"""

import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import ray.train.torch
from ray._private.services import canonicalize_bootstrap_address
from ray._private.state import available_resources_per_node, state
from ray.data._internal.cluster_autoscaler.default_cluster_autoscaler_v2 import _NodeResourceSpec
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.train import WorkerGroupError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import DEFAULT_PREEMPTION_DEADLINE_S
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision
from ray.train.v2._internal.util import time_monotonic

from infra.errors import Interrupted
from infra.runtime.cluster import alive_nodes

GROW_SECONDS = 60.0
"""Seconds after a start of the workers in which no workers are added."""
PREEMPTION_SECONDS = DEFAULT_PREEMPTION_DEADLINE_S
"""Seconds after which Ray Train restarts a training if a node will be preempted and no deadline is known."""
RETRY_SECONDS = 1.0
"""Seconds between two checks of the nodes while they have no room for the smallest number of workers."""


def running_head() -> str | None:
    """Return the address, HOST:PORT, of the Ray head that this machine last started or joined. None if there is none.

    This is the address that `ray.init("auto")` takes (ray/_private/services.py, `canonicalize_bootstrap_address`).
    """
    return canonicalize_bootstrap_address("auto")


def preemption_deadline() -> float | None:
    """Return when a node of the training in whose worker this is called will be preempted.

    The public `ray.train.get_preemption_info` makes all workers wait for each other and for an actor: 3.6 ms a call. The training
    loop checks for a notice before each step, and exchanges the answers of all workers anyway. So here each worker only reads the
    notice that Ray Train has sent to it (ray/train/v2/_internal/execution/worker_group/worker.py, `mark_preempt`).

    Returns:
        The earliest deadline of all such nodes, in seconds since the epoch, or infinity if Ray knows none; None if all stay.
    """
    info = get_train_context().preemption_context.preemption_info
    if info is None:
        return None
    return math.inf if info.deadline_ms is None else float(info.deadline_ms) / 1000


class Elastic(ElasticScalingPolicy):
    """A scaling policy of Ray Train that starts as many training workers as the alive nodes have room for.

    Only nodes with the labels in Ray's ScalingConfig are used. The policy also reports the number of workers to the driver.

    It replaces Ray's own policy (ray/train/v2/_internal/execution/scaling_policy/elastic.py), which asks a coordinator actor for
    resources. That coordinator ignores node labels, learns of a dead node up to 20 s late, and keeps the resources of a killed
    driver's run for 3 minutes. This policy looks at the nodes instead. It adds workers only just after a checkpoint, when a
    restart loses no finished training steps.
    """

    def __init__(self, scaling_config: ray.train.ScalingConfig, queue: Any) -> None:
        """Create a policy that reports the number of workers. It sends nothing yet.

        Args:
            scaling_config: smallest and largest number of workers, and the resources and node labels of each.
            queue: handle of a `ReportQueue` actor, which passes messages to the driver. When the number of workers changes, the
                message {"workers": N} is put there. N is 0 while the training waits for nodes.
        """
        super().__init__(scaling_config)
        self._queue = queue
        self._waiting = False
        self._start_failed = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Record whether the last attempt to start workers failed. Ray Train's controller calls this when its state changes.

        Args:
            previous_state: unused.
            current_state: the new state of the controller. Ray's ReschedulingState means that a start failed.
        """
        self._start_failed = isinstance(current_state, ReschedulingState)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Decide how many workers to start while none are running. Ray Train's controller calls this until some are started.

        The number is reported to the driver. If there is no room for the smallest number of workers, 0 is reported, and this
        waits for a second (RETRY_SECONDS) before it returns.

        Returns:
            Ray's ResizeDecision with the number of workers to start, or its NoopDecision to start none yet.
        """
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            self._queue.put.remote({"workers": decision.num_workers})
            self._waiting = False
            return decision
        if not self._waiting:
            self._queue.put.remote({"workers": 0})
            self._waiting = True
        time.sleep(RETRY_SECONDS)  # Ray calls this method again at once
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Decide whether to restart the training with more workers. Ray Train's controller calls this regularly.

        The training is restarted if there is room for more workers and a checkpoint has just been saved, but not within
        a minute (GROW_SECONDS) of the last start. The new number of workers is reported to the driver.

        Args:
            worker_group_state: Ray's object with the number of workers and the time of their start.
            worker_group_status: Ray's object with the status and the last report of each worker.

        Returns:
            Ray's ResizeDecision with the new number of workers, or its NoopDecision to change nothing.
        """
        self._maybe_send_resource_request()  # makes an autoscaling cluster add nodes
        reports = [status.training_report for status in worker_group_status.worker_statuses.values()]
        saved = any(report is not None and report.checkpoint is not None for report in reports)
        now = worker_group_state.num_workers
        if not saved or now == self.scaling_config.max_workers or time_monotonic() < worker_group_state.start_time + GROW_SECONDS:
            return NoopDecision()
        could = min(now + self._count_possible_workers(self._room(free=True)), self.scaling_config.max_workers)
        if could == now:
            return NoopDecision()
        self._queue.put.remote({"workers": could})
        return self._get_resize_decision(could)

    def _get_reserved_resources(self) -> dict[str, dict[str, float]]:
        """Return the resources that new workers may use. This overrides a method of Ray.

        Normally these are all resources of the nodes, even those in use, because a dead run that still holds some will release
        them soon. After a failed start they are only the free ones, because other work holds the rest.

        Returns:
            For each node id, the amounts of resources by name ("CPU", "GPU" and others).
        """
        return self._room(free=self._start_failed)

    def _room(self, free: bool) -> dict[str, dict[str, float]]:
        """Return the resources of the alive nodes on which training workers may run, without those that will be preempted.

        Args:
            free: True to include only free resources, False to include also those in use.

        Returns:
            For each node id, the amounts of resources by name ("CPU", "GPU" and others).
        """
        leaving = state.get_draining_nodes()
        alive = alive_nodes(self.scaling_config.label_selector)
        nodes = {node["NodeID"]: node["Resources"] for node in alive if node["NodeID"] not in leaving}
        if not free:
            return nodes
        return {node: resources for node, resources in available_resources_per_node().items() if node in nodes}


class WorkerStartCallback(WorkerGroupCallback):
    """A Ray Train callback that lets a stop request end the wait for resources, and works around two bugs of Ray.

    Ray waits for resources for the workers, indefinitely if other jobs hold the CPUs. This callback reports the wait to the
    driver, and ends it if the driver requests a stop or has died.

    It works around two bugs in ray/train/v2/_internal/execution/worker_group/worker_group.py, `_start_impl`. If a worker dies
    during the start, Ray does not release the resources of the others, so new workers never get any. And if the error of another
    worker (such as a lost connection) arrives before that of the dead worker, Ray gives up the training. The callback must be the
    first in the list of callbacks.
    """

    def __init__(self, queue: Any, report: bool) -> None:
        """Store where messages go.

        Args:
            queue: handle of the `ReportQueue` actor, which passes messages and the stop request between the driver and the run.
            report: whether to send the message {"workers": N} when workers have started, and {"workers": 0} while there is no
                room for them. False if the scaling policy does this.
        """
        self._queue, self._report = queue, report
        self._count = 0
        self._group: Any = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Watch a start of the workers, which takes place inside this context manager. Ray Train calls this.

        Raises:
            WorkerGroupError: if an error in a worker made the start fail. Ray then starts the workers again.
            Interrupted: if the driver requested a stop, or has died. This ends the training.
        """
        self._group = None
        try:
            yield
        except WorkerGroupStartupTimeoutError:
            self._send(0)
            self._check_stop()
            raise
        except Exception as error:
            if self._group is not None:
                self._group.shutdown()
            if isinstance(error, RayTaskError):
                raise WorkerGroupError("the workers did not start", {0: error}) from error
            raise

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Remember the number of workers. Ray Train calls this before it looks for room for them.

        Args:
            worker_group_context: Ray's object with the number of workers.
        """
        self._count = worker_group_context.num_workers

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Remember the group of workers. Ray Train calls this when their processes run, before they connect to each other.

        Args:
            worker_group: Ray's object for the group of workers.

        Raises:
            Interrupted: if the driver requested a stop, or has died. This ends the training.
        """
        self._group = worker_group
        self._check_stop()
        self._send(self._count)

    def _send(self, workers: int) -> None:
        """Report to the driver how many workers run, if this callback is to report it."""
        if self._report:
            self._queue.put.remote({"workers": workers})

    def _check_stop(self) -> None:
        """Raise Interrupted if the driver requested a stop, or has died. While its queue is out of reach, the start continues."""
        try:
            stop = ray.get(self._queue.stop_requested.remote())
        except ActorUnavailableError:
            stop = False
        except ActorDiedError:
            stop = True
        if stop:
            raise Interrupted("stopped before the workers ran")


@contextmanager
def map_retries(**limit: int) -> Iterator[dict[str, Any]]:
    """Provide keyword arguments for `ray.data.Dataset.map` that limit how often a row is retried after its process died.

    By default Ray Data retries a row indefinitely (-1 in ray/data/_internal/remote_fn.py for tasks, and in
    ray/data/_internal/execution/operators/actor_pool_map_operator.py for actors). A row that kills every process would then
    keep the job running for ever. Two arguments of `map` change this: `ray_remote_args` and `ray_remote_args_fn`. Ray 2.60
    deprecates both and announces their removal in 2.64, but it has no replacement yet (ray/data/dataset.py).

    Args:
        **limit: largest number of retries of a row, as `max_retries` for tasks or as `max_task_retries` for actors.

    Yields:
        The keyword arguments, to be used inside the `with` block. Ray's deprecation warnings are suppressed there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield {"ray_remote_args_fn": lambda: limit}


class LabelledNodesCallback(ExecutionCallback):
    """A Ray Data callback by which a job asks an autoscaler only for nodes like those that have the job's labels.

    While the CPUs are busy, Ray Data asks the autoscaler for one more node of every node shape (CPUs, GPUs, memory) that the
    cluster has (ray/data/_internal/cluster_autoscaler/default_cluster_autoscaler_v2.py, `try_trigger_scaling`):

    * Without a label selector, a CPU job therefore adds GPU nodes.
    * With one (`ExecutionOptions.label_selector`), it asks for every shape with the job's labels. Node groups without these
      labels can't provide their shape, so the autoscaler ignores the whole request (ray/autoscaler/v2/scheduler.py,
      `_enforce_resource_constraints`).

    With this callback, Ray Data asks only for the shapes of alive nodes that have the labels. If there is no such node yet, the
    autoscaler adds the first one for the pending task.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Restrict the shapes of nodes that a job requests. Ray Data calls this once for each job.

        Args:
            executor: Ray Data's executor.
        """
        if labels := executor._data_context.execution_options.label_selector:
            executor._cluster_autoscaler._get_node_counts = partial(_worker_shapes, labels)


def _worker_shapes(labels: Mapping[str, str]) -> dict[Any, int]:
    """Count the alive nodes that have some labels, without the head node, by their shape (CPUs, GPUs, memory)."""
    workers = (node["Resources"] for node in alive_nodes(labels) if "node:__internal_head__" not in node["Resources"])
    return dict(Counter(_NodeResourceSpec.from_bundle(resources) for resources in workers))


class ElasticTrainer(ray.train.torch.TorchTrainer):
    """A TorchTrainer that uses the scaling policy `Elastic` if the number of workers may change during training.

    It also leaves out Ray's placement group cleaner, an actor that frees the workers' resources if Ray Train's controller has
    died. Ray frees them anyway when the driver ends. The cleaner queries Ray's dashboard every second, but a Ray that is started
    for a single run has no dashboard.

    Ray chooses the policy and the cleaner in private methods (ray/train/v2/api/data_parallel_trainer.py), which are overridden
    here.
    """

    def __init__(self, queue: Any, *args: Any, **options: Any) -> None:
        """Create the trainer.

        Args:
            queue: handle of a `ReportQueue` actor, which passes messages to the driver. The number of workers is reported there
                when it changes.
            *args: positional arguments of TorchTrainer.
            **options: keyword arguments of TorchTrainer.
        """
        super().__init__(*args, **options)
        self._queue = queue

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        """Run Ray Train's controller, with the scaling policy `Elastic` if the number of workers may change.

        Args:
            **options: keyword arguments of Ray Train's controller.

        Returns:
            The result of the training, as Ray's method returns it.
        """
        if self.scaling_config.elasticity_enabled:
            options["scaling_policy"] = Elastic(self.scaling_config, self._queue)
        return super()._initialize_and_run_controller(**options)

    def _create_default_callbacks(self) -> list[Any]:
        """Return the training's callbacks: first a `WorkerStartCallback`, then Ray's own without its placement group cleaner."""
        usual = super()._create_default_callbacks()
        first = WorkerStartCallback(self._queue, report=not self.scaling_config.elasticity_enabled)
        return [first, *(c for c in usual if not isinstance(c, PlacementGroupCleanerCallback))]
